//! The constructor, the statistics page, and the end.
//!
//! Everything that can fail here ends in passing through, with one line that says why.
//!
//! Soundness: runs once, before any other code of the process but the dynamic linker's; mappings made here are
//! never unmapped; foreign data (`/proc`, link maps) is only compared and parsed.

use crate::config::{self, Environment, Phase};
use crate::report::Text;
use crate::{TRACKER, alloc, copies, fork, maps, real, report, signals, sys, threads};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::arena::PageMeta;
use zio_tracker::child::RING_BYTES;
use zio_tracker::policy::{SITES, Site};
use zio_tracker::raw;
use zio_tracker::state::{Arming, BOUNCE, Memory};
use zio_tracker::stats::{MAGIC, Mode, StatsPage, VERSION};
use zio_tracker::sys::linux::map_anonymous;
use zio_tracker::sys::{Kernel, Register};

static STATS: AtomicPtr<StatsPage> = AtomicPtr::new(core::ptr::null_mut());
static STATS_PATH: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static STATS_PATH_LEN: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicBool = AtomicBool::new(false);
/// Process that was started with the statistics path; others never overwrite its file.
static STATS_OWNER: AtomicU64 = AtomicU64::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *mut *mut u8, *mut *mut u8) = constructor;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

extern "C" fn destructor() {
    at_exit();
}

extern "C" fn constructor(_: c_int, _: *mut *mut u8, env: *mut *mut u8) {
    real::resolve_all();
    copies::resolve();
    let env = Environment(env);
    if env.get(b"ZIO_DISABLE").is_some_and(|v| !v.is_empty() && v != b"0") || !followed(env) {
        config::set_phase(Phase::Disabled);
        return;
    }
    let path = env.get(b"ZIO_STATS");
    if let Some(p) = path.filter(|p| !p.is_empty()) {
        keep_path(p);
        STATS_OWNER.store(u64::from(sys::getpid()), Ordering::Relaxed);
    }
    match start(env) {
        Ok(mode) => {
            set_mode(mode, b"");
            if env.get(b"ZIO_BANNER").is_some_and(|v| v == b"1") {
                report::line(&[b"zio: active, fault mode ", mode.name().as_bytes(), b"\n"]);
            }
        }
        Err(why) => {
            config::set_phase(Phase::Passthrough);
            set_mode(Mode::Passthrough, why.0);
            report::line(&[b"zio: not eliding: ", why.0, b"; ", why.1, b"\n"]);
        }
    }
    if env.get(b"ZIO_FOLLOW").is_some_and(|v| v == b"none") {
        env.remove(&[b"LD_PRELOAD=", b"ZIO_"]);
    }
}

/// Programs overwrite their environment area (setproctitle): the path is kept elsewhere.
fn keep_path(path: &[u8]) {
    let Ok(p) = map_anonymous(PAGE) else { return };
    let n = path.len().min(PAGE as usize);
    // SAFETY: a fresh page of ours; `n` bytes fit.
    unsafe { raw::copy(p as *mut u8, path.as_ptr(), n as u64) };
    STATS_PATH_LEN.store(n as u64, Ordering::Relaxed);
    STATS_PATH.store(p as *mut u8, Ordering::Release);
}

/// `--follow`: whether this process, exec'd by one under zio, is one too. ZIO_EXE is the first program's identity.
fn followed(env: Environment) -> bool {
    let Some(first) = env.get(b"ZIO_EXE") else { return true };
    if env.get(b"ZIO_FOLLOW").is_some_and(|v| v == b"all") {
        return true;
    }
    // SAFETY: an all-zero stat is valid.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    let path = c"/proc/self/exe".as_ptr() as u64;
    // SAFETY: a constant path, our own struct.
    let r = unsafe { raw::call(libc::SYS_stat, [path, &mut st as *mut libc::stat as u64, 0, 0, 0, 0]) };
    if r.is_err() {
        return true;
    }
    let mut split = first.splitn(2, |&b| b == b':');
    let same = |s: Option<&[u8]>, n: u64| s.and_then(hex) == Some(n);
    same(split.next(), st.st_dev) && same(split.next(), st.st_ino)
}

