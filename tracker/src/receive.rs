//! Receiving: bytes land in core memory, never in a program page that is armed.
//!
//! ```text
//!   program:   |..head|  page  |  page  | hot |  page  |tail..|
//!   iovec:      direct|  core run       |direct| core  |direct
//! ```
//! The destination is cut into segments: resident pages (the first and last, and those that the program keeps
//! touching) are handed to the kernel as they are, so nothing is copied around the edges; everything else gets
//! core pages from the thread's window. Window pages that got no bytes serve the next receive, so a short read
//! wastes nothing. A message that arrives in pieces stays one run: the next piece goes on in the middle of the core
//! page in which the last one ended.

use crate::addr::{PAGE, Span, page_down, page_up};
use crate::arena::Run;
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::policy::{Again, Plan};
use crate::state::{Arming, State, Tracker};
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::{Claim, Fate, IoVec, Late, List, MAX_SEGMENTS, Part, Scratch, Segment, Tail, Thread};

/// A receive larger than this is not cut up: the destination is materialised and the call passed on.
pub const RECEIVE_MAX: u64 = 64 << 20;
/// Core pages that a thread keeps for its next receive: half of the 1 MiB a thread that may be held unnamed.
const WINDOW_KEEP: u32 = 128;
/// Resident runs shorter than this, next to armed pages, are armed only when the site tries again, pages.
pub(crate) const FEW_PAGES: u64 = 4;
/// Smallest run asked of the arena, pages.
const MIN_RUN: u32 = 16;

/// Why a receive goes to the program's own buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passed(pub Counter);

impl<K: Kernel> Tracker<K> {
    /// Plans a receive of up to `dst.len()` bytes. On success `scratch.iov` covers exactly `dst`, in order.
    /// The caller makes the real call and then [`Self::receive_done`], whatever the result.
    ///
    /// # Errors
    /// The reason to pass the call on; no page of `dst` is armed then that was not before, and armed pages
    /// in it are still armed (see [`Self::make_resident`]).
    ///
    /// # Context
    /// Hook, with the thread's scratch space claimed.
    pub fn receive_plan(&self, t: &Thread, c: &mut Claim<'_>, dst: Span, site: u16) -> Result<(), Passed> {
        if self.arming() == Arming::Off {
            return Err(Passed(Counter::PassKernel));
        }
        if dst.len() > RECEIVE_MAX {
            return Err(Passed(Counter::PassPieces));
        }
        let scratch = c.scratch();
        let threshold = self.threshold.load(core::sync::atomic::Ordering::Relaxed);
        let armed = self.pages.any_armed(dst);
        self.locked(Some(t), |st| {
            let s = Self::site(st, site);
            let predicted = s.predicted(dst.len());
            let plan = s.ask(predicted, threshold);
            if st.ledger.paused() {
                // Only what would have been elided counts: a server's small requests are asked for with large reads.
                if plan == Plan::Elide {
                    st.ledger.pass();
                }
                return Err(Passed(Counter::PassBackoff));
            }
            if plan != Plan::Elide && !armed {
                return Err(Passed(match plan {
                    Plan::CopyBackoff => Counter::PassBackoff,
                    _ => Counter::PassPredictedSmall,
                }));
            }
            if predicted < PAGE && self.all_vacant(dst) {
                // A buffer that will get small messages, in memory that was freed: one call makes it ordinary for
                // good, where every receive through cores would cost a little.
                return Err(Passed(Counter::PassPredictedSmall));
            }
            let may_arm = plan == Plan::Elide;
            let again = if may_arm { Self::site(st, site).again() } else { Again::default() };
            // Pages that the expected end does not fill are not worth arming, but armed ones need core pages too.
            let reach = page_down(dst.start + predicted);
            if !self.is_known(st, dst) {
                // A destination that may end in unmapped or read-only memory: the kernel must see all of it.
                return Err(Passed(Counter::PassUnknownMemory));
            }
            self.free_edge(st, dst.start, site);
            self.cut(scratch, dst, reach, may_arm, again)?;
            self.back_with_cores(st, scratch)
        })
        .unwrap_or(Err(Passed(Counter::PassKernel)))
    }

