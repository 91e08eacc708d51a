//! `syscall()`: any system call, past every other hook; and io_uring, which no hook sees.
//!
//! Soundness: as in the parent; calls that have a hook of their own go through it with the same arguments.

use super::{ADDRESS, Ptr, any, block, control, iovecs, strings, text, vectors};
use crate::sys::StackT;
use crate::{TRACKER, config, descriptors, init, maps, masks, probe, real, signals};
use core::ffi::{c_int, c_long, c_ulong};
use zio_tracker::addr::{PAGE, Span};

/// Bytes of a signal set in the kernel; with any other length it refuses the call.
const SET: c_ulong = 8;
/// What an unknown pointer may point at, bytes.
const UNKNOWN: u64 = 64 << 10;

/// Makes memory resident that an argument of an unknown call may point at: bounded, and nothing if it is no pointer
/// into armed memory.
fn suspect(arg: u64) {
    if let Some(s) = Span::new(arg, PAGE)
        && TRACKER.pages.any_armed(s)
    {
        block(arg, UNKNOWN);
    }
}

/// Calls that change what other hooks keep books about: they go through those hooks.
unsafe fn redirected(n: c_long, a: [c_ulong; 6]) -> Option<c_long> {
    let p = a[0] as Ptr;
    // SAFETY: the program's own call, by its other name.
    unsafe {
        Some(match n {
            libc::SYS_mmap => {
                maps::mmap(p, a[1] as usize, a[2] as c_int, a[3] as c_int, a[4] as c_int, a[5] as i64) as c_long
            }
            libc::SYS_munmap => maps::munmap(p, a[1] as usize).into(),
            libc::SYS_mremap => maps::mremap(p, a[1] as usize, a[2] as usize, a[3] as c_int, a[4] as Ptr) as c_long,
            libc::SYS_madvise => maps::madvise(p, a[1] as usize, a[2] as c_int).into(),
            libc::SYS_mprotect => maps::mprotect(p, a[1] as usize, a[2] as c_int).into(),
            libc::SYS_mlock => maps::locked::mlock(p, a[1] as usize).into(),
            libc::SYS_mlock2 => maps::locked::mlock2(p, a[1] as usize, a[2] as c_int).into(),
            libc::SYS_mlockall => maps::locked::mlockall(a[0] as c_int).into(),
            libc::SYS_close => descriptors::close(a[0] as c_int).into(),
            libc::SYS_dup2 => descriptors::dup2(a[0] as c_int, a[1] as c_int).into(),
            libc::SYS_dup3 => descriptors::dup3(a[0] as c_int, a[1] as c_int, a[2] as c_int).into(),
            libc::SYS_sigaltstack => signals::sigaltstack(p as *const StackT, a[1] as *mut StackT).into(),
            // Not for the two that libc keeps to itself and would refuse.
            libc::SYS_rt_sigaction if a[3] == SET && a[0] != 32 && a[0] != 33 => {
                signals::raw_sigaction(a[0] as c_int, a[1], a[2]).into()
            }
            libc::SYS_close_range => descriptors::close_range(a[0] as u32, a[1] as u32, a[2] as c_int).into(),
            _ => return None,
        })
    }
}

/// Calls that change the mask, or wait under another one: the fault signals stay open in the kernel.
unsafe fn masked(n: c_long, a: [c_ulong; 6]) -> Option<c_long> {
    // SAFETY: the program's call.
    let call = |a: [c_ulong; 6]| unsafe { real::syscall(n, a[0], a[1], a[2], a[3], a[4], a[5]) };
    let with = |i: usize, set: Ptr| {
        let mut b = a;
        if let Some(arg) = b.get_mut(i) {
            *arg = set as c_ulong;
        }
        call(b)
    };
    let at = match n {
        libc::SYS_rt_sigprocmask if a[3] == SET => {
            // SAFETY: the kernel refuses what cannot be read or written.
            return Some(unsafe { masks::change_by(a[0] as c_int, a[1] as Ptr, a[2] as Ptr, |set| with(1, set)) });
        }
        libc::SYS_rt_sigsuspend if a[1] == SET => 0,
        libc::SYS_ppoll if a[4] == SET => 3,
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 if a[5] == SET => 4,
        libc::SYS_pselect6 => {
            // The sixth argument names a set and its length.
            let [set, len] = probe::read::<[c_ulong; 2]>(a[5]).filter(|s| s[1] == SET)?;
            // SAFETY: the same.
            return Some(unsafe {
                masks::under(set as Ptr, |set| {
                    let pair = [set as c_ulong, len];
                    with(5, pair.as_ptr() as Ptr)
                })
            });
        }
        _ => return None,
    };
    let set = *a.get(at)? as Ptr;
    // SAFETY: the same.
    Some(unsafe { masks::under(set, |set| with(at, set)) })
}