fn hex(s: &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for &b in s {
        let d = (b as char).to_digit(16)?;
        n = n.checked_mul(16)?.checked_add(u64::from(d))?;
    }
    if s.is_empty() { None } else { Some(n) }
}

/// A reason and a remedy.
struct Why(&'static [u8], &'static [u8]);

fn start(env: Environment) -> Result<Mode, Why> {
    let threshold = match env.get(b"ZIO_THRESHOLD") {
        None => config::DEFAULT_THRESHOLD,
        Some(v) => config::size(v)
            .filter(|&n| n >= config::MIN_THRESHOLD)
            .ok_or(Why(b"ZIO_THRESHOLD is not a size of 4096 or more", b"write bytes, or a number with K, M or G"))?,
    };
    let asked = match env.get(b"ZIO_FAULT") {
        None | Some(b"auto") => None,
        Some(b"guard") => Some(Mode::Guard),
        Some(b"sigbus") => Some(Mode::Sigbus),
        Some(_) => return Err(Why(b"ZIO_FAULT is none of auto, guard, sigbus", b"correct it")),
    };
    let stats = stats_page().ok_or(Why(b"no memory for statistics", MEMORY))?;
    if !threads::init() {
        return Err(Why(b"no memory for thread records", MEMORY));
    }
    let memory = reserve()?;
    // SAFETY: fresh mappings, once.
    unsafe { TRACKER.init(memory, stats, threshold) };
    threads::announce();
    if TRACKER.kernel.open().is_err() {
        return Err(Why(
            b"the kernel refuses userfaultfd",
            b"`zio doctor` says what to change (a seccomp profile, /dev/userfaultfd, the kernel)",
        ));
    }
    let mode = choose(asked)?;
    if !fork::init() || !signals::install() {
        return Err(Why(b"signal or fork handlers cannot be installed", b"please report"));
    }
    let (glibc, text) = allocator();
    alloc::init(glibc, text);
    config::set_sigbus(mode == Mode::Sigbus);
    config::set_threshold(threshold);
    TRACKER.set_arming(if mode == Mode::Sigbus { Arming::Missing } else { Arming::Guard });
    maps::replay_early();
    config::set_phase(Phase::Active);
    copies::activate();
    // SAFETY: `stats` is ours for good.
    unsafe { (*stats).threshold.store(threshold, Ordering::Relaxed) };
    Ok(mode)
}

const MEMORY: &[u8] = b"raise RLIMIT_AS (ulimit -v) or run without zio";

/// Reserves address space: the arena as large as memory, its page table, the maps' nodes. Nothing is committed.
fn reserve() -> Result<Memory, Why> {
    let total = memory_bytes();
    let limit = address_limit();
    // Under RLIMIT_AS the program's own mappings come first: zio takes an eighth, or stays out.
    let arena = if limit == u64::MAX { total } else { (limit / 8).min(total) } & !(PAGE - 1);
    if arena < 64 << 20 {
        return Err(Why(b"RLIMIT_AS leaves too little address space", MEMORY));
    }
    let scale = |n: u64| if limit == u64::MAX { n } else { (n / 64).max(1 << 20) };
    let map = |n: u64| match map_anonymous(n) {
        Ok(p) => {
            maps::locked::leave_out(p, n);
            Ok(p)
        }
        Err(_) => Err(Why(b"address space is short", MEMORY)),
    };
    let pages = (arena / PAGE) as u32;
    Ok(Memory {
        arena: (map(arena)?, pages),
        cap_bytes: total / 4 * 3,
        meta: map(arena / PAGE * size_of::<PageMeta>() as u64)?,
        extents: (map(scale(1 << 30))?, scale(1 << 30)),
        known: (map(scale(64 << 20))?, scale(64 << 20)),
        registered: (map(scale(64 << 20))?, scale(64 << 20)),
        bounce: map(BOUNCE)?,
        child: map(RING_BYTES)?,
        sites: map((size_of::<Site>() * SITES) as u64)?,
    })
}

