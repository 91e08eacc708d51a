//! Calls that hand program memory to the kernel and are not worth translating: the memory is made resident first.
//!
//! In the `guard` and `sigbus` modes a kernel access to an armed page fails with EFAULT, after the call may have
//! consumed what it was to deliver. So each hook here looks at its arguments before it calls libc's function, and
//! never after. While no page is armed that is two loads; an argument in ordinary memory costs a few more.
//!
//! The type of a parameter says what the kernel does with it: [`Text`] is a string, [`Mem`] so many bytes,
//! [`Ptr`] something whose length another argument gives (the expression after the prototype).
//! Prototypes with `...` in C (open, fcntl) have as many parameters here as the kernel's call: on x86-64 they are in
//! the same registers, and those that the caller left out are not looked at.
//!
//! Soundness: arguments are passed on untouched. They are never dereferenced, only compared with the page state and
//! read by [`crate::probe`], which survives a bad pointer: those are the kernel's to refuse. A slot holds libc's
//! function of the hook's name, whose prototype is the hook's, or [`missing`].

use crate::receive::vector_resident;
use crate::{TRACKER, config, probe, real, threads};
use core::ffi::{c_int, c_long, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use zio_tracker::addr::{PAGE, Span, page_down};
use zio_tracker::page_state::Bit;

mod background;
mod control;
mod raw_call;
mod vectors;

pub use control::control_argument;

/// A pointer whose length is not in its type.
pub type Ptr = *mut c_void;

/// Longest path, bytes with its end.
const PATH: u64 = 4096;
/// Longest string that execve takes.
const STRING: u64 = 128 << 10;
/// `struct sockaddr_storage`.
pub const ADDRESS: u64 = 128;

/// Something may have to be made resident.
#[inline]
fn any() -> bool {
    config::loaded() && TRACKER.pages.armed_pages() != 0
}

/// Makes `len` bytes at `at` resident.
pub fn block(at: u64, len: u64) {
    if let Some(s) = Span::new(at, len)
        && TRACKER.pages.any_armed(s)
    {
        let _ = TRACKER.make_resident(threads::current(), s);
    }
}

/// Makes `len` bytes at `at` resident for good: libc's own threads will touch them when no fault can be handled.
pub fn given_up(at: u64, len: u64) {
    if config::loaded()
        && let Some(s) = Span::new(at, len)
    {
        let _ = TRACKER.give_up(threads::current(), s);
    }
}

/// Makes a terminated string resident, up to `max` bytes of it. Bytes are looked at only where an armed page follows
/// within that length: the string may end before it.
pub fn text(start: u64, max: u64) {
    let Some(all) = Span::new(start, max) else { return };
    let last = (all.end + PAGE - 1) >> 12;
    let mut at = start;
    while at < all.end {
        let armed = TRACKER.pages.find(Bit::Armed, true, at >> 12, last) << 12;
        if armed >= all.end {
            return;
        }
        if page_down(at) != armed && ends_before(at, armed) {
            return;
        }
        block(armed, PAGE);
        let from = if at > armed { at } else { armed };
        if ends_before(from, armed + PAGE) {
            return;
        }
        at = armed + PAGE;
    }
}

/// True if the string has its end in `[at, end)`, or cannot be read there. Aligned words never reach over a page.
fn ends_before(at: u64, end: u64) -> bool {
    let mut word = at & !7;
    while word < end {
        let Some(bytes) = probe::read::<[u8; 8]>(word) else { return true };
        let skip = at.saturating_sub(word) as usize;
        if bytes.iter().skip(skip).any(|&b| b == 0) {
            return true;
        }
        word += 8;
    }
    false
}

/// Makes a null-terminated array of strings resident, and the strings.
pub fn strings(array: u64) {
    let mut at = array;
    loop {
        block(at, 8);
        match probe::read::<u64>(at) {
            Some(p) if p != 0 => text(p, STRING),
            _ => return,
        }
        at += 8;
    }
}

/// The array of poll(2).
pub fn poll_array(array: Ptr, n: u64) {
    if any() {
        block(array as u64, n.saturating_mul(8));
    }
}

/// One set of select(2).
pub fn descriptor_set(set: Ptr, n: c_int) {
    if any() && n > 0 {
        block(set as u64, (n as u64).div_ceil(64) * 8);
    }
}

/// What a hook does about a parameter.
trait Parameter: Copy {
    fn ready(self) {}
}
impl Parameter for c_int {}
impl Parameter for u32 {}
impl Parameter for i64 {}
impl Parameter for u64 {}
impl Parameter for usize {}
impl Parameter for Ptr {}

/// A path or name.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Text(Ptr);
impl Parameter for Text {
    fn ready(self) {
        text(self.0 as u64, PATH);
    }
}

/// `N` bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Mem<const N: u64>(Ptr);
impl<const N: u64> Parameter for Mem<N> {
    fn ready(self) {
        block(self.0 as u64, N);
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// Stands in for a function that this libc lacks.
extern "C" fn missing() -> isize {
    // SAFETY: this thread's errno.
    unsafe { *__errno_location() = libc::ENOSYS };
    -1
}

macro_rules! hooks {
    ($($name:ident($($arg:ident: $t:ty),*) -> $r:ty $(, $more:expr)?;)*) => {
        #[allow(non_camel_case_types)] // One variant for each function, by its name.
        #[derive(Clone, Copy)]
        enum Index { $($name),* }

        const NAMES: &[&core::ffi::CStr] = &[$(
            match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(s) => s,
                Err(_) => c"",
            }
        ),*];

        static SLOTS: [AtomicPtr<c_void>; NAMES.len()] = [const { AtomicPtr::new(core::ptr::null_mut()) }; NAMES.len()];

        $(
            #[doc = concat!("`", stringify!($name), "`: arguments resident, then libc's.")]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $t),*) -> $r {
                if any() {
                    $( $arg.ready(); )*
                    $( $more; )?
                }
                let mut p = SLOTS[Index::$name as usize].load(Ordering::Relaxed);
                if p.is_null() {
                    p = resolve(Index::$name as usize);
                }
                // SAFETY: see the file's paragraph; the program's own call.
                unsafe {
                    let f: unsafe extern "C" fn($($t),*) -> $r = core::mem::transmute(p);
                    f($($arg),*)
                }
            }
        )*
    };
}

/// Resolves every slot (constructor).
pub fn resolve_all() {
    for i in 0..NAMES.len() {
        resolve(i);
    }
}

#[cold]
fn resolve(i: usize) -> Ptr {
    let mut p = NAMES.get(i).map_or(core::ptr::null_mut(), |n| real::next(n));
    if p.is_null() {
        p = missing as *const () as Ptr;
    }
    if let Some(slot) = SLOTS.get(i) {
        slot.store(p, Ordering::Relaxed);
    }
    p
}

// Status of files and file systems.
hooks! {
    stat(p: Text, s: Mem<144>) -> c_int;
    stat64(p: Text, s: Mem<144>) -> c_int;
    lstat(p: Text, s: Mem<144>) -> c_int;
    lstat64(p: Text, s: Mem<144>) -> c_int;
    fstat(fd: c_int, s: Mem<144>) -> c_int;
    fstat64(fd: c_int, s: Mem<144>) -> c_int;
    fstatat(fd: c_int, p: Text, s: Mem<144>, f: c_int) -> c_int;
    fstatat64(fd: c_int, p: Text, s: Mem<144>, f: c_int) -> c_int;
    __xstat(v: c_int, p: Text, s: Mem<144>) -> c_int;
    __xstat64(v: c_int, p: Text, s: Mem<144>) -> c_int;
    __lxstat(v: c_int, p: Text, s: Mem<144>) -> c_int;
    __lxstat64(v: c_int, p: Text, s: Mem<144>) -> c_int;
    __fxstat(v: c_int, fd: c_int, s: Mem<144>) -> c_int;
    __fxstat64(v: c_int, fd: c_int, s: Mem<144>) -> c_int;
    __fxstatat(v: c_int, fd: c_int, p: Text, s: Mem<144>, f: c_int) -> c_int;
    __fxstatat64(v: c_int, fd: c_int, p: Text, s: Mem<144>, f: c_int) -> c_int;
    statx(fd: c_int, p: Text, f: c_int, m: u32, s: Mem<256>) -> c_int;
    statfs(p: Text, s: Mem<120>) -> c_int;
    statfs64(p: Text, s: Mem<120>) -> c_int;
    fstatfs(fd: c_int, s: Mem<120>) -> c_int;
    fstatfs64(fd: c_int, s: Mem<120>) -> c_int;
    statvfs(p: Text, s: Ptr) -> c_int;
    statvfs64(p: Text, s: Ptr) -> c_int;
    pathconf(p: Text, n: c_int) -> c_long;

    // Names of files.
    open(p: Text, f: c_int, m: u32) -> c_int;
    open64(p: Text, f: c_int, m: u32) -> c_int;
    openat(fd: c_int, p: Text, f: c_int, m: u32) -> c_int;
    openat64(fd: c_int, p: Text, f: c_int, m: u32) -> c_int;
    __open_2(p: Text, f: c_int) -> c_int;
    __open64_2(p: Text, f: c_int) -> c_int;
    __openat_2(fd: c_int, p: Text, f: c_int) -> c_int;
    __openat64_2(fd: c_int, p: Text, f: c_int) -> c_int;
    creat(p: Text, m: u32) -> c_int;
    creat64(p: Text, m: u32) -> c_int;
    fopen(p: Text, m: Ptr) -> Ptr;
    fopen64(p: Text, m: Ptr) -> Ptr;
    freopen(p: Text, m: Ptr, f: Ptr) -> Ptr;
    freopen64(p: Text, m: Ptr, f: Ptr) -> Ptr;
    opendir(p: Text) -> Ptr;
    scandir(p: Text, l: Ptr, s: Ptr, c: Ptr) -> c_int;
    scandir64(p: Text, l: Ptr, s: Ptr, c: Ptr) -> c_int;
    unlink(p: Text) -> c_int;
    unlinkat(fd: c_int, p: Text, f: c_int) -> c_int;
    remove(p: Text) -> c_int;
    rename(p: Text, q: Text) -> c_int;
    renameat(a: c_int, p: Text, b: c_int, q: Text) -> c_int;
    renameat2(a: c_int, p: Text, b: c_int, q: Text, f: u32) -> c_int;
    link(p: Text, q: Text) -> c_int;
    linkat(a: c_int, p: Text, b: c_int, q: Text, f: c_int) -> c_int;
    symlink(p: Text, q: Text) -> c_int;
    symlinkat(p: Text, b: c_int, q: Text) -> c_int;
    mkdir(p: Text, m: u32) -> c_int;
    mkdirat(fd: c_int, p: Text, m: u32) -> c_int;
    rmdir(p: Text) -> c_int;
    mknod(p: Text, m: u32, d: u64) -> c_int;
    mknodat(fd: c_int, p: Text, m: u32, d: u64) -> c_int;
    mkfifo(p: Text, m: u32) -> c_int;
    mkfifoat(fd: c_int, p: Text, m: u32) -> c_int;
    chdir(p: Text) -> c_int;
    chroot(p: Text) -> c_int;
    chmod(p: Text, m: u32) -> c_int;
    fchmodat(fd: c_int, p: Text, m: u32, f: c_int) -> c_int;
    chown(p: Text, u: u32, g: u32) -> c_int;
    lchown(p: Text, u: u32, g: u32) -> c_int;
    fchownat(fd: c_int, p: Text, u: u32, g: u32, f: c_int) -> c_int;
    access(p: Text, m: c_int) -> c_int;
    faccessat(fd: c_int, p: Text, m: c_int, f: c_int) -> c_int;
    euidaccess(p: Text, m: c_int) -> c_int;
    eaccess(p: Text, m: c_int) -> c_int;
    truncate(p: Text, n: i64) -> c_int;
    truncate64(p: Text, n: i64) -> c_int;
    utime(p: Text, t: Mem<16>) -> c_int;
    utimes(p: Text, t: Mem<32>) -> c_int;
    lutimes(p: Text, t: Mem<32>) -> c_int;
    futimes(fd: c_int, t: Mem<32>) -> c_int;
    futimesat(fd: c_int, p: Text, t: Mem<32>) -> c_int;
    futimens(fd: c_int, t: Mem<32>) -> c_int;
    utimensat(fd: c_int, p: Text, t: Mem<32>, f: c_int) -> c_int;
    mount(s: Text, t: Text, k: Text, f: c_ulong, d: Text) -> c_int;
    umount(t: Text) -> c_int;
    umount2(t: Text, f: c_int) -> c_int;
    inotify_add_watch(fd: c_int, p: Text, m: u32) -> c_int;
    memfd_create(p: Text, f: u32) -> c_int;
    getxattr(p: Text, k: Text, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    lgetxattr(p: Text, k: Text, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    fgetxattr(fd: c_int, k: Text, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    setxattr(p: Text, k: Text, v: Ptr, n: usize, f: c_int) -> c_int, block(v as u64, n as u64);
    lsetxattr(p: Text, k: Text, v: Ptr, n: usize, f: c_int) -> c_int, block(v as u64, n as u64);
    fsetxattr(fd: c_int, k: Text, v: Ptr, n: usize, f: c_int) -> c_int, block(v as u64, n as u64);
    listxattr(p: Text, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    llistxattr(p: Text, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    flistxattr(fd: c_int, v: Ptr, n: usize) -> isize, block(v as u64, n as u64);
    removexattr(p: Text, k: Text) -> c_int;
    lremovexattr(p: Text, k: Text) -> c_int;
    fremovexattr(fd: c_int, k: Text) -> c_int;
    readlink(p: Text, b: Ptr, n: usize) -> isize, block(b as u64, n as u64);
    readlinkat(fd: c_int, p: Text, b: Ptr, n: usize) -> isize, block(b as u64, n as u64);
    __readlink_chk(p: Text, b: Ptr, n: usize, l: usize) -> isize, block(b as u64, n.min(l) as u64);
    __readlinkat_chk(fd: c_int, p: Text, b: Ptr, n: usize, l: usize) -> isize, block(b as u64, n.min(l) as u64);
    realpath(p: Text, b: Mem<4096>) -> Ptr;
    __realpath_chk(p: Text, b: Mem<4096>, n: usize) -> Ptr;
    getcwd(b: Ptr, n: usize) -> Ptr, block(b as u64, n as u64);
    __getcwd_chk(b: Ptr, n: usize, l: usize) -> Ptr, block(b as u64, n.min(l) as u64);
    getdents64(fd: c_int, b: Ptr, n: usize) -> isize, block(b as u64, n as u64);
    getdirentries(fd: c_int, b: Ptr, n: usize, o: Ptr) -> isize, block(b as u64, n as u64);
    getdirentries64(fd: c_int, b: Ptr, n: usize, o: Ptr) -> isize, block(b as u64, n as u64);
    ttyname_r(fd: c_int, b: Ptr, n: usize) -> c_int, block(b as u64, n as u64);
    __ttyname_r_chk(fd: c_int, b: Ptr, n: usize, l: usize) -> c_int, block(b as u64, n.min(l) as u64);

    // The system and the process.
    uname(u: Mem<390>) -> c_int;
    gethostname(b: Ptr, n: usize) -> c_int, block(b as u64, n as u64);
    sethostname(b: Ptr, n: usize) -> c_int, block(b as u64, n as u64);
    sysinfo(s: Mem<112>) -> c_int;
    klogctl(t: c_int, b: Ptr, n: c_int) -> c_int, block(b as u64, n.max(0) as u64);
    getrusage(w: c_int, u: Mem<144>) -> c_int;
    times(t: Mem<32>) -> c_long;
    getrlimit(r: c_int, l: Mem<16>) -> c_int;
    getrlimit64(r: c_int, l: Mem<16>) -> c_int;
    setrlimit(r: c_int, l: Mem<16>) -> c_int;
    setrlimit64(r: c_int, l: Mem<16>) -> c_int;
    prlimit(p: c_int, r: c_int, n: Mem<16>, o: Mem<16>) -> c_int;
    prlimit64(p: c_int, r: c_int, n: Mem<16>, o: Mem<16>) -> c_int;
    getrandom(b: Ptr, n: usize, f: u32) -> isize, block(b as u64, n as u64);
    getentropy(b: Ptr, n: usize) -> c_int, block(b as u64, n.min(256) as u64);
    getgroups(n: c_int, g: Ptr) -> c_int, block(g as u64, n.max(0) as u64 * 4);
    __getgroups_chk(n: c_int, g: Ptr, l: usize) -> c_int, block(g as u64, n.max(0) as u64 * 4);
    setgroups(n: usize, g: Ptr) -> c_int, block(g as u64, (n as u64).saturating_mul(4));
    getresuid(r: Mem<4>, e: Mem<4>, s: Mem<4>) -> c_int;
    getresgid(r: Mem<4>, e: Mem<4>, s: Mem<4>) -> c_int;
    capget(h: Mem<8>, d: Mem<24>) -> c_int;
    capset(h: Mem<8>, d: Mem<24>) -> c_int;
    sched_getaffinity(p: c_int, n: usize, s: Ptr) -> c_int, block(s as u64, n as u64);
    sched_setaffinity(p: c_int, n: usize, s: Ptr) -> c_int, block(s as u64, n as u64);
    pthread_getaffinity_np(t: usize, n: usize, s: Ptr) -> c_int, block(s as u64, n as u64);
    pthread_setaffinity_np(t: usize, n: usize, s: Ptr) -> c_int, block(s as u64, n as u64);
    pthread_getname_np(t: usize, b: Ptr, n: usize) -> c_int, block(b as u64, n as u64);
    sched_getparam(p: c_int, s: Mem<4>) -> c_int;
    sched_setparam(p: c_int, s: Mem<4>) -> c_int;
    sched_setscheduler(p: c_int, k: c_int, s: Mem<4>) -> c_int;
    sched_rr_get_interval(p: c_int, t: Mem<16>) -> c_int;
    mincore(a: Ptr, n: usize, v: Ptr) -> c_int, block(v as u64, (n as u64).div_ceil(PAGE));
    wait(s: Mem<4>) -> c_int;
    waitpid(p: c_int, s: Mem<4>, f: c_int) -> c_int;
    wait3(s: Mem<4>, f: c_int, u: Mem<144>) -> c_int;
    wait4(p: c_int, s: Mem<4>, f: c_int, u: Mem<144>) -> c_int;
    waitid(k: c_int, p: u32, s: Mem<128>, f: c_int) -> c_int;
    process_vm_readv(p: c_int, l: Ptr, n: c_ulong, r: Ptr, m: c_ulong, f: c_ulong) -> isize,
        vectors::process(p, l, n, r, m);
    process_vm_writev(p: c_int, l: Ptr, n: c_ulong, r: Ptr, m: c_ulong, f: c_ulong) -> isize,
        vectors::process(p, l, n, r, m);

    // Time.
    clock_gettime(c: c_int, t: Mem<16>) -> c_int;
    clock_getres(c: c_int, t: Mem<16>) -> c_int;
    clock_settime(c: c_int, t: Mem<16>) -> c_int;
    gettimeofday(t: Mem<16>, z: Mem<8>) -> c_int;
    settimeofday(t: Mem<16>, z: Mem<8>) -> c_int;
    nanosleep(t: Mem<16>, r: Mem<16>) -> c_int;
    clock_nanosleep(c: c_int, f: c_int, t: Mem<16>, r: Mem<16>) -> c_int;
    getitimer(w: c_int, o: Mem<32>) -> c_int;
    setitimer(w: c_int, n: Mem<32>, o: Mem<32>) -> c_int;
    timer_gettime(t: Ptr, o: Mem<32>) -> c_int;
    timer_settime(t: Ptr, f: c_int, n: Mem<32>, o: Mem<32>) -> c_int;
    timerfd_gettime(fd: c_int, o: Mem<32>) -> c_int;
    timerfd_settime(fd: c_int, f: c_int, n: Mem<32>, o: Mem<32>) -> c_int;
    adjtimex(t: Mem<208>) -> c_int;
    ntp_adjtime(t: Mem<208>) -> c_int;
    clock_adjtime(c: c_int, t: Mem<208>) -> c_int;

    // Signals as data: what else waits for signals is in `masks`.
    signalfd(fd: c_int, s: Mem<8>, f: c_int) -> c_int;
    eventfd_read(fd: c_int, v: Mem<8>) -> c_int;

    // Readiness.
    poll(f: Ptr, n: c_ulong, t: c_int) -> c_int, poll_array(f, n);
    __poll_chk(f: Ptr, n: c_ulong, t: c_int, l: usize) -> c_int, poll_array(f, n);
    select(n: c_int, r: Ptr, w: Ptr, x: Ptr, t: Mem<16>) -> c_int,
        [r, w, x].into_iter().for_each(|s| descriptor_set(s, n));
    epoll_ctl(e: c_int, o: c_int, fd: c_int, v: Mem<12>) -> c_int;

    // Sockets.
    socketpair(d: c_int, t: c_int, p: c_int, v: Mem<8>) -> c_int;
    bind(fd: c_int, a: Ptr, n: u32) -> c_int, block(a as u64, ADDRESS.min(n.into()));
    connect(fd: c_int, a: Ptr, n: u32) -> c_int, block(a as u64, ADDRESS.min(n.into()));
    accept(fd: c_int, a: Mem<ADDRESS>, n: Mem<4>) -> c_int;
    accept4(fd: c_int, a: Mem<ADDRESS>, n: Mem<4>, f: c_int) -> c_int;
    getsockname(fd: c_int, a: Mem<ADDRESS>, n: Mem<4>) -> c_int;
    getpeername(fd: c_int, a: Mem<ADDRESS>, n: Mem<4>) -> c_int;
    getsockopt(fd: c_int, l: c_int, o: c_int, v: Ptr, n: Mem<4>) -> c_int, vectors::option(v, n.0);
    setsockopt(fd: c_int, l: c_int, o: c_int, v: Ptr, n: u32) -> c_int, block(v as u64, n.into());
    recvmmsg(fd: c_int, v: Ptr, n: u32, f: c_int, t: Mem<16>) -> c_int, vectors::messages(v, n);
    sendmmsg(fd: c_int, v: Ptr, n: u32, f: c_int) -> c_int, vectors::messages(v, n);

    // Pipes, and files by other ways than read and write.
    pipe(v: Mem<8>) -> c_int;
    pipe2(v: Mem<8>, f: c_int) -> c_int;
    preadv2(fd: c_int, v: Ptr, n: c_int, o: i64, f: c_int) -> isize, vectors::vector(v, n.into());
    preadv64v2(fd: c_int, v: Ptr, n: c_int, o: i64, f: c_int) -> isize, vectors::vector(v, n.into());
    pwritev2(fd: c_int, v: Ptr, n: c_int, o: i64, f: c_int) -> isize, vectors::vector(v, n.into());
    pwritev64v2(fd: c_int, v: Ptr, n: c_int, o: i64, f: c_int) -> isize, vectors::vector(v, n.into());
    vmsplice(fd: c_int, v: Ptr, n: usize, f: u32) -> isize, vectors::pinned(v, n);
    sendfile(o: c_int, i: c_int, p: Mem<8>, n: usize) -> isize;
    sendfile64(o: c_int, i: c_int, p: Mem<8>, n: usize) -> isize;
    splice(a: c_int, p: Mem<8>, b: c_int, q: Mem<8>, n: usize, f: u32) -> isize;
    copy_file_range(a: c_int, p: Mem<8>, b: c_int, q: Mem<8>, n: usize, f: u32) -> isize;
    fcntl(fd: c_int, c: c_int, a: Ptr) -> c_int, control::descriptor(c, a as u64);
    fcntl64(fd: c_int, c: c_int, a: Ptr) -> c_int, control::descriptor(c, a as u64);
    ioctl(fd: c_int, r: c_ulong, a: Ptr) -> c_int, control_argument(r, a as u64);
    io_submit(c: Ptr, n: c_long, v: Ptr) -> c_int, vectors::submitted(v, n);
    io_getevents(c: Ptr, m: c_long, n: c_long, v: Ptr, t: Mem<16>) -> c_int,
        block(v as u64, (n.max(0) as u64).saturating_mul(32));

    // Queues.
    msgsnd(q: c_int, p: Ptr, n: usize, f: c_int) -> c_int, block(p as u64, (n as u64).saturating_add(8));
    msgrcv(q: c_int, p: Ptr, n: usize, t: c_long, f: c_int) -> isize, block(p as u64, (n as u64).saturating_add(8));
    msgctl(q: c_int, c: c_int, b: Mem<120>) -> c_int;
    shmctl(q: c_int, c: c_int, b: Mem<120>) -> c_int;
    semctl(q: c_int, n: c_int, c: c_int, b: Ptr) -> c_int, control::semaphores(c, b as u64);
    semop(q: c_int, v: Ptr, n: usize) -> c_int, block(v as u64, (n as u64).saturating_mul(6));
    semtimedop(q: c_int, v: Ptr, n: usize, t: Mem<16>) -> c_int, block(v as u64, (n as u64).saturating_mul(6));
    mq_open(p: Text, f: c_int, m: u32, a: Ptr) -> c_int, if f & libc::O_CREAT != 0 { block(a as u64, 64) };
    mq_unlink(p: Text) -> c_int;
    mq_getattr(q: c_int, a: Mem<64>) -> c_int;
    mq_setattr(q: c_int, n: Mem<64>, o: Mem<64>) -> c_int;
    mq_send(q: c_int, b: Ptr, n: usize, p: u32) -> c_int, block(b as u64, n as u64);
    mq_timedsend(q: c_int, b: Ptr, n: usize, p: u32, t: Mem<16>) -> c_int, block(b as u64, n as u64);
    mq_receive(q: c_int, b: Ptr, n: usize, p: Mem<4>) -> isize, block(b as u64, n as u64);
    mq_timedreceive(q: c_int, b: Ptr, n: usize, p: Mem<4>, t: Mem<16>) -> isize, block(b as u64, n as u64);
}

/// The entries of an iovec array, and what they name.
fn iovecs(array: u64, n: u64) {
    if n <= 1024 {
        block(array, n * 16);
        vector_resident(array as *const zio_tracker::thread::IoVec, n as usize);
    }
}
