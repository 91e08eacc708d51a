//! The second half of a copy: giving the destination its names.

use crate::addr::{PAGE, Span, page_down, page_up};
use crate::page_state::Bit;
use crate::state::{State, Tracker, ZERO_CORE};
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::{Fate, Late, Piece, Place, Scratch, Thread};

/// Most moves to resident pages that a copy in one step may leave.
const MOVES: usize = 16;

/// Bytes that go to a resident destination page once the lock is gone.
#[derive(Clone, Copy)]
pub(crate) struct Move {
    to: Span,
    place: Place,
    from: u64,
}

/// The moves of one copy.
pub(crate) struct Moves {
    len: usize,
    all: [Move; MOVES],
}

impl<K: Kernel> Tracker<K> {
    /// A copy between ranges that do not overlap, of which no resident byte gets a name, is named at once, under the
    /// lock that its pieces were found under: only the few bytes for resident pages are left, and only their cores
    /// need a pin. `None` when the copy is not like that; nothing has changed then.
    pub(crate) fn rename_at_once(
        &self,
        st: &mut State,
        x: &mut Scratch,
        dst: Span,
        src: Span,
        site: u16,
    ) -> Option<(Moves, u64)> {
        if !src.intersect(dst).is_empty() {
            return None;
        }
        let mut moves = Moves { len: 0, all: [Move { to: Span::default(), place: Place::Zero, from: 0 }; MOVES] };
        let mut offset = dst.start;
        let mut seg = 0;
        for p in x.pieces.as_slice() {
            let piece = Span::between(offset, offset + p.len);
            while let Some(g) = x.segments.as_slice().get(seg) {
                let part = piece.intersect(Span::between(g.start, g.end));
                let direct = g.fate == Fate::Direct;
                if !part.is_empty() && !direct && p.place == Place::Resident {
                    return None;
                }
                if !part.is_empty() && direct {
                    *moves.all.get_mut(moves.len)? =
                        Move { to: part, place: p.place, from: p.at + (part.start - offset) };
                    moves.len += 1;
                }
                if g.end > piece.end {
                    break;
                }
                seg += 1;
            }
            offset = piece.end;
        }
        x.late.clear();
        let named = self.rename_segments(st, x, dst, site);
        for m in moves.all.iter().take(moves.len) {
            if m.place == Place::Core {
                let _ = st.arena.pin(m.from, m.to.len());
            }
        }
        for l in x.late.as_slice() {
            let _ = st.arena.pin(l.core, l.len);
        }
        Some((moves, named))
    }

    /// Makes the moves that [`Self::rename_at_once`] left.
    pub(crate) fn finish_at_once(&self, t: &Thread, x: &mut Scratch, moves: &Moves) {
        let all = moves.all.get(..moves.len).unwrap_or(&[]);
        for m in all {
            self.move_piece(m.to, m.place, m.from);
        }
        for l in x.late.as_slice() {
            // SAFETY: a copy's destination; the core bytes are pinned.
            unsafe { self.kernel.core_to_prog(l.dst, self.core_ptr(l.core), l.len) };
            self.count(Some(t), Counter::CopiedFringe, l.len);
        }
        if x.late.is_empty() && all.iter().all(|m| m.place != Place::Core) {
            return;
        }
        self.locked(Some(t), |st| {
            for m in all {
                if m.place == Place::Core {
                    st.arena.unpin(m.from, m.to.len());
                }
            }
            for l in x.late.as_slice() {
                st.arena.unpin(l.core, l.len);
            }
        });
        x.late.clear();
    }

    /// Replaces the names of the destination's segments, unpins the pieces; returns bytes that got names.
    pub(crate) fn rename(&self, t: &Thread, x: &mut Scratch, dst: Span, site: u16) -> u64 {
        x.late.clear();
        let mut named = 0;
        self.locked(Some(t), |st| {
            named = self.rename_segments(st, x, dst, site);
            if x.late.is_empty() {
                self.finish_copy(st, x);
            }
        });
        if !x.late.is_empty() {
            self.copy_late(t, x);
            self.locked(Some(t), |st| self.finish_copy(st, x));
        }
        self.count(Some(t), Counter::Renames, u64::from(named > 0));
        named
    }

