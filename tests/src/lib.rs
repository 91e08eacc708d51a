//! Harnesses that run unmodified programs plainly and under zio, and compare what they do.

pub mod large;
pub mod programs;
pub mod redis;
