//! Signal masks: the fault signals stay open in the kernel, while the program sees the mask it asked for.
//!
//! A fault signal that somebody *sends* while the program has it blocked is kept, one of each as the kernel would,
//! and sent again when it is unblocked.
//!
//! Soundness: sets are the program's `sigset_t` (1024 bits, of which the kernel uses the first 64), read by a probe
//! where the kernel would, or local copies. Kept signals are the running thread's own.

use crate::{config, fork, probe, real, sys, tls};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use zio_tracker::thread::Thread;

mod waits;

/// SIGSEGV and SIGBUS as mask bits.
pub const FAULT_BITS: u64 = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1);
const FAULTS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// The program's set without the fault signals; the set itself when there is nothing to take out.
///
/// # Safety
/// `set` is null or a `sigset_t`.
pub unsafe fn stripped(set: *mut c_void, copy: &mut [u64; 16]) -> *mut c_void {
    if set.is_null() || !config::loaded() {
        return set;
    }
    // Of the program's set the kernel reads the first word only.
    let Some(word) = probe::read::<u64>(set as u64) else { return set };
    if word & FAULT_BITS == 0 {
        return set;
    }
    *copy = [0; 16];
    copy[0] = word & !FAULT_BITS;
    copy.as_mut_ptr().cast()
}

/// What a child that shares our memory believes: its parent's books are not its to change. One such child at a time;
/// another one's belief is lost to it.
static CHILD: AtomicU32 = AtomicU32::new(0);
static CHILD_BELIEF: AtomicU64 = AtomicU64::new(0);

/// Fault signals that the program believes to have blocked in this thread. A thread without a record has none.
pub fn belief() -> u64 {
    let child = CHILD.load(Ordering::Relaxed);
    if child != 0 && child == sys::getpid() && fork::in_vfork_child() {
        return CHILD_BELIEF.load(Ordering::Relaxed);
    }
    tls::get().map_or(0, |t| t.believed_mask.load(Ordering::Relaxed))
}

/// Changes it, and lets in what it held back.
pub fn believe(bits: u64) {
    if bits == belief() {
        return;
    }
    if fork::in_vfork_child() {
        CHILD_BELIEF.store(bits, Ordering::Relaxed);
        CHILD.store(sys::getpid(), Ordering::Relaxed);
    } else if let Some(t) = crate::threads::current() {
        t.believed_mask.store(bits, Ordering::Relaxed);
        let_pending_in(t);
    }
}

/// True if the program has blocked this fault signal in the running thread.
pub fn blocked(sig: c_int) -> bool {
    belief() & bit(sig) != 0
}

/// A signal as a mask.
pub fn bit(sig: c_int) -> u64 {
    1 << (sig - 1)
}

/// Bits of `pending` for signals sent to the process are shifted by this much: the kernel, too, has a queue for
/// those and one for each thread's own.
const PROCESS: u32 = 32;

/// Keeps a fault signal that was sent while it is blocked. A second one of its kind is lost, as in the kernel.
///
/// # Safety
/// `info` is a whole `siginfo_t`.
pub unsafe fn keep(t: &Thread, sig: c_int, info: *const libc::siginfo_t) {
    // SAFETY: caller's contract.
    let own = unsafe { (*info).si_code } == libc::SI_TKILL;
    let (flag, Some(slot)) = slot(t, sig, own) else { return };
    if t.signals.pending.load(Ordering::Relaxed) & flag != 0 {
        return;
    }
    for (i, w) in slot.iter().enumerate() {
        // SAFETY: caller's contract: 16 words.
        w.store(unsafe { (info as *const u64).add(i).read() }, Ordering::Relaxed);
    }
    t.signals.pending.fetch_or(flag, Ordering::Relaxed);
}

fn slot(t: &Thread, sig: c_int, own: bool) -> (u64, Option<&[AtomicU64; 16]>) {
    let first = if sig == libc::SIGSEGV { 0 } else { 2 };
    let flag = if own { bit(sig) } else { bit(sig) << PROCESS };
    (flag, t.signals.info.get(first + usize::from(!own)))
}

/// Kept signals of this thread, as a mask.
pub fn pending() -> u64 {
    let p = tls::get().map_or(0, |t| t.signals.pending.load(Ordering::Relaxed));
    (p | p >> PROCESS) & FAULT_BITS
}

