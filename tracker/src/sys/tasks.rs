//! What this process's other threads are doing, from procfs: the one place that also knows of threads that no
//! hook has seen (raw clone, threads of libc's own).
//!
//! `/proc/self/task/TID/syscall` says, of a thread that is blocked in a system call, which one and with which
//! arguments; of one that runs, only that it does. Everything that is not understood counts as
//! [`Others::Unknown`].
//!
//! Soundness: system calls on constant paths and on buffers of ours.

use super::{Errno, Others};
use crate::addr::Span;
use crate::raw;
use core::mem::MaybeUninit;

/// More threads than this are not looked at.
const TASKS_MAX: u64 = 32;
/// Links of the directory besides one for each thread: itself and its parent.
const NOT_THREADS: u64 = 2;
/// What a pointer argument without a length may point at, bytes.
const POINTEE: u64 = 4096;
/// Where the kernel may write a signal frame, below and above the stack pointer.
const FRAME: u64 = 64 << 10;
/// `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

const TASKS: &core::ffi::CStr = c"/proc/self/task";

/// A descriptor that is closed again.
struct Fd(u64);

impl Fd {
    fn open(dir: u64, path: *const u8, flags: i32) -> Result<Fd, Errno> {
        let flags = (flags | libc::O_RDONLY | libc::O_CLOEXEC) as u64;
        // SAFETY: `path` is a terminated string of the callers'; creates a descriptor.
        unsafe { raw::call(libc::SYS_openat, [dir, path as u64, flags, 0, 0, 0]) }.map(Fd)
    }

    fn get(&self, call: i64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (at, len) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
        // SAFETY: read(2) or getdents64(2) into a buffer of ours.
        unsafe { raw::call(call, [self.0, at, len, 0, 0, 0]) }.map(|n| n as usize)
    }

    /// True if the file is procfs's, not a look-alike in a chroot.
    fn is_proc(&self) -> bool {
        let mut s = MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: a struct statfs of ours; zeros are a valid one.
        unsafe {
            raw::call(libc::SYS_fstatfs, [self.0, s.as_mut_ptr() as u64, 0, 0, 0, 0]).is_ok()
                && s.assume_init().f_type == PROC_SUPER_MAGIC
        }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: our own descriptor.
        let _ = unsafe { raw::call(libc::SYS_close, [self.0, 0, 0, 0, 0, 0]) };
    }
}

fn open_tasks() -> Option<Fd> {
    let at = libc::AT_FDCWD as u64;
    Fd::open(at, TASKS.as_ptr().cast(), libc::O_DIRECTORY).ok().filter(Fd::is_proc)
}

/// True if this process has one thread. Asked by path: it may have no descriptor to spare.
pub fn single() -> bool {
    let path = TASKS.as_ptr() as u64;
    let (mut file, mut system) = (MaybeUninit::<libc::stat>::zeroed(), MaybeUninit::<libc::statfs>::zeroed());
    // SAFETY: a terminated path and structs of ours; zeros are valid ones.
    let (links, kind) = unsafe {
        let stat = raw::call(libc::SYS_stat, [path, file.as_mut_ptr() as u64, 0, 0, 0, 0]);
        let statfs = raw::call(libc::SYS_statfs, [path, system.as_mut_ptr() as u64, 0, 0, 0, 0]);
        if stat.is_err() || statfs.is_err() {
            return false;
        }
        (file.assume_init().st_nlink, system.assume_init().f_type)
    };
    kind == PROC_SUPER_MAGIC && links == NOT_THREADS + 1
}

/// What the other threads are doing, as far as it concerns `s` or a futex in `own`.
pub fn others(s: Span, own: Span) -> Others {
    look([s, own]).unwrap_or(Others::Unknown)
}