    fn rename_segments(&self, st: &mut State, x: &mut Scratch, dst: Span, site: u16) -> u64 {
        self.arm_segments(st, x, site);
        let mut named = 0;
        for i in 0..x.segments.len() {
            let Some(&g) = x.segments.as_slice().get(i) else { break };
            if g.fate != Fate::Direct {
                named += self.rename_segment(st, x, dst, Span::between(g.start, g.end), site);
            }
        }
        if named > 0 {
            Self::site(st, site).elided(named);
            // Bytes that were captured have been moved.
            st.ledger.elided(named.saturating_sub(x.captured));
        }
        named
    }

    fn arm_segments(&self, st: &mut State, x: &Scratch, site: u16) {
        for g in x.segments.as_slice() {
            if g.fate == Fate::ToArm && self.arm_gaps(st, Span::between(g.start, g.end).inner_pages(), site).is_err() {
                self.count(None, Counter::PassKernel, 1);
            }
        }
    }

    fn finish_copy(&self, st: &mut State, x: &mut Scratch) {
        // Captured pieces replaced resident ones in `split`; the others are the same in both lists.
        let pinned = if x.split.is_empty() { &x.pieces } else { &x.split };
        self.unpin_pieces(st, pinned);
        x.pieces.clear();
        x.split.clear();
        self.publish(st);
    }

    fn rename_segment(&self, st: &mut State, x: &mut Scratch, dst: Span, s: Span, site: u16) -> u64 {
        let mut named = 0;
        let mut offset = dst.start;
        let mut i = 0;
        while let Some(p) = piece(x, i) {
            i += 1;
            let part = Span::between(offset, offset + p.len).intersect(s);
            let skip = part.start.wrapping_sub(offset);
            offset += p.len;
            if part.is_empty() {
                continue;
            }
            let mut at = part.start;
            while at < part.end {
                let armed = self.pages.get(Bit::Armed, at);
                let last = page_up(part.end) >> 12;
                let stop = (self.pages.find(Bit::Armed, !armed, at >> 12, last) << 12).min(part.end);
                let run = Span::between(at, stop);
                let from = p.at + skip + (at - part.start);
                named += self.rename_run(st, x, run, p.place, from, armed, site);
                at = stop;
            }
        }
        named
    }

    #[allow(clippy::too_many_arguments)] // One run of one piece: all of it is needed, none of it is a type.
    fn rename_run(
        &self,
        st: &mut State,
        x: &mut Scratch,
        run: Span,
        place: Place,
        from: u64,
        armed: bool,
        site: u16,
    ) -> u64 {
        let ok = armed
            && match place {
                Place::Core => self.name_armed(st, run, from, site),
                Place::Zero => self.name_zeros(st, run, site),
                Place::Resident => false,
            };
        if ok {
            return run.len();
        }
        if armed {
            let _ = self.materialise(st, Self::pages_of(run));
        }
        match place {
            Place::Core => self.note_late(x, Late { dst: run.start, core: from, len: run.len() }),
            _ => {
                let mut at = run.start;
                while at < run.end {
                    let n = PAGE.min(run.end - at);
                    self.note_late(x, Late { dst: at, core: ZERO_CORE, len: n });
                    at += n;
                }
            }
        }
        0
    }

    /// Names zeros: whole pages become vacant, the rest names the page of zeros.
    fn name_zeros(&self, st: &mut State, run: Span, site: u16) -> bool {
        let inner = run.inner_pages();
        let mut at = run.start;
        while at < run.end {
            if inner.start == at && !inner.is_empty() {
                if !self.unname(st, inner) {
                    return false;
                }
                self.pages.set(Bit::Vacant, inner, true);
                at = inner.end;
                continue;
            }
            let stop = (page_down(at) + PAGE).min(run.end);
            let core = ZERO_CORE + (at & (PAGE - 1));
            if !self.name_armed(st, Span::between(at, stop), core, site) {
                return false;
            }
            at = stop;
        }
        true
    }
}

/// The i-th source piece: of the split list, if the copy has one.
fn piece(x: &Scratch, i: usize) -> Option<Piece> {
    let all = if x.split.is_empty() { x.pieces.as_slice() } else { x.split.as_slice() };
    all.get(i).copied()
}
