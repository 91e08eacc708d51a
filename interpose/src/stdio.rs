//! stdio: libc hands the caller's memory to the kernel from inside.
//!
//! `fwrite` of a large block writes straight from the caller's address, `fread` reads straight into it, by calls
//! that no hook sees. So named bytes go through a bounce buffer, piece by piece, and destinations are made
//! resident. `fputs`, `fprintf` and `fgets` touch every byte in user space first, which resolves it.
//!
//! Soundness: arguments are the program's own; the bounce buffer is a mapping of ours that one claim uses at a time.

use crate::{TRACKER, config, real, threads};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::sys::linux::map_anonymous;

/// Bytes of a bounce step.
const BOUNCE: u64 = 64 << 10;

/// A free bounce buffer, if any: taken by swap, given back by store. Concurrent writers map their own.
static SPARE: AtomicU64 = AtomicU64::new(0);

/// Writes `s` through a bounce buffer; `None` when that is not possible. Returns bytes that stdio took.
unsafe fn bounce_write(s: Span, f: *mut c_void) -> Option<u64> {
    let t = threads::current()?;
    let buffer = match SPARE.swap(0, Ordering::AcqRel) {
        0 => map_anonymous(BOUNCE).ok()?,
        p => p,
    };
    let mut done = 0;
    while done < s.len() {
        let n = BOUNCE.min(s.len() - done);
        let part = Span::between(s.start + done, s.start + done + n);
        let here = 0u64;
        let gathered = match t.claim(&here as *const u64 as u64) {
            // SAFETY: `buffer` is BOUNCE bytes of ours.
            Some(mut c) => unsafe { TRACKER.gather(t, &mut c, part, buffer) },
            None => false,
        };
        let from = if gathered {
            buffer
        } else {
            let _ = TRACKER.make_resident(Some(t), part);
            part.start
        };
        // SAFETY: `n` bytes at `from`, resident.
        let k = unsafe { real::fwrite(from as *mut c_void, 1, n as usize, f) } as u64;
        done += k;
        if k < n {
            break;
        }
    }
    // Only one spare is kept; a second one stays mapped until it is the spare again.
    if SPARE.compare_exchange(0, buffer, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // SAFETY: a mapping of ours that nobody else has.
        let _ = unsafe { zio_tracker::raw::call(libc::SYS_munmap, [buffer, BOUNCE, 0, 0, 0, 0]) };
    }
    Some(done)
}

/// fwrite(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn fwrite(p: *mut c_void, size: usize, n: usize, f: *mut c_void) -> usize {
    let span = size.checked_mul(n).and_then(|k| Span::new(p as u64, k as u64)).filter(|_| config::loaded());
    // SAFETY: the program's call.
    unsafe {
        let Some(s) = span else { return real::fwrite(p, size, n, f) };
        in_stream(|| match TRACKER.pages.any_armed(s).then(|| bounce_write(s, f)) {
            Some(Some(done)) if done == s.len() => n,
            Some(Some(done)) => (done as usize).checked_div(size).unwrap_or(0),
            Some(None) => {
                let _ = TRACKER.make_resident(threads::current(), s);
                real::fwrite(p, size, n, f)
            }
            None => real::fwrite(p, size, n, f),
        })
    }
}

/// Runs a look at the program's memory and the call of libc's that uses it after waiting for the stream's lock: no page
/// of the memory may be armed in between.
fn in_stream<R>(f: impl FnOnce() -> R) -> R {
    let t = threads::current();
    TRACKER.child_trim(t);
    TRACKER.midway_begins(t);
    let r = f();
    TRACKER.midway_ends(t);
    r
}

/// fwrite without the stream's lock: the lock is recursive and taken all the same, which nobody can tell.
#[unsafe(no_mangle)]
unsafe extern "C" fn fwrite_unlocked(p: *mut c_void, size: usize, n: usize, f: *mut c_void) -> usize {
    // SAFETY: forwarded.
    unsafe { fwrite(p, size, n, f) }
}

/// fread(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn fread(p: *mut c_void, size: usize, n: usize, f: *mut c_void) -> usize {
    destination(p, size, n);
    // SAFETY: the program's call.
    unsafe { real::fread(p, size, n, f) }
}

