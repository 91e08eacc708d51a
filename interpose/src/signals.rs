//! Signals: our fault handler, the program's own actions for the fault signals, and a trampoline around every
//! handler of the program's.
//!
//! ```text
//!   SIGSEGV, SIGBUS --> on_fault --> page armed: resolve, return
//!                                \-> the program's own: its handler, as the kernel would call it; or the default
//!   other signals  --> trampoline --> in a critical section: block all, re-queue, return
//!                                 \-> the program's handler
//! ```
//! The program's actions are kept whole in a table and given back verbatim.
//!
//! Soundness: handlers run with the kernel's frame; table entries are copied in and out under a small lock that is
//! held with the thread marked critical, so no handler of the program's can interrupt the holder on its own thread.

use crate::masks::{self, FAULT_BITS};
use crate::sys::{self, KernelAction};
use crate::{TRACKER, config, fork, real, threads, tls};
use core::arch::{global_asm, naked_asm};
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};
use zio_tracker::fault::Fault;
use zio_tracker::lock::Lock;
use zio_tracker::stats::Counter;
use zio_tracker::thread::{SIGNAL_STACK, Thread};

const SIGNALS: usize = 65;
const SA_RESTORER: u64 = 0x0400_0000;

/// glibc's `struct sigaction`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Action {
    handler: u64,
    mask: [u64; 16],
    flags: c_int,
    pad: c_int,
    restorer: u64,
}

const DEFAULT: Action = Action { handler: 0, mask: [0; 16], flags: 0, pad: 0, restorer: 0 };

struct Table {
    lock: Lock,
    actions: UnsafeCell<[Action; SIGNALS]>,
}

// SAFETY: `actions` is reached under `lock` only.
unsafe impl Sync for Table {}

static TABLE: Table = Table { lock: Lock::new(), actions: UnsafeCell::new([DEFAULT; SIGNALS]) };
static INSTALLED: AtomicBool = AtomicBool::new(false);

impl Table {
    fn with<R>(&self, f: impl FnOnce(&mut [Action; SIGNALS]) -> R) -> R {
        let t = tls::get();
        if let Some(t) = t {
            t.enter();
        }
        self.lock.acquire();
        // SAFETY: under the lock.
        let r = f(unsafe { &mut *self.actions.get() });
        self.lock.release();
        if let Some(t) = t
            && t.leave()
        {
            let_in(t);
        }
        r
    }

    fn get(&self, sig: c_int) -> Action {
        self.with(|a| a.get(sig as usize).copied().unwrap_or(DEFAULT))
    }
}

/// In a forked child.
pub fn after_fork() {
    // SAFETY: the only thread of a fresh child.
    unsafe { TABLE.lock.reset() };
}

global_asm!(".text", ".balign 16", ".hidden zio_restorer", "zio_restorer:", "mov eax, 15", "syscall");

unsafe extern "C" {
    fn zio_restorer();
}

/// Takes over the fault signals, keeping what was set for them.
pub fn install() -> bool {
    for sig in [libc::SIGSEGV, libc::SIGBUS] {
        let mut old = KernelAction::default();
        if sys::sigaction(sig, None, Some(&mut old)).is_err() {
            return false;
        }
        TABLE.with(|a| {
            if let Some(slot) = a.get_mut(sig as usize) {
                *slot = Action {
                    handler: old.handler,
                    mask: core::array::from_fn(|i| if i == 0 { old.mask } else { 0 }),
                    flags: (old.flags & !SA_RESTORER) as c_int,
                    pad: 0,
                    restorer: 0,
                };
            }
        });
        if !install_one(sig) {
            return false;
        }
    }
    TRACKER.on_leave.store(let_in as fn(&Thread) as *mut (), Ordering::Release);
    INSTALLED.store(true, Ordering::Release);
    true
}

