//! Stacks of signal handlers: the kernel knows ours, the program sees its own.
//!
//! ```text
//!   our signal stack                          the program's stack (its alternate one, or the interrupted one)
//!   +--------------------------------+
//!   | frame of a fault, our handler  | ------> the program's handler
//!   +--------------------------------+ <- limit        a fault in here
//!   | registered meanwhile           | <-------------- gets its frame here
//!   +--------------------------------+ base
//! ```
//! A program's handler runs where it would without us, but the kernel's frame is on our stack (64 KiB: a page may
//! be resolved on it), and lies there until the handler returns. So for that time only the part below the frame is
//! registered. The frame's own saved stack brings the rest back at its sigreturn; [`jumped`] does after a longjmp.
//!
//! Soundness: stack pointers come from the kernel's frame or the program's own sigaltstack; `away` is the running
//! thread's. The assembly keeps the callee-saved registers and says so to unwinders.

use super::{SIGINFO, UContext};
use crate::{TRACKER, config, fork, real, sys, threads, tls};
use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;
use zio_tracker::addr::Span;
use zio_tracker::thread::{SIGNAL_STACK, Thread};

/// Less of our stack than this is not worth registering: a frame with AVX-512 state is 3.5 KiB, AMX 11.
const ENOUGH: u64 = 16 << 10;
/// Addresses further apart than this are not on one stack.
const STACK_MAX: u64 = 8 << 20;
/// Bytes below the stack pointer that belong to the interrupted function.
const RED_ZONE: u64 = 128;

/// The mask stays what the kernel made it: no mask of ours blocks the fault signals.
const LEAVE: u64 = u64::MAX;

/// A call of a handler of the program's.
#[repr(C)]
pub struct Call {
    /// First, for the assembly: the stack pointer to call it with.
    sp: u64,
    handler: u64,
    sig: c_int,
    /// The mask that it runs with, or [`LEAVE`].
    mask: u64,
    info: *mut libc::siginfo_t,
    context: *mut UContext,
}

global_asm!(
    ".text",
    ".balign 16",
    ".hidden zio_call_on_stack",
    "zio_call_on_stack:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsi, rsp",
    "mov rsp, qword ptr [rdi]",
    "call {off}",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    off = sym off_our_stack,
);

unsafe extern "C" {
    /// Calls `off_our_stack(call, sp)` with `call.sp` as its stack.
    fn zio_call_on_stack(call: *const Call);
}

/// Runs a handler on the stack that the program expects it on.
///
/// # Safety
/// Arguments of a handler that the kernel called; `mask` is set before the program's code runs.
pub unsafe fn call(
    handler: u64,
    flags: c_int,
    mask: Option<u64>,
    sig: c_int,
    info: *mut libc::siginfo_t,
    context: *mut UContext,
) {
    // SAFETY: caller's contract.
    let rsp = unsafe { (*context).rsp };
    let here = &raw const rsp as u64;
    let mut c = Call { sp: 0, handler, sig, mask: mask.unwrap_or(LEAVE), info, context };
    let Some(t) = tls::get() else {
        // SAFETY: caller's contract.
        return unsafe { run(&c) };
    };
    let own = view(t);
    let to_own = flags & libc::SA_ONSTACK != 0 && own.size != 0 && !within(rsp, own.sp, own.size);
    let ours = on_our_stack(t, here) && !on_our_stack(t, rsp);
    if to_own && !on_our_stack(t, rsp) {
        c.sp = (own.sp + own.size) & !15;
    } else if ours {
        c.sp = (rsp - RED_ZONE) & !15;
    }
    // SAFETY: the new stack is the program's own, where the kernel would have put its frame.
    unsafe { if c.sp == 0 { run(&c) } else { zio_call_on_stack(&c) } }
}

unsafe fn run(c: &Call) {
    if c.mask != LEAVE {
        sys::sigmask(libc::SIG_SETMASK, c.mask);
    }
    // SAFETY: the program's handler, called as the kernel would.
    unsafe {
        let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut UContext) = core::mem::transmute(c.handler);
        f(c.sig, c.info, c.context);
    }
}

