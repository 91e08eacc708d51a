//! Jumps out of handlers: longjmp and its kin, the mask that sigsetjmp saves, and contexts.
//!
//! libc saves and restores the mask by calls that no hook sees, and without the fault signals, which are never
//! blocked in the kernel. A jump buffer and a `ucontext_t` have room for 1,024 signals, of which libc uses 64: the
//! last word carries what the program believes of the fault signals. When a context made by makecontext ends, libc
//! resumes its successor unseen: the belief stays that of the one that ended.
//!
//! Soundness: the entry points keep their argument registers and the stack pointer, and end in a jump to libc's
//! function. The buffer's layout (x86-64 glibc) is part of its ABI: `rsp`, mangled, at 48, the flag at 64, the mask
//! at 72; in a `ucontext_t` the stack is at 16, the other two at 160 and 296. A buffer without a saved mask may be shorter: only the flag is read then.

use super::stacks;
use crate::masks::{self, FAULT_BITS};
use crate::{config, real, sys, tls};
use core::arch::{asm, naked_asm};
use core::ffi::{CStr, c_int};
use core::sync::atomic::{AtomicUsize, Ordering};

const RSP: u64 = 48;
const MASK_SAVED: u64 = 64;
const LAST_WORD: u64 = 72 + 120;
/// Marks a last word that we wrote; bits 6 and 10 are the two signals.
const OURS: u64 = 0x7a69_6f5f_6d73_0000;

static REAL_SETJMP: AtomicUsize = AtomicUsize::new(0);
static REAL_LONGJMP: AtomicUsize = AtomicUsize::new(0);
static REAL_LONGJMP_CHK: AtomicUsize = AtomicUsize::new(0);
static REAL_GETCONTEXT: AtomicUsize = AtomicUsize::new(0);
static REAL_SETCONTEXT: AtomicUsize = AtomicUsize::new(0);
static REAL_SWAPCONTEXT: AtomicUsize = AtomicUsize::new(0);
static REAL_MAKECONTEXT: AtomicUsize = AtomicUsize::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = resolve;

extern "C" fn resolve() {
    let set = |slot: &AtomicUsize, name: &CStr| slot.store(real::next(name) as usize, Ordering::Relaxed);
    set(&REAL_SETJMP, c"__sigsetjmp");
    set(&REAL_LONGJMP, c"siglongjmp");
    set(&REAL_LONGJMP_CHK, c"__longjmp_chk");
    set(&REAL_GETCONTEXT, c"getcontext");
    set(&REAL_SETCONTEXT, c"setcontext");
    set(&REAL_SWAPCONTEXT, c"swapcontext");
    set(&REAL_MAKECONTEXT, c"makecontext");
}

/// Before a buffer is filled.
unsafe extern "C" fn saving(env: u64, savemask: c_int) {
    if REAL_SETJMP.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    if savemask != 0 && config::loaded() {
        // SAFETY: a buffer that a mask is saved in is a whole `sigjmp_buf`.
        unsafe { ((env + LAST_WORD) as *mut u64).write(OURS | masks::belief()) };
    }
}

/// Before a jump: the alternate stack and the mask are those of the frame that it goes to.
unsafe extern "C" fn jumping(env: u64) {
    if REAL_LONGJMP.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    if !config::loaded() {
        return;
    }
    let Some(t) = tls::get() else { return };
    // SAFETY: the program's buffer, filled by setjmp.
    unsafe {
        stacks::jumped(t, demangled(((env + RSP) as *const u64).read()));
        if ((env + MASK_SAVED) as *const c_int).read() != 0 {
            let word = ((env + LAST_WORD) as *const u64).read();
            let bits = if word & !FAULT_BITS == OURS { word & FAULT_BITS } else { 0 };
            masks::believe(bits);
        }
    }
}

