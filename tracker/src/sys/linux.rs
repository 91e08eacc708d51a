//! The real kernel behind [`Kernel`].
//!
//! Soundness: every unsafe block is one raw system call whose pointers are either our own locals or page
//! ranges that the tracker owns (arena) or has armed (program pages it keeps names for), or a byte move
//! whose contract the caller states.

use super::{Errno, Kernel, Others, Register};
use crate::addr::Span;
use crate::raw;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

const MADV_DONTNEED: u64 = 4;
const MADV_POPULATE_WRITE: u64 = 23;
const MADV_WIPEONFORK: u64 = 18;
const MADV_GUARD_INSTALL: u64 = 102;
const MADV_GUARD_REMOVE: u64 = 103;

const UFFD_USER_MODE_ONLY: u64 = 1;
const UFFD_API: u64 = 0xAA;
const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
const UFFDIO_API: u64 = 0xC018_AA3F;
const UFFDIO_REGISTER: u64 = 0xC020_AA00;
const UFFDIO_UNREGISTER: u64 = 0x8010_AA01;
const UFFDIO_WRITEPROTECT: u64 = 0xC018_AA06;
const UFFDIO_COPY: u64 = 0xC028_AA03;
const UFFDIO_ZEROPAGE: u64 = 0xC020_AA04;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const COPY_MODE_DONTWAKE: u64 = 1;
const USERFAULTFD_IOC_NEW: u64 = 0xAA00;

/// Where our descriptor goes, so that a program that counts on the lowest free number is not disturbed.
const DESCRIPTOR_FLOOR: u64 = 900;

/// The running kernel. `fd` is the userfaultfd of this address space, or -1.
///
/// `mark` points at a page that the kernel zeroes in every forked or cloned child that gets its own address
/// space (MADV_WIPEONFORK): a non-zero mark says that `fd` serves *this* address space. A vfork child shares
/// the memory and keeps the mark, rightly. This costs a load where comparing process ids costs a system call,
/// and sees raw clones as well.
///
/// `identity` is the descriptor's device and inode, which tell it from what the program may have put on its number
/// after closing it by a call that no hook sees.
pub struct Linux {
    fd: AtomicI32,
    mark: AtomicPtr<AtomicU32>,
    identity: [AtomicU64; 2],
}

impl Default for Linux {
    fn default() -> Self {
        Self::new()
    }
}

impl Linux {
    /// No descriptor yet.
    pub const fn new() -> Linux {
        Linux {
            fd: AtomicI32::new(-1),
            mark: AtomicPtr::new(core::ptr::null_mut()),
            identity: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// The descriptor's number, or -1: the hooks of close, dup2 and close_range keep it alive.
    pub fn descriptor(&self) -> i32 {
        self.fd.load(Ordering::Relaxed)
    }

    /// True if that number still stands for the userfaultfd that was opened: ours, or a parent's.
    pub fn is_descriptor(&self, fd: i32) -> bool {
        fd >= 0 && self.descriptor() == fd && self.is_open(fd)
    }

    fn is_open(&self, fd: i32) -> bool {
        let same = identity(fd).is_some_and(|[device, inode]| {
            device == self.identity[0].load(Ordering::Relaxed) && inode == self.identity[1].load(Ordering::Relaxed)
        });
        same && is_userfaultfd(fd)
    }

    /// Moves the descriptor to another number, because the program is about to use this one.
    pub fn move_descriptor(&self) {
        let old = self.fd.load(Ordering::Relaxed);
        // The new number is there before the old one goes: another thread may be about to use it.
        if old >= 0
            && let Some(new) = duplicate(old)
        {
            self.fd.store(new, Ordering::Relaxed);
            close(old);
        }
    }

    /// Opens the descriptor if this process has none.
    ///
    /// # Errors
    /// What userfaultfd(2) or UFFDIO_API said.
    pub fn open(&self) -> Result<i32, Errno> {
        let fd = self.fd.load(Ordering::Relaxed);
        if fd >= 0 && self.descriptor_is_ours() {
            return Ok(fd);
        }
        self.reset_descriptor();
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | UFFD_USER_MODE_ONLY;
        // SAFETY: creates a descriptor, touches no memory.
        let fresh = match unsafe { raw::call(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]) } {
            Ok(fd) => fd as i32,
            Err(e) => open_device(flags & !UFFD_USER_MODE_ONLY).map_err(|_| e)?,
        };
        let mut api = [UFFD_API, UFFD_FEATURE_SIGBUS, 0];
        // SAFETY: `api` is a struct uffdio_api (three u64) of ours.
        let r = unsafe { raw::call(libc::SYS_ioctl, [fresh as u64, UFFDIO_API, api.as_mut_ptr() as u64, 0, 0, 0]) };
        if let Err(e) = r {
            close(fresh);
            return Err(e);
        }
        let fresh = lift(fresh);
        for (to, value) in self.identity.iter().zip(identity(fresh).unwrap_or_default()) {
            to.store(value, Ordering::Relaxed);
        }
        self.fd.store(fresh, Ordering::Relaxed);
        self.set_mark()?;
        Ok(fresh)
    }

    fn set_mark(&self) -> Result<(), Errno> {
        let mut p = self.mark.load(Ordering::Acquire);
        if p.is_null() {
            p = map_anonymous(crate::addr::PAGE)? as *mut AtomicU32;
            let s = Span::between(p as u64, p as u64 + crate::addr::PAGE);
            self.madvise(s, MADV_WIPEONFORK)?;
            self.mark.store(p, Ordering::Release);
        }
        // SAFETY: `p` is a page of ours that is never unmapped.
        unsafe { (*p).store(1, Ordering::Relaxed) };
        Ok(())
    }

    fn madvise(&self, s: Span, advice: u64) -> Result<(), Errno> {
        // SAFETY: the span is armed program pages or arena pages; see the callers in `Kernel`.
        unsafe { raw::call(libc::SYS_madvise, [s.start, s.len(), advice, 0, 0, 0]) }.map(|_| ())
    }

    fn ioctl(&self, request: u64, arg: *mut u64) -> Result<(), Errno> {
        let fd = self.open()?;
        // SAFETY: `arg` points at the request's struct, built by the caller from u64 fields.
        unsafe { raw::call(libc::SYS_ioctl, [fd as u64, request, arg as u64, 0, 0, 0]) }.map(|_| ())
    }
}

/// Maps `len` bytes of fresh private memory that commits nothing until touched.
///
/// # Errors
/// ENOMEM under RLIMIT_AS or strict overcommit.
pub fn map_anonymous(len: u64) -> Result<u64, Errno> {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { raw::call(libc::SYS_mmap, [0, len, prot, flags, u64::MAX, 0]) }
}

fn close(fd: i32) {
    // SAFETY: our own descriptor.
    let _ = unsafe { raw::call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]) };
}