fn install_one(sig: c_int) -> bool {
    let ours = KernelAction {
        handler: on_fault as *const () as u64,
        flags: (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as u64 | SA_RESTORER,
        restorer: zio_restorer as *const () as u64,
        // No handler of the program's runs while a fault is resolved. The fault signals stay open, and so do the
        // two that libc uses for cancellation and setuid.
        mask: !FAULT_BITS & !(1 << 31) & !(1 << 32),
    };
    sys::sigaction(sig, Some(&ours), None).is_ok()
}

/// Offsets in the kernel's `ucontext_t`: general registers from 40 on (r8 first), the signal mask at 296.
const UC_RSP: usize = 40 + 15 * 8;
const UC_ERR: usize = 40 + 19 * 8;
const UC_MASK: usize = 296;

unsafe extern "C" fn on_fault(sig: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's frame.
    unsafe {
        let errno = __errno_location();
        let saved = *errno;
        let from_kernel = (*info).si_code > 0;
        if from_kernel {
            let write = *((context as u64 + UC_ERR as u64) as *const u64) & 2 != 0;
            let addr = (*info).si_addr() as u64;
            let t = tls::get();
            let inside = t.is_some_and(|t| t.critical.load(Ordering::Relaxed) != 0);
            if !inside {
                match TRACKER.fault(t, addr, write) {
                    Fault::Resolved => {
                        *errno = saved;
                        return;
                    }
                    // Out of memory with nothing to fall back on: the program dies as it would when the kernel
                    // finds no page, by SIGBUS or the OOM killer.
                    Fault::Failed | Fault::Foreign => {}
                }
            }
        }
        if from_kernel && crate::probe::recover(context) {
            *errno = saved;
            return;
        }
        pass_on(sig, info, context, from_kernel);
        *errno = saved;
    }
}

/// The program's own fault, or a signal that somebody sent.
unsafe fn pass_on(sig: c_int, info: *mut libc::siginfo_t, context: *mut c_void, synchronous: bool) {
    let action = TABLE.get(sig);
    let ignored = action.handler == libc::SIG_IGN as u64;
    if ignored && !synchronous {
        return;
    }
    if action.handler == libc::SIG_DFL as u64 || ignored || (synchronous && masks::blocked(sig)) {
        // The default is the end, with a core dump: elided pages would be missing from it.
        dump_ready();
        let default = KernelAction::default();
        let _ = sys::sigaction(sig, Some(&default), None);
        if !synchronous {
            sys::requeue(sig, info.cast());
        }
        // A synchronous fault repeats when this returns, and then the kernel ends the program.
        return;
    }
    if action.flags & libc::SA_RESETHAND != 0 {
        TABLE.with(|a| {
            if let Some(slot) = a.get_mut(sig as usize) {
                *slot = DEFAULT;
            }
        });
    }
    // SAFETY: the kernel's frame; the program's handler.
    unsafe {
        let interrupted = *((context as u64 + UC_MASK as u64) as *const u64);
        let own = if action.flags & libc::SA_NODEFER != 0 { 0 } else { 1u64 << (sig - 1) };
        sys::sigmask(libc::SIG_SETMASK, (interrupted | action.mask[0] | own) & !FAULT_BITS);
        let rsp = *((context as u64 + UC_RSP as u64) as *const u64);
        let here = &raw const interrupted as u64;
        let other_stack = action.flags & libc::SA_ONSTACK == 0 && on_our_stack(here) && !on_our_stack(rsp);
        let f = action.handler;
        if other_stack {
            // Without SA_ONSTACK the program expects the stack that it was on: below its red zone.
            call_on_stack(sig, info.cast(), context, f, (rsp - 128) & !15);
        } else {
            let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = core::mem::transmute(f);
            f(sig, info, context);
        }
    }
}

fn on_our_stack(sp: u64) -> bool {
    let Some(t) = tls::get() else { return false };
    let base = t.stack.load(Ordering::Relaxed);
    base != 0 && sp.wrapping_sub(base) < SIGNAL_STACK
}

/// Calls `f(sig, info, context)` on another stack.
#[unsafe(naked)]
unsafe extern "C" fn call_on_stack(sig: c_int, info: *mut c_void, context: *mut c_void, f: u64, sp: u64) {
    naked_asm!("push rbp", "mov rbp, rsp", "mov rsp, r8", "call rcx", "mov rsp, rbp", "pop rbp", "ret")
}

/// A core dump shows program pages only: brings everything in, unless no core is written.
fn dump_ready() {
    let mut limit = [0u64; 2];
    // SAFETY: our own array.
    let r = unsafe {
        zio_tracker::raw::call(libc::SYS_getrlimit, [libc::RLIMIT_CORE as u64, limit.as_mut_ptr() as u64, 0, 0, 0, 0])
    };
    if r.is_ok() && limit[0] != 0 {
        let _ = TRACKER.withdraw(None);
    }
}

/// Runs instead of every handler of the program's.
unsafe extern "C" fn trampoline(sig: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's frame.
    unsafe {
        if let Some(t) = tls::get()
            && t.critical.load(Ordering::Relaxed) != 0
        {
            defer(t, sig, info, context);
            return;
        }
        let action = TABLE.get(sig);
        if action.flags & libc::SA_RESETHAND != 0 {
            TABLE.with(|a| {
                if let Some(slot) = a.get_mut(sig as usize) {
                    *slot = DEFAULT;
                }
            });
            let _ = sys::sigaction(sig, Some(&KernelAction::default()), None);
        }
        if action.handler > 1 {
            let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = core::mem::transmute(action.handler);
            f(sig, info, context);
        }
    }
}

/// The signal interrupted a critical section: it waits, with all others, until the section ends.
unsafe fn defer(t: &Thread, sig: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's frame; its mask is what returns to the thread.
    let mask = unsafe { &mut *((context as u64 + UC_MASK as u64) as *mut u64) };
    if t.deferred.load(Ordering::Relaxed) == 0 {
        t.saved_mask.store(*mask, Ordering::Relaxed);
        t.deferred.store(1, Ordering::Relaxed);
    }
    *mask = !FAULT_BITS;
    sys::requeue(sig, info.cast());
    TRACKER.count(Some(t), Counter::SignalsDeferred, 1);
}

/// The critical section is over: deferred signals come in.
pub fn let_in(t: &Thread) {
    t.deferred.store(0, Ordering::Relaxed);
    sys::sigmask(libc::SIG_SETMASK, t.saved_mask.load(Ordering::Relaxed));
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// sigaction(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(sig: c_int, new: *const Action, old: *mut Action) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        let ours = INSTALLED.load(Ordering::Acquire) && (1..SIGNALS as c_int).contains(&sig);
        if !ours {
            return real::sigaction(sig, new as *mut c_void, old.cast());
        }
        let fault = sig == libc::SIGSEGV || sig == libc::SIGBUS;
        let asked = if new.is_null() { None } else { Some(new.read()) };
        if fork::in_vfork_child() {
            // The table is the parent's. What the child sets before it execs is for itself; the fault signals
            // keep our handler, and exec resets them.
            return if fault { 0 } else { real::sigaction(sig, new as *mut c_void, old.cast()) };
        }
        let _ = threads::current();
        let before = TABLE.get(sig);
        if !fault {
            let mut seen = DEFAULT;
            let given = asked.map(wrapped);
            let given_ptr = given.as_ref().map_or(core::ptr::null_mut(), |g| g as *const Action as *mut c_void);
            // The table first: the trampoline may run as soon as it is installed.
            if let Some(a) = asked
                && a.handler > 1
            {
                TABLE.with(|t| put(t, sig, a));
            }
            let r = real::sigaction(sig, given_ptr, (&raw mut seen).cast());
            if r != 0 {
                TABLE.with(|t| put(t, sig, before));
                return r;
            }
            if let Some(a) = asked {
                TABLE.with(|t| put(t, sig, a));
            }
            if !old.is_null() {
                *old = if seen.handler == trampoline as *const () as u64 { before } else { seen };
            }
            return 0;
        }
        if let Some(a) = asked {
            TABLE.with(|t| put(t, sig, a));
        }
        if !old.is_null() {
            *old = before;
        }
        0
    }
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

unsafe fn simple(sig: c_int, handler: u64, flags: c_int) -> u64 {
    let mut new = DEFAULT;
    new.handler = handler;
    new.flags = flags;
    if flags & libc::SA_NODEFER == 0 && (1..65).contains(&sig) {
        new.mask[0] = 1 << (sig - 1);
    }
    let mut old = DEFAULT;
    // SAFETY: our own structures.
    if unsafe { sigaction(sig, &new, &mut old) } != 0 { u64::MAX } else { old.handler }
}

/// signal(2) with BSD semantics, as glibc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESTART) }
}