/// On the new stack; `limit` is where the part of our stack in use ends, if we come from there.
unsafe extern "C" fn off_our_stack(call: *const Call, limit: u64) {
    // SAFETY: the caller's local, which outlives this.
    let c = unsafe { &*call };
    let from_ours = tls::get().filter(|t| on_our_stack(t, limit));
    let depth = from_ours.map(|t| {
        let depth = prune(t, c.sp);
        let base = t.stack.load(Ordering::Relaxed);
        let free = (limit - base) & !15;
        let free = if free >= ENOUGH { free } else { 0 };
        if let Some([sp, left]) = t.signals.away.get(depth as usize) {
            sp.store(c.sp, Ordering::Relaxed);
            left.store(free, Ordering::Relaxed);
            t.signals.depth.store(depth + 1, Ordering::Relaxed);
            register(base, free);
        } else {
            register(base, 0);
        }
        depth
    });
    // SAFETY: the caller's contract.
    unsafe { run(c) };
    if let (Some(t), Some(depth)) = (from_ours, depth) {
        t.signals.depth.store(depth, Ordering::Relaxed);
    }
}

/// Makes the lowest `len` bytes of our stack the alternate stack; none when 0.
fn register(base: u64, len: u64) {
    let flags = if len == 0 { libc::SS_DISABLE } else { 0 };
    let _ = sys::sigaltstack(Some(&sys::StackT { sp: base, flags, pad: 0, size: len }), None);
}

/// Forgets handlers that were left by a jump to a frame at `sp`; returns how many are in progress.
fn prune(t: &Thread, sp: u64) -> u32 {
    let own = view(t);
    let mut depth = t.signals.depth.load(Ordering::Relaxed);
    while let Some([start, _]) = depth.checked_sub(1).and_then(|d| t.signals.away.get(d as usize)) {
        let start = start.load(Ordering::Relaxed);
        let lowest = if own.size != 0 && start.wrapping_sub(own.sp) <= own.size {
            own.sp
        } else {
            start.saturating_sub(STACK_MAX)
        };
        if sp < start && sp >= lowest {
            break;
        }
        depth -= 1;
    }
    t.signals.depth.store(depth, Ordering::Relaxed);
    depth
}

/// The program is about to jump to a frame at `sp`, perhaps out of handlers.
pub fn jumped(t: &Thread, sp: u64) {
    let before = t.signals.depth.load(Ordering::Relaxed);
    if before == 0 || prune(t, sp) == before {
        return;
    }
    let depth = t.signals.depth.load(Ordering::Relaxed);
    let free = match depth.checked_sub(1).and_then(|d| t.signals.away.get(d as usize)) {
        Some([_, free]) => free.load(Ordering::Relaxed),
        None => SIGNAL_STACK,
    };
    register(t.stack.load(Ordering::Relaxed), free);
}

fn within(sp: u64, base: u64, len: u64) -> bool {
    sp > base && sp - base <= len
}

fn on_our_stack(t: &Thread, sp: u64) -> bool {
    let base = t.stack.load(Ordering::Relaxed);
    base != 0 && within(sp, base, SIGNAL_STACK)
}

/// The alternate stack as the program set it; no size when it is disabled.
pub fn view(t: &Thread) -> sys::StackT {
    let [sp, size, flags] = &t.program_stack;
    let flags = flags.load(Ordering::Relaxed) as i32;
    if flags & libc::SS_DISABLE != 0 || t.stack.load(Ordering::Relaxed) == 0 {
        return sys::StackT { sp: 0, flags: libc::SS_DISABLE, pad: 0, size: 0 };
    }
    sys::StackT { sp: sp.load(Ordering::Relaxed), flags, pad: 0, size: size.load(Ordering::Relaxed) }
}

/// Disarmed by the kernel for as long as a handler runs.
const SS_AUTODISARM: i32 = i32::MIN;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// The program hands memory over that is to be a stack.
pub fn handed_over(base: u64, len: u64) {
    if config::loaded()
        && let Some(s) = Span::new(base, len)
    {
        let _ = TRACKER.give_up(threads::current(), s);
    }
}

