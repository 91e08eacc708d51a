//! Calls in whose course libc makes threads of its own: timers and queues that notify by a thread, POSIX asynchronous
//! IO, asynchronous name service. No hook sees those threads start.
//!
//! They run with every signal blocked, the fault signals too, and at any time after the call: what they read and write
//! at the program's addresses is given up here, also where a touch in user space would do elsewhere. Before they call
//! the program's function they open the signals again, all but the thread of a timer: there, a function of ours runs
//! first.
//!
//! Soundness: as in the parent. What a control block points at is read by [`probe`] after the block was made resident.
//! A callback is written once, by whoever took its place with a compare-and-swap, before `state` says that it is there.

use super::{Ptr, STRING, block, given_up, text};
use crate::masks::{self, FAULT_BITS};
use crate::{config, init, probe, real, signals, sys};
use core::arch::naked_asm;
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `struct sigevent`: the kind of notification is the second half of the second word, a thread's attributes the
/// fourth.
const EVENT: u64 = 64;
const EVENT_WORDS: usize = 4;
/// `pthread_attr_t`.
const ATTRIBUTES: u64 = 56;
/// `struct aiocb`: a buffer's address and length are words 2 and 3, the event starts at word 4.
const CONTROL: u64 = 168;
/// `struct gaicb`: name, service, hints.
const LOOKUP: u64 = 56;
const HINTS: u64 = 48;

/// What an event that asks for a thread has it made from.
fn by_thread(event: [u64; EVENT_WORDS]) {
    if (event[1] >> 32) as c_int == libc::SIGEV_THREAD {
        given_up(event[3], ATTRIBUTES);
        signals::handed_over_by(event[3]);
    }
}

/// An event that libc keeps, or hands to the kernel.
fn event(at: Ptr) {
    block(at as u64, EVENT);
    if !at.is_null()
        && let Some(e) = probe::read(at as u64)
    {
        by_thread(e);
    }
}

/// A control block of asynchronous IO.
fn control(at: u64) {
    given_up(at, CONTROL);
    if let Some([_, _, _, _, event @ ..]) = probe::read::<[u64; 4 + EVENT_WORDS]>(at) {
        by_thread(event);
    }
}

/// One with a buffer, for a read or write: libc's threads make the calls, unseen.
fn transfer(at: u64) {
    control(at);
    if let Some([_, _, buffer, len]) = probe::read::<[u64; 4]>(at) {
        given_up(buffer, len);
    }
}

/// Calls `f` with each address of an array.
fn each(array: Ptr, n: c_int, f: impl Fn(u64)) {
    for i in 0..n.max(0) as u64 {
        match probe::read::<u64>(array as u64 + i * 8) {
            Some(0) => {}
            Some(at) => f(at),
            None => return,
        }
    }
}

/// A string. Its end can be looked for once it is resident.
fn given_up_text(start: u64) {
    text(start, STRING);
    let mut end = start;
    while end < start.saturating_add(STRING) && probe::read::<u8>(end).is_some_and(|b| b != 0) {
        end += 1;
    }
    given_up(start, end + 1 - start);
}

/// One name that is looked up.
fn lookup(at: u64) {
    given_up(at, LOOKUP);
    if let Some([name, service, hints]) = probe::read::<[u64; 3]>(at) {
        given_up_text(name);
        given_up_text(service);
        given_up(hints, HINTS);
    }
}

/// What a timer's thread is to call. libc may start one after timer_delete, so places are never given back; timers
/// with the same function and value share one.
struct Callback {
    /// 0 free, 1 being written, 2 there.
    state: AtomicU32,
    function: AtomicU64,
    value: AtomicU64,
}

/// Different callbacks that are remembered; at one more zio stops eliding.
const CALLBACKS: usize = 1024;

static KNOWN: [Callback; CALLBACKS] =
    [const { Callback { state: AtomicU32::new(0), function: AtomicU64::new(0), value: AtomicU64::new(0) } }; CALLBACKS];

