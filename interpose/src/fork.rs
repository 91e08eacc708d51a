//! Processes: fork with live extents, vfork, exec, and the last moments.
//!
//! libc's fork runs our atfork handlers last before, and first after, whoever calls it. The child's copy of the
//! tracker is consistent because the lock is held across the call; its private cores are copy-on-write.

use crate::{TRACKER, config, init, real, signals, sys, threads};
use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use zio_tracker::sys::Kernel;

/// The process that the library was started in, or the last fork.
static PID: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn __register_atfork(
        prepare: Option<unsafe extern "C" fn()>, parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>, dso: *const c_void,
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
    threads::after_fork();
    let stats = init::child_stats();
    // SAFETY: the only thread of a fresh child; `prepare` held the lock.
    unsafe { TRACKER.after_fork_in_child(stats) };
    if deferred && let Some(t) = threads::current() {
        signals::let_in(t);
    }
}

/// pthread_create(3): from now on there may be a second thread.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(t: *mut c_void, a: *mut c_void, f: *mut c_void, x: *mut c_void) -> c_int {
    TRACKER.threaded.store(true, Ordering::Relaxed);
    // SAFETY: the program's call.
    unsafe { real::pthread_create(t, a, f, x) }
}

/// _exit(2): the statistics are written here too, where atexit handlers do not run.
#[unsafe(no_mangle)]
unsafe extern "C" fn _exit(status: c_int) -> ! {
    init::at_exit();
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

/// Strings that a call hands to the kernel: a touch in user space resolves them.
unsafe fn touch_string(p: *const u8) {
    let mut at = p as u64;
    // SAFETY: the program's terminated string.
    unsafe {
        while !p.is_null() && core::ptr::read_volatile(at as *const u8) != 0 {
            at += 1;
        }
    }
}

unsafe fn touch_strings(v: *const *const u8) {
    if v.is_null() {
        return;
    }
    let mut i = 0;
    // SAFETY: the program's null-terminated array.
    unsafe {
        while !(*v.add(i)).is_null() {
            touch_string(*v.add(i));
            i += 1;
        }
    }
}

/// execve(2): arguments may lie in elided memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn execve(p: *mut c_void, a: *mut c_void, e: *mut c_void) -> c_int {
    // SAFETY: the program's call.
    unsafe {
        if config::loaded() && TRACKER.pages.armed_pages() != 0 {
            touch_string(p.cast());
            touch_strings(a.cast());
            touch_strings(e.cast());
        }
        real::execve(p, a, e)
    }
}

/// prctl(2): a seccomp filter may forbid what resolving needs.
#[unsafe(no_mangle)]
unsafe extern "C" fn prctl(o: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int {
    if o == libc::PR_SET_SECCOMP {
        init::withdraw(b"the program installs a seccomp filter");
    }
    // SAFETY: the program's call.
    unsafe { real::prctl(o, a, b, c, d) }
}
