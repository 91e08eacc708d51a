//! read, recv and their kin.
//!
//! Soundness: pointers are the program's own arguments, passed on as they are or replaced by an iovec that the
//! tracker built over the same destination; message headers of ours are locals.

use crate::{TRACKER, config, probe, real, sys, threads};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU8, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::policy;
use zio_tracker::stats::Counter;
use zio_tracker::thread::{IoVec, Thread};

/// Flags under which received bytes may land in cores. Not MSG_WAITALL: what it has received so far must be in the
/// program's buffer if a signal handler jumps out of the call.
const PLAIN_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_CMSG_CLOEXEC;

/// The kernel's `struct msghdr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MsgHdr {
    pub name: u64,
    pub name_len: u32,
    pub pad0: u32,
    pub iov: u64,
    pub iov_len: u64,
    pub control: u64,
    pub control_len: u64,
    pub flags: i32,
    pub pad1: u32,
}

/// Descriptors below this that turned out to be sockets (1) or not (2). Only a hint: a wrong one costs a call.
static HINTS: [AtomicU8; 4096] = [const { AtomicU8::new(0) }; 4096];

/// A descriptor's number changes its meaning.
pub fn forget_descriptor(fd: c_int) {
    if let Some(h) = HINTS.get(fd as usize) {
        h.store(0, Ordering::Relaxed);
    }
}

/// How the real call is made once the destination is an iovec.
#[derive(Clone, Copy)]
enum Way {
    /// read(2): a socket takes recvmsg, others readv.
    Read,
    /// pread(2).
    At(i64),
    /// recv(2) with flags.
    Socket(c_int),
}

/// What a receive's history is kept by: the call site, the descriptor, and the magnitude of what is asked for. A
/// server asks its usual buffer's size while it waits for requests, and the exact rest of a large one.
fn learning_slot(site: u64, fd: c_int, asked: u64) -> u16 {
    policy::slot(site ^ ((fd as u64) << 40) ^ (u64::from(asked.ilog2()) << 56))
}

/// Receives into `s` through cores; `None` when the program's own call is to be made instead.
unsafe fn through_cores(t: &'static Thread, fd: c_int, s: Span, site: u64, way: Way) -> Option<isize> {
    let here = 0u64;
    let mut claim = t.claim(&here as *const u64 as u64)?;
    let slot = learning_slot(site, fd, s.len());
    let socket = match way {
        Way::Socket(_) => true,
        Way::At(_) => false,
        Way::Read => HINTS.get(fd as usize).is_none_or(|h| h.load(Ordering::Relaxed) != 2),
    };
    if !socket && sys::fd_kind(fd) != sys::FdKind::Plain {
        TRACKER.count(Some(t), Counter::PassFlags, 1);
        return None;
    }
    TRACKER.count(Some(t), Counter::HookedCalls, 1);
    if let Err(why) = TRACKER.receive_plan(t, &mut claim, s, slot) {
        TRACKER.count(Some(t), why.0, 1);
        TRACKER.tidy(t, &mut claim);
        return None;
    }
    let iov = claim.scratch().iov.as_slice();
    let (base, n) = (iov.as_ptr() as u64, iov.len());
    // SAFETY: the iovec covers the program's destination; a socket call on another descriptor only fails.
    let r = unsafe {
        match way {
            Way::At(o) => real::preadv(fd, base as *mut c_void, n as c_int, o),
            Way::Read if !socket => real::readv(fd, base as *mut c_void, n as c_int),
            Way::Read => recv_iov(fd, base, n, 0),
            Way::Socket(flags) => recv_iov(fd, base, n, flags),
        }
    };
    let not_socket = r < 0 && matches!(way, Way::Read) && socket && errno() == libc::ENOTSOCK;
    TRACKER.receive_done(t, &mut claim, s.start, r.max(0) as u64, slot);
    TRACKER.tidy(t, &mut claim);
    drop(claim);
    if not_socket {
        if let Some(h) = HINTS.get(fd as usize) {
            h.store(2, Ordering::Relaxed);
            // SAFETY: the same call; the hint keeps it from coming back here.
            return unsafe { through_cores(t, fd, s, site, way) };
        }
        return None;
    }
    Some(r)
}

