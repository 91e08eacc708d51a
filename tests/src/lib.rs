//! Harnesses that run unmodified programs plainly and under zio, and compare what they do.

pub mod programs;
pub mod redis;
