//! Page state, readable without a lock.
//!
//! ```text
//!   top[2^17]  --one per GiB-->  Gib { armed: 1 bit/page, vacant: 1 bit/page, hot: 1 bit/page }
//!
//!   armed vacant
//!     0     0     resident: the program's own business, no extent overlaps it          (I2)
//!     1     0     elided: extents name every byte of it, a touch reaches us            (I1)
//!     1     1     vacant: named by nothing, a touch fills it with zeros
//! ```
//! `hot` remembers of a resident page that the program touched it after it had been elided: eliding it again would
//! buy another fault, so copies go straight to it until the policy tries again. Of an armed page it says that this
//! is such a try.
//!
//! Writers hold the tracker's lock. [`PageState::any_armed`] is called before every hooked call that hands
//! program memory to the kernel and takes a few loads: none at all while nothing was ever armed. A reader that
//! sees `armed` takes the lock and looks again, so a page being materialised reads as armed until its bytes
//! are there.
//!
//! Soundness: `Gib` blocks come zeroed from the kernel, are published once with release ordering and are never
//! unmapped; all bits are atomics.

use crate::addr::{PAGE_SHIFT, Span, USER_END};
use crate::sys::Errno;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

const GIB_SHIFT: u32 = 30;
const TOPS: usize = (USER_END >> GIB_SHIFT) as usize;
const WORDS: usize = 1 << (GIB_SHIFT - PAGE_SHIFT - 6);

/// One bitmap of a GiB's pages.
type Bits = [AtomicU64; WORDS];

#[repr(C)]
struct Gib {
    armed: Bits,
    vacant: Bits,
    hot: Bits,
}

/// Which of the bitmaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bit {
    /// A touch reaches us.
    Armed,
    /// Armed and named by nothing.
    Vacant,
    /// Touched after it had been elided.
    Hot,
}

/// The state of every page of the user address space.
pub struct PageState {
    top: [AtomicPtr<Gib>; TOPS],
    armed_pages: AtomicU64,
}

impl Default for PageState {
    fn default() -> Self {
        Self::new()
    }
}

impl PageState {
    /// All pages resident. 1 MiB of zeros: meant for a static.
    pub const fn new() -> PageState {
        PageState { top: [const { AtomicPtr::new(core::ptr::null_mut()) }; TOPS], armed_pages: AtomicU64::new(0) }
    }

    fn gib(&self, page: u64) -> Option<&Gib> {
        let i = (page >> (GIB_SHIFT - PAGE_SHIFT)) as usize;
        let p = self.top.get(i)?.load(Ordering::Acquire);
        // SAFETY: null or a published block that is never freed.
        unsafe { p.as_ref() }
    }

    /// Makes sure that bits can be set for every page of the span.
    ///
    /// # Errors
    /// ENOMEM. Nothing is lost: the caller copies instead of eliding.
    pub fn reserve(&self, s: Span) -> Result<(), Errno> {
        if s.is_empty() {
            return Ok(());
        }
        let last = (s.end - 1) >> GIB_SHIFT;
        let mut i = s.start >> GIB_SHIFT;
        while i <= last {
            let slot = self.top.get(i as usize).ok_or(Errno::INVAL)?;
            if slot.load(Ordering::Acquire).is_null() {
                let fresh = crate::sys::linux::map_anonymous(size_of::<Gib>() as u64)? as *mut Gib;
                // Writers hold the lock, so nobody else publishes at the same time.
                slot.store(fresh, Ordering::Release);
            }
            i += 1;
        }
        Ok(())
    }

    /// True if a page that the span touches is elided or vacant.
    ///
    /// # Context
    /// Any; takes no lock.
    #[inline]
    pub fn any_armed(&self, s: Span) -> bool {
        if self.armed_pages.load(Ordering::Relaxed) == 0 || s.is_empty() {
            return false;
        }
        self.any_armed_slow(s)
    }

    fn any_armed_slow(&self, s: Span) -> bool {
        let end = ((s.end - 1) >> PAGE_SHIFT) + 1;
        self.find(Bit::Armed, true, s.start >> PAGE_SHIFT, end) < end
    }

    /// The bit of the page that holds `addr`.
    #[inline]
    pub fn get(&self, bit: Bit, addr: u64) -> bool {
        let page = addr >> PAGE_SHIFT;
        match self.gib(page) {
            Some(g) => {
                let w = word_of(page);
                bits(g, bit).get(w).is_some_and(|x| x.load(Ordering::Acquire) >> (page & 63) & 1 != 0)
            }
            None => false,
        }
    }

    /// First page number in `[page, end)` whose bit equals `value`, or `end`.
    pub fn find(&self, bit: Bit, value: bool, page: u64, end: u64) -> u64 {
        let mut p = page;
        while p < end {
            let Some(g) = self.gib(p) else {
                if !value {
                    return p;
                }
                p = ((p >> (GIB_SHIFT - PAGE_SHIFT)) + 1) << (GIB_SHIFT - PAGE_SHIFT);
                continue;
            };
            let w = match bits(g, bit).get(word_of(p)) {
                Some(x) => x.load(Ordering::Acquire),
                None => return end,
            };
            let w = (if value { w } else { !w }) >> (p & 63);
            if w != 0 {
                let hit = p + u64::from(w.trailing_zeros());
                return if hit < end { hit } else { end };
            }
            p = (p | 63) + 1;
        }
        end
    }

    /// Sets or clears a bit for whole pages. Pages without a block are skipped: call [`Self::reserve`] first
    /// when setting. Holding the tracker's lock.
    pub fn set(&self, bit: Bit, s: Span, value: bool) {
        let (mut p, end) = (s.start >> PAGE_SHIFT, s.end >> PAGE_SHIFT);
        let mut changed = 0u64;
        while p < end {
            let last = if (p | 63) < end { p | 63 } else { end - 1 };
            let n = last - p + 1;
            let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << (p & 63) };
            if let Some(x) = self.gib(p).and_then(|g| bits(g, bit).get(word_of(p))) {
                let old = x.load(Ordering::Relaxed);
                let new = if value { old | mask } else { old & !mask };
                if new != old {
                    changed += u64::from((old ^ new).count_ones());
                    x.store(new, Ordering::Release);
                }
            }
            p = last + 1;
        }
        if bit == Bit::Armed && changed != 0 {
            let n = self.armed_pages.load(Ordering::Relaxed);
            let n = if value { n.wrapping_add(changed) } else { n.wrapping_sub(changed) };
            self.armed_pages.store(n, Ordering::Release);
        }
    }

    /// Number of armed pages.
    pub fn armed_pages(&self) -> u64 {
        self.armed_pages.load(Ordering::Relaxed)
    }
}

fn word_of(page: u64) -> usize {
    ((page >> 6) as usize) & (WORDS - 1)
}

fn bits(g: &Gib, bit: Bit) -> &Bits {
    match bit {
        Bit::Armed => &g.armed,
        Bit::Vacant => &g.vacant,
        Bit::Hot => &g.hot,
    }
}
