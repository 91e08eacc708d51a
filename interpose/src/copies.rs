//! memcpy and its kin.
//!
//! Entry points are assembly: one comparison against a threshold in memory, then a jump to libc's function. The
//! threshold is "never" until the library is active. Inside the library, copies that the compiler emits go to the
//! `__wrap_` stubs below, which jump through the same slots: the library never enters its own exports.
//!
//! glibc's old `memcpy@GLIBC_2.2.5` is found by these exports too: an unversioned definition satisfies every
//! version of a symbol, and both have memmove's behaviour here.
//!
//! Soundness: the assembly keeps every argument register; slots hold a function with memmove's (memset's)
//! prototype at all times: first the fallback below, then libc's. The slow paths get the C function's own
//! contract from their caller.

use crate::{TRACKER, real, threads};
use core::arch::{global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::copy::{Copied, RENAME_MIN};
use zio_tracker::page_state::Bit;
use zio_tracker::policy;
use zio_tracker::stats::Counter;

/// Copies of this many bytes and more are looked at, and counted.
pub const LOOK_AT: u64 = 4096;

static ZIO_LOOK_AT: AtomicU64 = AtomicU64::new(u64::MAX);

global_asm!(
    // Until the constructor has run: byte copies in both directions. memmove's contract, and mempcpy's and
    // memset's with their own entry.
    ".text",
    ".balign 16",
    ".hidden zio_fallback_memmove",
    "zio_fallback_memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".balign 16",
    ".hidden zio_fallback_mempcpy",
    "zio_fallback_mempcpy:",
    "mov rcx, rdx",
    "rep movsb",
    "mov rax, rdi",
    "ret",
    ".balign 16",
    ".hidden zio_fallback_memset",
    "zio_fallback_memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".balign 16",
    ".hidden zio_fallback_memcmp",
    "zio_fallback_memcmp:",
    "xor eax, eax",
    "test rdx, rdx",
    "je 4f",
    "3:",
    "movzx eax, byte ptr [rdi]",
    "movzx ecx, byte ptr [rsi]",
    "inc rdi",
    "inc rsi",
    "sub eax, ecx",
    "jne 4f",
    "dec rdx",
    "jne 3b",
    "4:",
    "ret",
    // Slots, and what the compiler's own calls reach inside the library (--wrap).
    ".data",
    ".balign 8",
    ".hidden zio_real_memmove",
    ".globl zio_real_memmove",
    "zio_real_memmove: .quad zio_fallback_memmove",
    ".hidden zio_real_mempcpy",
    ".globl zio_real_mempcpy",
    "zio_real_mempcpy: .quad zio_fallback_mempcpy",
    ".hidden zio_real_memset",
    ".globl zio_real_memset",
    "zio_real_memset: .quad zio_fallback_memset",
    ".hidden zio_real_memcmp",
    ".globl zio_real_memcmp",
    "zio_real_memcmp: .quad zio_fallback_memcmp",
    ".text",
    ".hidden __wrap_memcpy",
    ".globl __wrap_memcpy",
    "__wrap_memcpy: jmp qword ptr [rip + zio_real_memmove]",
    ".hidden __wrap_memmove",
    ".globl __wrap_memmove",
    "__wrap_memmove: jmp qword ptr [rip + zio_real_memmove]",
    ".hidden __wrap_mempcpy",
    ".globl __wrap_mempcpy",
    "__wrap_mempcpy: jmp qword ptr [rip + zio_real_mempcpy]",
    ".hidden __wrap_memset",
    ".globl __wrap_memset",
    "__wrap_memset: jmp qword ptr [rip + zio_real_memset]",
    ".hidden __wrap_memcmp",
    ".globl __wrap_memcmp",
    "__wrap_memcmp: jmp qword ptr [rip + zio_real_memcmp]",
    ".hidden __wrap_bcmp",
    ".globl __wrap_bcmp",
    "__wrap_bcmp: jmp qword ptr [rip + zio_real_memcmp]",
);

unsafe extern "C" {
    static zio_real_memmove: AtomicUsize;
    static zio_real_mempcpy: AtomicUsize;
    static zio_real_memset: AtomicUsize;
    static zio_real_memcmp: AtomicUsize;
}

/// Points the slots at libc's functions.
pub fn resolve() {
    let set = |slot: &AtomicUsize, name| {
        let p = real::next(name) as usize;
        if p != 0 {
            slot.store(p, Ordering::Release);
        }
    };
    // SAFETY: the slots are 8-byte words defined above.
    unsafe {
        set(&zio_real_memmove, c"memmove");
        set(&zio_real_mempcpy, c"mempcpy");
        set(&zio_real_memset, c"memset");
        set(&zio_real_memcmp, c"memcmp");
    }
}

/// From now on copies of [`LOOK_AT`] bytes and more are looked at.
pub fn activate() {
    ZIO_LOOK_AT.store(LOOK_AT, Ordering::Release);
}

/// No copy is looked at any more.
pub fn deactivate() {
    ZIO_LOOK_AT.store(u64::MAX, Ordering::Release);
}

/// memcpy(3).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcpy() {
    naked_asm!(
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_memmove]",
        "2: mov rcx, qword ptr [rsp]",
        "jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_move)
}

