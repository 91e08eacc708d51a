//! The three system calls that the standard library does not offer.
//!
//! Soundness: each call passes integers, or a pointer to a live local of the length that is passed with
//! it; none keeps a pointer after it returns, and none touches memory that Rust code owns otherwise.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Sends `signal` to one process.
///
/// # Errors
/// As kill(2): `ESRCH` once the process has been reaped.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: kill takes two integers; `pid` is positive here, so it names one process and no group.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel kill the child when the thread that starts it ends, so that a failed run leaves no
/// server behind.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call with
    // integer arguments; it allocates nothing and touches no shared state.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Shrinks (or grows) a socket's receive buffer, so that its peer meets partial writes and `EAGAIN`.
///
/// # Errors
/// As setsockopt(2).
pub fn set_receive_buffer(stream: &TcpStream, len_bytes: i32) -> io::Result<()> {
    let value: libc::c_int = len_bytes;
    // SAFETY: the option value is a live `c_int` on this frame and the length passed is its size; the
    // descriptor is open for as long as `stream` is borrowed.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