    /// Cuts `dst` into segments.
    fn cut(&self, x: &mut Scratch, dst: Span, reach: u64, may_arm: bool, again: Again) -> Result<(), Passed> {
        x.segments.clear();
        let mut core_bytes = 0;
        let mut at = dst.start;
        while at < dst.end {
            let (fate, stop) = self.fate(at, dst, may_arm && at < reach, again);
            let stop = if stop < dst.end { stop } else { dst.end };
            if !add_segment(&mut x.segments, Segment { start: at, end: stop, fate }) {
                return Err(Passed(Counter::PassPieces));
            }
            if fate != Fate::Direct {
                core_bytes += stop - at;
            }
            at = stop;
        }
        if core_bytes == 0 {
            return Err(Passed(Counter::PassResident));
        }
        Ok(())
    }

    fn all_vacant(&self, s: Span) -> bool {
        let (first, last) = (s.start >> 12, page_up(s.end) >> 12);
        let armed = self.pages.find(Bit::Armed, true, first, last);
        let end = self.pages.find(Bit::Vacant, false, armed, last);
        self.pages.find(Bit::Armed, true, end, last) >= last
    }

    /// What happens to the bytes from `at` on, and up to where the same is true at least.
    pub(crate) fn fate(&self, at: u64, dst: Span, may_arm: bool, again: Again) -> (Fate, u64) {
        let last = page_up(dst.end) >> 12;
        let page = at >> 12;
        if self.pages.get(Bit::Armed, at) {
            return (Fate::Armed, self.pages.find(Bit::Armed, false, page, last) << 12);
        }
        let stop = self.pages.find(Bit::Armed, true, page, last);
        let whole = at & (PAGE - 1) == 0 && at + PAGE <= dst.end;
        if !whole {
            return (Fate::Direct, page_down(at) + PAGE);
        }
        let stop = if stop << 12 > page_down(dst.end) { dst.end >> 12 } else { stop };
        if !may_arm {
            return (Fate::Direct, stop << 12);
        }
        if self.pages.get(Bit::Hot, at) && !again.hot {
            return (Fate::Direct, self.pages.find(Bit::Hot, false, page, stop) << 12);
        }
        let cold_end = if again.hot { stop } else { self.pages.find(Bit::Hot, true, page, stop) };
        // A few resident pages between armed ones are left-overs of another use of this memory (its edges). Where
        // arming them now and freeing other edges would go on for ever, copying them is cheaper until the next try.
        let few = cold_end - page < FEW_PAGES;
        let between =
            few && (self.pages.get(Bit::Armed, at.wrapping_sub(PAGE)) || self.pages.get(Bit::Armed, cold_end << 12));
        if between && !again.hot && !again.edges {
            return (Fate::Direct, cold_end << 12);
        }
        (Fate::ToArm, cold_end << 12)
    }

    /// Builds the iovec: core pages for every segment that is not direct.
    fn back_with_cores(&self, st: &mut State, x: &mut Scratch) -> Result<(), Passed> {
        x.iov.clear();
        x.parts.clear();
        let first = x.segments.as_slice().iter().find(|g| g.fate != Fate::Direct);
        if first.map(|g| g.start) != x.tail.map(|t| t.program) {
            self.drop_tail(st, x);
        }
        self.one_run(st, x);
        for i in 0..x.segments.len() {
            let Some(&g) = x.segments.as_slice().get(i) else { break };
            let backed = if g.fate == Fate::Direct {
                if x.iov.push(IoVec { base: g.start, len: g.end - g.start }) {
                    Ok(())
                } else {
                    Err(Passed(Counter::PassPieces))
                }
            } else {
                self.back_segment(st, x, g)
            };
            if backed.is_err() {
                self.return_runs(st, x);
                return backed;
            }
        }
        Ok(())
    }

    /// Puts a run on top of the window that backs all segments, if there is one: a window of left-overs, or a run
    /// for each segment, would cut the value into more extents.
    fn one_run(&self, st: &mut State, x: &mut Scratch) {
        let core = x.segments.as_slice().iter().filter(|g| g.fate != Fate::Direct);
        let pages = core.map(|g| (page_up(g.end) - page_down(g.start)) / PAGE).sum::<u64>() as u32;
        if x.window.as_slice().last().is_some_and(|top| top.pages >= pages) {
            return;
        }
        self.drop_tail(st, x);
        while let Some(top) = x.window.pop() {
            if top.pages >= pages {
                let _ = x.window.push(top);
                return;
            }
            // Merged with its free neighbours it may do.
            st.arena.unpin_run(top);
        }
        if let Some(run) = st.arena.alloc(pages.max(MIN_RUN)) {
            // The window is empty.
            let _ = x.window.push(run);
        }
    }