/// The same.
#[unsafe(no_mangle)]
unsafe extern "C" fn bsd_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESTART) }
}

/// signal(2) with System V semantics.
#[unsafe(no_mangle)]
unsafe extern "C" fn sysv_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
}

/// glibc's name of it under -ansi.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sysv_signal(sig: c_int, handler: u64) -> u64 {
    // SAFETY: the program's call.
    unsafe { simple(sig, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
}

/// Smallest stack of the program's that our fault handler is run on.
const ROOMY: u64 = 32 << 10;

/// sigaltstack(2): a small stack of the program's is kept in the books, and ours serves.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigaltstack(new: *const sys::StackT, old: *mut sys::StackT) -> c_int {
    // SAFETY: the program's call; the structures are the program's.
    unsafe {
        let Some(t) = tls::get().filter(|t| config::loaded() && t.stack.load(Ordering::Relaxed) != 0) else {
            return real::sigaltstack(new as *mut c_void, old.cast());
        };
        let p = &t.program_stack;
        let mut view = sys::StackT {
            sp: p[0].load(Ordering::Relaxed),
            flags: p[2].load(Ordering::Relaxed) as i32,
            pad: 0,
            size: p[1].load(Ordering::Relaxed),
        };
        if !new.is_null() {
            let asked = new.read();
            let mut real_old = sys::StackT::default();
            // The kernel checks the arguments, and that no handler is running on the stack that is replaced.
            let r = real::sigaltstack(new as *mut c_void, (&raw mut real_old).cast());
            if r != 0 {
                return r;
            }
            if asked.flags & libc::SS_DISABLE != 0 || asked.size < ROOMY {
                let base = t.stack.load(Ordering::Relaxed);
                let ours = sys::StackT { sp: base, flags: 0, pad: 0, size: SIGNAL_STACK };
                let _ = sys::sigaltstack(Some(&ours), None);
            }
            let disabled = asked.flags & libc::SS_DISABLE != 0;
            p[0].store(if disabled { 0 } else { asked.sp }, Ordering::Relaxed);
            p[1].store(if disabled { 0 } else { asked.size }, Ordering::Relaxed);
            p[2].store(asked.flags as u32 as u64, Ordering::Relaxed);
        }
        if !old.is_null() {
            if view.flags & libc::SS_DISABLE != 0 {
                view.sp = 0;
                view.size = 0;
            }
            *old = view;
        }
        0
    }
}

fn put(table: &mut [Action; SIGNALS], sig: c_int, a: Action) {
    if let Some(slot) = table.get_mut(sig as usize) {
        *slot = a;
    }
}
