//! The preloaded library's own system calls, raw: they set no `errno` and enter no hook.
//!
//! Soundness: each block is one system call on our own locals, or on pointers whose validity the caller states.

use zio_tracker::raw;
use zio_tracker::sys::Errno;

/// The kernel's `stack_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct StackT {
    /// Base.
    pub sp: u64,
    /// SS_DISABLE, SS_ONSTACK.
    pub flags: i32,
    /// Padding.
    pub pad: i32,
    /// Bytes.
    pub size: u64,
}

/// The kernel's `struct sigaction`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct KernelAction {
    /// Handler, SIG_DFL or SIG_IGN.
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// SA_RESTORER's function.
    pub restorer: u64,
    /// Signals blocked meanwhile.
    pub mask: u64,
}

/// Thread id.
pub fn gettid() -> u32 {
    // SAFETY: no arguments.
    unsafe { raw::syscall6(libc::SYS_gettid, [0; 6]) as u32 }
}

/// Process id.
pub fn getpid() -> u32 {
    // SAFETY: no arguments.
    unsafe { raw::syscall6(libc::SYS_getpid, [0; 6]) as u32 }
}

/// False when no thread of this process has that id.
pub fn thread_exists(tid: u32) -> bool {
    // SAFETY: signal 0 sends nothing.
    let r = unsafe { raw::call(libc::SYS_tgkill, [u64::from(getpid()), u64::from(tid), 0, 0, 0, 0]) };
    !matches!(r, Err(Errno(libc::ESRCH)))
}

/// sigaltstack(2).
pub fn sigaltstack(new: Option<&StackT>, old: Option<&mut StackT>) -> Result<(), Errno> {
    let new = new.map_or(0, |p| p as *const StackT as u64);
    let old = old.map_or(0, |p| p as *mut StackT as u64);
    // SAFETY: null or our structs; a new stack is ours or the program's own argument.
    unsafe { raw::call(libc::SYS_sigaltstack, [new, old, 0, 0, 0, 0]) }.map(|_| ())
}

/// rt_sigaction(2).
pub fn sigaction(sig: i32, new: Option<&KernelAction>, old: Option<&mut KernelAction>) -> Result<(), Errno> {
    let new = new.map_or(0, |p| p as *const KernelAction as u64);
    let old = old.map_or(0, |p| p as *mut KernelAction as u64);
    // SAFETY: null or our structs; handlers installed here are ours.
    unsafe { raw::call(libc::SYS_rt_sigaction, [sig as u64, new, old, 8, 0, 0]) }.map(|_| ())
}

/// rt_sigprocmask(2); returns the old mask.
pub fn sigmask(how: i32, set: u64) -> u64 {
    let mut old = 0u64;
    let set = &set as *const u64 as u64;
    // SAFETY: our locals.
    let _ = unsafe { raw::call(libc::SYS_rt_sigprocmask, [how as u64, set, &mut old as *mut u64 as u64, 8, 0, 0]) };
    old
}

/// Sends a signal to the running thread, with the information it came with if that is given.
pub fn requeue(sig: i32, info: *const u8) -> bool {
    let (pid, tid) = (u64::from(getpid()), u64::from(gettid()));
    if !info.is_null() {
        // SAFETY: `info` is the siginfo of a handler's frame.
        let r = unsafe { raw::call(libc::SYS_rt_tgsigqueueinfo, [pid, tid, sig as u64, info as u64, 0, 0]) };
        if r.is_ok() {
            return true;
        }
    }
    // SAFETY: plain values.
    unsafe { raw::call(libc::SYS_tgkill, [pid, tid, sig as u64, 0, 0, 0]) }.is_ok()
}

/// Writes all of a message to a descriptor, best effort.
pub fn write_all(fd: i32, s: &[u8]) -> bool {
    let mut rest = s;
    while !rest.is_empty() {
        // SAFETY: our own bytes.
        match unsafe { raw::call(libc::SYS_write, [fd as u64, rest.as_ptr() as u64, rest.len() as u64, 0, 0, 0]) } {
            Ok(n) if n > 0 => rest = rest.get(n as usize..).unwrap_or(&[]),
            Err(Errno(libc::EINTR)) => {}
            _ => return false,
        }
    }
    true
}

/// Kinds of descriptor, as far as they matter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FdKind {
    /// Sockets, pipes and regular files without O_DIRECT: a vectored call does what a plain one does.
    Plain,
    /// Anything else.
    Other,
}

/// Looks at a descriptor.
pub fn fd_kind(fd: i32) -> FdKind {
    // SAFETY: an all-zero stat is valid.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: our own struct.
    let r = unsafe { raw::call(libc::SYS_fstat, [fd as u64, &mut st as *mut libc::stat as u64, 0, 0, 0, 0]) };
    if r.is_err() {
        return FdKind::Other;
    }
    match st.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => FdKind::Plain,
        libc::S_IFREG | libc::S_IFIFO => {
            // SAFETY: plain values.
            let fl = unsafe { raw::call(libc::SYS_fcntl, [fd as u64, libc::F_GETFL as u64, 0, 0, 0, 0]) };
            match fl {
                Ok(f) if f & libc::O_DIRECT as u64 == 0 => FdKind::Plain,
                _ => FdKind::Other,
            }
        }
        _ => FdKind::Other,
    }
}