/// memmove(3).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memmove() {
    naked_asm!(
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_memmove]",
        "2: mov rcx, qword ptr [rsp]",
        "jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_move)
}

/// mempcpy(3).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn mempcpy() {
    naked_asm!(
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_mempcpy]",
        "2: mov rcx, qword ptr [rsp]",
        "jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_mempcpy)
}

/// glibc's other name of mempcpy. Not a jump to it: `--wrap` sends references to a wrapped name past the hook,
/// those from inside the library too.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn __mempcpy() {
    naked_asm!(
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_mempcpy]",
        "2: mov rcx, qword ptr [rsp]",
        "jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_mempcpy)
}

/// bcopy(3): the source comes first.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn bcopy() {
    naked_asm!(
        "xchg rdi, rsi",
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_memmove]",
        "2: mov rcx, qword ptr [rsp]",
        "jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_move)
}

/// memset(3).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memset() {
    naked_asm!(
        "cmp rdx, qword ptr [rip + {limit}]",
        "jae 2f",
        "jmp qword ptr [rip + zio_real_memset]",
        "2: jmp {slow}",
        limit = sym ZIO_LOOK_AT, slow = sym slow_memset)
}

macro_rules! checked {
    ($name:ident, $slot:literal, $slow:path, $real:expr, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "cmp rdx, rcx",
                "ja 3f",
                "cmp rdx, qword ptr [rip + {limit}]",
                "jae 2f",
                concat!("jmp qword ptr [rip + ", $slot, "]"),
                "2: mov rcx, qword ptr [rsp]",
                "jmp {slow}",
                "3: jmp {fail}",
                limit = sym ZIO_LOOK_AT, slow = sym $slow, fail = sym $real)
        }
    };
}

checked!(
    __memcpy_chk,
    "zio_real_memmove",
    slow_move,
    real::memcpy_chk,
    "Fortified memcpy; an overflow is libc's to report."
);
checked!(__memmove_chk, "zio_real_memmove", slow_move, real::memmove_chk, "Fortified memmove.");
checked!(__mempcpy_chk, "zio_real_mempcpy", slow_mempcpy, real::mempcpy_chk, "Fortified mempcpy.");
checked!(__memset_chk, "zio_real_memset", slow_memset, real::memset_chk, "Fortified memset.");

/// libc's memmove.
///
/// # Safety
/// As the C function.
pub unsafe fn real_move(dst: u64, src: u64, n: u64) {
    // SAFETY: the slot holds memmove (or the fallback).
    unsafe {
        let f: unsafe extern "C" fn(u64, u64, u64) -> u64 =
            core::mem::transmute(zio_real_memmove.load(Ordering::Relaxed));
        f(dst, src, n);
    }
}

/// libc's memset.
///
/// # Safety
/// As the C function.
unsafe fn real_set(dst: u64, c: i32, n: u64) {
    // SAFETY: the slot holds memset (or the fallback).
    unsafe {
        let f: unsafe extern "C" fn(u64, i32, u64) -> u64 =
            core::mem::transmute(zio_real_memset.load(Ordering::Relaxed));
        f(dst, c, n);
    }
}

unsafe extern "C" fn slow_move(dst: u64, src: u64, n: u64, site: u64) -> u64 {
    // SAFETY: forwarded from memcpy or memmove.
    unsafe { copy(dst, src, n, site) };
    dst
}

unsafe extern "C" fn slow_mempcpy(dst: u64, src: u64, n: u64, site: u64) -> u64 {
    // SAFETY: forwarded from mempcpy.
    unsafe { copy(dst, src, n, site) };
    dst.wrapping_add(n)
}

