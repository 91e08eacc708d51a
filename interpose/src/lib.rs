//! libzio.so: the hooks that are preloaded into a program.
//!
//! `no_std`, without an allocator: nothing here may call the program's `malloc`, touch thread-local storage
//! that is allocated lazily, or panic. Each hook is short: is it ours at all (length, page state), a plan from the
//! tracker, the program's own call with other arguments, the books. When anything is unsure the program's call is
//! made as it was.
#![no_std]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unimplemented, clippy::todo)]

use zio_tracker::state::Tracker;
use zio_tracker::sys::linux::Linux;

mod alloc;
mod config;
mod copies;
mod descriptors;
mod fork;
mod init;
mod json;
mod maps;
mod masks;
mod outputs;
mod probe;
mod real;
mod receive;
mod report;
mod send;
mod signals;
mod stdio;
mod sys;
mod threads;
mod tls;

/// The process's tracker.
pub(crate) static TRACKER: Tracker<Linux> = Tracker::new(Linux::new());

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    report::fatal(&[b"zio: internal error, please report\n"])
}

// The compiler refers to these; nothing unwinds here (`panic = "abort"`). Hidden: the program has its own.
core::arch::global_asm!(
    ".text",
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    ".hidden _Unwind_Resume",
    ".globl _Unwind_Resume",
    "_Unwind_Resume:",
    "ud2",
);
