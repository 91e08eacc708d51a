//! A forked child that reads everything (a snapshot writer): its pages are materialised into a bounded, reused
//! set.
//!
//! A run that was brought in by a read keeps its names in a ring. When the ring's bytes pass [`KEEP`], the oldest
//! run's pages are compared with the cores; pages that still hold what was named are armed and named again,
//! changed ones stay. Nothing can be lost: a page is only discarded while its bytes are in a core.
//!
//! Only in a process that has one thread: then no store can come between the comparison and the discard, and
//! touching the resident pages under the lock cannot need the lock (the one exception to I5).

use crate::addr::{PAGE, Span};
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::state::{State, Tracker};
use crate::stats::Counter;
use crate::sys::{Errno, Kernel};
use core::sync::atomic::Ordering;

/// Bytes that stay materialised.
const KEEP: u64 = 4 << 20;
/// Entries of the ring.
const RING: usize = 512;

/// Runs that were materialised by reads, oldest first. Each entry's core bytes are named for as long as it is here.
pub struct ChildPages {
    ring: [Extent; RING],
    first: usize,
    len: usize,
    bytes: u64,
}

impl ChildPages {
    /// None.
    pub const fn new() -> Self {
        ChildPages { ring: [Extent { start: 0, len: 0, core: 0, site: 0 }; RING], first: 0, len: 0, bytes: 0 }
    }

    fn push(&mut self, e: Extent) -> bool {
        if self.len == RING {
            return false;
        }
        let i = (self.first + self.len) % RING;
        if let Some(slot) = self.ring.get_mut(i) {
            *slot = e;
        }
        self.len += 1;
        self.bytes += e.len;
        true
    }

    fn pop(&mut self) -> Option<Extent> {
        if self.len == 0 {
            return None;
        }
        let e = self.ring.get(self.first).copied();
        self.first = (self.first + 1) % RING;
        self.len -= 1;
        self.bytes -= e.map_or(0, |e| e.len);
        e
    }
}

impl Default for ChildPages {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Kernel> Tracker<K> {
    /// True in a process that may keep its materialised pages bounded.
    pub(crate) fn child_keeps(&self, _st: &State) -> bool {
        self.forked.load(Ordering::Relaxed) && !self.threaded.load(Ordering::Relaxed)
    }

    /// [`Self::materialise`], with the names of whole-page extents kept for later.
    pub(crate) fn child_materialise(&self, st: &mut State, run: Span) -> Result<(), Errno> {
        let mut at = run.start;
        while at < run.end {
            let Some(e) = st.map.find(at) else {
                return self.materialise(st, Span::between(at, run.end));
            };
            let end = crate::addr::page_down((e.start + e.len).min(run.end));
            if end <= at {
                // A page that several extents make up: brought in for good.
                self.materialise(st, Span::between(at, at + PAGE))?;
                at += PAGE;
                continue;
            }
            let kept = Extent { start: at, len: end - at, core: e.core + (at - e.start), site: e.site };
            let holds = kept.core >= PAGE && st.arena.name(kept.core, kept.len);
            let r = self.materialise(st, Span::between(at, end));
            if holds && (r.is_err() || !st.child.push(kept)) {
                st.arena.unname(kept.core, kept.len);
            }
            r?;
            at = end;
        }
        self.child_trim(st, run);
        Ok(())
    }

    /// Arms the oldest runs again until few enough bytes are left. The run just brought in stays.
    fn child_trim(&self, st: &mut State, fresh: Span) {
        while st.child.bytes > KEEP || st.child.len == RING {
            let Some(e) = st.child.pop() else { return };
            let s = Span::between(e.start, e.start + e.len);
            if s.intersect(fresh).is_empty() {
                self.child_return(st, e, s);
            }
            st.arena.unname(e.core, e.len);
        }
    }

    fn child_return(&self, st: &mut State, e: Extent, s: Span) {
        let resident = !self.pages.any_armed(s) && self.is_known(st, s) && st.map.has_room(8);
        if !resident {
            return;
        }
        // SAFETY: the pages are resident, mapped (known memory), and no other thread exists to change them.
        let same = unsafe { self.kernel.prog_equals(s.start, self.core_ptr(e.core), e.len) };
        if same && self.arm(st, s).is_ok() {
            if self.name(st, e) {
                self.pages.set(Bit::Vacant, s, false);
            } else {
                // No room for the name: the bytes go straight back.
                let _ = self.disarm(st, s);
                // SAFETY: resident pages as above; the core bytes are still named by the ring's entry.
                unsafe { self.kernel.core_to_prog(s.start, self.core_ptr(e.core), e.len) };
            }
            self.count(None, Counter::PagesRearmed, 0);
        }
    }
}
