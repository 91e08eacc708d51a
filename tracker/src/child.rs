//! A forked child that reads everything (a snapshot writer): its pages are materialised into a bounded, reused
//! set.
//!
//! A run that was brought in by a read keeps its names in a ring. When the ring's bytes pass [`KEEP`], the oldest
//! run's pages are compared with the cores; pages that still hold what was named are armed and named again,
//! changed ones stay. Nothing can be lost: a page is only discarded while its bytes are in a core.
//!
//! That is done when a hook begins, before it looks at its arguments. A fault may come from inside a call of libc's
//! that has touched its argument and will hand it to the kernel: there, the ring may grow to [`KEEP_IN_FAULTS`], longer
//! than the strings and records that such a call goes through at a time.
//!
//! Only in a process that has one thread: then no store can come between the comparison and the discard, and
//! touching the resident pages under the lock cannot need the lock (one of the exceptions to I5; the other is in `heal.rs`).

use crate::addr::{PAGE, Span};
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::state::{State, Tracker};
use crate::sys::{Errno, Kernel};
use crate::thread::Thread;
use core::sync::atomic::Ordering;

/// Bytes that stay materialised.
const KEEP: u64 = 4 << 20;
/// Bytes that stay materialised from one hook to the next.
const KEEP_IN_FAULTS: u64 = 64 << 20;
/// Entries of the ring.
const RING: usize = 4096;
/// Bytes of memory that the ring takes.
pub const RING_BYTES: u64 = (RING * size_of::<Extent>()) as u64;

/// Runs that were materialised by reads, oldest first. Each entry's core bytes are named for as long as it is here.
pub struct ChildPages {
    ring: &'static mut [Extent; RING],
    first: usize,
    len: usize,
    bytes: u64,
}

impl ChildPages {
    /// None.
    ///
    /// # Safety
    /// `ring` is zeroed memory for an array of [`RING`] extents, ours alone, for ever.
    pub(crate) unsafe fn new(ring: *mut Extent) -> Self {
        // SAFETY: caller's contract; zeros are an extent.
        ChildPages { ring: unsafe { &mut *ring.cast() }, first: 0, len: 0, bytes: 0 }
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

impl<K: Kernel> Tracker<K> {
    /// True in a process that may keep its materialised pages bounded.
    pub(crate) fn child_keeps(&self) -> bool {
        self.forked.load(Ordering::Relaxed) && self.kernel.single_thread()
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
        self.child_trim_to(st, KEEP_IN_FAULTS);
        Ok(())
    }

    /// Gives back what a forked child has read long enough ago. Called by hooks before they look at their arguments.
    ///
    /// # Context
    /// Hook.
    pub fn child_trim(&self, t: Option<&Thread>) {
        if self.child_bytes.load(Ordering::Relaxed) > KEEP {
            let _ = self.locked(t, |st| self.child_trim_to(st, KEEP));
        }
    }

    /// Arms the oldest runs again until at most `keep` bytes are left, and one entry is free.
    fn child_trim_to(&self, st: &mut State, keep: u64) {
        let single = st.child.bytes > keep && self.kernel.single_thread();
        while st.child.bytes > keep || st.child.len >= RING {
            let Some(e) = st.child.pop() else { break };
            // Where only the ring is full, or other threads came to be, the pages stay.
            if single {
                self.child_return(st, e);
            }
            st.arena.unname(e.core, e.len);
        }
        self.child_bytes.store(st.child.bytes, Ordering::Relaxed);
    }

    fn child_return(&self, st: &mut State, e: Extent) {
        let s = Span::between(e.start, e.start + e.len);
        let room = st.map.has_room((e.len / PAGE) as usize + 8);
        if self.pages.any_armed(s) || !self.is_known(st, s) || !room {
            return;
        }
        // SAFETY: the pages are resident, mapped (known memory), and no other thread exists to change them.
        let same = unsafe { self.kernel.prog_equals(s.start, self.core_ptr(e.core), e.len) };
        if !same {
            return;
        }
        let armed = self.arm(st, s).is_ok();
        let mut at = s.start;
        while at < s.end {
            // After a failure some pages are armed and others not, and either kind may have lost its bytes.
            let on = armed || self.pages.get(Bit::Armed, at);
            let end = if armed { s.end } else { at + PAGE };
            let part = Span::between(at, end);
            let core = e.core + (at - s.start);
            if on {
                // There is room for a name for each page: seen above.
                let named = self.name(st, Extent { start: at, len: part.len(), core, site: e.site });
                debug_assert!(named, "no room for a name that was reserved");
                self.pages.set(Bit::Vacant, part, !named);
            } else {
                // SAFETY: pages that are not armed are resident, as above; the core bytes are still named by the
                // ring's entry.
                unsafe { self.kernel.core_to_prog(at, self.core_ptr(core), part.len()) };
            }
            at = end;
        }
    }
}