/// A pointer as setjmp found it: glibc rotates it and mixes in a secret of the process.
fn demangled(p: u64) -> u64 {
    let secret: u64;
    // SAFETY: the thread control block's pointer guard.
    unsafe { asm!("mov {}, qword ptr fs:[0x30]", out(reg) secret, options(pure, readonly, nostack)) };
    p.rotate_right(17) ^ secret
}

const CONTEXT_STACK: u64 = 16;
const CONTEXT_RSP: u64 = 160;
const CONTEXT_MASK: u64 = 296;

/// Before a context is filled.
unsafe extern "C" fn getting(context: u64) {
    if REAL_GETCONTEXT.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    if config::loaded() {
        // SAFETY: the program's `ucontext_t`.
        unsafe { ((context + CONTEXT_MASK + 120) as *mut u64).write(OURS | masks::belief()) };
    }
}

/// Before a context is resumed: libc hands its mask to the kernel as it is.
unsafe fn resume(context: u64) {
    // SAFETY: the program's `ucontext_t`, filled by getcontext or by the kernel.
    unsafe {
        let mask = (context + CONTEXT_MASK) as *mut u64;
        let word = ((context + CONTEXT_MASK + 120) as *const u64).read();
        let mut bits = *mask & FAULT_BITS;
        if bits != 0 {
            *mask &= !FAULT_BITS;
        }
        if word & !FAULT_BITS == OURS {
            bits |= word & FAULT_BITS;
        }
        masks::believe(bits);
    }
}

/// A context may be left for good, handlers and all.
unsafe extern "C" fn setting(context: u64) {
    if REAL_SETCONTEXT.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    if config::loaded()
        && let Some(t) = tls::get()
    {
        // SAFETY: the program's context.
        unsafe {
            stacks::jumped(t, ((context + CONTEXT_RSP) as *const u64).read());
            resume(context);
        }
    }
}

/// Whoever swaps may come back: handlers in progress stay.
unsafe extern "C" fn swapping(old: u64, new: u64) {
    if REAL_SWAPCONTEXT.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    // SAFETY: the program's contexts.
    unsafe {
        getting(old);
        if config::loaded() {
            resume(new);
        }
    }
}

/// Before a context gets a stack.
unsafe extern "C" fn making(context: u64) {
    if REAL_MAKECONTEXT.load(Ordering::Relaxed) == 0 {
        resolve();
    }
    // SAFETY: the program's `ucontext_t`, filled by getcontext and with its stack set.
    let s = unsafe { ((context + CONTEXT_STACK) as *const sys::StackT).read() };
    stacks::handed_over(s.sp, s.size);
}

/// makecontext(3), with any number of arguments: all registers that pass some are kept.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn makecontext() {
    naked_asm!(
        "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
        "call {before}",
        "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
        "jmp qword ptr [rip + {real}]",
        before = sym making, real = sym REAL_MAKECONTEXT)
}

/// setjmp(3) as a function saves the mask.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn setjmp() {
    naked_asm!("mov esi, 1", "jmp {f}", f = sym __sigsetjmp)
}

macro_rules! jump {
    ($name:ident, $before:ident, $real:ident, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rdi", "push rsi", "sub rsp, 8",
                "call {before}",
                "add rsp, 8", "pop rsi", "pop rdi",
                "jmp qword ptr [rip + {real}]",
                before = sym $before, real = sym $real)
        }
    };
}

jump!(__sigsetjmp, saving, REAL_SETJMP, "What sigsetjmp(3) expands to.");
jump!(siglongjmp, jumping, REAL_LONGJMP, "siglongjmp(3).");
jump!(longjmp, jumping, REAL_LONGJMP, "longjmp(3).");
jump!(_longjmp, jumping, REAL_LONGJMP, "_longjmp(3).");
jump!(__longjmp_chk, jumping, REAL_LONGJMP_CHK, "Fortified longjmp.");
jump!(getcontext, getting, REAL_GETCONTEXT, "getcontext(3).");
jump!(setcontext, setting, REAL_SETCONTEXT, "setcontext(3).");
jump!(swapcontext, swapping, REAL_SWAPCONTEXT, "swapcontext(3).");