fn look(spans: [Span; 2]) -> Option<Others> {
    // SAFETY: gettid touches nothing.
    let me = unsafe { raw::syscall6(libc::SYS_gettid, [0; 6]) } as u64;
    let dir = open_tasks()?;
    let (mut seen, mut myself) = (0, false);
    let mut entries = [0u8; 1024];
    loop {
        let n = dir.get(libc::SYS_getdents64, &mut entries).ok()?;
        if n == 0 {
            break;
        }
        let mut rest = entries.get(..n)?;
        // A struct linux_dirent64: inode, offset, record length at 16, type, name at 19.
        while !rest.is_empty() {
            let len = usize::from(u16::from_ne_bytes(*rest.get(16..)?.first_chunk()?));
            let name = rest.get(19..len)?;
            rest = rest.get(len..)?;
            let Some(tid) = decimal(name) else { continue };
            if tid == me {
                myself = true;
                continue;
            }
            seen += 1;
            if seen > TASKS_MAX || !elsewhere(&dir, name, spans)? {
                return None;
            }
        }
    }
    // A thread that ends while the list is read can hide the one after it.
    if threads(&dir)? != seen + u64::from(myself) {
        return None;
    }
    // Without ourselves in it, it is the list of somebody else.
    match (myself, seen) {
        (false, _) => None,
        (true, 0) => Some(Others::None),
        _ => Some(Others::Elsewhere),
    }
}

/// How many threads there are.
fn threads(dir: &Fd) -> Option<u64> {
    let mut s = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a struct stat of ours; zeros are a valid one.
    let links = unsafe {
        raw::call(libc::SYS_fstat, [dir.0, s.as_mut_ptr() as u64, 0, 0, 0, 0]).ok()?;
        s.assume_init().st_nlink
    };
    links.checked_sub(NOT_THREADS)
}

/// Number at the start of `text`, up to the first byte that is no digit.
fn decimal(text: &[u8]) -> Option<u64> {
    let mut n = None;
    for b in text.iter().take_while(|b| b.is_ascii_digit()) {
        n = Some(n.unwrap_or(0u64).checked_mul(10)?.checked_add(u64::from(b - b'0'))?);
    }
    n
}

fn hexadecimal(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"0x")?;
    let digit = |b: &u8| (*b as char).to_digit(16);
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |n, b| Some(n << 4 | u64::from(digit(b)?)))
}

/// True if the thread waits in a call that has nothing to do with the spans.
fn elsewhere(dir: &Fd, name: &[u8], spans: [Span; 2]) -> Option<bool> {
    let mut path = [0u8; 32];
    let digits = name.iter().take_while(|b| b.is_ascii_digit()).count();
    path.get_mut(..digits)?.copy_from_slice(name.get(..digits)?);
    let file = b"/syscall\0";
    path.get_mut(digits..digits + file.len())?.copy_from_slice(file);
    let mut text = [0u8; 256];
    let n = Fd::open(dir.0, path.as_ptr(), 0).ok()?.get(libc::SYS_read, &mut text).ok()?;
    Some(harmless(text.get(..n)?, spans).unwrap_or(false))
}

