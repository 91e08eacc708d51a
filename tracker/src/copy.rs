//! Copies from named bytes: a rename in the map, whatever the shift or overlap.
//!
//! Three steps. Under the lock: find the pieces that make up the source, and pin their cores: that is the
//! source's value from now on, whoever writes where. Without it: copy resident source bytes that must get a name
//! into fresh core bytes, and move what goes to resident destination pages. Under it again: replace the names of
//! the destination. Overlapping moves need nothing else: cores are immutable, and resident bytes are either
//! captured before anything is written, or moved in the order that memmove would use.

use crate::addr::{PAGE, Span, page_down};
use crate::page_state::Bit;
use crate::policy::{Again, Plan};
use crate::receive::add_segment;
use crate::state::{Arming, State, Tracker, ZERO_CORE};
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::{Claim, Fate, Late, List, MAX_PIECES, Piece, Place, Scratch, Segment, Thread};
use core::ops::ControlFlow;

/// Copies from named bytes shorter than this are made, not recorded, bytes. Half the receive threshold: the
/// data is in cores already, and Redis's 16 KiB reply buffer gets 16,375 bytes.
pub const RENAME_MIN: u64 = 8 << 10;
/// A rename that would name less than one part in this many of the copied bytes is not worth it.
const NAMED_PART: u64 = 4;

/// Bytes named on a core page above which copies of it are made: the arena counts to 2^31.
const NAMES_MAX: u32 = (1 << 31) - 2 * PAGE as u32;

/// What became of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copied {
    /// All done; this many bytes were only renamed.
    Done {
        /// Bytes that were not moved.
        elided: u64,
    },
    /// Nothing done, for this reason: the caller copies as the program asked (touches resolve themselves).
    Real(Counter),
}

impl<K: Kernel> Tracker<K> {
    /// memmove(dst, src, len) where a page of `src` is armed, or most of `dst`.
    ///
    /// # Context
    /// Hook, with the thread's scratch space claimed. Touches program memory (not under the lock).
    pub fn copy(&self, t: &Thread, c: &mut Claim<'_>, dst: Span, src: Span, site: u16) -> Copied {
        if self.arming() == Arming::Off || dst.len() > crate::receive::RECEIVE_MAX {
            return Copied::Real(Counter::PassKernel);
        }
        let x = c.scratch();
        x.captured = 0;
        let planned = self.locked(Some(t), |st| {
            st.ledger.operation();
            if st.ledger.paused() && !self.forked.load(core::sync::atomic::Ordering::Relaxed) {
                // What was elided before the pause, and is used, becomes ordinary again: once, in bulk.
                let _ = self.materialise(st, Self::pages_of(src));
                self.publish(st);
                return Err(Counter::PassBackoff);
            }
            self.heal(st, src, dst, site);
            x.pieces.clear();
            x.split.clear();
            if !self.append_pieces(st, &mut x.pieces, src) || x.pieces.len() >= MAX_PIECES / 2 {
                return Err(Counter::PassPieces);
            }
            let s = Self::site(st, site);
            let elide = s.ask(src.len(), RENAME_MIN) == Plan::Elide;
            // A buffer that is moved within itself is being filled: its borders go on being touched.
            let moved_within = !src.intersect(dst).is_empty();
            let s = Self::site(st, site);
            let mut again = if elide { s.again() } else { Again::default() };
            again.hot |= elide && s.is_calm() && !moved_within;
            let to_name = self.cut_copy(st, x, dst, site, elide, again);
            // Resident bytes that go to armed pages are captured: moved, but the page stays armed.
            let countable = Self::countable(st, &x.pieces);
            let rename =
                countable && to_name * NAMED_PART >= dst.len() && (named_source(x) > 0 || self.mostly_armed(dst));
            if rename && let Some(done) = self.rename_at_once(st, x, dst, src, site) {
                self.publish(st);
                return Ok(Some(done));
            }
            self.pin_pieces(st, &x.pieces);
            if !(rename && self.capture_room(st, x, dst)) {
                // Gather: the bytes move, straight from the cores; the source stays elided.
                let why = if !elide {
                    Counter::PassBackoff
                } else if !countable {
                    Counter::PassMapFull
                } else if rename {
                    Counter::PassPieces
                } else {
                    Counter::PassResident
                };
                self.count(Some(t), why, 1);
                x.segments.clear();
                self.clear_way(st, dst);
                x.segments.push(Segment { start: dst.start, end: dst.end, fate: Fate::Direct });
            }
            Ok(None)
        });
        match planned {
            Some(Ok(None)) => {}
            Some(Ok(Some((moves, elided)))) => {
                self.finish_at_once(t, x, &moves);
                self.count(Some(t), Counter::Renames, u64::from(elided > 0));
                self.maintain(t);
                return Copied::Done { elided };
            }
            Some(Err(why)) => return Copied::Real(why),
            None => return Copied::Real(Counter::PassKernel),
        }
        self.capture(x);
        self.move_direct(x, dst, src);
        let captured = x.captured;
        let elided = self.rename(t, x, dst, site).saturating_sub(captured);
        self.maintain(t);
        Copied::Done { elided }
    }

