//! The running thread's record, in initial-exec thread-local storage.
//!
//! The default TLS model of a shared library calls `__tls_get_addr`, which may allocate: wrong in a hook of
//! `malloc` and in a signal handler. So the variable is an assembly object addressed through the GOT.
//!
//! Soundness: `zio_thread` is 8 zeroed bytes per thread; only the running thread reads or writes its own.

use core::arch::{asm, global_asm};
use zio_tracker::thread::Thread;

global_asm!(
    ".section .tbss,\"awT\",@nobits",
    ".hidden zio_thread",
    ".globl zio_thread",
    ".type zio_thread, @object",
    ".size zio_thread, 8",
    ".balign 8",
    "zio_thread:",
    ".zero 8",
    ".text",
);

fn slot() -> *mut *const Thread {
    let p: *mut *const Thread;
    // SAFETY: reads the thread pointer and a GOT entry; no memory of Rust's is touched.
    unsafe {
        asm!("mov {p}, qword ptr fs:[0]", "add {p}, qword ptr [rip + zio_thread@gottpoff]", p = out(reg) p,
             options(pure, readonly, nostack));
    }
    p
}

/// The thread's record, if it has one.
#[inline(always)]
pub fn get() -> Option<&'static Thread> {
    // SAFETY: the slot is ours; records live in a mapping that is never unmapped.
    unsafe { (*slot()).as_ref() }
}

/// Gives the running thread its record.
pub fn set(t: &'static Thread) {
    // SAFETY: the slot is this thread's own.
    unsafe { *slot() = t };
}