/// The stack that a thread is to get by its `pthread_attr_t`, if that names one.
pub fn handed_over_by(attributes: u64) {
    if attributes == 0 || !config::loaded() {
        return;
    }
    let Some(mut copy) = crate::probe::read::<[u64; 7]>(attributes) else { return };
    let (mut base, mut len, mut usual) = (0u64, 0u64, 0u64);
    // SAFETY: a whole `pthread_attr_t`, of which only numbers are read; our own locals.
    unsafe {
        real::pthread_attr_getstack(copy.as_mut_ptr().cast(), (&raw mut base).cast(), (&raw mut len).cast());
        real::pthread_attr_getstacksize(copy.as_mut_ptr().cast(), (&raw mut usual).cast());
    }
    // libc keeps the upper end, null when there is none; no length means the default.
    let end = base.wrapping_add(len);
    if end != 0 {
        handed_over(end.saturating_sub(usual), usual);
    }
}

/// sigaltstack(2): the program's stack is kept in the books, and ours serves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaltstack(new: *const sys::StackT, old: *mut sys::StackT) -> c_int {
    if let Some(asked) = crate::probe::read::<sys::StackT>(new as u64)
        && asked.flags & libc::SS_DISABLE == 0
    {
        handed_over(asked.sp, asked.size);
    }
    // Enrolled first: the record's stack must be in place before the program's view is kept.
    let thread = if config::loaded() { threads::current() } else { None };
    let Some(t) = thread.filter(|t| t.stack.load(Ordering::Relaxed) != 0) else {
        // SAFETY: the program's call.
        return unsafe { real::sigaltstack(new as *mut c_void, old.cast()) };
    };
    match change(t, new, old) {
        Ok(()) => 0,
        Err(e) => {
            // SAFETY: this thread's errno.
            unsafe { *__errno_location() = e };
            -1
        }
    }
}

fn change(t: &Thread, new: *const sys::StackT, old: *mut sys::StackT) -> Result<(), c_int> {
    let now = view(t);
    let here = &raw const now as u64;
    let on_it = now.flags & SS_AUTODISARM == 0 && now.size != 0 && within(here, now.sp, now.size);
    if !new.is_null() {
        let asked: sys::StackT = crate::probe::read(new as u64).ok_or(libc::EFAULT)?;
        if on_it {
            return Err(libc::EPERM);
        }
        let mode = asked.flags & !SS_AUTODISARM;
        if mode != 0 && mode != libc::SS_DISABLE && mode != libc::SS_ONSTACK {
            return Err(libc::EINVAL);
        }
        let disabled = mode == libc::SS_DISABLE;
        if !disabled && asked.size < libc::MINSIGSTKSZ as u64 {
            return Err(libc::ENOMEM);
        }
        // What a child that shares our memory sets is for itself.
        if !fork::in_vfork_child() {
            let [sp, size, flags] = &t.program_stack;
            sp.store(if disabled { 0 } else { asked.sp }, Ordering::Relaxed);
            size.store(if disabled { 0 } else { asked.size }, Ordering::Relaxed);
            flags.store(asked.flags as u32 as u64, Ordering::Relaxed);
        }
    }
    if !old.is_null() {
        let state = match (now.size, on_it) {
            (0, _) => libc::SS_DISABLE,
            (_, true) => libc::SS_ONSTACK,
            _ => 0,
        };
        let seen = sys::StackT { flags: state | (now.flags & SS_AUTODISARM), ..now };
        // SAFETY: the program's struct, as the kernel would write it.
        unsafe { old.write(seen) };
    }
    Ok(())
}

/// Puts the program's view of its stack in a handler's context, and gives back what was there.
///
/// # Safety
/// `context` is the kernel's frame.
pub unsafe fn show(t: &Thread, context: *mut UContext) -> sys::StackT {
    // SAFETY: caller's contract.
    unsafe { core::mem::replace(&mut (*context).stack, view(t)) }
}

const _: () = assert!(SIGINFO == size_of::<libc::siginfo_t>());