    /// Takes the page that has names already out of the window.
    fn drop_tail(&self, st: &mut State, x: &mut Scratch) {
        if x.tail.take().is_some()
            && let Some(top) = x.window.pop()
        {
            let (page, rest) = split_run(top, 1);
            st.arena.unpin_run(page);
            // There is room: it has just left.
            let _ = rest.is_some_and(|r| x.window.push(r));
        }
    }

    /// Core pages for one segment: congruent with the program's pages, so that a program page is one core page.
    fn back_segment(&self, st: &mut State, x: &mut Scratch, g: Segment) -> Result<(), Passed> {
        let mut at = g.start;
        while at < g.end {
            let want = ((page_up(g.end) - page_down(at)) / PAGE) as u32;
            let fresh = || st.arena.alloc(want.max(MIN_RUN));
            let run = x.window.pop().or_else(fresh).ok_or(Passed(Counter::PassCoreCap))?;
            let (used, rest) = split_run(run, want);
            let goes_on = x.tail.take().is_some();
            if let Some(r) = rest
                && !x.window.push(r)
            {
                st.arena.unpin_run(r);
            }
            let skip = at & (PAGE - 1);
            let n = (used.bytes() - skip).min(g.end - at);
            let to_arm = g.fate == Fate::ToArm;
            let part = Part { span: Span::between(at, at + n), run: used, to_arm, goes_on, named_to: 0 };
            if !x.parts.push(part) {
                st.arena.unpin_run(used);
                return Err(Passed(Counter::PassPieces));
            }
            if !x.iov.push(IoVec { base: self.core_ptr(used.core() + skip) as u64, len: n }) {
                return Err(Passed(Counter::PassPieces));
            }
            at += n;
        }
        Ok(())
    }

    /// Ends the parts' hold on their runs: pages with names are held by those from now on, the rest returns to
    /// the window, first part on top. A page that is only named in part returns as well, as the window's tail.
    fn return_runs(&self, st: &mut State, x: &mut Scratch) {
        while let Some(p) = x.parts.pop() {
            let inside = p.named_to % PAGE != 0;
            let tail = if inside {
                Some(Tail { program: p.span.start - p.span.start % PAGE + p.named_to })
            } else {
                (p.goes_on && p.named_to == 0).then_some(Tail { program: p.span.start })
            };
            let done = ((p.named_to / PAGE) as u32).min(p.run.pages);
            if done > 0 {
                st.arena.unpin_run(Run { page: p.run.page, pages: done });
            }
            let rest = Run { page: p.run.page + done, pages: p.run.pages - done };
            if rest.pages == 0 {
                continue;
            }
            // Only the top can have one.
            self.drop_tail(st, x);
            if x.window.push(rest) {
                x.tail = tail;
            } else {
                st.arena.unpin_run(rest);
            }
        }
    }

    /// Gives back what the window has too much: the top serves next, so the bottom goes.
    fn trim_window(&self, st: &mut State, x: &mut Scratch) {
        let mut kept: u32 = x.window.as_slice().iter().map(|r| r.pages).sum();
        while kept > WINDOW_KEEP {
            let Some(first) = x.window.as_slice().first().copied() else { return };
            let excess = kept - WINDOW_KEEP;
            if first.pages > excess {
                let (keep, rest) = split_run(first, first.pages - excess);
                if let Some(slot) = x.window.as_mut_slice().first_mut() {
                    *slot = keep;
                }
                if let Some(r) = rest {
                    st.arena.unpin_run(r);
                }
                return;
            }
            x.window.remove_first();
            st.arena.unpin_run(first);
            kept -= first.pages;
        }
    }

    /// The real call returned `got` bytes (0 after an error): names what arrived, copies what fell on pages
    /// that stay resident.
    pub fn receive_done(&self, t: &Thread, c: &mut Claim<'_>, dst: u64, got: u64, site: u16) {
        let x = c.scratch();
        x.late.clear();
        self.locked(Some(t), |st| {
            if got > 0 {
                Self::site(st, site).received(got);
            }
            let mut named = 0;
            for i in 0..x.parts.len() {
                named += self.name_part(st, x, i, dst + got, site);
            }
            if named > 0 {
                Self::site(st, site).elided(named);
            }
            let fresh = st.arena.fresh_pages();
            st.ledger.receive(named, fresh);
            st.ledger.operation();
            if x.late.is_empty() {
                self.return_runs(st, x);
                self.trim_window(st, x);
                self.publish(st);
            }
        });
        if !x.late.is_empty() {
            self.copy_late(t, x);
            self.locked(Some(t), |st| {
                self.return_runs(st, x);
                self.trim_window(st, x);
                self.publish(st);
            });
        }
        self.count(Some(t), Counter::CoreReceives, 1);
        self.maintain(t);
    }