    /// True if the first core page of each piece can be named once more. Asked before any page is armed: a core that
    /// half a million extents name stays so, and each further copy would arm its destination in vain.
    fn countable(st: &State, pieces: &List<Piece, MAX_PIECES>) -> bool {
        let core = |p: &&Piece| p.place == Place::Core;
        pieces.as_slice().iter().filter(core).all(|p| st.arena.page_named((p.at / PAGE) as u32) < NAMES_MAX)
    }

    /// True if at least half of a range lies on armed pages: then even bytes that must be moved are better moved
    /// to a core than to pages that would have to be disarmed and populated.
    pub fn mostly_armed(&self, s: Span) -> bool {
        let (mut p, end) = (s.start >> 12, crate::addr::page_up(s.end) >> 12);
        let (mut armed, total) = (0, end - p);
        while p < end {
            let a = self.pages.find(Bit::Armed, true, p, end);
            let b = self.pages.find(Bit::Armed, false, a, end);
            armed += b - a;
            p = b;
        }
        armed * 2 >= total
    }

    /// Finds the pieces of `s` and pins their cores. False when there are too many; nothing is pinned then.
    pub(crate) fn collect(&self, st: &mut State, out: &mut List<Piece, MAX_PIECES>, s: Span) -> bool {
        out.clear();
        let fits = self.append_pieces(st, out, s);
        let fits = fits && out.len() < MAX_PIECES / 2;
        if !fits {
            out.clear();
            return false;
        }
        self.pin_pieces(st, out);
        true
    }

    /// Appends the pieces of `s`, unpinned.
    pub(crate) fn append_pieces(&self, st: &State, out: &mut List<Piece, MAX_PIECES>, s: Span) -> bool {
        let mut at = s.start;
        let last = crate::addr::page_up(s.end) >> 12;
        while at < s.end {
            let armed = self.pages.get(Bit::Armed, at);
            let stop = (self.pages.find(Bit::Armed, !armed, at >> 12, last) << 12).min(s.end);
            let fits = if armed {
                self.append_armed(st, out, Span::between(at, stop))
            } else {
                out.push(Piece { at, len: stop - at, place: Place::Resident })
            };
            if !fits {
                return false;
            }
            at = stop;
        }
        true
    }

