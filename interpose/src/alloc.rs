//! The allocation life cycle.
//!
//! Two kinds of allocator. One whose mappings come through the hooked `mmap`, `munmap` and `madvise` (jemalloc,
//! mimalloc, tcmalloc as shared libraries): freed blocks stay armed, vacant, for the next use. glibc's own, which
//! maps and unmaps by internal calls: a block is known only while it is allocated.
//!
//! A block below the threshold, and any that libc allocates for its own use (`opendir`'s buffer is handed to the
//! kernel from inside libc), has no armed page when it is returned.
//!
//! Soundness: pointers and sizes are those of the program's own calls; glibc's chunk header is read only for
//! blocks that glibc returned.

use crate::{TRACKER, config, copies, real, threads};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::policy;

/// True when `malloc` is glibc's.
static GLIBC: AtomicBool = AtomicBool::new(true);
/// libc's text.
static LIBC: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// jemalloc's resize in place, if the allocator has it.
static XALLOCX: AtomicU64 = AtomicU64::new(0);

/// What the constructor found out.
pub fn init(glibc: bool, libc_text: (u64, u64)) {
    XALLOCX.store(if glibc { 0 } else { real::next(c"xallocx") as u64 }, Ordering::Relaxed);
    GLIBC.store(glibc, Ordering::Relaxed);
    LIBC[0].store(libc_text.0, Ordering::Relaxed);
    LIBC[1].store(libc_text.1, Ordering::Relaxed);
}

fn from_libc(caller: u64) -> bool {
    caller >= LIBC[0].load(Ordering::Relaxed) && caller < LIBC[1].load(Ordering::Relaxed)
}

/// glibc keeps the chunk's size and flags in the word before the block; bit 1 says that it is its own mapping.
unsafe fn glibc_mapped(p: u64) -> bool {
    // SAFETY: `p` is a block of glibc's malloc.
    unsafe { *((p - 8) as *const u64) & 2 != 0 }
}

/// A block was allocated: makes it fit for use.
unsafe fn allocated(p: *mut c_void, n: usize, caller: u64) {
    let Some(s) = Span::new(p as u64, n as u64) else { return };
    let small = (n as u64) < config::threshold() || from_libc(caller);
    if small {
        if TRACKER.pages.any_armed(s) {
            let _ = TRACKER.make_resident(threads::current(), s);
        }
    } else if GLIBC.load(Ordering::Relaxed) && config::active() {
        // Books are kept by usable size, the same at free.
        // SAFETY: a live block of this allocator.
        let usable = unsafe { real::malloc_usable_size(p) } as u64;
        if let Some(block) = Span::new(p as u64, usable) {
            TRACKER.block_added(threads::current(), block);
        }
    } else {
        TRACKER.block_allocated(threads::current(), s, policy::slot(caller));
    }
}

/// A block is about to be freed.
unsafe fn freeing(p: u64) {
    if GLIBC.load(Ordering::Relaxed) {
        if !config::active() {
            return;
        }
        // SAFETY: a live block of this allocator.
        let usable = unsafe { real::malloc_usable_size(p as *mut c_void) } as u64;
        if usable >= config::threshold()
            && let Some(block) = Span::new(p, usable)
        {
            // SAFETY: glibc's block.
            let mapped = unsafe { glibc_mapped(p) };
            TRACKER.block_removed(threads::current(), block, mapped);
        }
        return;
    }
    if TRACKER.pages.armed_pages() == 0 {
        return;
    }
    // SAFETY: a live block of this allocator.
    let usable = unsafe { real::malloc_usable_size(p as *mut c_void) } as u64;
    if usable >= config::threshold()
        && let Some(block) = Span::new(p, usable)
        && TRACKER.pages.any_armed(block)
        && let Some(t) = threads::current()
    {
        TRACKER.block_freed(t, block);
        let here = 0u64;
        if TRACKER.wants_compaction()
            && let Some(mut claim) = t.claim(&here as *const u64 as u64)
        {
            TRACKER.compact(t, &mut claim);
        }
    }
}

macro_rules! with_caller {
    ($name:ident, $body:ident, $reg:literal, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(concat!("mov ", $reg, ", qword ptr [rsp]"), "jmp {f}", f = sym $body)
        }
    };
}

with_caller!(malloc, do_malloc, "rsi", "malloc(3).");
with_caller!(calloc, do_calloc, "rdx", "calloc(3).");
with_caller!(realloc, do_realloc, "rdx", "realloc(3).");
with_caller!(reallocarray, do_reallocarray, "rcx", "reallocarray(3).");
with_caller!(posix_memalign, do_posix_memalign, "rcx", "posix_memalign(3).");
with_caller!(aligned_alloc, do_aligned_alloc, "rdx", "aligned_alloc(3).");
with_caller!(memalign, do_memalign, "rdx", "memalign(3).");