/// Device and inode of an open descriptor. Each userfaultfd has an inode of its own (Linux 5.12).
fn identity(fd: i32) -> Option<[u64; 2]> {
    // SAFETY: an all-zero stat is valid.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: our own struct.
    let r = unsafe { raw::call(libc::SYS_fstat, [fd as u64, &raw mut st as u64, 0, 0, 0, 0]) };
    r.ok().map(|_| [st.st_dev, st.st_ino])
}

/// True unless the descriptor's name says that it is something else; /proc may be missing.
fn is_userfaultfd(fd: i32) -> bool {
    const DIRECTORY: &[u8] = b"/proc/self/fd/";
    const NAME: &[u8] = b"anon_inode:[userfaultfd]";
    let mut path = [0u8; 32];
    for (to, &from) in path.iter_mut().zip(DIRECTORY) {
        *to = from;
    }
    // As many digits as it takes: /proc knows no leading zeros.
    let (mut n, mut digits) = (fd as u32, 1);
    while n >= 10u32.pow(digits) && digits < 9 {
        digits += 1;
    }
    for i in (0..digits as usize).rev() {
        if let Some(to) = path.get_mut(DIRECTORY.len() + i) {
            *to = b'0' + (n % 10) as u8;
        }
        n /= 10;
    }
    let mut name = [0u8; 32];
    let to = [path.as_ptr() as u64, name.as_mut_ptr() as u64, name.len() as u64, 0, 0, 0];
    // SAFETY: a terminated path and a buffer of ours.
    match unsafe { raw::call(libc::SYS_readlink, to) } {
        Ok(len) => name.get(..len as usize) == Some(NAME),
        Err(_) => true,
    }
}

/// A second number for a descriptor, above those that programs use.
fn duplicate(fd: i32) -> Option<i32> {
    for floor in [DESCRIPTOR_FLOOR, 200, 64] {
        // SAFETY: F_DUPFD_CLOEXEC on our own descriptor.
        let r = unsafe { raw::call(libc::SYS_fcntl, [fd as u64, libc::F_DUPFD_CLOEXEC as u64, floor, 0, 0, 0]) };
        if let Ok(high) = r {
            return Some(high as i32);
        }
    }
    None
}

/// Moves a fresh descriptor above the numbers that programs use; keeps it where it is if that fails.
fn lift(fd: i32) -> i32 {
    match duplicate(fd) {
        Some(high) => {
            close(fd);
            high
        }
        None => fd,
    }
}

