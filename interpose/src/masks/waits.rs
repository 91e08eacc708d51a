//! Calls that wait under a mask, or for signals.
//!
//! Soundness: arguments are the program's, touched before a signal may be held back in the kernel; what is written
//! to them is what the kernel would write.

use super::{FAULTS, bit, pending, take, under};
use crate::receive::touch;
use crate::{config, probe, real, tls};
use core::ffi::{c_int, c_void};

type Ptr = *mut c_void;

/// Bytes of a `struct timespec`.
const TIMESPEC: u64 = 16;
/// Bytes of a `struct pollfd`.
const POLLFD: u64 = 8;
/// Bytes of a `struct epoll_event` on x86-64.
const EPOLL_EVENT: u64 = 12;

/// sigsuspend(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigsuspend(mask: Ptr) -> c_int {
    // SAFETY: the program's call.
    unsafe { under(mask, |m| real::sigsuspend(m)) }
}

/// ppoll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(f: Ptr, n: u64, t: Ptr, mask: Ptr) -> c_int {
    touch(f as u64, n.saturating_mul(POLLFD));
    touch(t as u64, TIMESPEC);
    // SAFETY: the program's call.
    unsafe { under(mask, |m| real::ppoll(f, n, t, m)) }
}

/// Fortified ppoll: an overflow is libc's to report.
#[unsafe(no_mangle)]
unsafe extern "C" fn __ppoll_chk(f: Ptr, n: u64, t: Ptr, mask: Ptr, len: usize) -> c_int {
    // SAFETY: the program's call; on an overflow libc aborts before it looks at the rest.
    unsafe { if len as u64 / POLLFD < n { real::ppoll_chk(f, n, t, mask, len) } else { ppoll(f, n, t, mask) } }
}

/// pselect(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pselect(n: c_int, r: Ptr, w: Ptr, x: Ptr, t: Ptr, mask: Ptr) -> c_int {
    let bytes = (n.max(0) as u64).div_ceil(64) * 8;
    for set in [r, w, x] {
        touch(set as u64, bytes);
    }
    touch(t as u64, TIMESPEC);
    // SAFETY: the program's call.
    unsafe { under(mask, |m| real::pselect(n, r, w, x, t, m)) }
}

/// epoll_wait(2), which has no mask.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(e: c_int, v: Ptr, n: c_int, t: c_int) -> c_int {
    touch(v as u64, n.max(0) as u64 * EPOLL_EVENT);
    // SAFETY: the program's call.
    unsafe { real::epoll_wait(e, v, n, t) }
}

/// epoll_pwait(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_pwait(e: c_int, v: Ptr, n: c_int, t: c_int, mask: Ptr) -> c_int {
    touch(v as u64, n.max(0) as u64 * EPOLL_EVENT);
    // SAFETY: the program's call.
    unsafe { under(mask, |m| real::epoll_pwait(e, v, n, t, m)) }
}

/// epoll_pwait2(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_pwait2(e: c_int, v: Ptr, n: c_int, t: Ptr, mask: Ptr) -> c_int {
    touch(v as u64, n.max(0) as u64 * EPOLL_EVENT);
    touch(t as u64, TIMESPEC);
    // SAFETY: the program's call.
    unsafe { under(mask, |m| real::epoll_pwait2(e, v, n, t, m)) }
}

/// sigpending(2): with the signals that we keep.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigpending(set: Ptr) -> c_int {
    touch(set as u64, 8);
    // SAFETY: the program's call; the kernel has just written the first word.
    unsafe {
        let r = real::sigpending(set);
        if r == 0 && config::loaded() {
            *(set as *mut u64) |= pending();
        }
        r
    }
}

/// The first kept signal of a set, taken out.
fn kept(set: Ptr, info: Ptr) -> Option<c_int> {
    if !config::loaded() {
        return None;
    }
    touch(set as u64, 8);
    touch(info as u64, size_of::<libc::siginfo_t>() as u64);
    if pending() == 0 {
        return None;
    }
    let (t, word) = (tls::get()?, probe::read::<u64>(set as u64)?);
    let mut sigs = FAULTS;
    sigs.sort_unstable();
    for sig in sigs {
        if word & bit(sig) != 0
            && let Some(mut words) = take(t, sig)
        {
            if !info.is_null() {
                // Second word, low half: the code. libc reports SI_TKILL as SI_USER here.
                if words[1] as u32 as c_int == libc::SI_TKILL {
                    words[1] &= !0xffff_ffff;
                }
                // SAFETY: the program's siginfo_t: 16 words.
                unsafe { (info as *mut [u64; 16]).write(words) };
            }
            return Some(sig);
        }
    }
    None
}

/// sigwait(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigwait(set: Ptr, sig: *mut c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        if let Some(s) = kept(set, core::ptr::null_mut()) {
            *sig = s;
            return 0;
        }
        real::sigwait(set, sig.cast())
    }
}

/// sigwaitinfo(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigwaitinfo(set: Ptr, info: Ptr) -> c_int {
    // SAFETY: the program's call.
    unsafe { kept(set, info).unwrap_or_else(|| real::sigwaitinfo(set, info)) }
}

/// sigtimedwait(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigtimedwait(set: Ptr, info: Ptr, t: Ptr) -> c_int {
    touch(t as u64, TIMESPEC);
    // SAFETY: the program's call.
    unsafe { kept(set, info).unwrap_or_else(|| real::sigtimedwait(set, info, t)) }
}

/// pthread_attr_setsigmask_np(3): a thread may not start with the fault signals blocked.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_attr_setsigmask_np(attr: Ptr, mask: Ptr) -> c_int {
    let mut copy = [0u64; 16];
    // SAFETY: the program's call; libc copies the set.
    unsafe { real::pthread_attr_setsigmask_np(attr, super::stripped(mask, &mut copy)) }
}
