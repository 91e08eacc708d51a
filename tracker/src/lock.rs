//! The tracker's lock: a futex word, no allocation, no libc.
//!
//! While it is held (I5): no program memory is touched (it may be elided, and resolving it needs this lock),
//! nothing is allocated from the program's allocator, no call that can wait for another thread is made. The
//! holder's program signal handlers are deferred by the preloaded library, which marks the thread first.
//!
//! Word: 0 free, 1 held, 2 held and somebody sleeps (Drepper, "Futexes are tricky", mutex 2).

use crate::raw;
use core::sync::atomic::{AtomicU32, Ordering};

const FUTEX_WAIT_PRIVATE: u64 = 128;
const FUTEX_WAKE_PRIVATE: u64 = 1 | 128;
/// Critical sections are well under a microsecond; a short spin is cheaper than a sleep. Two cores of a
/// virtual machine can be one, so the spin is short.
const SPINS: u32 = 100;

/// A futex lock.
pub struct Lock {
    word: AtomicU32,
}

impl Default for Lock {
    fn default() -> Self {
        Self::new()
    }
}

impl Lock {
    /// Free.
    pub const fn new() -> Lock {
        Lock { word: AtomicU32::new(0) }
    }

    /// Takes it. Not recursive.
    #[inline]
    pub fn acquire(&self) {
        if self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.contended();
        }
    }

    #[cold]
    fn contended(&self) {
        for _ in 0..SPINS {
            if self.word.load(Ordering::Relaxed) == 0
                && self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
            core::hint::spin_loop();
        }
        while self.word.swap(2, Ordering::Acquire) != 0 {
            // SAFETY: waits on our own word; spurious returns are handled by the loop.
            unsafe {
                raw::syscall6(libc::SYS_futex, [self.word.as_ptr() as u64, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0]);
            }
        }
    }

    /// Gives it back.
    #[inline]
    pub fn release(&self) {
        if self.word.swap(0, Ordering::Release) == 2 {
            // SAFETY: wakes waiters of our own word.
            unsafe {
                raw::syscall6(libc::SYS_futex, [self.word.as_ptr() as u64, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]);
            }
        }
    }

    /// In a forked child, where the thread that held it may not exist any more.
    ///
    /// # Safety
    /// Only the single thread of a fresh child may call this.
    pub unsafe fn reset(&self) {
        self.word.store(0, Ordering::Relaxed);
    }
}