fn address_limit() -> u64 {
    let mut limit = [0u64; 2];
    // SAFETY: our own array.
    let r = unsafe { raw::call(libc::SYS_getrlimit, [libc::RLIMIT_AS as u64, limit.as_mut_ptr() as u64, 0, 0, 0, 0]) };
    if r.is_ok() { limit[0] } else { u64::MAX }
}

/// Physical memory, or the control group's limit if that is lower.
fn memory_bytes() -> u64 {
    let mut info = [0u64; 32];
    // SAFETY: larger than struct sysinfo: totalram is the fifth word, the unit a u32 at byte 104.
    let r = unsafe { raw::call(libc::SYS_sysinfo, [info.as_mut_ptr() as u64, 0, 0, 0, 0, 0]) };
    let unit = (info[13] & 0xffff_ffff).max(1);
    let total = if r.is_ok() { info[4].saturating_mul(unit) } else { 1 << 30 };
    let mut buf = [0u8; 32];
    let group = read_file(c"/sys/fs/cgroup/memory.max", &mut buf)
        .and_then(|s| config::size(s.trim_ascii()))
        .unwrap_or(u64::MAX);
    total.min(group)
}

fn read_file<'a>(path: &core::ffi::CStr, buf: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a terminated path; our own buffer; a descriptor of ours.
    unsafe {
        let at = libc::AT_FDCWD as u64;
        let fd = raw::call(libc::SYS_openat, [at, path.as_ptr() as u64, libc::O_CLOEXEC as u64, 0, 0, 0]).ok()?;
        let n = raw::call(libc::SYS_read, [fd, buf.as_mut_ptr() as u64, buf.len() as u64, 0, 0, 0]);
        let _ = raw::call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        buf.get(..n.ok()? as usize)
    }
}

/// The fault mode: what was asked for, or the first that works.
fn choose(asked: Option<Mode>) -> Result<Mode, Why> {
    match asked {
        Some(Mode::Guard) if guard_works() => Ok(Mode::Guard),
        Some(Mode::Guard) => Err(Why(b"fault mode guard does not work on this kernel", b"use --fault auto or sigbus")),
        Some(m) => Ok(m),
        None if guard_works() => Ok(Mode::Guard),
        None => Ok(Mode::Sigbus),
    }
}

/// Tries what `guard` mode rests on, on two pages: markers, and a fill that replaces them.
fn guard_works() -> bool {
    let Ok(base) = map_anonymous(3 * PAGE) else { return false };
    let s = Span::between(base, base + PAGE);
    let k = &TRACKER.kernel;
    let src = (base + 2 * PAGE) as *mut u8;
    // SAFETY: pages of ours. A volatile write makes the source page and the target page present.
    unsafe {
        src.write_volatile(0x5a);
        (base as *mut u8).write_volatile(1);
    }
    let filled = k.register(Span::between(base, base + 2 * PAGE), Register::WriteProtect).is_ok()
        && k.guard_install(s).is_ok()
        && k.fill(s, src) == Ok(PAGE);
    // SAFETY: touched only when the fill says that the page is there.
    let right = filled && unsafe { (base as *const u8).read_volatile() } == 0x5a;
    // SAFETY: our own mapping.
    let _ = unsafe { raw::call(libc::SYS_munmap, [base, 3 * PAGE, 0, 0, 0, 0]) };
    right
}

