//! Keeping our userfaultfd descriptor out of the program's way, and what is remembered of its own.

use crate::receive::forget_descriptor;
use crate::{TRACKER, config, real};
use core::ffi::c_int;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn ours(fd: c_int) -> bool {
    config::loaded() && TRACKER.kernel.is_descriptor(fd)
}

/// close(2): our descriptor is not one that the program opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if ours(fd) {
        // SAFETY: this thread's errno.
        unsafe { *__errno_location() = libc::EBADF };
        return -1;
    }
    forget_descriptor(fd);
    // SAFETY: the program's call.
    unsafe { real::close(fd) }
}

/// dup2(2): if the program wants our number, we move.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(a: c_int, b: c_int) -> c_int {
    if ours(b) {
        TRACKER.kernel.move_descriptor();
    }
    forget_descriptor(b);
    // SAFETY: the program's call.
    unsafe { real::dup2(a, b) }
}

/// dup3(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(a: c_int, b: c_int, flags: c_int) -> c_int {
    if ours(b) {
        TRACKER.kernel.move_descriptor();
    }
    forget_descriptor(b);
    // SAFETY: the program's call.
    unsafe { real::dup3(a, b, flags) }
}

/// close_range(2): around our descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
    for fd in first..=last.min(4096) {
        forget_descriptor(fd as c_int);
    }
    let fd = TRACKER.kernel.descriptor();
    // SAFETY: the program's call, in two parts when our descriptor lies inside.
    unsafe {
        if !ours(fd) || (fd as u32) < first || fd as u32 > last {
            return real::close_range(first, last, flags);
        }
        let fd = fd as u32;
        if fd > first {
            let r = real::close_range(first, fd - 1, flags);
            if r != 0 {
                return r;
            }
        }
        if fd < last { real::close_range(fd + 1, last, flags) } else { 0 }
    }
}

/// closefrom(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: the program's call.
    unsafe {
        close_range(first.max(0) as u32, u32::MAX, 0);
    }
}
