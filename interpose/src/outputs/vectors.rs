//! Arguments that point at more: iovecs, message headers, control blocks of asynchronous IO.
//!
//! Soundness: each level is read by [`probe`] after it was made resident; what cannot be read is the kernel's to refuse.

use super::{ADDRESS, Ptr, any, block, iovecs};
use crate::receive::MsgHdr;
use crate::{TRACKER, probe, sys, threads};
use core::ffi::{c_int, c_long, c_ulong};
use zio_tracker::addr::Span;
use zio_tracker::thread::IoVec;

/// `struct mmsghdr`.
const MESSAGE: u64 = 64;
/// `IOCB_CMD_PREADV`, `IOCB_CMD_PWRITEV`, `IOCB_CMD_NOOP`.
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// preadv2(2) and pwritev2(2).
pub fn vector(v: Ptr, n: i64) {
    if n > 0 {
        iovecs(v as u64, n as u64);
    }
}

/// A message header and everything in it.
pub fn message(at: u64) {
    block(at, size_of::<MsgHdr>() as u64);
    let Some(h) = probe::read::<MsgHdr>(at) else { return };
    block(h.name, ADDRESS.min(h.name_len.into()));
    block(h.control, h.control_len);
    iovecs(h.iov, h.iov_len);
}

/// The array of recvmmsg(2) and sendmmsg(2).
pub fn messages(v: Ptr, n: u32) {
    for i in 0..u64::from(n.min(1024)) {
        let at = v as u64 + i * MESSAGE;
        block(at, MESSAGE);
        message(at);
    }
}

/// vmsplice(2): the pipe keeps the pages after the call, so they are never named again.
pub fn pinned(v: Ptr, n: usize) {
    if n > 1024 {
        return;
    }
    for i in 0..n as u64 {
        let at = v as u64 + i * 16;
        block(at, 16);
        let Some(e) = probe::read::<IoVec>(at) else { return };
        if let Some(s) = Span::new(e.base, e.len) {
            let _ = TRACKER.make_unknown(threads::current(), s);
        }
    }
}

/// process_vm_readv(2) and writev: our side, and the other if it is this process.
pub fn process(pid: c_int, local: Ptr, n: c_ulong, remote: Ptr, m: c_ulong) {
    iovecs(local as u64, n);
    if pid as u32 == sys::getpid() {
        iovecs(remote as u64, m);
    } else if m <= 1024 {
        block(remote as u64, m * 16);
    }
}

/// getsockopt(2): the length is in memory.
pub fn option(v: Ptr, n: Ptr) {
    if let Some(len) = probe::read::<u32>(n as u64) {
        block(v as u64, len.into());
    }
}

/// io_submit of libaio, and the raw call: control blocks of 64 bytes.
pub fn submitted(v: Ptr, n: c_long) {
    if !any() {
        return;
    }
    for i in 0..n.max(0) as u64 {
        let at = v as u64 + i * 8;
        block(at, 8);
        let Some(control) = probe::read::<u64>(at) else { return };
        block(control, 64);
        let Some(w) = probe::read::<[u64; 8]>(control) else { return };
        // Third word: opcode, priority, descriptor; then the buffer and its length.
        match w[2] as u16 {
            PREADV | PWRITEV => iovecs(w[3], w[4]),
            _ => block(w[3], w[4]),
        }
    }
}
