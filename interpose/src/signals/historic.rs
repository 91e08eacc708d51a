//! signal(2), and the calls of System V and BSD from before sigaction: libc makes them from its own sigaction and
//! sigprocmask, past every hook. Here they are made from ours.
//!
//! Soundness: sets and actions are locals; structures of the program's are read and written as libc would.

use super::actions::sigaction;
use super::stacks::sigaltstack;
use super::{Action, DEFAULT};
use crate::sys::StackT;
use crate::{masks, real};
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

const ERROR: u64 = libc::SIG_ERR as u64;
/// SIG_HOLD of sigset(3).
const HOLD: u64 = 2;
/// One past the last signal.
const END: c_int = 65;

/// Signals whose later handlers do not restart calls: what siginterrupt(3) was asked for.
static INTERRUPTING: AtomicU64 = AtomicU64::new(0);

/// A `sigset_t`, of which 64 bits are in use.
type Set = [u64; 16];

fn set_of(mask: u64) -> Set {
    let mut s = [0; 16];
    s[0] = mask;
    s
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn failed(e: c_int) -> c_int {
    // SAFETY: this thread's errno.
    unsafe { *__errno_location() = e };
    -1
}

/// Sets a handler; the old one, or SIG_ERR.
unsafe fn exchange(sig: c_int, handler: u64, flags: c_int, mask: u64) -> u64 {
    let new = Action { handler, flags, mask: set_of(mask), ..DEFAULT };
    let mut old = DEFAULT;
    // SAFETY: the program's handler; our own structures.
    if unsafe { sigaction(sig, &new, &mut old) } == 0 { old.handler } else { ERROR }
}

/// Changes the running thread's mask; the old one.
unsafe fn change_mask(how: c_int, mask: u64) -> Result<u64, c_int> {
    let (mut set, mut old) = (set_of(mask), set_of(0));
    // SAFETY: our own sets.
    match unsafe { masks::change(how, set.as_mut_ptr().cast(), old.as_mut_ptr().cast()) } {
        0 => Ok(old[0]),
        e => Err(e),
    }
}

/// False, with errno set, for what is no signal, or one that libc keeps to itself.
fn is_signal(sig: c_int) -> bool {
    let fit = (1..END).contains(&sig) && sig != 32 && sig != 33;
    if !fit {
        failed(libc::EINVAL);
    }
    fit
}

unsafe fn simple(sig: c_int, handler: u64, flags: c_int, mask: u64) -> u64 {
    if handler == ERROR || !is_signal(sig) {
        failed(libc::EINVAL);
        return ERROR;
    }
    // SAFETY: the program's call.
    unsafe { exchange(sig, handler, flags, mask) }
}

unsafe fn bsd(sig: c_int, handler: u64) -> u64 {
    let own = if (1..END).contains(&sig) { masks::bit(sig) } else { 0 };
    let flags = if INTERRUPTING.load(Ordering::Relaxed) & own != 0 { 0 } else { libc::SA_RESTART };
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, flags, own) }
}

/// signal(2) with BSD semantics, as glibc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { bsd(sig, handler) }
}

/// The same.
#[unsafe(no_mangle)]
unsafe extern "C" fn bsd_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { bsd(sig, handler) }
}

/// The same.
#[unsafe(no_mangle)]
unsafe extern "C" fn ssignal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { bsd(sig, handler) }
}

/// signal(2) with System V semantics.
#[unsafe(no_mangle)]
unsafe extern "C" fn sysv_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESETHAND | libc::SA_NODEFER, 0) }
}

/// glibc's name of it under -ansi.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sysv_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESETHAND | libc::SA_NODEFER, 0) }
}

/// siginterrupt(3): whether handlers of this signal restart calls, now and when they are set by signal(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn siginterrupt(sig: c_int, interrupt: c_int) -> c_int {
    let mut a = DEFAULT;
    // SAFETY: our own structures.
    unsafe {
        if sigaction(sig, core::ptr::null(), &mut a) != 0 {
            return -1;
        }
        if interrupt != 0 {
            INTERRUPTING.fetch_or(masks::bit(sig), Ordering::Relaxed);
            a.flags &= !libc::SA_RESTART;
        } else {
            INTERRUPTING.fetch_and(!masks::bit(sig), Ordering::Relaxed);
            a.flags |= libc::SA_RESTART;
        }
        sigaction(sig, &a, null_mut())
    }
}

/// sigset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigset(sig: c_int, handler: u64) -> u64 {
    if !(1..END).contains(&sig) {
        failed(libc::EINVAL);
        return ERROR;
    }
    let hold = handler == HOLD;
    // SAFETY: the program's call.
    unsafe {
        let mut before = DEFAULT;
        if !hold {
            let new = Action { handler, ..DEFAULT };
            if sigaction(sig, &new, &mut before) != 0 {
                return ERROR;
            }
        }
        let mask = match change_mask(if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, masks::bit(sig)) {
            Ok(mask) => mask,
            Err(e) => {
                failed(e);
                return ERROR;
            }
        };
        if mask & masks::bit(sig) != 0 {
            return HOLD;
        }
        if hold && sigaction(sig, core::ptr::null(), &mut before) != 0 {
            return ERROR;
        }
        before.handler
    }
}

