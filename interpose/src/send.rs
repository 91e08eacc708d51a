//! write, send and their kin: named bytes go to the kernel straight from cores.
//!
//! Soundness: pointers are the program's own arguments, passed on as they are or replaced by an iovec that names
//! the same bytes; message headers of ours are locals.

use crate::receive::{MsgHdr, touch, vector_resident};
use crate::{TRACKER, config, probe, real, sys, threads};
use core::ffi::{c_int, c_void};
use zio_tracker::addr::Span;
use zio_tracker::stats::Counter;
use zio_tracker::thread::{IoVec, Thread};

/// True if a byte of the buffers is on an armed page. False too where the array cannot be read: the kernel refuses
/// such a call.
fn any_armed(v: *const IoVec, n: usize) -> bool {
    if TRACKER.pages.armed_pages() == 0 {
        return false;
    }
    for i in 0..n {
        let Some(e) = probe::read::<IoVec>(v.wrapping_add(i) as u64) else { return false };
        if Span::new(e.base, e.len).is_some_and(|s| TRACKER.pages.any_armed(s)) {
            return true;
        }
    }
    false
}

fn sent(t: Option<&Thread>, r: isize) -> isize {
    if r > 0 {
        TRACKER.count(t, Counter::BytesSent, r as u64);
    }
    r
}

/// Common course: `parts` are the program's buffers; `gathered` makes the call with another iovec, `direct` as the
/// program did.
///
/// The calls in `gathered` and `direct` are the program's, with its arguments.
fn send_parts(
    v: *const IoVec,
    n: usize,
    may_gather: impl FnOnce() -> bool,
    gathered: impl FnOnce(*mut c_void, usize) -> isize,
    direct: impl FnOnce() -> isize,
) -> isize {
    let t = threads::current();
    TRACKER.child_trim(t);
    if v.is_null() || n == 0 || n > 1024 || !config::loaded() || !any_armed(v, n) {
        return sent(t, direct());
    }
    let here = 0u64;
    if let Some(t) = t
        && may_gather()
        && let Some(mut claim) = t.claim(&here as *const u64 as u64)
    {
        TRACKER.count(Some(t), Counter::HookedCalls, 1);
        // The program's array may itself lie on an elided page, and must not be touched under the lock.
        let input = &mut claim.scratch().input;
        input.clear();
        for i in 0..n {
            if let Some(e) = probe::read(v.wrapping_add(i) as u64) {
                input.push(e);
            }
        }
        match TRACKER.send_plan(t, &mut claim) {
            Ok(()) => {
                let iov = claim.scratch().iov.as_slice();
                let r = gathered(iov.as_ptr() as *mut c_void, iov.len());
                TRACKER.send_done(t, &mut claim);
                return sent(Some(t), r);
            }
            Err(why) => TRACKER.count(Some(t), why, 1),
        }
    }
    TRACKER.count(t, Counter::PassFlags, 1);
    vector_resident(v, n);
    sent(t, direct())
}

fn plain(fd: c_int) -> bool {
    sys::fd_kind(fd) == sys::FdKind::Plain
}

/// write(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, b: *mut c_void, n: usize) -> isize {
    let v = IoVec { base: b as u64, len: n as u64 };
    // SAFETY: the program's call.
    unsafe { send_parts(&v, 1, || plain(fd), |iov, k| real::writev(fd, iov, k as c_int), || real::write(fd, b, n)) }
}

/// pwrite(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, b: *mut c_void, n: usize, off: i64) -> isize {
    let v = IoVec { base: b as u64, len: n as u64 };
    // SAFETY: the program's call.
    unsafe {
        send_parts(
            &v,
            1,
            || plain(fd),
            |iov, k| real::pwritev(fd, iov, k as c_int, off),
            || real::pwrite(fd, b, n, off),
        )
    }
}

/// pwrite(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, b: *mut c_void, n: usize, off: i64) -> isize {
    // SAFETY: forwarded.
    unsafe { pwrite(fd, b, n, off) }
}

/// writev(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, v: *mut IoVec, n: c_int) -> isize {
    // SAFETY: the program's call.
    unsafe {
        let direct = || real::writev(fd, v.cast(), n);
        send_parts(v, n.max(0) as usize, || plain(fd), |iov, k| real::writev(fd, iov, k as c_int), direct)
    }
}

/// pwritev(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev(fd: c_int, v: *mut IoVec, n: c_int, off: i64) -> isize {
    // SAFETY: the program's call.
    unsafe {
        let direct = || real::pwritev(fd, v.cast(), n, off);
        send_parts(v, n.max(0) as usize, || plain(fd), |iov, k| real::pwritev(fd, iov, k as c_int, off), direct)
    }
}

/// pwritev(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64(fd: c_int, v: *mut IoVec, n: c_int, off: i64) -> isize {
    // SAFETY: forwarded.
    unsafe { pwritev(fd, v, n, off) }
}

/// The kernel keeps the pages of a MSG_ZEROCOPY send after the call: no core may be among them.
fn keeps_pages(flags: c_int) -> bool {
    flags & libc::MSG_ZEROCOPY != 0
}

fn message(iov: *mut c_void, n: usize, name: u64, name_len: u32) -> MsgHdr {
    MsgHdr {
        name,
        name_len,
        pad0: 0,
        iov: iov as u64,
        iov_len: n as u64,
        control: 0,
        control_len: 0,
        flags: 0,
        pad1: 0,
    }
}

/// send(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, b: *mut c_void, n: usize, flags: c_int) -> isize {
    let v = IoVec { base: b as u64, len: n as u64 };
    // SAFETY: the program's call.
    unsafe {
        let gathered = |iov, k| {
            let mut m = message(iov, k, 0, 0);
            real::sendmsg(fd, (&raw mut m).cast(), flags)
        };
        send_parts(&v, 1, || !keeps_pages(flags), gathered, || real::send(fd, b, n, flags))
    }
}

/// sendto(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(fd: c_int, b: *mut c_void, n: usize, flags: c_int, a: *mut c_void, l: u32) -> isize {
    let v = IoVec { base: b as u64, len: n as u64 };
    touch(a as u64, u64::from(l));
    // SAFETY: the program's call.
    unsafe {
        let gathered = |iov, k| {
            let mut m = message(iov, k, a as u64, if a.is_null() { 0 } else { l });
            real::sendmsg(fd, (&raw mut m).cast(), flags)
        };
        send_parts(&v, 1, || !keeps_pages(flags), gathered, || real::sendto(fd, b, n, flags, a, l))
    }
}

/// sendmsg(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, m: *mut MsgHdr, flags: c_int) -> isize {
    // SAFETY: the program's call; a null header is the kernel's to refuse.
    unsafe {
        let direct = || real::sendmsg(fd, m.cast(), flags);
        let Some(head) = (if config::loaded() { probe::read::<MsgHdr>(m as u64) } else { None }) else {
            return direct();
        };
        touch(head.control, head.control_len);
        touch(head.name, u64::from(head.name_len));
        let gathered = |iov: *mut c_void, k: usize| {
            let mut copy = head;
            (copy.iov, copy.iov_len) = (iov as u64, k as u64);
            real::sendmsg(fd, (&raw mut copy).cast(), flags)
        };
        send_parts(head.iov as *const IoVec, head.iov_len as usize, || !keeps_pages(flags), gathered, direct)
    }
}
