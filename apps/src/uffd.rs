//! userfaultfd by its system call, its device and its ioctls: what `zio doctor` probes with.
//!
//! Unsafe code here passes plain integers and `repr(C)` structures of the kernel's layout to system
//! calls. An ioctl that writes program memory (`copy`) is unsafe for its caller too.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `UFFD_USER_MODE_ONLY`: only faults from user mode are reported; needs no privilege. Linux 5.11.
pub const USER_MODE_ONLY: i32 = 1;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`: registrations for write protection.
pub const FEATURE_WP: u64 = 1 << 0;
/// `UFFD_FEATURE_SIGBUS`: a touch raises SIGBUS on the touching thread instead of waiting for a reader.
pub const FEATURE_SIGBUS: u64 = 1 << 7;
/// `UFFDIO_REGISTER_MODE_MISSING`.
pub const REGISTER_MISSING: u64 = 1 << 0;
/// `UFFDIO_REGISTER_MODE_WP`.
pub const REGISTER_WP: u64 = 1 << 1;
/// `MADV_GUARD_INSTALL`, Linux 6.13: a touch raises SIGSEGV, without a mapping of its own.
pub const MADV_GUARD_INSTALL: i32 = 102;
/// `MADV_GUARD_REMOVE`.
pub const MADV_GUARD_REMOVE: i32 = 103;
/// The other door to userfaultfd, Linux 6.1, guarded by file permissions.
pub const DEVICE: &str = "/dev/userfaultfd";

const UFFD_API: u64 = 0xAA;
const UFFD_TYPE: u32 = 0xAA;
const IOC_NEW: libc::c_ulong = (UFFD_TYPE << 8) as libc::c_ulong;
const IOC_API: libc::c_ulong = iowr(UFFD_TYPE, 0x3F, size_of::<Api>());
const IOC_REGISTER: libc::c_ulong = iowr(UFFD_TYPE, 0x00, size_of::<Register>());
const IOC_COPY: libc::c_ulong = iowr(UFFD_TYPE, 0x03, size_of::<CopyRange>());
const IOC_PROCMAP_QUERY: libc::c_ulong = iowr(b'f' as u32, 17, size_of::<ProcmapQuery>());

/// The kernel's `_IOWR` for structures of `len` bytes.
const fn iowr(kind: u32, number: u32, len: usize) -> libc::c_ulong {
    ((3 << 30) | ((len as u32) << 16) | (kind << 8) | number) as libc::c_ulong
}

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct CopyRange {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// A new descriptor by `userfaultfd(2)`; `flags` is [`USER_MODE_ONLY`] or 0.
///
/// # Errors
/// The system call's.
pub fn open_by_system_call(flags: i32) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the system call takes one integer.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as RawFd)
}

/// A new descriptor by [`DEVICE`].
///
/// # Errors
/// Opening the device (missing, or no permission), or `USERFAULTFD_IOC_NEW`.
pub fn open_by_device() -> io::Result<OwnedFd> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the ioctl takes one integer.
    owned(unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, flags) })
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `UFFDIO_API` with `features`; the features that the kernel has.
///
/// # Errors
/// EINVAL when a feature is not supported.
pub fn handshake(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    let mut api = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: `api` has the kernel's layout and outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_API, &mut api) })?;
    Ok(api.features)
}

/// `UFFDIO_REGISTER` of `[start, start + len)`, whole pages.
///
/// # Errors
/// EINVAL where the mode or the mapping cannot be registered.
pub fn register(fd: &OwnedFd, start: usize, len: usize, mode: u64) -> io::Result<()> {
    let mut register = Register { start: start as u64, len: len as u64, mode, ioctls: 0 };
    // SAFETY: `register` has the kernel's layout and outlives the call; registering changes no bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_REGISTER, &mut register) })
}

/// `UFFDIO_COPY`: gives the pages at `dst` the bytes at `src`.
///
/// # Safety
/// `[dst, dst + len)` is memory that the caller may overwrite, `[src, src + len)` memory it may read.
///
/// # Errors
/// EEXIST when something is there already (on some kernels also a guard marker).
///
/// # Context
/// Also a signal handler: it neither allocates nor locks.
pub unsafe fn copy(fd: RawFd, dst: usize, src: usize, len: usize) -> io::Result<()> {
    let mut copy = CopyRange { dst: dst as u64, src: src as u64, len: len as u64, mode: 0, copied: 0 };
    // SAFETY: `copy` has the kernel's layout and outlives the call; the ranges are the caller's promise.
    check(unsafe { libc::ioctl(fd, IOC_COPY, &mut copy) })
}

/// `PROCMAP_QUERY` (Linux 6.11) for the mapping at `addr`: its start.
///
/// # Errors
/// ENOTTY on kernels without it.
pub fn query_mapping(addr: usize) -> io::Result<usize> {
    let maps = std::fs::File::open("/proc/self/maps")?;
    let mut query =
        ProcmapQuery { size: size_of::<ProcmapQuery>() as u64, query_addr: addr as u64, ..ProcmapQuery::default() };
    // SAFETY: `query` has the kernel's layout and its own size in it, asks for no name, and outlives the call.
    check(unsafe { libc::ioctl(maps.as_raw_fd(), IOC_PROCMAP_QUERY, &mut query) })?;
    Ok(query.vma_start as usize)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_headers() {
        assert_eq!(IOC_NEW, 0xAA00);
        assert_eq!(IOC_API, 0xC018_AA3F);
        assert_eq!(IOC_REGISTER, 0xC020_AA00);
        assert_eq!(IOC_COPY, 0xC028_AA03);
        assert_eq!(IOC_PROCMAP_QUERY, 0xC068_6611);
    }
}