/// The other door: /dev/userfaultfd with file permissions (Linux 6.1).
fn open_device(flags: u64) -> Result<i32, Errno> {
    let path = c"/dev/userfaultfd".as_ptr() as u64;
    let mode = (libc::O_RDWR | libc::O_CLOEXEC) as u64;
    // SAFETY: a constant path; creates a descriptor.
    let dev = unsafe { raw::call(libc::SYS_openat, [libc::AT_FDCWD as u64, path, mode, 0, 0, 0])? };
    // SAFETY: ioctl that creates a descriptor.
    let r = unsafe { raw::call(libc::SYS_ioctl, [dev, USERFAULTFD_IOC_NEW, flags, 0, 0, 0]) };
    close(dev as i32);
    r.map(|fd| fd as i32)
}

impl Kernel for Linux {
    fn guard_install(&self, s: Span) -> Result<(), Errno> {
        self.madvise(s, MADV_GUARD_INSTALL)
    }
    fn guard_remove(&self, s: Span) -> Result<(), Errno> {
        self.madvise(s, MADV_GUARD_REMOVE)
    }
    fn discard(&self, s: Span) -> Result<(), Errno> {
        self.madvise(s, MADV_DONTNEED)
    }
    fn populate(&self, s: Span) -> Result<(), Errno> {
        self.madvise(s, MADV_POPULATE_WRITE)
    }

    fn register(&self, s: Span, how: Register) -> Result<(), Errno> {
        let mode = match how {
            Register::WriteProtect => REGISTER_MODE_WP,
            Register::Missing => REGISTER_MODE_MISSING,
            Register::Both => REGISTER_MODE_MISSING | REGISTER_MODE_WP,
        };
        let mut arg = [s.start, s.len(), mode, 0];
        self.ioctl(UFFDIO_REGISTER, arg.as_mut_ptr())
    }

    fn unregister(&self, s: Span) -> Result<(), Errno> {
        let mut arg = [s.start, s.len()];
        self.ioctl(UFFDIO_UNREGISTER, arg.as_mut_ptr())
    }

    fn write_protect(&self, s: Span, on: bool) -> Result<(), Errno> {
        let mut arg = [s.start, s.len(), u64::from(on)];
        self.ioctl(UFFDIO_WRITEPROTECT, arg.as_mut_ptr())
    }

    fn fill(&self, dst: Span, src: *const u8) -> Result<u64, Errno> {
        let mut arg = [dst.start, src as u64, dst.len(), COPY_MODE_DONTWAKE, 0];
        let r = self.ioctl(UFFDIO_COPY, arg.as_mut_ptr());
        let done = arg[4] as i64;
        match r {
            Ok(()) => Ok(dst.len()),
            Err(_) if done > 0 => Ok(done as u64),
            Err(e) => Err(e),
        }
    }

    fn fill_zero(&self, dst: Span) -> Result<u64, Errno> {
        let mut arg = [dst.start, dst.len(), COPY_MODE_DONTWAKE, 0];
        let r = self.ioctl(UFFDIO_ZEROPAGE, arg.as_mut_ptr());
        let done = arg[3] as i64;
        match r {
            Ok(()) => Ok(dst.len()),
            Err(_) if done > 0 => Ok(done as u64),
            Err(e) => Err(e),
        }
    }

    fn reset_descriptor(&self) -> bool {
        let fd = self.fd.load(Ordering::Relaxed);
        let open = fd >= 0 && self.is_open(fd);
        if open && self.descriptor_is_ours() {
            return false;
        }
        self.fd.store(-1, Ordering::Relaxed);
        if open {
            // The parent's descriptor, inherited by fork: this copy of it serves nobody.
            close(fd);
        }
        true
    }

    fn descriptor_is_ours(&self) -> bool {
        let p = self.mark.load(Ordering::Acquire);
        // SAFETY: null, or a page of ours that is never unmapped.
        !p.is_null() && unsafe { (*p).load(Ordering::Relaxed) } != 0
    }

    fn single_thread(&self) -> bool {
        super::tasks::single()
    }

    fn others(&self, s: Span, own: Span) -> Others {
        super::tasks::others(s, own)
    }

    unsafe fn prog_to_core(&self, core: *mut u8, prog: u64, len: u64) {
        // SAFETY: caller's contract.
        unsafe { raw::copy(core, prog as *const u8, len) }
    }
    unsafe fn core_to_prog(&self, prog: u64, core: *const u8, len: u64) {
        // SAFETY: caller's contract.
        unsafe { raw::copy(prog as *mut u8, core, len) }
    }
    unsafe fn prog_to_prog(&self, dst: u64, src: u64, len: u64) {
        // SAFETY: caller's contract.
        unsafe { raw::copy(dst as *mut u8, src as *const u8, len) }
    }
    unsafe fn prog_equals(&self, prog: u64, core: *const u8, len: u64) -> bool {
        // SAFETY: caller's contract.
        unsafe { raw::equal(prog as *const u8, core, len) }
    }
}
