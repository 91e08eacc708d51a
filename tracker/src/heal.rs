//! Healing: a few resident pages in the middle of elided data get names again.
//!
//! Where a message came in two parts, the page in between was touched (a terminator) and stays resident; every later
//! copy of the whole has to move it. A page that is copied a second time since it was touched is moved to a core
//! once and for all.
//!
//! The page must not change between the copy to the core and the discard: it is write-protected meanwhile, so that
//! a store of another thread faults, waits for the lock, and finds an elided page. With one thread, in a process
//! whose handlers are deferred, nobody can store.

use crate::addr::{PAGE, Span};
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::state::{State, Tracker};
use crate::stats::Counter;
use crate::sys::Kernel;
use core::sync::atomic::Ordering;

/// Longest run that is healed, pages.
const RUN_MAX: u64 = 4;
/// Most runs healed in one copy.
const RUNS_MAX: usize = 8;

impl<K: Kernel> Tracker<K> {
    /// Heals short resident runs between armed pages of a copy's source.
    pub(crate) fn heal(&self, st: &mut State, src: Span, dst: Span, site: u16) {
        let guarded = !self.threaded.load(Ordering::Relaxed);
        if !guarded || !src.intersect(dst).is_empty() {
            return;
        }
        let inner = src.inner_pages();
        let end = inner.end >> 12;
        let mut p = self.pages.find(Bit::Armed, true, inner.start >> 12, end);
        for _ in 0..RUNS_MAX {
            let a = self.pages.find(Bit::Armed, false, p, end);
            let b = self.pages.find(Bit::Armed, true, a, end);
            if b >= end {
                return;
            }
            if b - a <= RUN_MAX {
                let run = Span::between(a << 12, b << 12);
                if self.pages.find(Bit::Hot, true, a, b) < b {
                    self.pages.set(Bit::Hot, run, false);
                } else {
                    self.heal_run(st, run, site);
                }
            }
            p = b;
        }
    }

    fn heal_run(&self, st: &mut State, run: Span, site: u16) {
        let pages = (run.len() / PAGE) as u32;
        if !self.is_known(st, run) || !st.map.has_room(8) || self.ensure_registered(st, run).is_err() {
            return;
        }
        let Some(r) = st.arena.alloc(pages) else { return };
        let protect = self.threaded.load(Ordering::Relaxed);
        let held = r.pages == pages && (!protect || self.protect(run, true));
        if !held {
            st.arena.unpin_run(r);
            return;
        }
        // SAFETY: known memory, resident as the page state says while the lock is held (so the touch cannot need
        // it), unchanging as the file's paragraph says; the core run is ours.
        unsafe { self.kernel.prog_to_core(self.core_ptr(r.core()), run.start, run.len()) };
        if self.arm(st, run).is_ok() {
            let e = Extent { start: run.start, len: run.len(), core: r.core(), site };
            if self.name_armed(st, Span::between(run.start, run.end), e.core, site) {
                self.count(None, Counter::CopiedFringe, run.len());
            } else {
                // No room for a name after all: the bytes go back at once, through the kernel as ever.
                let _ = self.fill_back(st, run, r.core());
            }
        } else {
            if protect {
                self.protect(run, false);
            }
            // A guard install that failed part-way has discarded pages.
            // SAFETY: resident known memory, as the lock holder just saw; the core run is ours.
            unsafe { self.kernel.core_to_prog(run.start, self.core_ptr(r.core()), run.len()) };
        }
        st.arena.unpin_run(r);
    }

    fn protect(&self, run: Span, on: bool) -> bool {
        self.count(None, Counter::PageTableCalls, 1);
        self.kernel.write_protect(run, on).is_ok()
    }
}
