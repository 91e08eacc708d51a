//! libc's own functions behind the hooks.
//!
//! Every slot is resolved with `dlsym(RTLD_NEXT)` by the constructor, whatever the settings: a later dlsym could wait
//! for a lock that a forked child never gets. The link flag `initfirst` puts the constructor before every other one;
//! a hook that is reached earlier resolves on the spot: the process has one thread then.
//! `memcpy` and its kin never wait for that: their slots start at an assembly fallback.
//!
//! Soundness: a slot holds null or the address that dlsym gave for the function's name, whose C prototype is
//! the one stated in the macro.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The next definition of a symbol after ours.
pub fn next(name: &core::ffi::CStr) -> *mut c_void {
    // SAFETY: RTLD_NEXT with a terminated name.
    unsafe { dlsym(usize::MAX as *mut c_void, name.as_ptr()) }
}

macro_rules! reals {
    ($($name:ident = $sym:literal : fn($($arg:ident : $t:ty),*) -> $r:ty;)*) => {
        #[allow(non_camel_case_types)] // One variant for each function, by its name.
        #[derive(Clone, Copy)]
        enum Index { $($name),* }

        const NAMES: &[&core::ffi::CStr] = &[$(
            match core::ffi::CStr::from_bytes_with_nul(concat!($sym, "\0").as_bytes()) { Ok(s) => s, Err(_) => c"" }
        ),*];

        static SLOTS: [AtomicPtr<c_void>; NAMES.len()] = [const { AtomicPtr::new(core::ptr::null_mut()) }; NAMES.len()];

        $(
            #[doc = concat!("libc's `", $sym, "`.")]
            ///
            /// # Safety
            /// As the C function.
            #[inline]
            pub unsafe fn $name($($arg: $t),*) -> $r {
                let mut p = SLOTS[Index::$name as usize].load(Ordering::Relaxed);
                if p.is_null() {
                    p = resolve(Index::$name as usize);
                }
                // SAFETY: see the file's paragraph.
                let f: unsafe extern "C" fn($($t),*) -> $r = unsafe { core::mem::transmute(p) };
                // SAFETY: caller's contract.
                unsafe { f($($arg),*) }
            }
        )*
    };
}

/// Resolves every slot. A function that this libc lacks stays null: nobody can have linked to it.
pub fn resolve_all() {
    for (slot, name) in SLOTS.iter().zip(NAMES) {
        slot.store(next(name), Ordering::Relaxed);
    }
    crate::outputs::resolve_all();
}

#[cold]
fn resolve(i: usize) -> *mut c_void {
    let name = NAMES.get(i).copied().unwrap_or(c"");
    let p = next(name);
    if p.is_null() {
        // Somebody found our hook of a function that libc does not have, and called it.
        crate::report::fatal(&[b"zio: this libc has no ", name.to_bytes(), b"\n"]);
    }
    if let Some(slot) = SLOTS.get(i) {
        slot.store(p, Ordering::Relaxed);
    }
    p
}

type Size = usize;
type Ssize = isize;
type Off = i64;
type Ptr = *mut c_void;