unsafe extern "C" fn do_malloc(n: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe {
        let p = real::malloc(n);
        allocated(p, n, caller);
        p
    }
}

unsafe extern "C" fn do_calloc(n: usize, m: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call. A vacant page is zeros already.
    unsafe {
        let p = real::calloc(n, m);
        allocated(p, n.wrapping_mul(m), caller);
        p
    }
}

unsafe extern "C" fn do_realloc(p: *mut c_void, n: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe {
        if p.is_null() || n == 0 || !config::active() {
            return if p.is_null() { do_malloc(n, caller) } else { real_realloc(p, n, caller) };
        }
        let usable = real::malloc_usable_size(p);
        let armed = Span::new(p as u64, usable as u64).is_some_and(|s| TRACKER.pages.any_armed(s));
        if !armed {
            return real_realloc(p, n, caller);
        }
        // The block has elided pages: they move by name, not inside the allocator. First in place, if the
        // allocator offers that (jemalloc's xallocx): a shrinking block gives its end up whatever happens.
        if n < usable
            && let (Some(t), Some(end)) = (threads::current(), Span::new(p as u64 + n as u64, (usable - n) as u64))
        {
            TRACKER.block_freed(t, end);
        }
        if in_place(p, n) {
            return p;
        }
        let q = do_malloc(n, caller);
        if q.is_null() {
            return q;
        }
        let keep = n.min(usable) as u64;
        if keep >= copies::LOOK_AT && !GLIBC.load(Ordering::Relaxed) {
            // jemalloc would have called memcpy: a program copy like any other. glibc's realloc copies unseen.
            copies::copy(q as u64, p as u64, keep, caller);
        } else if keep >= copies::LOOK_AT {
            copies::copy_uncounted(q as u64, p as u64, keep, caller);
        } else {
            copies::real_move(q as u64, p as u64, keep);
        }
        free(p);
        q
    }
}

/// Tries to make a block's size `n` where it is.
unsafe fn in_place(p: *mut c_void, n: usize) -> bool {
    if GLIBC.load(Ordering::Relaxed) {
        // SAFETY: a live block.
        let usable = unsafe { real::malloc_usable_size(p) };
        return n <= usable && n > usable / 2;
    }
    let f = XALLOCX.load(Ordering::Relaxed);
    if f == 0 {
        return false;
    }
    // SAFETY: `size_t xallocx(void *ptr, size_t size, size_t extra, int flags)` of the allocator that `p` is from.
    unsafe {
        let f: unsafe extern "C" fn(*mut c_void, usize, usize, c_int) -> usize = core::mem::transmute(f);
        f(p, n, 0, 0) >= n
    }
}

/// realloc of a block without armed pages.
unsafe fn real_realloc(p: *mut c_void, n: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe {
        freeing(p as u64);
        let q = real::realloc(p, n);
        if q.is_null() {
            // The old block lives on.
            if n != 0 {
                allocated(p, real::malloc_usable_size(p), 0);
            }
        } else {
            allocated(q, n, caller);
        }
        q
    }
}

unsafe extern "C" fn do_reallocarray(p: *mut c_void, n: usize, m: usize, caller: u64) -> *mut c_void {
    match n.checked_mul(m) {
        // SAFETY: the program's call.
        Some(bytes) => unsafe { do_realloc(p, bytes, caller) },
        None => {
            // SAFETY: libc's errno of this thread.
            unsafe { *__errno_location() = libc::ENOMEM };
            core::ptr::null_mut()
        }
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

unsafe extern "C" fn do_posix_memalign(out: *mut *mut c_void, a: usize, n: usize, caller: u64) -> c_int {
    // SAFETY: the program's call; `out` was written on success.
    unsafe {
        let r = real::posix_memalign(out.cast(), a, n);
        if r == 0 {
            allocated(*out, n, caller);
        }
        r
    }
}

unsafe extern "C" fn do_aligned_alloc(a: usize, n: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe {
        let p = real::aligned_alloc(a, n);
        allocated(p, n, caller);
        p
    }
}

unsafe extern "C" fn do_memalign(a: usize, n: usize, caller: u64) -> *mut c_void {
    // SAFETY: the program's call.
    unsafe {
        let p = real::memalign(a, n);
        allocated(p, n, caller);
        p
    }
}

/// free(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn free(p: *mut c_void) {
    // SAFETY: the program's call.
    unsafe {
        if !p.is_null() {
            freeing(p as u64);
        }
        real::free(p);
    }
}
