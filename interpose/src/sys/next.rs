//! libc's own functions behind the hooks for signals and processes: the same table as `real`, for these files.
//!
//! Soundness: a slot holds null or the address that dlsym gave for the function's name, whose C prototype is the
//! one stated in the list.

use crate::real;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

macro_rules! following {
    ($($name:ident = $sym:literal : fn($($arg:ident : $t:ty),*) -> $r:ty;)*) => {
        $(
            #[doc = concat!("libc's `", stringify!($name), "`.")]
            ///
            /// # Safety
            /// As the C function.
            pub unsafe fn $name($($arg: $t),*) -> $r {
                static SLOT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
                let mut p = SLOT.load(Ordering::Relaxed);
                if p.is_null() {
                    p = real::next($sym);
                    SLOT.store(p, Ordering::Relaxed);
                }
                if p.is_null() {
                    // Somebody found our hook of a function that libc does not have, and called it.
                    crate::report::fatal(&[b"zio: this libc lacks a function that was called\n"]);
                }
                // SAFETY: see the file's paragraph.
                let f: unsafe extern "C" fn($($t),*) -> $r = unsafe { core::mem::transmute(p) };
                // SAFETY: caller's contract.
                unsafe { f($($arg),*) }
            }
        )*
    };
}

type Ptr = *mut c_void;

following! {
    execv = c"execv": fn(p: Ptr, a: Ptr) -> c_int;
    execvp = c"execvp": fn(p: Ptr, a: Ptr) -> c_int;
    execvpe = c"execvpe": fn(p: Ptr, a: Ptr, e: Ptr) -> c_int;
    fexecve = c"fexecve": fn(fd: c_int, a: Ptr, e: Ptr) -> c_int;
    execveat = c"execveat": fn(fd: c_int, p: Ptr, a: Ptr, e: Ptr, f: c_int) -> c_int;
    posix_spawn = c"posix_spawn": fn(o: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int;
    posix_spawnp = c"posix_spawnp": fn(o: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int;
    system = c"system": fn(c: Ptr) -> c_int;
    popen = c"popen": fn(c: Ptr, t: Ptr) -> Ptr;
    thrd_create = c"thrd_create": fn(t: Ptr, f: Ptr, x: Ptr) -> c_int;
    pthread_attr_setsigmask_np = c"pthread_attr_setsigmask_np": fn(a: Ptr, m: Ptr) -> c_int;
    sigpending = c"sigpending": fn(s: Ptr) -> c_int;
    sigwait = c"sigwait": fn(s: Ptr, n: Ptr) -> c_int;
    sigwaitinfo = c"sigwaitinfo": fn(s: Ptr, i: Ptr) -> c_int;
    sigtimedwait = c"sigtimedwait": fn(s: Ptr, i: Ptr, t: Ptr) -> c_int;
}