reals! {
    read = "read": fn(fd: c_int, b: Ptr, n: Size) -> Ssize;
    pread = "pread64": fn(fd: c_int, b: Ptr, n: Size, o: Off) -> Ssize;
    readv = "readv": fn(fd: c_int, v: Ptr, n: c_int) -> Ssize;
    preadv = "preadv64": fn(fd: c_int, v: Ptr, n: c_int, o: Off) -> Ssize;
    recv = "recv": fn(fd: c_int, b: Ptr, n: Size, f: c_int) -> Ssize;
    recvfrom = "recvfrom": fn(fd: c_int, b: Ptr, n: Size, f: c_int, a: Ptr, l: Ptr) -> Ssize;
    recvmsg = "recvmsg": fn(fd: c_int, m: Ptr, f: c_int) -> Ssize;
    write = "write": fn(fd: c_int, b: Ptr, n: Size) -> Ssize;
    pwrite = "pwrite64": fn(fd: c_int, b: Ptr, n: Size, o: Off) -> Ssize;
    writev = "writev": fn(fd: c_int, v: Ptr, n: c_int) -> Ssize;
    pwritev = "pwritev64": fn(fd: c_int, v: Ptr, n: c_int, o: Off) -> Ssize;
    send = "send": fn(fd: c_int, b: Ptr, n: Size, f: c_int) -> Ssize;
    sendto = "sendto": fn(fd: c_int, b: Ptr, n: Size, f: c_int, a: Ptr, l: u32) -> Ssize;
    sendmsg = "sendmsg": fn(fd: c_int, m: Ptr, f: c_int) -> Ssize;
    read_chk = "__read_chk": fn(fd: c_int, b: Ptr, n: Size, l: Size) -> Ssize;
    pread_chk = "__pread64_chk": fn(fd: c_int, b: Ptr, n: Size, o: Off, l: Size) -> Ssize;
    recv_chk = "__recv_chk": fn(fd: c_int, b: Ptr, n: Size, l: Size, f: c_int) -> Ssize;
    recvfrom_chk = "__recvfrom_chk": fn(fd: c_int, b: Ptr, n: Size, bl: Size, f: c_int, a: Ptr) -> Ssize;
    memcpy_chk = "__memcpy_chk": fn(d: Ptr, s: Ptr, n: Size, l: Size) -> Ptr;
    memmove_chk = "__memmove_chk": fn(d: Ptr, s: Ptr, n: Size, l: Size) -> Ptr;
    mempcpy_chk = "__mempcpy_chk": fn(d: Ptr, s: Ptr, n: Size, l: Size) -> Ptr;
    memset_chk = "__memset_chk": fn(d: Ptr, c: c_int, n: Size, l: Size) -> Ptr;

    malloc = "malloc": fn(n: Size) -> Ptr;
    calloc = "calloc": fn(n: Size, m: Size) -> Ptr;
    realloc = "realloc": fn(p: Ptr, n: Size) -> Ptr;
    free = "free": fn(p: Ptr) -> ();
    posix_memalign = "posix_memalign": fn(o: Ptr, a: Size, n: Size) -> c_int;
    aligned_alloc = "aligned_alloc": fn(a: Size, n: Size) -> Ptr;
    memalign = "memalign": fn(a: Size, n: Size) -> Ptr;
    malloc_usable_size = "malloc_usable_size": fn(p: Ptr) -> Size;

    mprotect = "mprotect": fn(p: Ptr, n: Size, f: c_int) -> c_int;
    mremap = "mremap": fn(p: Ptr, n: Size, m: Size, f: c_int, to: Ptr) -> Ptr;
    madvise = "madvise": fn(p: Ptr, n: Size, f: c_int) -> c_int;
    mlock = "mlock": fn(p: Ptr, n: Size) -> c_int;
    mlock2 = "mlock2": fn(p: Ptr, n: Size, f: c_int) -> c_int;
    mlockall = "mlockall": fn(f: c_int) -> c_int;

    fwrite = "fwrite": fn(p: Ptr, s: Size, n: Size, f: Ptr) -> Size;
    fread = "fread": fn(p: Ptr, s: Size, n: Size, f: Ptr) -> Size;
    fread_unlocked = "fread_unlocked": fn(p: Ptr, s: Size, n: Size, f: Ptr) -> Size;
    fread_chk = "__fread_chk": fn(p: Ptr, l: Size, s: Size, n: Size, f: Ptr) -> Size;
    fread_unlocked_chk = "__fread_unlocked_chk": fn(p: Ptr, l: Size, s: Size, n: Size, f: Ptr) -> Size;
    puts = "puts": fn(p: Ptr) -> c_int;
    setbuf = "setbuf": fn(f: Ptr, b: Ptr) -> ();
    setbuffer = "setbuffer": fn(f: Ptr, b: Ptr, n: Size) -> ();
    epoll_pwait2 = "epoll_pwait2": fn(e: c_int, v: Ptr, n: c_int, t: Ptr, m: Ptr) -> c_int;
    syscall = "syscall": fn(n: c_long, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> c_long;
    io_uring_queue_init = "io_uring_queue_init": fn(n: u32, r: Ptr, f: u32) -> c_int;
    io_uring_queue_init_params = "io_uring_queue_init_params": fn(n: u32, r: Ptr, p: Ptr) -> c_int;
    io_uring_queue_init_mem = "io_uring_queue_init_mem": fn(n: u32, r: Ptr, p: Ptr, m: Ptr, s: Size) -> Ssize;
    fputs = "fputs": fn(p: Ptr, f: Ptr) -> c_int;
    setvbuf = "setvbuf": fn(f: Ptr, b: Ptr, m: c_int, n: Size) -> c_int;
    epoll_wait = "epoll_wait": fn(e: c_int, v: Ptr, n: c_int, t: c_int) -> c_int;
    epoll_pwait = "epoll_pwait": fn(e: c_int, v: Ptr, n: c_int, t: c_int, m: Ptr) -> c_int;
    ppoll = "ppoll": fn(f: Ptr, n: u64, t: Ptr, m: Ptr) -> c_int;
    ppoll_chk = "__ppoll_chk": fn(f: Ptr, n: u64, t: Ptr, m: Ptr, l: Size) -> c_int;
    pselect = "pselect": fn(n: c_int, r: Ptr, w: Ptr, x: Ptr, t: Ptr, m: Ptr) -> c_int;
    sigsuspend = "sigsuspend": fn(m: Ptr) -> c_int;

    sigaction = "sigaction": fn(s: c_int, n: Ptr, o: Ptr) -> c_int;
    pthread_sigmask = "pthread_sigmask": fn(h: c_int, n: Ptr, o: Ptr) -> c_int;
    sigaltstack = "sigaltstack": fn(n: Ptr, o: Ptr) -> c_int;
    pthread_create = "pthread_create": fn(t: Ptr, a: Ptr, f: Ptr, x: Ptr) -> c_int;

    close = "close": fn(fd: c_int) -> c_int;
    dup2 = "dup2": fn(a: c_int, b: c_int) -> c_int;
    dup3 = "dup3": fn(a: c_int, b: c_int, f: c_int) -> c_int;
    close_range = "close_range": fn(a: u32, b: u32, f: c_int) -> c_int;
    exit_now = "_exit": fn(s: c_int) -> ();
    execve = "execve": fn(p: Ptr, a: Ptr, e: Ptr) -> c_int;
    prctl = "prctl": fn(o: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int;

    execv = "execv": fn(p: Ptr, a: Ptr) -> c_int;
    execvp = "execvp": fn(p: Ptr, a: Ptr) -> c_int;
    execvpe = "execvpe": fn(p: Ptr, a: Ptr, e: Ptr) -> c_int;
    fexecve = "fexecve": fn(fd: c_int, a: Ptr, e: Ptr) -> c_int;
    execveat = "execveat": fn(fd: c_int, p: Ptr, a: Ptr, e: Ptr, f: c_int) -> c_int;
    posix_spawn = "posix_spawn": fn(o: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int;
    posix_spawnp = "posix_spawnp": fn(o: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int;
    system = "system": fn(c: Ptr) -> c_int;
    popen = "popen": fn(c: Ptr, t: Ptr) -> Ptr;
    thrd_create = "thrd_create": fn(t: Ptr, f: Ptr, x: Ptr) -> c_int;
    pthread_attr_setsigmask_np = "pthread_attr_setsigmask_np": fn(a: Ptr, m: Ptr) -> c_int;
    sigpending = "sigpending": fn(s: Ptr) -> c_int;
    sigwait = "sigwait": fn(s: Ptr, n: Ptr) -> c_int;
    sigwaitinfo = "sigwaitinfo": fn(s: Ptr, i: Ptr) -> c_int;
    sigtimedwait = "sigtimedwait": fn(s: Ptr, i: Ptr, t: Ptr) -> c_int;

    pthread_attr_getstack = "pthread_attr_getstack": fn(a: Ptr, p: Ptr, n: Ptr) -> c_int;
    pthread_attr_getstacksize = "pthread_attr_getstacksize": fn(a: Ptr, n: Ptr) -> c_int;

    timer_create = "timer_create": fn(c: c_int, e: Ptr, t: Ptr) -> c_int;
    mq_notify = "mq_notify": fn(q: c_int, e: Ptr) -> c_int;
    aio_read = "aio_read": fn(a: Ptr) -> c_int;
    aio_read64 = "aio_read64": fn(a: Ptr) -> c_int;
    aio_write = "aio_write": fn(a: Ptr) -> c_int;
    aio_write64 = "aio_write64": fn(a: Ptr) -> c_int;
    aio_fsync = "aio_fsync": fn(o: c_int, a: Ptr) -> c_int;
    aio_fsync64 = "aio_fsync64": fn(o: c_int, a: Ptr) -> c_int;
    lio_listio = "lio_listio": fn(m: c_int, v: Ptr, n: c_int, e: Ptr) -> c_int;
    lio_listio64 = "lio_listio64": fn(m: c_int, v: Ptr, n: c_int, e: Ptr) -> c_int;
    getaddrinfo_a = "getaddrinfo_a": fn(m: c_int, v: Ptr, n: c_int, e: Ptr) -> c_int;
}