/// Takes a kept signal out, the thread's own before the process's.
fn take(t: &Thread, sig: c_int) -> Option<[u64; 16]> {
    for own in [true, false] {
        let (flag, found) = slot(t, sig, own);
        if t.signals.pending.load(Ordering::Relaxed) & flag != 0
            && let Some(slot) = found
        {
            let info = slot.each_ref().map(|w| w.load(Ordering::Relaxed));
            t.signals.pending.fetch_and(!flag, Ordering::Relaxed);
            return Some(info);
        }
    }
    None
}

/// The program ignores the signal from now on: the kernel would drop one that waits.
pub fn drop_pending(sig: c_int) {
    if let Some(t) = tls::get() {
        t.signals.pending.fetch_and(!(bit(sig) | bit(sig) << PROCESS), Ordering::Relaxed);
    }
}

/// Sends the kept signals that `blocked` does not hold back.
fn release(t: &Thread, blocked: u64) {
    for sig in FAULTS {
        while blocked & bit(sig) == 0
            && let Some(info) = take(t, sig)
        {
            sys::requeue(sig, info.as_ptr().cast());
        }
    }
}

/// Lets in the kept signals that the program no longer blocks.
pub fn let_pending_in(t: &Thread) {
    if t.signals.pending.load(Ordering::Relaxed) != 0 {
        release(t, t.believed_mask.load(Ordering::Relaxed));
    }
}

/// For an exec: the kernel's mask becomes the one that the program believes in. Returns what was blocked for that.
pub fn expose() -> u64 {
    let bits = belief();
    if bits != 0 {
        sys::sigmask(libc::SIG_BLOCK, bits);
    }
    bits
}

/// The exec failed.
pub fn hide(bits: u64) {
    if bits != 0 {
        sys::sigmask(libc::SIG_UNBLOCK, bits);
    }
}

/// Changes the mask by `call`, which gets the set for the kernel; 0 is success.
///
/// # Safety
/// `set` and `old` are null, or sets of the program's; `call` fails where one of them cannot be read or written.
pub unsafe fn change_by<R: Copy + PartialEq + Default>(
    how: c_int,
    set: *mut c_void,
    old: *mut c_void,
    call: impl FnOnce(*mut c_void) -> R,
) -> R {
    // SAFETY: caller's contract.
    unsafe {
        if !config::loaded() {
            return call(set);
        }
        let asked = if set.is_null() { 0 } else { probe::read::<u64>(set as u64).unwrap_or(0) };
        let before = belief();
        let mut copy = [0u64; 16];
        let r = call(stripped(set, &mut copy));
        if r != R::default() {
            return r;
        }
        if !old.is_null() {
            *(old as *mut u64) |= before;
        }
        if !set.is_null() {
            let bits = asked & FAULT_BITS;
            believe(match how {
                libc::SIG_BLOCK => before | bits,
                libc::SIG_UNBLOCK => before & !bits,
                _ => bits,
            });
        }
        r
    }
}

/// pthread_sigmask(3): 0, or an errno.
///
/// # Safety
/// `set` and `old` are null, or sets of the program's.
pub unsafe fn change(how: c_int, set: *mut c_void, old: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    unsafe { change_by(how, set, old, |given| real::pthread_sigmask(how, given, old)) }
}

/// Makes a call that waits under a mask of the program's. A kept signal that the mask lets in ends the wait: it is
/// sent while the kernel holds it back, and comes in with the mask.
///
/// # Safety
/// `mask` is null or a `sigset_t`; `call` gets it, or a copy of ours, and touches no elided memory before it waits.
pub unsafe fn under<R>(mask: *mut c_void, call: impl FnOnce(*mut c_void) -> R) -> R {
    let word = if mask.is_null() || !config::loaded() { None } else { probe::read::<u64>(mask as u64) };
    let mut copy = [0u64; 16];
    // SAFETY: caller's contract.
    let given = unsafe { stripped(mask, &mut copy) };
    let before = belief();
    let bits = word.map_or(before, |w| w & FAULT_BITS);
    let due = pending() & !bits;
    if (bits == before && due == 0) || fork::in_vfork_child() {
        return call(given);
    }
    let Some(t) = crate::threads::current() else { return call(given) };
    if due != 0 {
        sys::sigmask(libc::SIG_BLOCK, due);
        release(t, bits);
    }
    t.believed_mask.store(bits, Ordering::Relaxed);
    let r = call(given);
    t.believed_mask.store(before, Ordering::Relaxed);
    if due != 0 {
        sys::sigmask(libc::SIG_UNBLOCK, due);
    }
    let_pending_in(t);
    r
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// pthread_sigmask(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_sigmask(how: c_int, set: *mut c_void, old: *mut c_void) -> c_int {
    // SAFETY: forwarded.
    unsafe { change(how, set, old) }
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