fn remembered(function: u64, value: u64) -> Option<&'static Callback> {
    KNOWN.iter().find(|c| {
        if c.state.compare_exchange(0, 1, Ordering::Acquire, Ordering::Acquire) == Ok(0) {
            c.function.store(function, Ordering::Relaxed);
            c.value.store(value, Ordering::Relaxed);
            c.state.store(2, Ordering::Release);
        }
        c.state.load(Ordering::Acquire) == 2
            && c.function.load(Ordering::Relaxed) == function
            && c.value.load(Ordering::Relaxed) == value
    })
}

/// In two registers.
#[repr(C)]
struct Start {
    function: u64,
    value: u64,
}

/// In the timer's thread: the program goes on believing the fault signals blocked, as libc left them.
extern "C" fn open_signals(c: &'static Callback) -> Start {
    masks::believe(sys::sigmask(libc::SIG_BLOCK, 0) & FAULT_BITS);
    sys::sigmask(libc::SIG_UNBLOCK, FAULT_BITS);
    Start { function: c.function.load(Ordering::Relaxed), value: c.value.load(Ordering::Relaxed) }
}

/// Notification function of all timers: goes on to the program's, and leaves no frame behind.
#[unsafe(naked)]
unsafe extern "C" fn notified() {
    naked_asm!("sub rsp, 8", "call {open}", "add rsp, 8", "mov rdi, rdx", "jmp rax", open = sym open_signals)
}

/// timer_create(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn timer_create(clock: c_int, e: Ptr, id: Ptr) -> c_int {
    event(e);
    block(id as u64, 8);
    let mut copy = [0u64; EVENT as usize / 8];
    let mut given = e;
    if config::loaded()
        && let Some([value, kind, function, attributes]) = probe::read::<[u64; EVENT_WORDS]>(e as u64)
        && (kind >> 32) as c_int == libc::SIGEV_THREAD
    {
        match remembered(function, value) {
            Some(c) => {
                let ours = [c as *const Callback as u64, kind, notified as *const () as u64, attributes];
                copy.iter_mut().zip(ours).for_each(|(to, word)| *to = word);
                given = copy.as_mut_ptr().cast();
            }
            None => init::withdraw(b"the program makes timers with too many different callbacks"),
        }
    }
    // SAFETY: the program's call; libc copies the event.
    unsafe { real::timer_create(clock, given, id) }
}

/// mq_notify(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn mq_notify(q: c_int, e: Ptr) -> c_int {
    event(e);
    // SAFETY: the program's call.
    unsafe { real::mq_notify(q, e) }
}

macro_rules! asynchronous {
    ($($name:ident($($before:ident: $t:ty)?), $look:ident, $doc:literal;)*) => {
        $(
            #[doc = $doc]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($before: $t,)? a: Ptr) -> c_int {
                $look(a as u64);
                // SAFETY: the program's call.
                unsafe { real::$name($($before,)? a) }
            }
        )*
    };
}

asynchronous! {
    aio_read(), transfer, "aio_read(3).";
    aio_read64(), transfer, "The same: offsets have 64 bits.";
    aio_write(), transfer, "aio_write(3).";
    aio_write64(), transfer, "The same: offsets have 64 bits.";
    aio_fsync(o: c_int), control, "aio_fsync(3).";
    aio_fsync64(o: c_int), control, "The same: offsets have 64 bits.";
}

macro_rules! list {
    ($name:ident, $one:ident, $doc:literal) => {
        #[doc = $doc]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(mode: c_int, list: Ptr, n: c_int, e: Ptr) -> c_int {
            event(e);
            each(list, n, $one);
            // SAFETY: the program's call.
            unsafe { real::$name(mode, list, n, e) }
        }
    };
}

list!(lio_listio, transfer, "lio_listio(3).");
list!(lio_listio64, transfer, "The same: offsets have 64 bits.");
list!(getaddrinfo_a, lookup, "getaddrinfo_a(3).");
