//! exec, posix_spawn and what is made of them: the kernel, or a child in which every signal is blocked, reads path,
//! arguments and environment, so all of them are touched before.
//!
//! A new program also inherits the signal mask and which signals are ignored: for the call, the kernel's idea of the
//! fault signals becomes the program's. Nothing elided is touched meanwhile.
//!
//! Soundness: strings and arrays are the program's, read by probes: a bad pointer is the kernel's to refuse. The
//! assembly turns the arguments of a variadic call, as the ABI passes them, into an array on the stack.

use crate::receive::touch;
use crate::{TRACKER, config, masks, probe, real, signals};
use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use zio_tracker::addr::PAGE;

type Ptr = *mut c_void;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> Ptr;
}

/// True if the kernel could find something elided.
fn armed() -> bool {
    config::loaded() && TRACKER.pages.armed_pages() != 0
}

/// Touches a terminated string: a probe for each page, then plain reads in it.
fn touch_string(p: Ptr) {
    let mut at = p as u64;
    while probe::read::<u8>(at).is_some() {
        let end = (at | (PAGE - 1)) + 1;
        while at < end {
            // SAFETY: the page has just been read from, and is the program's string up to its end.
            if unsafe { (at as *const u8).read_volatile() } == 0 {
                return;
            }
            at += 1;
        }
    }
}

/// Touches a null-terminated array of strings.
fn touch_strings(v: Ptr) {
    let mut at = v as u64;
    while let Some(p) = probe::read::<u64>(at).filter(|&p| p != 0) {
        touch_string(p as Ptr);
        at += 8;
    }
}

/// Makes an exec: `call` returns only if it failed.
fn exec(path: Ptr, argv: Ptr, env: Ptr, call: impl FnOnce() -> c_int) -> c_int {
    if !config::loaded() {
        return call();
    }
    if armed() {
        touch_string(path);
        touch_strings(argv);
        touch_strings(env);
    }
    let (blocked, ignored) = (masks::expose(), signals::execing());
    let r = call();
    signals::not_execed(ignored);
    masks::hide(blocked);
    r
}

/// Where `environ` is. Looked up by name: the variable may be a copy in the executable, which libc uses too.
static ENVIRON: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = find_environment;

extern "C" fn find_environment() {
    // SAFETY: the global scope, a terminated name.
    ENVIRON.store(unsafe { dlsym(core::ptr::null_mut(), c"environ".as_ptr()) }, Ordering::Relaxed);
}

/// The environment that calls without one pass on.
fn environment() -> Ptr {
    probe::read::<u64>(ENVIRON.load(Ordering::Relaxed) as u64).unwrap_or(0) as Ptr
}

/// execve(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn execve(p: Ptr, a: Ptr, e: Ptr) -> c_int {
    // SAFETY: the program's call.
    exec(p, a, e, || unsafe { real::execve(p, a, e) })
}

/// execv(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execv(p: Ptr, a: Ptr) -> c_int {
    // SAFETY: the program's call.
    exec(p, a, environment(), || unsafe { real::execv(p, a) })
}

/// execvp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execvp(p: Ptr, a: Ptr) -> c_int {
    // SAFETY: the program's call.
    exec(p, a, environment(), || unsafe { real::execvp(p, a) })
}

/// execvpe(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn execvpe(p: Ptr, a: Ptr, e: Ptr) -> c_int {
    // SAFETY: the program's call.
    exec(p, a, e, || unsafe { real::execvpe(p, a, e) })
}

/// fexecve(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn fexecve(fd: c_int, a: Ptr, e: Ptr) -> c_int {
    // SAFETY: the program's call.
    exec(core::ptr::null_mut(), a, e, || unsafe { real::fexecve(fd, a, e) })
}

/// execveat(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn execveat(fd: c_int, p: Ptr, a: Ptr, e: Ptr, flags: c_int) -> c_int {
    // SAFETY: the program's call.
    exec(p, a, e, || unsafe { real::execveat(fd, p, a, e, flags) })
}

macro_rules! variadic {
    ($name:ident, $body:ident, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            // The return address makes room for the register arguments: below the ones on the stack, they complete
            // the array. It is kept under it, and put back.
            naked_asm!(
                "pop r11",
                "push r9", "push r8", "push rcx", "push rdx", "push rsi",
                "mov rsi, rsp",
                "push r11",
                "call {f}",
                "pop r11",
                "add rsp, 40",
                "push r11",
                "ret",
                f = sym $body)
        }
    };
}

variadic!(execl, execv, "execl(3).");
variadic!(execlp, execvp, "execlp(3).");
variadic!(execle, list_with_environment, "execle(3).");

/// The environment follows the array's null.
unsafe extern "C" fn list_with_environment(p: Ptr, a: Ptr) -> c_int {
    // SAFETY: the array that the entry point made: terminated, and one more entry behind.
    unsafe {
        let v = a as *const Ptr;
        let mut n = 0;
        while !(*v.add(n)).is_null() {
            n += 1;
        }
        execve(p, a, *v.add(n + 1))
    }
}

/// Bytes of libc's `posix_spawn_file_actions_t`, of `posix_spawnattr_t`, and of one action.
const FILE_ACTIONS: u64 = 80;
const ATTRIBUTES: u64 = 336;
const ACTION: u64 = 32;

/// Makes a spawn: the child runs in our memory with every signal blocked. Paths in file actions are copies of libc's.
fn spawn(path: Ptr, actions: Ptr, attributes: Ptr, argv: Ptr, env: Ptr, call: impl FnOnce() -> c_int) -> c_int {
    if !config::loaded() {
        return call();
    }
    if armed() {
        touch(actions as u64, FILE_ACTIONS);
        touch(attributes as u64, ATTRIBUTES);
        // `used` at 4, the array at 8.
        if let (Some(n), Some(v)) = (probe::read::<u32>(actions as u64 + 4), probe::read::<u64>(actions as u64 + 8)) {
            touch(v, u64::from(n) * ACTION);
        }
        touch_string(path);
        touch_strings(argv);
        touch_strings(env);
    }
    let blocked = masks::expose();
    let r = call();
    masks::hide(blocked);
    r
}

/// posix_spawn(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawn(pid: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int {
    touch(pid as u64, 4);
    // SAFETY: the program's call.
    spawn(p, f, t, a, e, || unsafe { real::posix_spawn(pid, p, f, t, a, e) })
}

/// posix_spawnp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawnp(pid: Ptr, p: Ptr, f: Ptr, t: Ptr, a: Ptr, e: Ptr) -> c_int {
    touch(pid as u64, 4);
    // SAFETY: the program's call.
    spawn(p, f, t, a, e, || unsafe { real::posix_spawnp(pid, p, f, t, a, e) })
}

/// system(3): the shell gets the string from a child that shares our memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn system(command: Ptr) -> c_int {
    if armed() {
        touch_string(command);
        touch_strings(environment());
    }
    let blocked = masks::expose();
    // SAFETY: the program's call.
    let r = unsafe { real::system(command) };
    masks::hide(blocked);
    r
}

/// popen(3): its allocation may touch elided memory, so the mask stays.
#[unsafe(no_mangle)]
unsafe extern "C" fn popen(command: Ptr, kind: Ptr) -> Ptr {
    if armed() {
        touch_string(command);
        touch_strings(environment());
    }
    // SAFETY: the program's call.
    unsafe { real::popen(command, kind) }
}
