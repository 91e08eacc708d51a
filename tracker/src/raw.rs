//! Raw system calls, and byte moves of memory that is not Rust's.
//!
//! libzio.so exports `memcpy` and the IO calls; anything here that became a call to one of those would
//! re-enter the hooks. So system calls are the `syscall` instruction, and copies go to libc's own `memmove`.
//! Soundness: each function is a thin wrapper whose whole contract is the instruction's or libc's; the assembly
//! declares every register that it changes and no stack use.

use crate::sys::Errno;
use core::arch::asm;

/// One system call, with up to six arguments; returns what the kernel returned.
///
/// # Safety
/// The call and its arguments must not break Rust's or the program's memory (as for any system call).
#[inline(always)]
pub unsafe fn syscall6(n: i64, a: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; memory effects are the caller's contract.
    unsafe {
        asm!("syscall", inlateout("rax") n => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _,
             options(nostack));
    }
    ret
}

/// [`syscall6`] with the error split off.
///
/// # Safety
/// As [`syscall6`].
#[inline(always)]
pub unsafe fn call(n: i64, a: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: forwarded contract.
    let r = unsafe { syscall6(n, a) };
    if (-4095..0).contains(&r) { Err(Errno(-r as i32)) } else { Ok(r as u64) }
}

unsafe extern "C" {
    /// libc's. In libzio.so the linker's `--wrap` leads to it past the hook.
    fn memmove(dst: *mut u8, src: *const u8, len: usize) -> *mut u8;
}

/// Copies `len` bytes; any overlap is fine. Not an intrinsic: program memory may change meanwhile, and may fault.
///
/// libc's function rather than `rep movsb`, which takes 30 ns more for the few hundred bytes at a buffer's edge.
///
/// # Safety
/// `src` readable and `dst` writable for `len` bytes, or the fault is the program's own.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: u64) {
    // SAFETY: caller's contract.
    unsafe { memmove(dst, src, len as usize) };
}

/// True if the bytes are equal.
///
/// # Safety
/// Both readable for `len` bytes.
pub unsafe fn equal(a: *const u8, b: *const u8, len: u64) -> bool {
    let words = len / 8;
    let mut i = 0u64;
    // SAFETY: i*8+8 <= len; unaligned reads are allowed by read_unaligned.
    unsafe {
        while i < words {
            let x = a.cast::<u64>().wrapping_add(i as usize).read_unaligned();
            let y = b.cast::<u64>().wrapping_add(i as usize).read_unaligned();
            if x != y {
                return false;
            }
            i += 1;
        }
        let mut k = words * 8;
        while k < len {
            if a.wrapping_add(k as usize).read() != b.wrapping_add(k as usize).read() {
                return false;
            }
            k += 1;
        }
    }
    true
}