    fn append_armed(&self, st: &State, out: &mut List<Piece, MAX_PIECES>, s: Span) -> bool {
        let mut at = s.start;
        let mut fits = true;
        let zero = |out: &mut List<Piece, MAX_PIECES>, from: u64, to: u64| {
            to == from || out.push(Piece { at: ZERO_CORE, len: to - from, place: Place::Zero })
        };
        let _ = st.map.try_for_each_in(s.start, s.end, |e| {
            fits = zero(out, at, e.start);
            at = e.start + e.len;
            let named_zero = e.core < PAGE;
            let piece = Piece { at: e.core, len: e.len, place: if named_zero { Place::Zero } else { Place::Core } };
            fits = fits && out.push(piece);
            if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        fits && zero(out, at, s.end)
    }

    /// Pins every core piece; a piece whose pin count is full stays unpinned only in theory (2^32 pins).
    pub(crate) fn pin_pieces(&self, st: &mut State, pieces: &List<Piece, MAX_PIECES>) {
        for p in pieces.as_slice() {
            if p.place == Place::Core {
                let _ = st.arena.pin(p.at, p.len);
            }
        }
    }

    pub(crate) fn unpin_pieces(&self, st: &mut State, pieces: &List<Piece, MAX_PIECES>) {
        for p in pieces.as_slice() {
            if p.place == Place::Core {
                st.arena.unpin(p.at, p.len);
            }
        }
    }

    /// Cuts the destination into segments; returns how many bytes would get names.
    fn cut_copy(&self, st: &mut State, x: &mut Scratch, dst: Span, site: u16, elide: bool, again: Again) -> u64 {
        x.segments.clear();
        if !elide {
            return 0;
        }
        if !self.is_known(st, dst) {
            self.count(None, Counter::PassUnknownMemory, 1);
            return 0;
        }
        self.free_edge(st, dst.start, site);
        self.free_edge(st, dst.end, site);
        let (mut at, mut named) = (dst.start, 0);
        while at < dst.end {
            let (fate, stop) = self.fate(at, dst, true, again);
            let stop = stop.min(dst.end);
            if fate != Fate::Direct {
                named += stop - at;
            }
            if !add_segment(&mut x.segments, Segment { start: at, end: stop, fate }) {
                return 0;
            }
            at = stop;
        }
        named
    }

    /// A range that is about to get names begins or ends inside the page of `edge`. If that page is vacant it
    /// becomes resident: what stands before the range (a header) or after it (a terminator, the next piece) is
    /// written by the program, and a fault costs several times this call. It stays so: next time it is free.
    pub(crate) fn free_edge(&self, st: &mut State, edge: u64, site: u16) {
        let page = page_down(edge);
        if page != edge && self.pages.get(Bit::Vacant, page) {
            let s = Span::between(page, page + PAGE);
            let tried = self.pages.get(Bit::Hot, page);
            if self.populate_vacant(st, s).is_ok() {
                self.pages.set(Bit::Hot, s, true);
                if tried {
                    Self::site(st, site).edges.failed();
                }
            }
        }
    }

    /// The destination is about to be overwritten with ordinary stores: whole armed pages become resident and
    /// empty in one step each run, partial ones get their bytes.
    pub(crate) fn clear_way(&self, st: &mut State, dst: Span) {
        let inner = dst.inner_pages();
        let outer = Self::pages_of(dst);
        for edge in [outer.start, outer.end.wrapping_sub(PAGE)] {
            let page = Span::between(edge, edge.wrapping_add(PAGE));
            if !inner.contains(page) && outer.contains(page) {
                let _ = self.materialise(st, page);
            }
        }
        let (mut p, end) = (inner.start >> 12, inner.end >> 12);
        while p < end {
            let a = self.pages.find(Bit::Armed, true, p, end);
            if a >= end {
                break;
            }
            let b = self.pages.find(Bit::Armed, false, a, end);
            let run = Span::between(a << 12, b << 12);
            if self.disarm(st, run).is_err() {
                let _ = self.materialise(st, run);
            }
            p = b;
        }
    }

    /// Splits the source pieces so that each resident byte that goes to a named segment is a piece of its own,
    /// with core bytes reserved for it. The result is in `x.split`; captured pieces are noted in `x.late`
    /// (`dst` is the program address to copy *from*). False when it does not fit or does not pay.
    fn capture_room(&self, st: &mut State, x: &mut Scratch, dst: Span) -> bool {
        x.split.clear();
        x.late.clear();
        let mut offset = dst.start;
        x.captured = 0;
        let mut seg = 0usize;
        for i in 0..x.pieces.len() {
            let Some(&p) = x.pieces.as_slice().get(i) else { break };
            let end = offset + p.len;
            if p.place != Place::Resident {
                if !x.split.push(p) {
                    return self.undo_capture(st, x);
                }
                offset = end;
                continue;
            }
            let mut at = offset;
            while at < end {
                while x.segments.as_slice().get(seg).is_some_and(|g| g.end <= at) {
                    seg += 1;
                }
                let Some(&g) = x.segments.as_slice().get(seg) else { break };
                let stop = g.end.min(end);
                let source = p.at + (at - offset);
                let fits = if g.fate == Fate::Direct {
                    x.split.push(Piece { at: source, len: stop - at, place: Place::Resident })
                } else {
                    x.captured += stop - at;
                    let next = x.pieces.as_slice().get(i + 1);
                    let head = stop == end && next.is_some_and(|n| n.place == Place::Core);
                    self.reserve_bytes(st, x, source, stop - at, head)
                };
                if !fits {
                    return self.undo_capture(st, x);
                }
                at = stop;
            }
            offset = end;
        }
        true
    }

    fn undo_capture(&self, st: &mut State, x: &mut Scratch) -> bool {
        for l in x.late.as_slice() {
            st.arena.unpin(l.core, l.len);
        }
        x.late.clear();
        x.split.clear();
        false
    }

    /// Reserves pinned core bytes for resident source bytes, from the thread's byte window: for a `head`, which is
    /// followed by named bytes, from its end. A message that moves up in its page with each copy of a chain, as
    /// buffers of malloc do, captures a few more bytes before the last ones each time: so these become one extent.
    fn reserve_bytes(&self, st: &mut State, x: &mut Scratch, source: u64, len: u64, head: bool) -> bool {
        let (mut from, mut left) = (source, len);
        while left > 0 {
            let Some((core, n)) = x.bytes.take(&mut st.arena, left, 1, head) else { return false };
            if !(x.late.push(Late { dst: from, core, len: n })
                && x.split.push(Piece { at: core, len: n, place: Place::Core }))
            {
                st.arena.unpin(core, n);
                return false;
            }
            from += n;
            left -= n;
        }
        true
    }

    /// Copies the resident source bytes that get names into their core bytes.
    fn capture(&self, x: &mut Scratch) {
        for l in x.late.as_slice() {
            // SAFETY: `dst` is the program's source range here, the core bytes were reserved for this.
            unsafe { self.kernel.prog_to_core(self.core_ptr(l.core), l.dst, l.len) };
        }
    }

    /// Moves the bytes that go to resident destination pages.
    fn move_direct(&self, x: &mut Scratch, dst: Span, src: Span) {
        let pieces = if x.split.is_empty() { x.pieces.as_slice() } else { x.split.as_slice() };
        let up = dst.start > src.start && dst.start < src.end;
        let n = x.segments.len();
        for k in 0..n {
            let i = if up { n - 1 - k } else { k };
            let Some(g) = x.segments.as_slice().get(i) else { continue };
            if g.fate == Fate::Direct {
                self.move_pieces(pieces, dst.start, Span::between(g.start, g.end), up);
            }
        }
    }

    /// Writes the part of the pieces that falls on `to`, in the order that overlap demands.
    pub(crate) fn move_pieces(&self, pieces: &[Piece], dst: u64, to: Span, backwards: bool) {
        let total: u64 = pieces.iter().map(|p| p.len).sum();
        let mut offset = if backwards { dst + total } else { dst };
        for k in 0..pieces.len() {
            let i = if backwards { pieces.len() - 1 - k } else { k };
            let Some(p) = pieces.get(i) else { continue };
            if backwards {
                offset -= p.len;
            }
            let part = Span::between(offset, offset + p.len).intersect(to);
            if !part.is_empty() {
                let from = p.at + (part.start - offset);
                self.move_piece(part, p.place, from);
            }
            if !backwards {
                offset += p.len;
            }
        }
    }

    pub(crate) fn move_piece(&self, to: Span, place: Place, from: u64) {
        match place {
            // SAFETY: both ranges are the program's arguments.
            Place::Resident => unsafe { self.kernel.prog_to_prog(to.start, from, to.len()) },
            // SAFETY: destination is the program's argument, the core bytes are pinned.
            Place::Core => unsafe { self.kernel.core_to_prog(to.start, self.core_ptr(from), to.len()) },
            Place::Zero => {
                let mut at = to.start;
                while at < to.end {
                    let n = PAGE.min(to.end - at);
                    // SAFETY: as for a core; the page of zeros is never written.
                    unsafe { self.kernel.core_to_prog(at, self.core_ptr(ZERO_CORE), n) };
                    at += n;
                }
            }
        }
    }
}

fn named_source(x: &Scratch) -> u64 {
    x.pieces.as_slice().iter().map(|p| if p.place == Place::Resident { 0 } else { p.len }).sum()
}
