//! Mappings: mmap, munmap, mremap, madvise, mprotect.
//!
//! Only private, anonymous, writable mappings that the program made through these hooks are ever armed
//! (DESIGN.md, section 4, rule 4).
//!
//! Soundness: the calls are the program's own, made raw where the tracker's lock is held (they cannot block on
//! another thread) and by libc otherwise; `errno` is set as libc sets it.

use crate::{TRACKER, config, real, threads};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use zio_tracker::addr::{PAGE, Span, page_up};
use zio_tracker::raw;
use zio_tracker::sys::Errno;

pub mod locked;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn set_errno(e: Errno) {
    // SAFETY: this thread's errno.
    unsafe { *__errno_location() = e.0 };
}

fn pointer(r: Result<u64, Errno>) -> *mut c_void {
    match r {
        Ok(p) => p as *mut c_void,
        Err(e) => {
            set_errno(e);
            libc::MAP_FAILED
        }
    }
}

fn status(r: Result<u64, Errno>) -> c_int {
    match r {
        Ok(_) => 0,
        Err(e) => {
            set_errno(e);
            -1
        }
    }
}

/// Mappings made before the constructor, by allocators that boot early.
static EARLY: [[AtomicU64; 2]; 64] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 64];
static EARLY_LEN: AtomicUsize = AtomicUsize::new(0);

/// Makes the early mappings known.
pub fn replay_early() {
    let n = EARLY_LEN.load(Ordering::Relaxed).min(EARLY.len());
    for e in EARLY.iter().take(n) {
        if let Some(s) = Span::new(e[0].load(Ordering::Relaxed), e[1].load(Ordering::Relaxed)) {
            TRACKER.mapping_added(None, s);
        }
    }
}

fn eligible(prot: c_int, flags: c_int) -> bool {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let unfit = libc::MAP_GROWSDOWN | libc::MAP_STACK | libc::MAP_HUGETLB | libc::MAP_LOCKED | libc::MAP_SHARED;
    let fit = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    prot & rw == rw && flags & fit == fit && flags & unfit == 0
}

/// mmap(2), mmap64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(a: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void {
    let args = [a as u64, n as u64, prot as u64, flags as u64, fd as i64 as u64, off as u64];
    // SAFETY: the program's own call.
    let call = || unsafe { raw::call(libc::SYS_mmap, args) };
    if !config::active() {
        let r = call();
        if let Ok(p) = r
            && !config::disabled()
            && eligible(prot, flags)
        {
            let i = EARLY_LEN.fetch_add(1, Ordering::Relaxed);
            if let Some(e) = EARLY.get(i) {
                e[0].store(p, Ordering::Relaxed);
                e[1].store(n as u64, Ordering::Relaxed);
            }
        }
        return pointer(r);
    }
    let t = threads::current();
    let fit = eligible(prot, flags);
    let over = Span::new(a as u64, page_up(n as u64)).filter(|_| flags & libc::MAP_FIXED != 0);
    if let Some(s) = over
        && TRACKER.concerns(t, s)
    {
        return pointer(TRACKER.with_mapping_change(t, s, fit, || {
            let r = call();
            (r, r.is_ok())
        }));
    }
    let r = call();
    if let Ok(p) = r
        && let Some(s) = Span::new(p, page_up(n as u64))
    {
        // Whatever the books say of these addresses is about a mapping that is gone.
        if TRACKER.concerns(t, s) {
            TRACKER.with_mapping_change(t, s, false, || ((), true));
        }
        if fit {
            TRACKER.mapping_added(t, s);
        }
    }
    pointer(r)
}

/// The same: offsets have 64 bits.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(a: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void {
    // SAFETY: forwarded.
    unsafe { mmap(a, n, prot, flags, fd, off) }
}

/// munmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(a: *mut c_void, n: usize) -> c_int {
    // SAFETY: the program's own call.
    let call = || unsafe { raw::call(libc::SYS_munmap, [a as u64, n as u64, 0, 0, 0, 0]) };
    let t = threads::current();
    match Span::new(a as u64, page_up(n as u64)) {
        Some(s) if config::loaded() && (a as u64).is_multiple_of(PAGE) && TRACKER.concerns(t, s) => {
            status(TRACKER.with_mapping_change(t, s, false, || {
                let r = call();
                (r, r.is_ok())
            }))
        }
        _ => status(call()),
    }
}

/// mremap(2): pages are made resident first, so that nothing has to follow them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(a: *mut c_void, n: usize, m: usize, flags: c_int, to: *mut c_void) -> *mut c_void {
    // libc decides by the flags whether it passes `to` on, which is whatever was in the register otherwise.
    // SAFETY: the program's own call; this thread's errno.
    let call = || unsafe {
        let p = real::mremap(a, n, m, flags, to);
        if p == libc::MAP_FAILED { Err(Errno(*__errno_location())) } else { Ok(p as u64) }
    };
    let (Some(old), true) = (Span::new(a as u64, page_up(n as u64)), config::loaded()) else { return pointer(call()) };
    let t = threads::current();
    let fixed = Span::new(to as u64, page_up(m as u64)).filter(|_| flags & libc::MREMAP_FIXED != 0);
    let known = TRACKER.concerns(t, old);
    if !known && !fixed.is_some_and(|s| TRACKER.concerns(t, s)) {
        return pointer(call());
    }
    if TRACKER.make_unknown(t, old).is_err() {
        set_errno(Errno::NOMEM);
        return libc::MAP_FAILED;
    }
    let r = match fixed {
        Some(s) => TRACKER.with_mapping_change(t, s, false, || {
            let r = call();
            (r, r.is_ok())
        }),
        None => call(),
    };
    match r {
        Ok(p) => {
            TRACKER.with_mapping_change(t, old, false, || ((), true));
            if let Some(s) = Span::new(p, page_up(m as u64)) {
                TRACKER.with_mapping_change(t, s, known, || ((), true));
            }
        }
        Err(_) if known => TRACKER.mapping_added(t, old),
        Err(_) => {}
    }
    pointer(r)
}

/// madvise(2): names go only where the advice discards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(a: *mut c_void, n: usize, advice: c_int) -> c_int {
    // SAFETY: the program's own call.
    let real = || unsafe { real::madvise(a, n, advice) };
    if !config::loaded() {
        return real();
    }
    let Some(s) = Span::new(a as u64, page_up(n as u64)) else { return real() };
    let t = threads::current();
    match advice {
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE => {
            // In `sigbus` mode a page that the kernel frees at its leisure would be missing unseen.
            let advice = if config::sigbus() && advice == libc::MADV_FREE { libc::MADV_DONTNEED } else { advice };
            // SAFETY: the program's own call.
            let r = unsafe { raw::call(libc::SYS_madvise, [a as u64, n as u64, advice as u64, 0, 0, 0]) };
            if r.is_ok() && (config::sigbus() || TRACKER.pages.any_armed(s)) {
                TRACKER.discarded(t, s);
            }
            status(r)
        }
        libc::MADV_DONTFORK | libc::MADV_WIPEONFORK | libc::MADV_HWPOISON | 102 | 103 | 21 => {
            let _ = TRACKER.make_unknown(t, s);
            real()
        }
        _ => real(),
    }
}

/// mprotect(2): names stay; memory that cannot be written is not armed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mprotect(a: *mut c_void, n: usize, prot: c_int) -> c_int {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    if config::loaded()
        && prot & rw != rw
        && let Some(s) = Span::new(a as u64, page_up(n as u64))
    {
        let t = threads::current();
        if TRACKER.concerns(t, s) {
            let _ = TRACKER.make_unknown(t, s);
        }
    }
    // SAFETY: the program's own call.
    unsafe { real::mprotect(a, n, prot) }
}