/// Calls after which zio cannot go on.
fn withdrawn(n: c_long, a: [c_ulong; 6]) {
    match n {
        libc::SYS_io_uring_setup => init::withdraw(b"the program uses io_uring"),
        libc::SYS_userfaultfd => init::withdraw(b"the program uses userfaultfd itself"),
        libc::SYS_seccomp => init::withdraw(b"the program installs a seccomp filter"),
        libc::SYS_prctl if a[0] == libc::PR_SET_SECCOMP as u64 => {
            init::withdraw(b"the program installs a seccomp filter");
        }
        libc::SYS_exit_group => init::at_exit(),
        _ => {}
    }
}

/// Makes the arguments of a raw call resident.
fn prepare(n: c_long, a: [c_ulong; 6]) {
    match n {
        libc::SYS_read | libc::SYS_write | libc::SYS_pread64 | libc::SYS_pwrite64 | libc::SYS_getdents64 => {
            block(a[1], a[2]);
        }
        libc::SYS_recvfrom | libc::SYS_sendto => {
            block(a[1], a[2]);
            block(a[4], ADDRESS);
            block(a[5], 4);
        }
        libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_preadv
        | libc::SYS_pwritev
        | libc::SYS_preadv2
        | libc::SYS_pwritev2 => iovecs(a[1], a[2]),
        libc::SYS_vmsplice => vectors::pinned(a[1] as Ptr, a[2] as usize),
        libc::SYS_recvmsg | libc::SYS_sendmsg => vectors::message(a[1]),
        libc::SYS_recvmmsg | libc::SYS_sendmmsg => vectors::messages(a[1] as Ptr, a[2] as u32),
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => {
            vectors::process(a[0] as c_int, a[1] as Ptr, a[2], a[3] as Ptr, a[4]);
        }
        libc::SYS_io_submit => vectors::submitted(a[2] as Ptr, a[1] as c_long),
        libc::SYS_getrandom => block(a[0], a[1]),
        libc::SYS_ioctl => control::control_argument(a[1], a[2]),
        libc::SYS_execve => {
            text(a[0], 4096);
            strings(a[1]);
            strings(a[2]);
        }
        _ => a.into_iter().for_each(suspect),
    }
}

/// syscall(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    n: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    let args = [a, b, c, d, e, f];
    // SAFETY: the program's call. Arguments that it left out are not pointers into armed memory but by chance, and
    // then a page becomes resident for nothing.
    unsafe {
        if config::loaded() {
            if let Some(r) = redirected(n, args) {
                return r;
            }
            withdrawn(n, args);
            if any() {
                prepare(n, args);
            }
            if let Some(r) = masked(n, args) {
                return r;
            }
        }
        real::syscall(n, a, b, c, d, e, f)
    }
}

/// liburing's set-up: what it submits goes past every hook.
#[unsafe(no_mangle)]
unsafe extern "C" fn io_uring_queue_init(n: u32, ring: Ptr, flags: u32) -> c_int {
    init::withdraw(b"the program uses io_uring");
    // SAFETY: the program's call.
    unsafe { real::io_uring_queue_init(n, ring, flags) }
}

/// The same with parameters.
#[unsafe(no_mangle)]
unsafe extern "C" fn io_uring_queue_init_params(n: u32, ring: Ptr, params: Ptr) -> c_int {
    init::withdraw(b"the program uses io_uring");
    // SAFETY: the program's call.
    unsafe { real::io_uring_queue_init_params(n, ring, params) }
}

/// The same in memory of the program's.
#[unsafe(no_mangle)]
unsafe extern "C" fn io_uring_queue_init_mem(n: u32, ring: Ptr, params: Ptr, memory: Ptr, size: usize) -> isize {
    init::withdraw(b"the program uses io_uring");
    // SAFETY: the program's call.
    unsafe { real::io_uring_queue_init_mem(n, ring, params, memory, size) }
}