unsafe fn recv_iov(fd: c_int, iov: u64, n: usize, flags: c_int) -> isize {
    let mut m =
        MsgHdr { name: 0, name_len: 0, pad0: 0, iov, iov_len: n as u64, control: 0, control_len: 0, flags: 0, pad1: 0 };
    // SAFETY: our header over the tracker's iovec.
    unsafe { real::recvmsg(fd, (&raw mut m).cast(), flags) }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn errno() -> c_int {
    // SAFETY: this thread's errno.
    unsafe { *__errno_location() }
}

/// Common course of all single-buffer receives.
///
/// # Safety
/// `direct` makes the program's own call.
unsafe fn receive(fd: c_int, b: u64, n: usize, site: u64, way: Option<Way>, direct: impl FnOnce() -> isize) -> isize {
    let span = Span::new(b, n as u64).filter(|_| config::loaded());
    let Some(s) = span else { return direct() };
    let large = n as u64 >= config::threshold();
    let armed = TRACKER.pages.any_armed(s);
    let thread = threads::current();
    if (large || armed)
        && config::active()
        && let (Some(t), Some(way)) = (thread, way)
        && large
    {
        let before = errno();
        // SAFETY: forwarded.
        if let Some(r) = unsafe { through_cores(t, fd, s, site, way) } {
            return done(thread, r);
        }
        // SAFETY: this thread's errno; a refused try left its own value.
        unsafe { *__errno_location() = before };
    }
    // Looked at again: the plan may have waited for the lock.
    if armed || large {
        let _ = TRACKER.make_resident(thread, s);
    }
    let r = direct();
    if large
        && r > 0
        && let Some(t) = thread
        && config::active()
    {
        TRACKER.receive_passed(t, r as u64, learning_slot(site, fd, n as u64));
    }
    done(thread, r)
}

fn done(thread: Option<&Thread>, r: isize) -> isize {
    if r > 0 {
        TRACKER.count(thread, Counter::BytesReceived, r as u64);
    }
    r
}

macro_rules! with_site {
    ($name:ident, $body:ident, $reg:literal, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(concat!("mov ", $reg, ", qword ptr [rsp]"), "jmp {f}", f = sym $body)
        }
    };
}

with_site!(read, do_read, "rcx", "read(2).");
with_site!(__read_chk, do_read_chk, "r8", "Fortified read.");
with_site!(pread, do_pread, "r8", "pread(2).");
with_site!(pread64, do_pread, "r8", "pread(2).");
with_site!(__pread_chk, do_pread_chk, "r9", "Fortified pread.");
with_site!(__pread64_chk, do_pread_chk, "r9", "Fortified pread.");
with_site!(recv, do_recv, "r8", "recv(2).");
with_site!(__recv_chk, do_recv_chk, "r9", "Fortified recv.");
with_site!(recvmsg, do_recvmsg, "rcx", "recvmsg(2).");
with_site!(readv, do_readv, "rcx", "readv(2).");
with_site!(preadv, do_preadv, "r8", "preadv(2).");
with_site!(preadv64, do_preadv, "r8", "preadv(2).");

unsafe extern "C" fn do_read(fd: c_int, b: *mut c_void, n: usize, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe { receive(fd, b as u64, n, site, Some(Way::Read), || real::read(fd, b, n)) }
}

unsafe extern "C" fn do_read_chk(fd: c_int, b: *mut c_void, n: usize, len: usize, site: u64) -> isize {
    // SAFETY: the program's call; an overflow is libc's to report.
    unsafe { if n > len { real::read_chk(fd, b, n, len) } else { do_read(fd, b, n, site) } }
}

unsafe extern "C" fn do_pread(fd: c_int, b: *mut c_void, n: usize, off: i64, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe { receive(fd, b as u64, n, site, Some(Way::At(off)), || real::pread(fd, b, n, off)) }
}

unsafe extern "C" fn do_pread_chk(fd: c_int, b: *mut c_void, n: usize, off: i64, len: usize, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe { if n > len { real::pread_chk(fd, b, n, off, len) } else { do_pread(fd, b, n, off, site) } }
}

unsafe extern "C" fn do_recv(fd: c_int, b: *mut c_void, n: usize, flags: c_int, site: u64) -> isize {
    let way = (flags & !PLAIN_FLAGS == 0).then_some(Way::Socket(flags));
    // SAFETY: the program's call.
    unsafe { receive(fd, b as u64, n, site, way, || real::recv(fd, b, n, flags)) }
}

unsafe extern "C" fn do_recv_chk(fd: c_int, b: *mut c_void, n: usize, len: usize, flags: c_int, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe { if n > len { real::recv_chk(fd, b, n, len, flags) } else { do_recv(fd, b, n, flags, site) } }
}

/// recvfrom(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn recvfrom(
    fd: c_int,
    b: *mut c_void,
    n: usize,
    flags: c_int,
    a: *mut c_void,
    l: *mut c_void,
) -> isize {
    let way = (flags & !PLAIN_FLAGS == 0 && a.is_null()).then_some(Way::Socket(flags));
    if !a.is_null() {
        touch(a as u64, size_of::<libc::sockaddr_storage>() as u64);
        touch(l as u64, size_of::<libc::socklen_t>() as u64);
    }
    // SAFETY: the program's call. The site is the function: six arguments leave no register for the caller.
    unsafe { receive(fd, b as u64, n, recvfrom as *const () as u64, way, || real::recvfrom(fd, b, n, flags, a, l)) }
}