/// A program copy of at least [`LOOK_AT`] bytes.
///
/// # Safety
/// memmove's contract.
pub unsafe fn copy(dst: u64, src: u64, n: u64, site: u64) {
    let thread = threads::current();
    TRACKER.count(thread, Counter::CopyCalls, 1);
    TRACKER.count(thread, Counter::BytesRequested, n);
    // SAFETY: forwarded.
    unsafe { copy_or_move(dst, src, n, site, true) };
}

/// A copy that zio makes in a function's stead which copies unseen (glibc's realloc).
///
/// # Safety
/// memmove's contract.
pub unsafe fn copy_uncounted(dst: u64, src: u64, n: u64, site: u64) {
    // SAFETY: forwarded.
    unsafe { copy_or_move(dst, src, n, site, false) };
}

unsafe fn copy_or_move(dst: u64, src: u64, n: u64, site: u64, counted: bool) {
    let thread = threads::current();
    let spans = Span::new(dst, n).zip(Span::new(src, n));
    if counted {
        // As moved, until it is known better: a fault in the program's memory may leave by longjmp.
        TRACKER.count(thread, Counter::CopiedByProgram, n);
    }
    let elided = spans.and_then(|(d, s)| copy_by_name(d, s, site));
    if counted && let Some(e) = elided {
        TRACKER.count(thread, Counter::BytesElided, e);
        TRACKER.count(thread, Counter::CopiedByProgram, e.wrapping_neg());
    }
    if elided.is_none() {
        if let Some((d, s)) = spans
            && !TRACKER.pages.any_armed(s)
            && TRACKER.pages.any_armed(d)
        {
            TRACKER.make_way(thread, d);
        }
        // SAFETY: forwarded; pages that are still armed resolve themselves when touched.
        unsafe { real_move(dst, src, n) };
    }
}

/// Makes the copy through the tracker, if that is worth it; returns the bytes that were not moved.
fn copy_by_name(dst: Span, src: Span, site: u64) -> Option<u64> {
    let thread = threads::current();
    let named = TRACKER.pages.any_armed(src);
    let mut why = if named { Counter::PassBelowThreshold } else { Counter::PassUnnamed };
    // Bytes that must be moved are better moved to a core than to pages that would be disarmed now, and armed again by
    // the next copy that can be named.
    if src.len() >= RENAME_MIN
        && (named || TRACKER.pages.any_armed(dst) && TRACKER.mostly_armed(dst))
        && let Some(t) = thread
    {
        let here = 0u64;
        if let Some(mut claim) = t.claim(&here as *const u64 as u64) {
            TRACKER.count(thread, Counter::HookedCalls, 1);
            let copied = TRACKER.copy(t, &mut claim, dst, src, policy::slot(site));
            TRACKER.tidy(t, &mut claim);
            match copied {
                Copied::Done { elided } => return Some(elided),
                Copied::Real(reason) => why = reason,
            }
        }
    }
    TRACKER.count(thread, why, 1);
    None
}

/// memset of at least [`LOOK_AT`] bytes.
unsafe extern "C" fn slow_memset(dst: u64, c: i32, n: u64) -> u64 {
    let Some(s) = Span::new(dst, n).filter(|&s| TRACKER.pages.any_armed(s)) else {
        // SAFETY: forwarded.
        unsafe { real_set(dst, c, n) };
        return dst;
    };
    let thread = threads::current();
    if c as u8 != 0 {
        TRACKER.make_way(thread, s);
        // SAFETY: forwarded.
        unsafe { real_set(dst, c, n) };
        return dst;
    }
    // Zeros are what vacant pages read as: armed pages only lose their names.
    TRACKER.discarded_inside(thread, s);
    let (mut at, last) = (s.start, (s.end + 4095) >> 12);
    while at < s.end {
        let page = at >> 12;
        let vacant = TRACKER.pages.get(Bit::Vacant, at) && at & 4095 == 0 && at + 4096 <= s.end;
        let stop = if vacant {
            (TRACKER.pages.find(Bit::Vacant, false, page, last) << 12).min(s.end & !4095)
        } else {
            (TRACKER.pages.find(Bit::Vacant, true, page + 1, last) << 12).min(s.end)
        };
        if !vacant {
            // SAFETY: a part of the program's range.
            unsafe { real_set(at, c, stop - at) };
        }
        at = stop;
    }
    dst
}