/// Reads a line of `/proc/PID/task/TID/syscall`: the call's number, six arguments, stack pointer, program counter.
fn harmless(line: &[u8], spans: [Span; 2]) -> Option<bool> {
    let mut words = line.trim_ascii_end().split(|&b| b == b' ');
    let first = words.next()?;
    let call = decimal(first).filter(|_| first.iter().all(u8::is_ascii_digit))? as i64;
    let mut a = [0u64; 8];
    for slot in &mut a {
        *slot = hexadecimal(words.next()?)?;
    }
    let [a0, a1, a2, a3, a4, a5, sp, _] = a;
    // Sets of more descriptors are longer than what is looked at below.
    if matches!(call, libc::SYS_select | libc::SYS_pselect6) && a0 > POINTEE * 8 {
        return Some(false);
    }
    let small = [a0, a1, a2, a3, a4, a5].map(|p| (p, POINTEE));
    // The calls in which threads wait for something else than their memory; the argument that points at more than a
    // page, and to how much. Not read, write and their kin: libc's streams go on to the caller's memory after those.
    let large = match call {
        libc::SYS_futex
        | libc::SYS_nanosleep
        | libc::SYS_clock_nanosleep
        | libc::SYS_pause
        | libc::SYS_rt_sigtimedwait
        | libc::SYS_rt_sigsuspend
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_select
        | libc::SYS_pselect6
        | libc::SYS_wait4
        | libc::SYS_waitid => (0, 0),
        libc::SYS_poll | libc::SYS_ppoll => (a0, a1.saturating_mul(8)),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => (a1, a2.saturating_mul(12)),
        _ => return Some(false),
    };
    let meets = |(at, len): (u64, u64)| spans.iter().any(|s| at < s.end && at.saturating_add(len) > s.start);
    let frame = (sp.saturating_sub(FRAME), 2 * FRAME);
    Some(!small.into_iter().any(meets) && !meets(large) && !meets(frame))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    const OWN: Span = Span::between(0x5500_0000_0000, 0x5500_0000_0004);
    const RUN: Span = Span::between(0x7f00_0010_0000, 0x7f00_0010_1000);

    fn line(call: &str, args: [u64; 8]) -> std::string::String {
        let mut s = std::string::String::from(call);
        for a in args {
            s += &std::format!(" {a:#x}");
        }
        s + "\n"
    }

    #[test]
    fn lines() {
        let quiet = [0x7f00_0000_0000, 0x80, 0, 0, 0, 0, 0x7ffd_0000_0000, 0x7f11_0000_0000];
        assert_eq!(harmless(line("202", quiet).as_bytes(), [RUN, OWN]), Some(true));
        // The futex's word, or what follows it, in the run.
        for near in [RUN.start, RUN.end - 4, RUN.start - 8] {
            let mut a = quiet;
            a[0] = near;
            assert_eq!(harmless(line("202", a).as_bytes(), [RUN, OWN]), Some(false), "{near:#x}");
        }
        // Events that end at the run, and that reach into it.
        let mut a = quiet;
        (a[0], a[1], a[2]) = (5, RUN.start - 1200 * 12, 1200);
        assert_eq!(harmless(line("232", a).as_bytes(), [RUN, OWN]), Some(true));
        a[2] += 1;
        assert_eq!(harmless(line("232", a).as_bytes(), [RUN, OWN]), Some(false));
        // Sets of descriptors that may reach into it.
        let mut a = quiet;
        (a[0], a[1]) = (POINTEE * 8, RUN.start - POINTEE);
        assert_eq!(harmless(line("23", a).as_bytes(), [RUN, OWN]), Some(true));
        a[0] += 1;
        assert_eq!(harmless(line("23", a).as_bytes(), [RUN, OWN]), Some(false));
        // A thread that waits for our own lock.
        let mut a = quiet;
        a[0] = OWN.start;
        assert_eq!(harmless(line("202", a).as_bytes(), [RUN, OWN]), Some(false));
        // A stack in the run; a call that is not known to wait; no call; garbage.
        let mut a = quiet;
        a[6] = RUN.start + 8;
        assert_eq!(harmless(line("202", a).as_bytes(), [RUN, OWN]), Some(false));
        assert_eq!(harmless(line("16", quiet).as_bytes(), [RUN, OWN]), Some(false));
        for odd in ["running\n", "-1 0x7ffd 0x7f11\n", "", "202 0x1\n", "202 zz 0 0 0 0 0 0 0\n"] {
            assert_eq!(harmless(odd.as_bytes(), [RUN, OWN]), None, "{odd:?}");
        }
    }

    /// Against the running kernel: a thread that waits is understood, one that runs or reads is not, and one that
    /// waits with an argument in the range is seen.
    #[test]
    fn threads() {
        use std::io::{Read, Write};
        use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
        let becomes = |s, want| {
            (0..5000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                others(s, OWN) == want
            })
        };
        static STOP: AtomicBool = AtomicBool::new(false);
        static WORD: AtomicU32 = AtomicU32::new(0);
        let (mut r, mut w) = std::io::pipe().unwrap();
        let sleeper = std::thread::spawn(move || {
            let wait = || {
                // SAFETY: waits on a word of ours.
                unsafe { raw::syscall6(libc::SYS_futex, [WORD.as_ptr() as u64, 128, 0, 0, 0, 0]) };
            };
            while WORD.load(Ordering::Relaxed) == 0 {
                wait();
            }
            while !STOP.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
            r.read_exact(&mut [0u8; 1]).unwrap();
        });
        assert!(!single());
        assert!(becomes(RUN, Others::Elsewhere), "waits for a futex");
        let word = WORD.as_ptr() as u64;
        assert_eq!(others(Span::between(word & !4095, (word & !4095) + 4096), OWN), Others::Unknown);
        assert_eq!(others(RUN, Span::between(word, word + 4)), Others::Unknown);
        WORD.store(1, Ordering::Relaxed);
        // SAFETY: wakes the thread above.
        unsafe { raw::syscall6(libc::SYS_futex, [word, 129, 1, 0, 0, 0]) };
        assert!(becomes(RUN, Others::Unknown), "runs");
        STOP.store(true, Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(others(RUN, OWN), Others::Unknown, "reads");
        w.write_all(b"x").unwrap();
        sleeper.join().unwrap();
    }
}
