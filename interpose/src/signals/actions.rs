//! sigaction and its kin: the program's actions, kept whole and given back as the kernel would.
//!
//! Soundness: structures are the program's own arguments, or locals.

use super::{Action, DEFAULT, INSTALLED, LIBC_RESTORER, SA_RESTORER, SIGNALS, TABLE, put, trampoline};
use crate::masks::{self, FAULT_BITS};
use crate::{fork, probe, real, sys, threads};
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

/// The flags that the kernel keeps; it drops others.
const KNOWN_FLAGS: u32 = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT | libc::SA_SIGINFO | libc::SA_ONSTACK) as u32
    | (libc::SA_RESTART | libc::SA_NODEFER | libc::SA_RESETHAND) as u32
    | SA_EXPOSE_TAGBITS;
const SA_EXPOSE_TAGBITS: u32 = 0x800;
/// Never blocked, whatever a mask says.
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// sigaction(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(sig: c_int, new: *const Action, old: *mut Action) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        if !INSTALLED.load(Ordering::Acquire) || !(1..SIGNALS as c_int).contains(&sig) {
            return real::sigaction(sig, new as *mut c_void, old.cast());
        }
        let asked = if new.is_null() { None } else { Some(kept(new.read())) };
        let fault = sig == libc::SIGSEGV || sig == libc::SIGBUS;
        if fork::in_vfork_child() {
            return in_vfork_child(sig, fault, new, old);
        }
        let _ = threads::current();
        let before = if fault { exchange(sig, asked) } else { exchange_other(sig, asked) };
        let Some(before) = before else { return -1 };
        if !old.is_null() {
            *old = before;
        }
        0
    }
}

/// The table is the parent's. What the child sets before it execs is for itself; the fault signals keep our handler,
/// which exec resets.
unsafe fn in_vfork_child(sig: c_int, fault: bool, new: *const Action, old: *mut Action) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        if fault {
            if !old.is_null() {
                *old = TABLE.get(sig);
            }
            return 0;
        }
        let mut copy;
        let mut given = new;
        if !new.is_null() {
            copy = new.read();
            copy.mask[0] &= !FAULT_BITS;
            given = &raw const copy;
        }
        real::sigaction(sig, given as *mut c_void, old.cast())
    }
}

/// An action as the kernel keeps it.
fn kept(a: Action) -> Action {
    let mut k = a;
    k.flags = (a.flags as u32 & KNOWN_FLAGS | SA_RESTORER as u32) as c_int;
    k.restorer = LIBC_RESTORER.load(Ordering::Relaxed);
    k.mask[0] &= !UNBLOCKABLE;
    k
}

/// A fault signal: the kernel keeps our handler.
fn exchange(sig: c_int, asked: Option<Action>) -> Option<Action> {
    let before = TABLE.get(sig);
    if let Some(a) = asked {
        TABLE.with(|t| put(t, sig, a));
        if a.handler == libc::SIG_IGN as u64 {
            masks::drop_pending(sig);
        }
    }
    Some(before)
}

/// Any other signal. `None` with errno set when the kernel refuses.
unsafe fn exchange_other(sig: c_int, asked: Option<Action>) -> Option<Action> {
    let before = TABLE.get(sig);
    let mut seen = DEFAULT;
    let given = asked.map(wrapped);
    let given_ptr = given.as_ref().map_or(core::ptr::null_mut(), |g| g as *const Action as *mut c_void);
    // The table first: the trampoline may run as soon as it is installed.
    if let Some(a) = asked
        && a.handler > 1
    {
        TABLE.with(|t| put(t, sig, a));
    }
    // SAFETY: our own structures.
    if unsafe { real::sigaction(sig, given_ptr, (&raw mut seen).cast()) } != 0 {
        TABLE.with(|t| put(t, sig, before));
        return None;
    }
    if let Some(a) = asked {
        TABLE.with(|t| put(t, sig, a));
    }
    // What libc did itself, or what came before us, the kernel knows.
    let ours =
        seen.handler == trampoline as *const () as u64 || (seen.handler == before.handler && before.restorer != 0);
    Some(if ours { before } else { seen })
}

/// The action that the kernel gets for one of the program's.
fn wrapped(a: Action) -> Action {
    let mut w = a;
    w.mask[0] &= !FAULT_BITS;
    if a.handler > 1 {
        w.handler = trampoline as *const () as u64;
        // SA_RESETHAND is done by the trampoline: a deferred delivery must not use it up.
        w.flags = (a.flags | libc::SA_SIGINFO) & !libc::SA_RESETHAND;
    }
    w
}

/// The call by its number, with the kernel's structures: a bad pointer is an error there.
///
/// # Safety
/// The program's call.
pub unsafe fn raw_sigaction(sig: c_int, new: u64, old: u64) -> c_int {
    let efault = || {
        // SAFETY: this thread's errno.
        unsafe { *__errno_location() = libc::EFAULT };
        -1
    };
    let mut given = DEFAULT;
    if new != 0 {
        let Some(a) = probe::read::<sys::KernelAction>(new) else { return efault() };
        given = Action { handler: a.handler, flags: a.flags as c_int, ..DEFAULT };
        given.mask[0] = a.mask;
    }
    if old != 0 && probe::read::<sys::KernelAction>(old).is_none() {
        return efault();
    }
    let mut before = DEFAULT;
    let new = if new == 0 { core::ptr::null() } else { &raw const given };
    // SAFETY: our own structures; `old` has just been read.
    unsafe {
        let r = sigaction(sig, new, &mut before);
        if r == 0 && old != 0 {
            let flags = u64::from(before.flags as u32);
            let b =
                sys::KernelAction { handler: before.handler, flags, restorer: before.restorer, mask: before.mask[0] };
            (old as *mut sys::KernelAction).write(b);
        }
        r
    }
}

/// For an exec: an ignored fault signal stays ignored in the new program, which would else get the default. Until
/// the exec nothing may fault, so only where no other thread exists. Returns the signals to give back to
/// [`not_execed`].
pub fn execing() -> u64 {
    let mut ignored = 0;
    if INSTALLED.load(Ordering::Acquire) {
        for sig in [libc::SIGSEGV, libc::SIGBUS] {
            if TABLE.get(sig).handler == libc::SIG_IGN as u64
                && zio_tracker::sys::Kernel::single_thread(&crate::TRACKER.kernel)
            {
                ignored |= masks::bit(sig);
                let ignore = sys::KernelAction { handler: libc::SIG_IGN as u64, ..Default::default() };
                let _ = sys::sigaction(sig, Some(&ignore), None);
            }
        }
    }
    ignored
}

/// The exec failed: our handlers come back.
pub fn not_execed(ignored: u64) {
    for sig in [libc::SIGSEGV, libc::SIGBUS] {
        if ignored & masks::bit(sig) != 0 {
            super::install_one(sig);
        }
    }
}