/// Fortified recvfrom.
#[unsafe(no_mangle)]
unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    b: *mut c_void,
    n: usize,
    len: usize,
    flags: c_int,
    a: *mut c_void,
    l: *mut c_void,
) -> isize {
    // SAFETY: the program's call; on an overflow libc aborts before it looks at the rest.
    unsafe { if n > len { real::recvfrom_chk(fd, b, n, len, flags, a) } else { recvfrom(fd, b, n, flags, a, l) } }
}

/// Makes the buffers of a vectored call resident, and the array that names them. `v` is the program's array; entries
/// that cannot be read are the kernel's to refuse.
pub fn vector_resident(v: *const IoVec, n: usize) {
    if !config::loaded() || n > 1024 {
        return;
    }
    for i in 0..n {
        let Some(e) = probe::read::<IoVec>(v.wrapping_add(i) as u64) else { return };
        touch(e.base, e.len);
    }
}

unsafe extern "C" fn do_recvmsg(fd: c_int, m: *mut MsgHdr, flags: c_int, site: u64) -> isize {
    // SAFETY: the program's call; a bad header is the kernel's to refuse.
    unsafe {
        let direct = || real::recvmsg(fd, m.cast(), flags);
        let Some(head) = (if config::loaded() { probe::read::<MsgHdr>(m as u64) } else { None }) else {
            return direct();
        };
        touch(head.control, head.control_len);
        touch(head.name, u64::from(head.name_len));
        if head.iov_len == 1
            && flags & !PLAIN_FLAGS == 0
            && let Some(v) = probe::read::<IoVec>(head.iov)
        {
            return recvmsg_one(fd, m, head, v, flags, site);
        }
        vector_resident(head.iov as *const IoVec, head.iov_len as usize);
        done(threads::current(), direct())
    }
}

/// recvmsg with one buffer: the header's other fields are the program's, written back by the kernel.
unsafe fn recvmsg_one(fd: c_int, m: *mut MsgHdr, head: MsgHdr, v: IoVec, flags: c_int, site: u64) -> isize {
    // SAFETY: the program's header; its iovec pointer is put back whatever happens.
    unsafe {
        let direct = || real::recvmsg(fd, m.cast(), flags);
        let t = threads::current();
        let Some(s) = Span::new(v.base, v.len) else { return direct() };
        if s.len() < config::threshold() || !config::active() {
            let _ = TRACKER.make_resident(t, s);
            return done(t, direct());
        }
        let slot = learning_slot(site, fd, s.len());
        let here = 0u64;
        if let Some(t) = t
            && let Some(mut claim) = t.claim(&here as *const u64 as u64)
        {
            TRACKER.count(Some(t), Counter::HookedCalls, 1);
            match TRACKER.receive_plan(t, &mut claim, s, slot) {
                Ok(()) => {
                    let iov = claim.scratch().iov.as_slice();
                    let mut copy = head;
                    (copy.iov, copy.iov_len) = (iov.as_ptr() as u64, iov.len() as u64);
                    let r = real::recvmsg(fd, (&raw mut copy).cast(), flags);
                    TRACKER.receive_done(t, &mut claim, s.start, r.max(0) as u64, slot);
                    drop(claim);
                    if r >= 0 {
                        (*m).name_len = copy.name_len;
                        (*m).control_len = copy.control_len;
                        (*m).flags = copy.flags;
                    }
                    return done(Some(t), r);
                }
                Err(why) => TRACKER.count(Some(t), why.0, 1),
            }
        }
        let _ = TRACKER.make_resident(t, s);
        let r = direct();
        if let Some(t) = t
            && r > 0
        {
            TRACKER.receive_passed(t, r as u64, slot);
        }
        done(t, r)
    }
}

/// Makes memory resident that the kernel will read or write, by its address.
pub fn touch(base: u64, len: u64) {
    if let Some(s) = Span::new(base, len) {
        let _ = TRACKER.make_resident(threads::current(), s);
    }
}

/// The one buffer of a vectored call, if there is one.
fn single(v: *const IoVec, n: c_int) -> Option<IoVec> {
    if n == 1 && config::active() { probe::read(v as u64) } else { None }
}

unsafe extern "C" fn do_readv(fd: c_int, v: *const IoVec, n: c_int, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe {
        let direct = || real::readv(fd, v.cast_mut().cast(), n);
        if let Some(e) = single(v, n) {
            return receive(fd, e.base, e.len as usize, site, Some(Way::Read), direct);
        }
        vector_resident(v, n.max(0) as usize);
        done(threads::current(), direct())
    }
}

unsafe extern "C" fn do_preadv(fd: c_int, v: *const IoVec, n: c_int, off: i64, site: u64) -> isize {
    // SAFETY: the program's call.
    unsafe {
        let direct = || real::preadv(fd, v.cast_mut().cast(), n, off);
        if let Some(e) = single(v, n) {
            return receive(fd, e.base, e.len as usize, site, Some(Way::At(off)), direct);
        }
        vector_resident(v, n.max(0) as usize);
        done(threads::current(), direct())
    }
}