fn destination(p: *mut c_void, size: usize, n: usize) {
    if config::loaded()
        && let Some(k) = size.checked_mul(n)
    {
        crate::receive::touch(p as u64, k as u64);
    }
}

/// fread without the stream's lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn fread_unlocked(p: *mut c_void, size: usize, n: usize, f: *mut c_void) -> usize {
    destination(p, size, n);
    // SAFETY: the program's call.
    unsafe { real::fread_unlocked(p, size, n, f) }
}

/// Fortified fread: an overflow is libc's to report.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fread_chk(p: *mut c_void, len: usize, size: usize, n: usize, f: *mut c_void) -> usize {
    destination(p, size, n);
    // SAFETY: the program's call.
    unsafe { real::fread_chk(p, len, size, n, f) }
}

/// Fortified fread_unlocked.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fread_unlocked_chk(p: *mut c_void, len: usize, size: usize, n: usize, f: *mut c_void) -> usize {
    destination(p, size, n);
    // SAFETY: the program's call.
    unsafe { real::fread_unlocked_chk(p, len, size, n, f) }
}

/// The bytes of a terminated string, if some of its first page are armed: the scan touches what libc's would.
unsafe fn armed_string(p: *mut c_void) -> Option<Span> {
    if !config::loaded() || !Span::new(p as u64, 1).is_some_and(|s| TRACKER.pages.any_armed(s)) {
        return None;
    }
    let mut n = 0u64;
    // SAFETY: the program's string.
    while unsafe { ((p as u64 + n) as *const u8).read_volatile() } != 0 {
        n += 1;
    }
    Span::new(p as u64, n)
}

/// fputs(3): a string longer than the bounded set of a forked child could be elided again before libc writes it.
#[unsafe(no_mangle)]
unsafe extern "C" fn fputs(p: *mut c_void, f: *mut c_void) -> c_int {
    // SAFETY: the program's string and stream.
    in_stream(|| unsafe {
        match armed_string(p) {
            Some(s) if TRACKER.pages.any_armed(s) => {
                if fwrite(p, 1, s.len() as usize, f) as u64 == s.len() {
                    1
                } else {
                    -1
                }
            }
            _ => real::fputs(p, f),
        }
    })
}

/// fputs without the stream's lock; see [`fwrite_unlocked`].
#[unsafe(no_mangle)]
unsafe extern "C" fn fputs_unlocked(p: *mut c_void, f: *mut c_void) -> c_int {
    // SAFETY: forwarded.
    unsafe { fputs(p, f) }
}

/// puts(3): as fputs.
#[unsafe(no_mangle)]
unsafe extern "C" fn puts(p: *mut c_void) -> c_int {
    // SAFETY: the program's string.
    in_stream(|| unsafe {
        if let Some(s) = armed_string(p) {
            let _ = TRACKER.make_resident(threads::current(), s);
        }
        real::puts(p)
    })
}

/// Memory that becomes a stream's buffer: libc fills it from the kernel, and writes from it, unseen.
fn stream_buffer(b: *mut c_void, n: usize) {
    if config::loaded()
        && !b.is_null()
        && let Some(s) = Span::new(b as u64, n as u64)
    {
        let _ = TRACKER.make_unknown(threads::current(), s);
    }
}

/// setvbuf(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn setvbuf(f: *mut c_void, b: *mut c_void, mode: c_int, n: usize) -> c_int {
    stream_buffer(b, n);
    // SAFETY: the program's call.
    unsafe { real::setvbuf(f, b, mode, n) }
}

/// setbuf(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn setbuf(f: *mut c_void, b: *mut c_void) {
    stream_buffer(b, BUFSIZ);
    // SAFETY: the program's call.
    unsafe { real::setbuf(f, b) }
}

/// setbuffer(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn setbuffer(f: *mut c_void, b: *mut c_void, n: usize) {
    stream_buffer(b, n);
    // SAFETY: the program's call.
    unsafe { real::setbuffer(f, b, n) }
}

/// Length that setbuf implies.
const BUFSIZ: usize = 8192;
