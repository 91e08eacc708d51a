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

use crate::masks::{self, FAULT_BITS, bit};
use crate::sys::{self, KernelAction};
use crate::{TRACKER, real, threads, tls};
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zio_tracker::fault::Fault;
use zio_tracker::lock::Lock;
use zio_tracker::stats::Counter;
use zio_tracker::thread::Thread;

mod actions;
mod historic;
mod jumps;
mod stacks;

pub use actions::{execing, not_execed, raw_sigaction};
pub use stacks::{handed_over_by, sigaltstack};

const SIGNALS: usize = 65;
const SA_RESTORER: u64 = 0x0400_0000;
/// Bytes of a `siginfo_t`.
const SIGINFO: usize = 128;

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

/// The kernel's `ucontext_t` on x86-64, as far as it is used.
#[repr(C)]
pub struct UContext {
    flags: u64,
    link: u64,
    stack: sys::StackT,
    registers: [u64; 13],
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    eflags: u64,
    segments: u64,
    err: u64,
    rest: [u64; 12],
    mask: u64,
}

const _: () = assert!(core::mem::offset_of!(UContext, rsp) == 160 && core::mem::offset_of!(UContext, err) == 192);
const _: () = assert!(core::mem::offset_of!(UContext, mask) == 296);

/// libc's restorer: the program sees it in what sigaction gives back, and unwinders know it.
static LIBC_RESTORER: AtomicU64 = AtomicU64::new(0);

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

/// Takes over the fault signals, keeping what was set for them.
pub fn install() -> bool {
    for sig in [libc::SIGSEGV, libc::SIGBUS] {
        let mut old = KernelAction::default();
        if sys::sigaction(sig, None, Some(&mut old)).is_err() {
            return false;
        }
        TABLE.with(|a| {
            let mask = core::array::from_fn(|i| if i == 0 { old.mask } else { 0 });
            put(
                a,
                sig,
                Action { handler: old.handler, mask, flags: old.flags as c_int, pad: 0, restorer: old.restorer },
            );
        });
        if !learn_restorer(sig) || !install_one(sig) {
            return false;
        }
    }
    TRACKER.on_leave.store(let_in as fn(&Thread) as *mut (), Ordering::Release);
    // Blocked by who started us: the program believes it, the kernel must not.
    let blocked = sys::sigmask(libc::SIG_UNBLOCK, FAULT_BITS) & FAULT_BITS;
    if blocked != 0 {
        masks::believe(blocked);
    }
    INSTALLED.store(true, Ordering::Release);
    true
}

/// Lets libc install our handler once, and looks at what it added.
fn learn_restorer(sig: c_int) -> bool {
    let mut ours = Action { handler: on_fault as *const () as u64, flags: libc::SA_SIGINFO, ..DEFAULT };
    // SAFETY: our own structure.
    let r = unsafe { real::sigaction(sig, (&raw mut ours).cast(), core::ptr::null_mut()) };
    let mut seen = KernelAction::default();
    let known = r == 0 && sys::sigaction(sig, None, Some(&mut seen)).is_ok() && seen.restorer != 0;
    LIBC_RESTORER.store(seen.restorer, Ordering::Relaxed);
    known
}

