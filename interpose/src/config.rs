//! Settings, read from the environment once, in the constructor (a program may replace `environ` later).
//!
//! Soundness: `environ` strings are the ones that the kernel put on the stack, terminated and never freed.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What the library does, as far as hooks are concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    // 0 is before the constructor.
    /// Nothing will ever be elided.
    Disabled = 1,
    /// Nothing new is elided; what is, is still resolved.
    Passthrough = 2,
    /// Eliding.
    Active = 3,
}

static PHASE: AtomicU8 = AtomicU8::new(0);
static THRESHOLD: AtomicU64 = AtomicU64::new(u64::MAX);
static SIGBUS: AtomicU8 = AtomicU8::new(0);

/// Changes the phase.
pub fn set_phase(p: Phase) {
    PHASE.store(p as u8, Ordering::Release);
}

/// New pages may be elided.
#[inline]
pub fn active() -> bool {
    PHASE.load(Ordering::Relaxed) == Phase::Active as u8
}

/// Pages may be elided from now or from before: calls must be checked.
#[inline]
pub fn loaded() -> bool {
    PHASE.load(Ordering::Relaxed) >= Phase::Passthrough as u8
}

/// Switched off.
pub fn disabled() -> bool {
    PHASE.load(Ordering::Relaxed) == Phase::Disabled as u8
}

/// Smallest receive that is elided, bytes.
#[inline]
pub fn threshold() -> u64 {
    THRESHOLD.load(Ordering::Relaxed)
}

/// Sets the threshold.
pub fn set_threshold(n: u64) {
    THRESHOLD.store(n, Ordering::Relaxed);
}

/// The fault mode is `sigbus`.
#[inline]
pub fn sigbus() -> bool {
    SIGBUS.load(Ordering::Relaxed) != 0
}

/// Sets the fault mode.
pub fn set_sigbus(on: bool) {
    SIGBUS.store(u8::from(on), Ordering::Relaxed);
}

/// Default threshold, bytes.
pub const DEFAULT_THRESHOLD: u64 = 16 << 10;
/// Smallest threshold: below it a copy costs less than the books.
pub const MIN_THRESHOLD: u64 = 4 << 10;

/// The environment as the constructor gets it.
#[derive(Clone, Copy)]
pub struct Environment(pub *mut *mut u8);

impl Environment {
    /// The value of a variable.
    pub fn get(self, name: &[u8]) -> Option<&'static [u8]> {
        let mut i = 0;
        loop {
            // SAFETY: a null-terminated array of terminated strings.
            let p = unsafe { *self.0.add(i) };
            if p.is_null() {
                return None;
            }
            // SAFETY: as above.
            let s = unsafe { core::ffi::CStr::from_ptr(p.cast()) }.to_bytes();
            if let Some(v) = s.strip_prefix(name).and_then(|r| r.strip_prefix(b"=")) {
                return Some(v);
            }
            i += 1;
        }
    }

    /// Removes the variables that start with one of the prefixes, so that exec'd children do not see them.
    pub fn remove(self, prefixes: &[&[u8]]) {
        let (mut from, mut to) = (0, 0);
        loop {
            // SAFETY: a null-terminated array of terminated strings, which this thread alone uses now.
            unsafe {
                let p = *self.0.add(from);
                *self.0.add(to) = p;
                if p.is_null() {
                    return;
                }
                let s = core::ffi::CStr::from_ptr(p.cast()).to_bytes();
                if !prefixes.iter().any(|x| s.starts_with(x)) {
                    to += 1;
                }
                from += 1;
            }
        }
    }
}

/// A number, decimal, with an optional K, M or G (times 1024) and an optional `iB` or `B`.
pub fn size(s: &[u8]) -> Option<u64> {
    let digits = s.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, unit) = s.split_at_checked(digits)?;
    if number.is_empty() {
        return None;
    }
    let mut n = 0u64;
    for b in number {
        n = n.checked_mul(10)?.checked_add(u64::from(b - b'0'))?;
    }
    let shift = match unit {
        b"" | b"B" => 0,
        b"K" | b"k" | b"KiB" => 10,
        b"M" | b"m" | b"MiB" => 20,
        b"G" | b"g" | b"GiB" => 30,
        _ => return None,
    };
    n.checked_mul(1 << shift)
}
