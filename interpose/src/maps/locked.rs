//! Locked memory: mlock, mlock2, mlockall.
//!
//! The kernel refuses guard markers in locked memory, and the program wants its pages there: what it locks is given up.
//! mlockall would populate and charge zio's own reservations, the arena among them, which is as large as memory. So the
//! program's mappings are locked one by one, and the kernel only hears of those to come.
//!
//! Soundness: mlock on any range changes no byte of it; paths and buffers are our own.

use crate::{TRACKER, config, init, real, threads};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::raw;
use zio_tracker::sys::Errno;

/// zio's reservations, by start and length, in no order.
static OURS: [[AtomicU64; 2]; 16] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 16];
static OURS_LEN: AtomicUsize = AtomicUsize::new(0);
/// The program asked for future mappings to be locked.
static FUTURE: AtomicBool = AtomicBool::new(false);

/// Notes a reservation that mlockall must not populate. Those past the sixteenth are not noted.
pub fn leave_out(start: u64, len: u64) {
    if let Some(e) = OURS.get(OURS_LEN.fetch_add(1, Ordering::Relaxed)) {
        e[1].store(len, Ordering::Relaxed);
        e[0].store(start, Ordering::Relaxed);
    }
}

fn ours() -> impl Iterator<Item = Span> {
    OURS.iter().filter_map(|e| Span::new(e[0].load(Ordering::Relaxed), e[1].load(Ordering::Relaxed)))
}

/// Calls `f` for the parts of `s` that are the program's.
fn without_ours(s: Span, f: &mut dyn FnMut(Span)) {
    let mut at = s.start;
    while at < s.end {
        // The nearest of ours at or after `at`; a mapping may hold several.
        let mut next = Span::between(s.end, s.end);
        for o in ours() {
            if !o.is_empty() && o.end > at && o.start < next.start {
                next = o;
            }
        }
        let part = Span::between(at, if next.start < s.end { next.start } else { s.end });
        if !part.is_empty() {
            f(part);
        }
        at = if next.end > at { next.end } else { s.end };
    }
}

/// Calls `f` for each of the program's mappings. False when /proc cannot be read.
fn each_mapping(f: &mut dyn FnMut(Span)) -> bool {
    let (at, path) = (libc::AT_FDCWD as u64, c"/proc/self/maps".as_ptr() as u64);
    // SAFETY: a constant path.
    let fd = unsafe { raw::call(libc::SYS_openat, [at, path, libc::O_CLOEXEC as u64, 0, 0, 0]) };
    let Ok(fd) = fd else { return false };
    let mut buf = [0u8; 1024];
    // Each line starts "start-end "; `field` counts what was read of it.
    let (mut field, mut value, mut start) = (0u8, 0u64, 0u64);
    loop {
        // SAFETY: our own buffer.
        let n = unsafe { raw::call(libc::SYS_read, [fd, buf.as_mut_ptr() as u64, buf.len() as u64, 0, 0, 0]) };
        let Some(got) = buf.get(..n.unwrap_or(0) as usize).filter(|b| !b.is_empty()) else { break };
        for &b in got {
            match (field, b) {
                (_, b'\n') => (field, value) = (0, 0),
                (0, b'-') => (field, start, value) = (1, value, 0),
                (1, b' ') => {
                    field = 2;
                    if let Some(s) = Span::new(start, value.saturating_sub(start)) {
                        without_ours(s, f);
                    }
                }
                (0 | 1, _) => value = value << 4 | u64::from((b as char).to_digit(16).unwrap_or(0)),
                _ => {}
            }
        }
    }
    // SAFETY: our own descriptor.
    let _ = unsafe { raw::call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
    true
}

fn lock_limit() -> u64 {
    let mut limit = [0u64; 2];
    let to = limit.as_mut_ptr() as u64;
    // SAFETY: our own array.
    let r = unsafe { raw::call(libc::SYS_getrlimit, [libc::RLIMIT_MEMLOCK as u64, to, 0, 0, 0, 0]) };
    if r.is_ok() { limit[0] } else { u64::MAX }
}

/// Locks every mapping without populating it, then takes ours out again. It fails where a plain call would.
fn on_fault() -> c_int {
    // SAFETY: locks and unlocks; changes no bytes.
    unsafe {
        let r = real::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT);
        if r == 0 {
            for s in ours() {
                let _ = raw::call(libc::SYS_munlock, [s.start, s.len(), 0, 0, 0, 0]);
            }
        }
        r
    }
}

/// mlockall with MCL_CURRENT.
fn lock_current(flags: c_int) -> c_int {
    let (mut total, lazy) = (0u64, flags & libc::MCL_ONFAULT);
    let listed = each_mapping(&mut |s| total += s.len());
    // SAFETY: a length of zero locks nothing, but fails with EPERM for who may lock nothing at all.
    let allowed = unsafe { raw::call(libc::SYS_mlock, [0; 6]) };
    // The kernel compares all that is mapped with the limit, unless the caller is privileged: only it knows.
    let unsure = !listed || total > lock_limit() || allowed == Err(Errno(libc::EPERM));
    if unsure && on_fault() != 0 {
        return -1;
    }
    let future = flags & libc::MCL_FUTURE != 0;
    // SAFETY: flags only.
    unsafe {
        if future {
            if real::mlockall(libc::MCL_FUTURE | lazy) != 0 {
                return -1;
            }
        } else if FUTURE.load(Ordering::Relaxed) {
            // The only way to take it back; what is mapped now is locked again below.
            let _ = raw::call(libc::SYS_munlockall, [0; 6]);
        }
    }
    FUTURE.store(future, Ordering::Relaxed);
    // As mlockall, without regard for what cannot be populated (guard pages, the ends of files).
    each_mapping(&mut |s| {
        let how = u64::from(lazy != 0);
        // SAFETY: changes no bytes.
        let _ = unsafe { raw::call(libc::SYS_mlock2, [s.start, s.len(), how, 0, 0, 0]) };
    });
    0
}

fn give_up(a: *mut c_void, n: usize) {
    if config::loaded()
        && let Some(s) = Span::new(a as u64, n as u64)
    {
        let _ = TRACKER.make_unknown(threads::current(), s);
    }
}

/// mlock(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock(a: *mut c_void, n: usize) -> c_int {
    give_up(a, n);
    // SAFETY: the program's own call.
    unsafe { real::mlock(a, n) }
}

/// mlock2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock2(a: *mut c_void, n: usize, flags: c_int) -> c_int {
    give_up(a, n);
    // SAFETY: the program's own call.
    unsafe { real::mlock2(a, n, flags) }
}

/// mlockall(2): everything is to be resident from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    init::withdraw(b"the program locks its memory (mlockall)");
    let known = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    if config::loaded() && flags & libc::MCL_CURRENT != 0 && flags & !known == 0 {
        return lock_current(flags);
    }
    // SAFETY: the program's own call.
    let r = unsafe { real::mlockall(flags) };
    if r == 0 {
        FUTURE.store(flags & libc::MCL_FUTURE != 0, Ordering::Relaxed);
    }
    r
}
