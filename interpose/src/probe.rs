//! Reading what the program points at before the kernel does: a bad pointer must be the kernel's to refuse.
//!
//! The copy is one instruction at a known address; the fault handler, when the fault is nobody's, sends it to the
//! label that reports failure. An elided page on the way is resolved like any other touch.
//!
//! Soundness: the assembly touches only the two ranges of its caller; no stack, no callee-saved register.

use core::arch::global_asm;
use core::ffi::c_void;

global_asm!(
    ".text",
    ".balign 16",
    ".hidden zio_probe_copy",
    ".hidden zio_probe_at",
    ".hidden zio_probe_failed",
    ".globl zio_probe_copy",
    ".globl zio_probe_at",
    ".globl zio_probe_failed",
    "zio_probe_copy:",
    "mov rcx, rdx",
    "zio_probe_at:",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "zio_probe_failed:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn zio_probe_copy(dst: *mut c_void, src: u64, len: u64) -> i32;
    fn zio_probe_at();
    fn zio_probe_failed();
}

/// Offset of the instruction pointer in the kernel's `ucontext_t`.
const UC_RIP: u64 = 40 + 16 * 8;

/// Copies `T` from wherever the program says it is; `None` where there is nothing to read.
pub fn read<T: Copy>(at: u64) -> Option<T> {
    let mut out = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: `out` is writable for its size; a bad source is recovered from.
    let r = unsafe { zio_probe_copy(out.as_mut_ptr().cast(), at, size_of::<T>() as u64) };
    // SAFETY: all bytes were written; only used for plain `repr(C)` integers.
    if r == 0 { Some(unsafe { out.assume_init() }) } else { None }
}

/// In the fault handler: if the fault is a probe's, lets the probe fail instead.
///
/// # Safety
/// `context` is the kernel's frame.
pub unsafe fn recover(context: *mut c_void) -> bool {
    // SAFETY: caller's contract.
    let rip = unsafe { &mut *((context as u64 + UC_RIP) as *mut u64) };
    if *rip != zio_probe_at as *const () as u64 {
        return false;
    }
    *rip = zio_probe_failed as *const () as u64;
    true
}