unsafe fn block_one(how: c_int, sig: c_int) -> c_int {
    if !is_signal(sig) {
        return -1;
    }
    // SAFETY: the program's call.
    match unsafe { change_mask(how, masks::bit(sig)) } {
        Ok(_) => 0,
        Err(e) => failed(e),
    }
}

/// sighold(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sighold(sig: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { block_one(libc::SIG_BLOCK, sig) }
}

/// sigrelse(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigrelse(sig: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { block_one(libc::SIG_UNBLOCK, sig) }
}

/// sigignore(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigignore(sig: c_int) -> c_int {
    // SAFETY: the program's call.
    if unsafe { exchange(sig, libc::SIG_IGN as u64, 0, 0) } == ERROR { -1 } else { 0 }
}

/// The calls of BSD know the first 32 signals.
unsafe fn old_mask(how: c_int, mask: c_int) -> c_int {
    // SAFETY: the program's call.
    match unsafe { change_mask(how, u64::from(mask as u32)) } {
        Ok(before) => before as c_int,
        Err(e) => failed(e),
    }
}

/// sigblock(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigblock(mask: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { old_mask(libc::SIG_BLOCK, mask) }
}

/// sigsetmask(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigsetmask(mask: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { old_mask(libc::SIG_SETMASK, mask) }
}

/// siggetmask(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn siggetmask() -> c_int {
    // SAFETY: the program's call.
    unsafe { old_mask(libc::SIG_BLOCK, 0) }
}

/// Waits under a mask.
unsafe fn suspend(mask: u64) -> c_int {
    let mut set = set_of(mask);
    // SAFETY: our own set; the program's call.
    unsafe { masks::under(set.as_mut_ptr().cast(), |m| real::sigsuspend(m)) }
}

/// sigpause(3) of X/Open: a signal.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xpg_sigpause(sig: c_int) -> c_int {
    if !is_signal(sig) {
        return -1;
    }
    // SAFETY: the program's call.
    match unsafe { change_mask(libc::SIG_BLOCK, 0) } {
        // SAFETY: the same.
        Ok(mask) => unsafe { suspend(mask & !masks::bit(sig)) },
        Err(e) => failed(e),
    }
}

/// sigpause(3) of BSD: a mask.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigpause(mask: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { suspend(u64::from(mask as u32)) }
}

/// What either of them is in older headers.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sigpause(sig_or_mask: c_int, is_sig: c_int) -> c_int {
    // SAFETY: the program's call.
    unsafe { if is_sig != 0 { __xpg_sigpause(sig_or_mask) } else { sigpause(sig_or_mask) } }
}

/// `struct sigvec`.
#[repr(C)]
struct Vector {
    handler: u64,
    mask: c_int,
    flags: c_int,
}

/// Flags of sigvec(3), and what they are for sigaction.
const SV_ONSTACK: c_int = 1;
const SV_INTERRUPT: c_int = 2;
const SV_RESETHAND: c_int = 4;

/// sigvec(3), for programs that were linked before 2014.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigvec(sig: c_int, new: *const Vector, old: *mut Vector) -> c_int {
    // SAFETY: the program's structures; our own.
    unsafe {
        let given = new.as_ref().map(|v| {
            let flag = |bit, flag| if v.flags & bit != 0 { flag } else { 0 };
            let restart = if v.flags & SV_INTERRUPT == 0 { libc::SA_RESTART } else { 0 };
            let flags = flag(SV_ONSTACK, libc::SA_ONSTACK) | flag(SV_RESETHAND, libc::SA_RESETHAND) | restart;
            Action { handler: v.handler, mask: set_of(u64::from(v.mask as u32)), flags, ..DEFAULT }
        });
        let mut before = DEFAULT;
        let r = sigaction(sig, given.as_ref().map_or(core::ptr::null(), |a| a), &mut before);
        if r == 0 && !old.is_null() {
            let flag = |bit, flag| if before.flags & bit != 0 { flag } else { 0 };
            let interrupt = if before.flags & libc::SA_RESTART == 0 { SV_INTERRUPT } else { 0 };
            let flags = flag(libc::SA_ONSTACK, SV_ONSTACK) | flag(libc::SA_RESETHAND, SV_RESETHAND) | interrupt;
            old.write(Vector { handler: before.handler, mask: before.mask[0] as c_int, flags });
        }
        r
    }
}

/// `struct sigstack`.
#[repr(C)]
struct Stack {
    sp: *mut c_void,
    on_stack: c_int,
}

/// sigstack(3): nobody knows its length, and libc, too, says the address.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigstack(new: *const Stack, old: *mut Stack) -> c_int {
    // SAFETY: the program's structures; our own.
    unsafe {
        let given = new.as_ref().map(|s| StackT { sp: s.sp as u64, flags: 0, pad: 0, size: s.sp as u64 });
        let mut before = StackT::default();
        let r = sigaltstack(given.as_ref().map_or(core::ptr::null(), |s| s), &mut before);
        if r == 0 && !old.is_null() {
            let on_stack = c_int::from(before.flags & libc::SS_ONSTACK != 0);
            old.write(Stack { sp: before.sp as *mut c_void, on_stack });
        }
        r
    }
}
