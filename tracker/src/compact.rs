//! Keeping held core bytes near named core bytes, in bounded steps.
//!
//! Freed pages are cached for reuse, hot first, and given back to the kernel beyond a bound. Pages that stay
//! because a few of their bytes are named are emptied by copying those bytes out: the extent at hand gets a new
//! home in densely packed pages.

use crate::addr::PAGE;
use crate::extent_map::Extent;
use crate::state::{State, Tracker};
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::{Claim, Scratch, Thread};
use core::sync::atomic::Ordering;

/// Extents looked at in one step.
const STEP_EXTENTS: usize = 64;
/// Bytes moved in one step.
const STEP_BYTES: u64 = 128 << 10;
/// Pages given back in one call.
const PURGE_PAGES: u32 = 1024;
/// Unnamed bytes that a thread may hold (its window, and freed pages).
const SLACK_PER_THREAD: u64 = 1 << 20;

/// Pages of a compaction window: small extents go into few runs.
const WINDOW: u64 = 32;

impl<K: Kernel> Tracker<K> {
    /// True if more freed core pages are kept for reuse than the bound allows.
    pub(crate) fn wants_purge(st: &State) -> bool {
        let slack = st.arena.named_bytes() / 8 + st.threads.max(1) * SLACK_PER_THREAD / 2;
        st.arena.dirty_free_bytes() > slack
    }

    /// Gives freed core pages beyond the bound back to the kernel. Called at the end of operations that free, and that
    /// have published so.
    pub(crate) fn maintain(&self, t: &Thread) {
        while self.purge_due.load(Ordering::Relaxed) {
            let run = self.locked(Some(t), |st| {
                let due = Self::wants_purge(st);
                self.purge_due.store(due, Ordering::Relaxed);
                if due { st.arena.take_purge(PURGE_PAGES) } else { None }
            });
            let Some(Some(run)) = run else { return };
            // The run is pinned: nobody gets it while it is discarded, and no lock is held.
            self.count(Some(t), Counter::PageTableCalls, 1);
            let ok = self.kernel.discard(self.run_span(run)).is_ok();
            self.locked(Some(t), |st| st.arena.purged(run, ok));
            if !ok {
                return;
            }
        }
    }

    /// True if pages are held for too few named bytes.
    pub fn wants_compaction(&self) -> bool {
        let Some(p) = self.stats() else { return false };
        let load = |a: &core::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
        let (held, named) = (load(&p.core_bytes_held), load(&p.core_bytes_named));
        held > named + named / 8 + load(&p.threads).max(1) * SLACK_PER_THREAD
    }

    /// One step of compaction if there is something to gain: at the end of an operation, also of one that was passed
    /// on, because while elision is paused there are no others.
    ///
    /// # Context
    /// As [`Self::compact`].
    #[inline]
    pub fn tidy(&self, t: &Thread, c: &mut Claim<'_>) {
        if self.wants_compaction() {
            self.compact(t, c);
        }
    }

    /// One bounded step of compaction.
    ///
    /// # Context
    /// Hook, with the scratch space claimed. Moves core bytes only.
    pub fn compact(&self, t: &Thread, c: &mut Claim<'_>) {
        let x = c.scratch();
        self.locked(Some(t), |st| {
            let mut moved = 0;
            for _ in 0..STEP_EXTENTS {
                let Some(e) = st.map.next_from(st.cursor) else {
                    st.cursor = 0;
                    break;
                };
                st.cursor = e.start + e.len;
                if self.is_sparse(st, e) {
                    moved += self.move_out(t, st, x, e);
                }
                if moved >= STEP_BYTES {
                    break;
                }
            }
            self.publish(st);
        });
        self.maintain(t);
    }

    /// True if an eighth or more of the bytes that an extent's border pages hold serve nobody.
    fn is_sparse(&self, st: &State, e: Extent) -> bool {
        if e.core < PAGE || e.len > STEP_BYTES {
            return false;
        }
        let unused = |page: u64| {
            let p = page as u32;
            let named = u64::from(st.arena.page_named(p)).min(PAGE);
            if st.arena.page_pins(p) > 0 { 0 } else { PAGE - named }
        };
        let (first, last) = (e.core / PAGE, (e.core + e.len - 1) / PAGE);
        let waste = unused(first) + if last > first { unused(last) } else { 0 };
        waste * 8 > e.len
    }

    /// Copies an extent's bytes to the compaction window and renames it; returns the bytes moved.
    fn move_out(&self, t: &Thread, st: &mut State, x: &mut Scratch, e: Extent) -> u64 {
        let mut at = 0;
        while at < e.len {
            let Some((core, n)) = x.bytes.take(&mut st.arena, e.len - at, WINDOW, false) else { break };
            // SAFETY: both are core ranges of ours: the source is named, the target reserved by the window.
            unsafe { crate::raw::copy(self.core_ptr(core), self.core_ptr(e.core + at), n) };
            let fresh = Extent { start: e.start + at, len: n, core, site: e.site };
            let named = self.name(st, fresh);
            st.arena.unpin(core, n);
            if !named {
                break;
            }
            at += n;
        }
        self.count(Some(t), Counter::CopiedCompaction, at);
        at
    }
}
