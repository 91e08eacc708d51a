//! Processes: fork with live extents, vfork, exec, and the last moments.
//!
//! libc's fork runs our atfork handlers last before, and first after, whoever calls it. The child's copy of the
//! tracker is consistent because the lock is held across the call; its private cores are copy-on-write.

use crate::{TRACKER, init, real, signals, sys, threads, tls};
use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use zio_tracker::sys::Kernel;

mod exec;
mod start;

/// The process that the library was started in, or the last fork.
static PID: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn __register_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
        dso: *const c_void,
    ) -> c_int;
}

/// Registers the handlers.
pub fn init() -> bool {
    PID.store(sys::getpid(), Ordering::Relaxed);
    // SAFETY: functions of this library, which is never unloaded (nodelete).
    unsafe { __register_atfork(Some(prepare), Some(parent), Some(child), core::ptr::null()) == 0 }
}

/// True in a child that shares our memory (vfork, posix_spawn): our books are the parent's.
pub fn in_vfork_child() -> bool {
    PID.load(Ordering::Relaxed) != sys::getpid() && TRACKER.kernel.descriptor_is_ours()
}

unsafe extern "C" fn prepare() {
    if let Some(t) = threads::current() {
        t.enter();
    }
    TRACKER.hold();
}

unsafe extern "C" fn parent() {
    TRACKER.unhold();
    if let Some(t) = threads::current()
        && t.leave()
    {
        signals::let_in(t);
    }
}

unsafe extern "C" fn child() {
    PID.store(sys::getpid(), Ordering::Relaxed);
    signals::after_fork();
    let deferred = threads::current().is_some_and(|t| t.leave());
    let value = |x: &AtomicU32| x.load(Ordering::Relaxed);
    let kept =
        tls::get().map(|t| (t, t.believed_mask.load(Ordering::Relaxed), value(&t.signals.depth), value(&t.midway)));
    threads::after_fork();
    // A child inherits the mask and the handlers in progress; signals that wait are the parent's.
    if let Some((t, belief, depth, midway)) = kept {
        t.midway.store(midway, Ordering::Relaxed);
        t.believed_mask.store(belief, Ordering::Relaxed);
        t.signals.depth.store(depth, Ordering::Relaxed);
    }
    let stats = init::child_stats();
    // SAFETY: the only thread of a fresh child; `prepare` held the lock.
    unsafe { TRACKER.after_fork_in_child(stats) };
    if deferred && let Some(t) = threads::current() {
        signals::let_in(t);
    }
}

/// _exit(2): the statistics are written here too, where atexit handlers do not run.
#[unsafe(no_mangle)]
unsafe extern "C" fn _exit(status: c_int) -> ! {
    // A child that shares our memory must not mark its parent's statistics as written.
    if !in_vfork_child() {
        init::at_exit();
    }
    // SAFETY: the program's call.
    unsafe { real::exit_now(status) };
    loop {
        core::hint::spin_loop();
    }
}

/// _Exit(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: the same.
    unsafe { _exit(status) }
}

/// prctl(2): a seccomp filter may forbid what resolving needs.
#[unsafe(no_mangle)]
unsafe extern "C" fn prctl(o: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int {
    if o == libc::PR_SET_SECCOMP {
        init::withdraw(b"the program installs a seccomp filter");
    }
    crate::outputs::block(a as u64, zio_tracker::addr::PAGE);
    // SAFETY: the program's call.
    unsafe { real::prctl(o, a, b, c, d) }
}
