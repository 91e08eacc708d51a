//! Raw system calls and byte moves that never enter a libc function.
//!
//! libzio.so exports `memcpy` and the IO calls; anything here that became a call to one of those would
//! re-enter the hooks. So copies are `rep movsb` (or an SSE loop) in assembly, and system calls are the
//! `syscall` instruction. Soundness: each function is a thin wrapper whose whole contract is the
//! instruction's; the assembly declares every register that it changes and no stack use.

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

/// Copies `len` bytes, forwards; regions must not overlap, or `dst` must lie below `src`.
///
/// # Safety
/// `src` readable and `dst` writable for `len` bytes, or the fault is the program's own.
#[inline]
pub unsafe fn copy_forward(dst: *mut u8, src: *const u8, len: u64) {
    // SAFETY: caller's contract; DF is clear by the ABI. `rep movsb` is fast on every CPU with ERMS.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _,
             options(nostack, preserves_flags));
    }
}

/// Copies `len` bytes from the last to the first, for overlapping moves upwards.
///
/// # Safety
/// As [`copy_forward`].
#[inline]
pub unsafe fn copy_backward(dst: *mut u8, src: *const u8, len: u64) {
    if len == 0 {
        return;
    }
    let last = len - 1;
    // SAFETY: both pointers stay inside the ranges; DF is restored before the block ends.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") dst.wrapping_add(last as usize) => _,
             inout("rsi") src.wrapping_add(last as usize) => _, options(nostack));
    }
}

/// memmove.
///
/// # Safety
/// As [`copy_forward`]; any overlap is fine.
#[inline]
pub unsafe fn copy_overlapping(dst: *mut u8, src: *const u8, len: u64) {
    let (d, s) = (dst as u64, src as u64);
    // SAFETY: forward is right unless dst lies inside [src, src+len).
    unsafe {
        if d > s && d - s < len {
            copy_backward_wide(dst, src, len);
        } else {
            copy_forward(dst, src, len);
        }
    }
}

/// Backwards in blocks: `std; rep movsb` moves a byte a cycle, far slower than forward. Blocks of the
/// distance between the ranges can each go forward, last block first.
unsafe fn copy_backward_wide(dst: *mut u8, src: *const u8, len: u64) {
    let gap = dst as u64 - src as u64;
    let mut left = len;
    // SAFETY: each forward block has length <= gap, so it does not overlap its own source; blocks are
    // taken from the end, so no source byte is overwritten before it was read.
    unsafe {
        if gap < 64 {
            copy_backward(dst, src, len);
            return;
        }
        while left > 0 {
            let n = if left < gap { left } else { gap };
            left -= n;
            copy_forward(dst.wrapping_add(left as usize), src.wrapping_add(left as usize), n);
        }
    }
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
