//! Thread starts: the new thread inherits what its creator believes of the signal mask.
//!
//! libc passes one pointer to a thread's start routine, and nothing may be allocated here: the belief travels in a
//! small pool of static slots. A thread whose creator has no fault signal blocked, by far the usual case, starts as
//! without us. [`begin`] leaves no frame behind: pthread_exit, cancellation and exceptions see the program's own.
//!
//! Soundness: a slot is owned from the compare-and-swap that takes it until `state` is 0 again; it is read once, by
//! the thread that it was made for.

use crate::{config, masks, real, signals};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Threads that are being started at the same time; one past it starts with nothing blocked.
const SLOTS: usize = 64;

struct Slot {
    state: AtomicU32,
    routine: AtomicU64,
    argument: AtomicU64,
    belief: AtomicU64,
}

static SLOTS_IN_USE: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(0),
        routine: AtomicU64::new(0),
        argument: AtomicU64::new(0),
        belief: AtomicU64::new(0),
    }
}; SLOTS];

/// In two registers.
#[repr(C)]
struct Start {
    routine: u64,
    argument: u64,
}

fn take_slot(routine: *mut c_void, argument: *mut c_void, belief: u64) -> Option<&'static Slot> {
    for s in &SLOTS_IN_USE {
        if s.state.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            s.routine.store(routine as u64, Ordering::Relaxed);
            s.argument.store(argument as u64, Ordering::Relaxed);
            s.belief.store(belief, Ordering::Release);
            return Some(s);
        }
    }
    None
}

/// In the new thread, its thread-local storage set up.
extern "C" fn inherit(slot: &'static Slot) -> Start {
    let belief = slot.belief.load(Ordering::Acquire);
    let start =
        Start { routine: slot.routine.load(Ordering::Relaxed), argument: slot.argument.load(Ordering::Relaxed) };
    slot.state.store(0, Ordering::Release);
    masks::believe(belief);
    start
}

/// Start routine of a thread with a slot: goes on to the program's.
#[unsafe(naked)]
unsafe extern "C" fn begin() {
    naked_asm!("sub rsp, 8", "call {inherit}", "add rsp, 8", "mov rdi, rdx", "jmp rax", inherit = sym inherit)
}

/// Calls `create` with the program's routine and argument, or with ours that lead to them.
fn created(f: *mut c_void, x: *mut c_void, create: impl FnOnce(*mut c_void, *mut c_void) -> c_int) -> c_int {
    let belief = if config::loaded() { masks::belief() } else { 0 };
    let slot = if belief == 0 { None } else { take_slot(f, x, belief) };
    let Some(s) = slot else { return create(f, x) };
    let r = create(begin as *const () as *mut c_void, s as *const Slot as *mut c_void);
    if r != 0 {
        s.state.store(0, Ordering::Release);
    }
    r
}

/// pthread_create(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(t: *mut c_void, a: *mut c_void, f: *mut c_void, x: *mut c_void) -> c_int {
    signals::handed_over_by(a as u64);
    // SAFETY: the program's call; `begin` has a start routine's type.
    created(f, x, |f, x| unsafe { real::pthread_create(t, a, f, x) })
}

/// thrd_create(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn thrd_create(t: *mut c_void, f: *mut c_void, x: *mut c_void) -> c_int {
    // SAFETY: the program's call; `begin` returns what the program's routine does.
    created(f, x, |f, x| unsafe { real::thrd_create(t, f, x) })
}