    /// A receive that was passed on returned `got` bytes.
    pub fn receive_passed(&self, t: &Thread, got: u64, site: u16) {
        if got > 0 {
            self.locked(Some(t), |st| Self::site(st, site).received(got));
        }
    }

    /// Names what arrived of one part; returns how many bytes got names.
    fn name_part(&self, st: &mut State, x: &mut Scratch, i: usize, end: u64, site: u16) -> u64 {
        let Some(&p) = x.parts.as_slice().get(i) else { return 0 };
        let got = p.span.intersect(Span::between(p.span.start, end));
        if got.is_empty() {
            return 0;
        }
        if p.to_arm && self.arm_gaps(st, got.inner_pages(), site).is_err() {
            self.count(None, Counter::PassKernel, 1);
        }
        self.free_edge(st, got.end, site);
        let skip = p.span.start & (PAGE - 1);
        let (mut at, mut named, mut named_to) = (got.start, 0, 0);
        while at < got.end {
            let armed = self.pages.get(Bit::Armed, at);
            let last = page_up(got.end) >> 12;
            let stop = (self.pages.find(Bit::Armed, !armed, at >> 12, last) << 12).min(got.end);
            let part = Span::between(at, stop);
            let offset = skip + (at - got.start);
            let core = p.run.core() + offset;
            if armed && self.name_armed(st, part, core, site) {
                named += part.len();
                named_to = offset + part.len();
            } else {
                if armed {
                    // No room for names: the pages become resident, the bytes follow.
                    let _ = self.materialise(st, Self::pages_of(part));
                }
                self.note_late(x, Late { dst: part.start, core, len: part.len() });
            }
            at = stop;
        }
        if let Some(slot) = x.parts.as_mut_slice().get_mut(i) {
            slot.named_to = named_to;
        }
        named
    }

    /// Notes core bytes for a page that is resident as the lock holder just saw. When the list is full they are
    /// copied at once: the page cannot become armed while the lock is held, so the touch cannot need it.
    pub(crate) fn note_late(&self, x: &mut Scratch, late: Late) {
        if !x.late.push(late) {
            // SAFETY: program bytes of a receive or copy destination; core bytes are pinned.
            unsafe { self.kernel.core_to_prog(late.dst, self.core_ptr(late.core), late.len) };
        }
    }

    /// Makes the copies that had to wait for the lock. Their cores are pinned.
    pub(crate) fn copy_late(&self, t: &Thread, x: &mut Scratch) {
        for l in x.late.as_slice() {
            // SAFETY: as in `note_late`; should the page be armed again by now, the touch resolves it.
            unsafe { self.kernel.core_to_prog(l.dst, self.core_ptr(l.core), l.len) };
            self.count(Some(t), Counter::CopiedFringe, l.len);
        }
        x.late.clear();
    }

    /// Names bytes of armed pages, keeping I1 for vacant ones.
    pub(crate) fn name_armed(&self, st: &mut State, s: Span, core: u64, site: u16) -> bool {
        if !st.map.has_room(8) {
            self.count(None, Counter::PassMapFull, 1);
            return false;
        }
        if !self.name(st, Extent { start: s.start, len: s.len(), core, site }) {
            return false;
        }
        if s.start & (PAGE - 1) != 0 {
            self.cover_gaps(st, page_down(s.start), site);
        }
        if s.end & (PAGE - 1) != 0 {
            self.cover_gaps(st, page_down(s.end), site);
        }
        self.pages.set(Bit::Vacant, s.inner_pages(), false);
        true
    }
}

/// Appends a segment, or lets the last one grow: armed pages and those that are to be armed become one, so that
/// they are one run of core pages and one extent. False when the list is full.
pub(crate) fn add_segment(all: &mut List<Segment, MAX_SEGMENTS>, g: Segment) -> bool {
    match all.as_mut_slice().last_mut() {
        Some(last) if (last.fate == Fate::Direct) == (g.fate == Fate::Direct) => {
            last.end = g.end;
            if last.fate == Fate::Armed {
                last.fate = g.fate;
            }
            true
        }
        _ => all.push(g),
    }
}

/// The first `want` pages of a run, and the rest.
pub(crate) fn split_run(r: Run, want: u32) -> (Run, Option<Run>) {
    if r.pages <= want {
        return (r, None);
    }
    (Run { page: r.page, pages: want }, Some(Run { page: r.page + want, pages: r.pages - want }))
}
