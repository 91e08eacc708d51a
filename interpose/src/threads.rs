//! Thread records: a fixed pool, found through thread-local storage, taken over when their thread is gone.
//!
//! Soundness: the pool is one zeroed mapping of `MAX_THREADS` records (all zeros is a valid, free record),
//! published once and never unmapped; a record is owned through a compare-and-swap on its `tid`.

use crate::{TRACKER, sys, tls};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use zio_tracker::addr::Span;
use zio_tracker::stats::SHARDS;
use zio_tracker::sys::linux::map_anonymous;
use zio_tracker::thread::{SIGNAL_STACK, Thread};

/// Threads that can elide at the same time; those past it pass through.
pub const MAX_THREADS: usize = 1024;

static POOL: AtomicPtr<Thread> = AtomicPtr::new(core::ptr::null_mut());
static USED: AtomicU32 = AtomicU32::new(0);

/// Reserves the pool. False when there is no memory for it.
pub fn init() -> bool {
    match map_anonymous((size_of::<Thread>() * MAX_THREADS) as u64) {
        Ok(p) => {
            crate::maps::locked::leave_out(p, (size_of::<Thread>() * MAX_THREADS) as u64);
            POOL.store(p as *mut Thread, Ordering::Release);
            true
        }
        Err(_) => false,
    }
}

/// Tells the tracker where the records are.
pub fn announce() {
    // SAFETY: the pool, as the file's paragraph says.
    unsafe { TRACKER.set_records(POOL.load(Ordering::Acquire)) };
}

/// The running thread's record; `None` when the pool is used up or the tracker is not ready.
#[inline]
pub fn current() -> Option<&'static Thread> {
    match tls::get() {
        Some(t) => Some(t),
        None => enrol(),
    }
}

fn record(i: usize) -> Option<&'static Thread> {
    let pool = POOL.load(Ordering::Acquire);
    if pool.is_null() || i >= MAX_THREADS {
        return None;
    }
    // SAFETY: inside the pool mapping.
    Some(unsafe { &*pool.add(i) })
}

#[cold]
fn enrol() -> Option<&'static Thread> {
    let tid = sys::gettid();
    for i in 0..MAX_THREADS {
        let t = record(i)?;
        let held_by = t.tid.load(Ordering::Relaxed);
        let free = held_by == 0 || held_by == tid || !sys::thread_exists(held_by);
        if free && t.tid.compare_exchange(held_by, tid, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            t.reset(tid);
            t.shard.store(if i < SHARDS - 1 { i as u32 } else { SHARDS as u32 - 1 }, Ordering::Relaxed);
            for s in &t.program_stack {
                s.store(0, Ordering::Relaxed);
            }
            t.program_stack[2].store(libc::SS_DISABLE as u64, Ordering::Relaxed);
            tls::set(t);
            give_signal_stack(t);
            count_thread(t, i);
            return Some(t);
        }
    }
    None
}

fn count_thread(t: &Thread, i: usize) {
    let n = USED.fetch_max(i as u32 + 1, Ordering::Relaxed).max(i as u32 + 1);
    TRACKER.locked(Some(t), |st| st.threads = u64::from(n));
}

/// Our fault handler must not depend on room on the program's stack: the thread gets an alternate stack,
/// unless it has one already.
fn give_signal_stack(t: &'static Thread) {
    let mut old = sys::StackT::default();
    if sys::sigaltstack(None, Some(&mut old)).is_err() || old.flags & libc::SS_DISABLE == 0 {
        t.program_stack[0].store(old.sp, Ordering::Relaxed);
        t.program_stack[1].store(old.size, Ordering::Relaxed);
        t.program_stack[2].store(old.flags as u64, Ordering::Relaxed);
        // Set before the hooks were ready, or past them. The kernel writes our own frames there as well.
        if let Some(s) = Span::new(old.sp, old.size) {
            let _ = TRACKER.give_up(Some(t), s);
        }
        return;
    }
    let mut base = t.stack.load(Ordering::Relaxed);
    if base == 0 {
        match map_anonymous(SIGNAL_STACK) {
            Ok(p) => base = p,
            Err(_) => return,
        }
        t.stack.store(base, Ordering::Relaxed);
    }
    let _ = sys::sigaltstack(Some(&sys::StackT { sp: base, flags: 0, pad: 0, size: SIGNAL_STACK }), None);
}

/// In a forked child: the other threads do not exist. Their windows stay with their records, which the next
/// thread takes over.
pub fn after_fork() {
    let tid = sys::gettid();
    let mine = tls::get();
    for i in 0..USED.load(Ordering::Relaxed) as usize {
        if let Some(t) = record(i)
            && !mine.is_some_and(|m| core::ptr::eq(m, t))
        {
            t.reset(0);
        }
    }
    if let Some(t) = mine {
        let busy = t;
        busy.reset(tid);
    }
}
