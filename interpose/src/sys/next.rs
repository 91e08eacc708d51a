//! libc's own functions behind the hooks for signals and processes: the same table as `real`, for these files.
//!
//! Soundness: a slot holds null or the address that dlsym gave for the function's name, whose C prototype is the
//! one stated in the list.

use crate::real;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

macro_rules! following {
    ($($name:ident = $sym:literal : fn($($arg:ident : $t:ty),*) -> $r:ty;)*) => {
        #[allow(non_upper_case_globals)] // One slot for each function, by its name.
        mod slots {
            use core::{ffi::c_void, ptr::null_mut, sync::atomic::AtomicPtr};
            $(pub static $name: AtomicPtr<c_void> = AtomicPtr::new(null_mut());)*
        }

        extern "C" fn resolve() {
            $(slots::$name.store(real::next($sym), Ordering::Relaxed);)*
        }
        $(
            #[doc = concat!("libc's `", stringify!($name), "`.")]
            ///
            /// # Safety
            /// As the C function.
            pub unsafe fn $name($($arg: $t),*) -> $r {
                let slot = &slots::$name;
                let mut p = slot.load(Ordering::Relaxed);
                if p.is_null() {
                    p = real::next($sym);
                    slot.store(p, Ordering::Relaxed);
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

/// At start, whatever the settings: a later dlsym could wait for a lock that a forked child never gets.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = resolve;

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
