//! Signal masks: the fault signals stay open in the kernel, while the program sees the mask it asked for.
//!
//! Soundness: sets are the program's `sigset_t` (1024 bits, of which the kernel uses the first 64) or local copies.

use crate::{config, real, tls};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};

/// SIGSEGV and SIGBUS as mask bits.
pub const FAULT_BITS: u64 = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1);

/// The program's set without the fault signals; the set itself when there is nothing to take out.
///
/// # Safety
/// `set` is null or a `sigset_t`.
pub unsafe fn stripped(set: *mut c_void, copy: &mut [u64; 16]) -> *mut c_void {
    if set.is_null() || !config::loaded() {
        return set;
    }
    // SAFETY: caller's contract; 128 bytes.
    let words = unsafe { (set as *const [u64; 16]).read() };
    if words[0] & FAULT_BITS == 0 {
        return set;
    }
    *copy = words;
    copy[0] &= !FAULT_BITS;
    copy.as_mut_ptr().cast()
}

/// Fault signals that the program believes to have blocked in this thread. A thread without a record has none: the
/// record comes with its first operation.
fn believed() -> Option<&'static AtomicU64> {
    tls::get().map(|t| &t.believed_mask)
}

/// True if the program has blocked this fault signal in the running thread.
pub fn blocked(sig: c_int) -> bool {
    believed().is_some_and(|b| b.load(Ordering::Relaxed) & (1 << (sig - 1)) != 0)
}

unsafe fn change(how: c_int, set: *mut c_void, old: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        if !config::loaded() {
            return real::pthread_sigmask(how, set, old);
        }
        let asked = if set.is_null() { 0 } else { *(set as *const u64) };
        if asked & FAULT_BITS != 0 {
            let _ = crate::threads::current();
        }
        let before = believed().map_or(0, |b| b.load(Ordering::Relaxed));
        let mut copy = [0u64; 16];
        let given = stripped(set, &mut copy);
        let r = real::pthread_sigmask(how, given, old);
        if r != 0 {
            return r;
        }
        if !set.is_null()
            && let Some(b) = believed()
        {
            let bits = asked & FAULT_BITS;
            let after = match how {
                libc::SIG_BLOCK => before | bits,
                libc::SIG_UNBLOCK => before & !bits,
                _ => bits,
            };
            b.store(after, Ordering::Relaxed);
        }
        if !old.is_null() {
            *(old as *mut u64) |= before;
        }
        0
    }
}

/// pthread_sigmask(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_sigmask(how: c_int, set: *mut c_void, old: *mut c_void) -> c_int {
    // SAFETY: forwarded.
    unsafe { change(how, set, old) }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// sigprocmask(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigprocmask(how: c_int, set: *mut c_void, old: *mut c_void) -> c_int {
    // SAFETY: forwarded; errno as libc sets it.
    unsafe {
        match change(how, set, old) {
            0 => 0,
            e => {
                *__errno_location() = e;
                -1
            }
        }
    }
}

/// sigsuspend(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigsuspend(mask: *mut c_void) -> c_int {
    let mut copy = [0u64; 16];
    // SAFETY: the program's call.
    unsafe { real::sigsuspend(stripped(mask, &mut copy)) }
}

/// ppoll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(f: *mut c_void, n: u64, t: *mut c_void, mask: *mut c_void) -> c_int {
    let mut copy = [0u64; 16];
    crate::receive::touch(f as u64, n.saturating_mul(8));
    // SAFETY: the program's call.
    unsafe { real::ppoll(f, n, t, stripped(mask, &mut copy)) }
}

/// pselect(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pselect(
    n: c_int, r: *mut c_void, w: *mut c_void, x: *mut c_void, t: *mut c_void, mask: *mut c_void,
) -> c_int {
    let mut copy = [0u64; 16];
    // SAFETY: the program's call.
    unsafe { real::pselect(n, r, w, x, t, stripped(mask, &mut copy)) }
}