#[repr(C)]
struct DlInfo {
    name: *const c_char,
    base: u64,
    symbol: *const c_char,
    address: u64,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

/// Whether malloc is glibc's, and where libc's text is.
fn allocator() -> (bool, (u64, u64)) {
    let mut libc_info = DlInfo { name: core::ptr::null(), base: 0, symbol: core::ptr::null(), address: 0 };
    let mut malloc_info = DlInfo { name: core::ptr::null(), base: 0, symbol: core::ptr::null(), address: 0 };
    let in_libc = real::next(c"gnu_get_libc_version");
    let malloc = real::next(c"malloc");
    // SAFETY: addresses of loaded objects, our own structs.
    unsafe {
        dladdr(in_libc, &mut libc_info);
        dladdr(malloc, &mut malloc_info);
    }
    let base = libc_info.base;
    (base != 0 && base == malloc_info.base, (base, base + text_len(base)))
}

/// Length of an object's image, from its program headers.
fn text_len(base: u64) -> u64 {
    if base == 0 {
        return 0;
    }
    let mut end = 0;
    // SAFETY: a loaded ELF object: its header and program headers are mapped at its base.
    unsafe {
        let headers = base + *((base + 32) as *const u64);
        let n = *((base + 56) as *const u16);
        for i in 0..u64::from(n) {
            let ph = headers + i * 56;
            if *(ph as *const u32) == 1 {
                end = end.max(*((ph + 16) as *const u64) + *((ph + 40) as *const u64));
            }
        }
    }
    end
}

/// A private mapping of a memfd, which shows its name in /proc/PID/maps.
fn stats_page() -> Option<*mut StatsPage> {
    let len = (size_of::<StatsPage>() as u64).next_multiple_of(PAGE);
    // SAFETY: a new descriptor and a new mapping.
    let p = unsafe {
        let fd = raw::call(libc::SYS_memfd_create, [c"zio-stats".as_ptr() as u64, 1, 0, 0, 0, 0]).ok()?;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let _ = raw::call(libc::SYS_ftruncate, [fd, len, 0, 0, 0, 0]);
        let p = raw::call(libc::SYS_mmap, [0, len, prot, libc::MAP_PRIVATE as u64, fd, 0]);
        let _ = raw::call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        p.ok()? as *mut StatsPage
    };
    // SAFETY: fresh zeroed pages of the right size.
    unsafe {
        (*p).version = VERSION;
        (*p).page_len = size_of::<StatsPage>() as u32;
        (*p).pid.store(u64::from(sys::getpid()), Ordering::Relaxed);
        (*p).magic.store(MAGIC, Ordering::Release);
    }
    STATS.store(p, Ordering::Release);
    Some(p)
}

/// In a forked child: the private page is a copy; it starts at zero, as the child's own.
pub fn child_stats() -> *mut StatsPage {
    let p = STATS.load(Ordering::Acquire);
    WRITTEN.store(false, Ordering::Relaxed);
    // SAFETY: null or the page; the child has one thread.
    unsafe {
        if let Some(s) = p.as_ref() {
            s.pid.store(u64::from(sys::getpid()), Ordering::Relaxed);
            for shard in &s.shards {
                for c in &shard.counters {
                    if c.load(Ordering::Relaxed) != 0 {
                        c.store(0, Ordering::Relaxed);
                    }
                }
            }
        }
    }
    p
}

fn set_mode(mode: Mode, reason: &[u8]) {
    let p = STATS.load(Ordering::Acquire);
    if p.is_null() && stats_page().is_none() {
        return;
    }
    let p = STATS.load(Ordering::Acquire);
    // SAFETY: the page; `reason` is written before the length is.
    unsafe {
        (*p).mode.store(mode as u64, Ordering::Relaxed);
        let n = reason.len().min(192);
        for (to, from) in (*p).reason.iter_mut().zip(reason) {
            *to = *from;
        }
        (*p).reason_len.store(n as u64, Ordering::Release);
    }
}

/// Stops eliding for good: everything elided becomes resident.
pub fn withdraw(why: &'static [u8]) {
    if !config::active() {
        return;
    }
    config::set_phase(Phase::Passthrough);
    copies::deactivate();
    let _ = TRACKER.withdraw(threads::current());
    set_mode(Mode::Passthrough, why);
}

/// Writes the statistics file, once.
pub fn at_exit() {
    if WRITTEN.swap(true, Ordering::Relaxed) || fork::in_vfork_child() {
        return;
    }
    let path = STATS_PATH.load(Ordering::Relaxed);
    let p = STATS.load(Ordering::Acquire);
    if path.is_null() || p.is_null() {
        return;
    }
    // SAFETY: `keep_path`'s page and length.
    let template = unsafe { core::slice::from_raw_parts(path, STATS_PATH_LEN.load(Ordering::Relaxed) as usize) };
    let child = STATS_OWNER.load(Ordering::Relaxed) != u64::from(sys::getpid());
    // SAFETY: the page is ours for good.
    crate::json::write_file(template, child, unsafe { &*p });
}

/// Type of a text buffer for a path.
pub type Path = Text<1024>;