fn install_one(sig: c_int) -> bool {
    let ours = KernelAction {
        handler: on_fault as *const () as u64,
        flags: (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as u64 | SA_RESTORER,
        restorer: LIBC_RESTORER.load(Ordering::Relaxed),
        // No handler of the program's runs while a fault is resolved. The fault signals stay open, and so do the
        // two that libc uses for cancellation and setuid.
        mask: !FAULT_BITS & !(1 << 31) & !(1 << 32),
    };
    sys::sigaction(sig, Some(&ours), None).is_ok()
}

unsafe extern "C" fn on_fault(sig: c_int, info: *mut libc::siginfo_t, context: *mut UContext) {
    // SAFETY: the kernel's frame.
    unsafe {
        let errno = __errno_location();
        let saved = *errno;
        let from_kernel = (*info).si_code > 0;
        if from_kernel {
            let write = (*context).err & 2 != 0;
            let addr = (*info).si_addr() as u64;
            // A thread may touch elided memory before it ever enters a hook: what a fault must remember of it needs
            // a record.
            let t = threads::current();
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
        if from_kernel && crate::probe::recover(context.cast()) {
            *errno = saved;
            return;
        }
        pass_on(sig, info, context, from_kernel);
        *errno = saved;
    }
}

/// The program's own fault, or a signal that somebody sent.
unsafe fn pass_on(sig: c_int, info: *mut libc::siginfo_t, context: *mut UContext, synchronous: bool) {
    let blocked = masks::blocked(sig);
    if blocked && !synchronous {
        if let Some(t) = tls::get() {
            // SAFETY: the kernel's siginfo.
            unsafe { masks::keep(t, sig, info) };
        }
        return;
    }
    let action = TABLE.get(sig);
    let ignored = action.handler == libc::SIG_IGN as u64;
    if ignored && !synchronous {
        return;
    }
    if action.handler == libc::SIG_DFL as u64 || ignored || (synchronous && blocked) {
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
    fire(sig, &action);
    // SAFETY: the kernel's frame; the program's handler.
    unsafe {
        let own = if action.flags & libc::SA_NODEFER != 0 { 0 } else { bit(sig) };
        let mask = ((*context).mask | action.mask[0] | own) & !FAULT_BITS;
        handle(sig, info, context, &action, Some(mask));
    }
}

/// SA_RESETHAND: the action is used up when its handler is called. Its flags and mask stay.
fn fire(sig: c_int, action: &Action) {
    if action.flags & libc::SA_RESETHAND != 0 {
        TABLE.with(|a| put(a, sig, Action { handler: libc::SIG_DFL as u64, ..*action }));
    }
}

/// Calls a handler of the program's. Around it, the mask that it interrupted and the one that it runs with are what
/// the kernel would have made of them; it may change the former in its context.
unsafe fn handle(sig: c_int, info: *mut libc::siginfo_t, context: *mut UContext, action: &Action, mask: Option<u64>) {
    // SAFETY: the kernel's frame; the program's handler.
    unsafe {
        let Some(t) = tls::get() else { return run(None, sig, info, context, action, mask) };
        let own = if action.flags & libc::SA_NODEFER != 0 { 0 } else { bit(sig) };
        let before = t.believed_mask.load(Ordering::Relaxed);
        (*context).mask |= before;
        t.believed_mask.store(before | ((action.mask[0] | own) & FAULT_BITS), Ordering::Relaxed);
        let stack = stacks::show(t, context);
        run(Some(t), sig, info, context, action, mask);
        (*context).stack = stack;
        t.believed_mask.store((*context).mask & FAULT_BITS, Ordering::Relaxed);
        (*context).mask &= !FAULT_BITS;
        masks::let_pending_in(t);
    }
}

/// What a handler interrupts may be a call that the kernel starts again afterwards, past our hook.
unsafe fn run(
    t: Option<&Thread>,
    sig: c_int,
    info: *mut libc::siginfo_t,
    context: *mut UContext,
    action: &Action,
    mask: Option<u64>,
) {
    TRACKER.midway_begins(t);
    // SAFETY: the kernel's frame; the program's handler.
    unsafe { stacks::call(action.handler, action.flags, mask, sig, info, context) };
    TRACKER.midway_ends(t);
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
unsafe extern "C" fn trampoline(sig: c_int, info: *mut libc::siginfo_t, context: *mut UContext) {
    // SAFETY: the kernel's frame.
    unsafe {
        if let Some(t) = tls::get()
            && (t.critical.load(Ordering::Relaxed) != 0 || has_result(t, context))
        {
            defer(t, sig, info, context);
            return;
        }
        let action = TABLE.get(sig);
        if action.flags & libc::SA_RESETHAND != 0 {
            fire(sig, &action);
            let _ = sys::sigaction(sig, Some(&KernelAction::default()), None);
        }
        if action.handler > 1 {
            handle(sig, info, context, &action, None);
        }
    }
}

/// Most bytes between an operation's frame and the stack pointer of its system call, on the way through libc. A
/// handler's frame, and with it a system call of a handler's, is further away.
const NEAR: u64 = 1024;

unsafe extern "C" {
    /// This library's first byte, and one past its last: from the linker.
    static __ehdr_start: u8;
    static _end: u8;
}

/// True when the signal came just as a system call of our operation gave its result. What was received is in a core
/// that nothing names yet: were the handler to jump away now, the bytes would be lost that the program has in its
/// buffer without us.
unsafe fn has_result(t: &Thread, context: *const UContext) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // SAFETY: the kernel's frame.
    let (rax, rip, rsp) = unsafe { ((*context).rax as i64, (*context).rip, (*context).rsp) };
    let base = t.operation();
    if base == 0 || rax <= 0 || base.wrapping_sub(rsp) > NEAR {
        return false;
    }
    let in_here = rip >= &raw const __ehdr_start as u64 && rip < &raw const _end as u64;
    // Code that is being executed.
    !in_here && crate::probe::read::<[u8; 2]>(rip - 2) == Some(SYSCALL)
}

/// The signal interrupted a critical section: it waits, with all others, until the section ends.
unsafe fn defer(t: &Thread, sig: c_int, info: *mut libc::siginfo_t, context: *mut UContext) {
    // SAFETY: the kernel's frame; its mask is what returns to the thread.
    let mask = unsafe { &mut (*context).mask };
    if t.deferred.load(Ordering::Relaxed) == 0 {
        t.saved_mask.store(*mask, Ordering::Relaxed);
        t.deferred.store(1, Ordering::Relaxed);
    }
    *mask = !FAULT_BITS;
    // Under SA_NODEFER it would come in again right here.
    sys::sigmask(libc::SIG_BLOCK, !FAULT_BITS);
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

fn put(table: &mut [Action; SIGNALS], sig: c_int, a: Action) {
    if let Some(slot) = table.get_mut(sig as usize) {
        *slot = a;
    }
}
