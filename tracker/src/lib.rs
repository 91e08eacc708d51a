//! What zio knows and does about memory: which program bytes name which core bytes, which pages are elided, how
//! a touch is resolved, and what is worth eliding.
//!
//! `no_std`, without an allocator: all memory is given to [`state::Tracker::init`], every system call goes
//! through [`sys::Kernel`]. The preloaded library (`interpose`) is its user; tests drive it over a fake kernel.
#![no_std]

pub mod addr;
pub mod arena;
mod arming;
pub mod child;
mod compact;
pub mod copy;
pub mod extent_map;
pub mod fault;
mod heal;
pub mod ledger;
mod life;
pub mod lock;
pub mod page_state;
pub mod policy;
pub mod raw;
pub mod receive;
mod rename;
mod send;
pub mod state;
pub mod stats;
pub mod sys;
pub mod thread;
