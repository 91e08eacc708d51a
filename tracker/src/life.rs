//! The life cycle of program memory: blocks come and go, mappings change.

use crate::addr::{PAGE, Span, page_down, page_up};
use crate::extent_map::Extent;
use crate::fault::Fault;
use crate::page_state::Bit;
use crate::state::{Arming, KNOWN_BLOCK, KNOWN_MAPPING, State, Tracker};
use crate::sys::{Errno, Kernel};
use crate::thread::Thread;
use core::sync::atomic::Ordering;

impl<K: Kernel> Tracker<K> {
    fn know(&self, st: &mut State, s: Span, kind: u16) {
        if !s.is_empty() && st.known.has_room(4) {
            let e = Extent { start: s.start, len: s.len(), core: s.start, site: kind };
            let _ = st.known.replace(e, |_| ());
        }
    }

    /// A private, anonymous, writable mapping came to be (outside of [`Self::with_mapping_change`]).
    pub fn mapping_added(&self, t: Option<&Thread>, s: Span) {
        self.locked(t, |st| self.know(st, s, KNOWN_MAPPING));
    }

    /// Runs `change`, a real call that unmaps or maps over `s`, under the lock, so that nobody gets the
    /// addresses while the books still show the old content. `change` must not block on other threads, nor
    /// touch elided memory, and says whether it took effect; then everything about `s` is forgotten, and `s`
    /// becomes known if `eligible`.
    pub fn with_mapping_change<R>(
        &self,
        t: Option<&Thread>,
        s: Span,
        eligible: bool,
        mut change: impl FnMut() -> (R, bool),
    ) -> R {
        let ran = self.locked(t, |st| {
            let (r, took) = change();
            if took {
                self.forget(st, Self::pages_of(s));
                if eligible {
                    self.know(st, s, KNOWN_MAPPING);
                }
                self.publish(st);
            }
            r
        });
        match ran {
            Some(r) => r,
            // Before `init`: nothing is recorded, the change runs alone.
            None => change().0,
        }
    }

    /// True if anything is recorded about a page of `s`: page state, known memory, names.
    pub fn concerns(&self, t: Option<&Thread>, s: Span) -> bool {
        self.pages.any_armed(s)
            || self
                .locked(t, |st| st.known.any_in(s.start, s.end) || st.registered.any_in(s.start, s.end))
                .unwrap_or(false)
    }

    /// Makes every page of `s` resident, bytes intact: before a call that hands it to the kernel, or that zio
    /// does not model.
    ///
    /// # Errors
    /// Pages that could not be resolved are still armed; a touch tries again.
    pub fn make_resident(&self, t: Option<&Thread>, s: Span) -> Result<(), Errno> {
        if !self.pages.any_armed(s) {
            return Ok(());
        }
        self.locked(t, |st| {
            let r = self.materialise(st, Self::pages_of(s));
            self.publish(st);
            r
        })
        .unwrap_or(Ok(()))
    }

    /// Makes every page of `s` resident before something overwrites all of it: bytes are dropped, not filled in.
    pub fn make_way(&self, t: Option<&Thread>, s: Span) {
        if self.pages.any_armed(s) {
            self.locked(t, |st| {
                self.clear_way(st, s);
                self.publish(st);
            });
        }
    }

    /// Makes all elided memory resident and arms no more: before something that zio cannot live with (a seccomp
    /// filter, mlockall).
    ///
    /// # Errors
    /// As [`Self::make_resident`].
    pub fn withdraw(&self, t: Option<&Thread>) -> Result<(), Errno> {
        self.locked(t, |st| {
            let mut at = 0;
            loop {
                let named = st.map.next_from(at).map(|e| e.start);
                let Some(start) = named else { break };
                let run = self.armed_run(start, 1 << 30);
                self.materialise(st, run)?;
                at = run.end.max(start + 1);
            }
            // Vacant pages are in known memory, all of it.
            let mut at = 0;
            while let Some(k) = st.known.next_from(at) {
                self.materialise(st, Span::between(page_down(k.start), page_up(k.start + k.len)))?;
                at = k.start + k.len;
            }
            // Or of blocks that could not be cleaned up when they went.
            let mut at = 0;
            while let Some(r) = st.registered.next_from(at) {
                self.materialise(st, Span::between(r.start, r.start + r.len))?;
                at = r.start + r.len;
            }
            self.unregister(st, Span::between(0, crate::addr::USER_END));
            self.set_arming(Arming::Off);
            self.publish(st);
            Ok(())
        })
        .unwrap_or(Ok(()))
    }

    /// A part of known memory stops being eligible (protection changed, locked); bytes stay.
    ///
    /// # Errors
    /// As [`Self::make_resident`].
    pub fn make_unknown(&self, t: Option<&Thread>, s: Span) -> Result<(), Errno> {
        self.locked(t, |st| {
            self.materialise(st, Self::pages_of(s))?;
            let _ = st.known.erase(page_down(s.start), page_up(s.end), |_| ());
            self.unregister(st, Self::pages_of(s));
            Ok(())
        })
        .unwrap_or(Ok(()))
    }

    /// Memory that somebody is going to use who cannot fault on it: the kernel, which writes signal frames on a stack,
    /// or a thread of libc's with every signal blocked. None of it is armed from now on. In `guard` mode its
    /// registration stays: it changes nothing for resident pages, and to take it back would cut the mapping in pieces,
    /// as many as the program has stacks.
    ///
    /// # Errors
    /// As [`Self::make_resident`].
    pub fn give_up(&self, t: Option<&Thread>, s: Span) -> Result<(), Errno> {
        if self.arming() == Arming::Missing {
            // A page that the program discards would be missing again, and so armed.
            return self.make_unknown(t, s);
        }
        self.locked(t, |st| {
            let pages = Self::pages_of(s);
            let _ = st.known.erase(pages.start, pages.end, |_| ());
            let r = self.materialise(st, pages);
            self.publish(st);
            r
        })
        .unwrap_or(Ok(()))
    }

    /// A block of a size that may be elided was allocated by an allocator that may unmap it unseen once freed.
    pub fn block_added(&self, t: Option<&Thread>, block: Span) {
        self.locked(t, |st| self.know(st, block, KNOWN_BLOCK));
    }

    /// Such a block is about to be freed: nothing about it stays.
    ///
    /// `unmapped` says that the allocator unmaps it now, so that no page-table call is needed.
    pub fn block_removed(&self, t: Option<&Thread>, block: Span, unmapped: bool) {
        self.locked(t, |st| {
            let pages = block.inner_pages();
            let _ = st.known.erase(block.start, block.end, |_| ());
            if unmapped {
                self.forget(st, Self::pages_of(block));
            } else {
                self.disarm_all(st, pages);
                // Pages that could not be made resident need their registration: they are still armed.
                if self.arming() == Arming::Missing && !self.pages.any_armed(pages) {
                    // The allocator may give the memory back and get it again, unregistered, all unseen.
                    self.unregister(st, pages);
                }
            }
            self.publish(st);
        });
        if let Some(t) = t {
            self.maintain(t);
        }
    }

    fn disarm_all(&self, st: &mut State, pages: Span) {
        let (mut p, end) = (pages.start >> 12, pages.end >> 12);
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

    /// A large block was allocated: its first page will be written (a header), so it does not stay vacant. Nor does
    /// its last page where the allocating site's blocks had theirs written before (a terminator).
    pub fn block_allocated(&self, t: Option<&Thread>, block: Span, site: u16) {
        let (first, last) = (page_down(block.start), page_down(block.end.wrapping_sub(1)));
        let vacant = |page| self.pages.get(Bit::Vacant, page);
        if !vacant(first) && !vacant(last) {
            return;
        }
        self.locked(t, |st| {
            if st.ledger.paused() {
                // All of it will be written with ordinary stores.
                return self.disarm_vacant(st, Self::pages_of(block));
            }
            if vacant(first) {
                st.ledger.edge_moved();
                let _ = self.populate_vacant(st, Span::between(first, first + PAGE));
            }
            if !vacant(last) {
                return;
            }
            if Self::site(st, site).expects_tail() {
                st.ledger.edge_moved();
                let _ = self.populate_vacant(st, Span::between(last, last + PAGE));
            } else if let Some(t) = t {
                t.faults.tail_site.store(u32::from(site), Ordering::Relaxed);
                t.faults.tail.store(last, Ordering::Relaxed);
            }
        });
    }

    fn disarm_vacant(&self, st: &mut State, pages: Span) {
        let (mut p, end) = (pages.start >> 12, pages.end >> 12);
        loop {
            let a = self.pages.find(Bit::Vacant, true, p, end);
            if a >= end {
                return;
            }
            p = self.pages.find(Bit::Vacant, false, a, end);
            // Pages that stay vacant resolve themselves.
            let _ = self.disarm(st, Span::between(a << 12, p << 12));
        }
    }

    /// A block in known mappings is about to be freed: its whole pages lose their names and stay armed, vacant,
    /// for the next use. The pages at its ends may hold the allocator's own data and neighbours: they keep
    /// what they have.
    pub fn block_freed(&self, t: &Thread, block: Span) {
        if !self.pages.any_armed(block) {
            return;
        }
        self.locked(Some(t), |st| {
            let inner = block.inner_pages();
            self.vacate(st, inner);
            // What was touched was touched in a life that is over.
            self.pages.set(Bit::Hot, inner, false);
            self.publish(st);
        });
        self.maintain(t);
    }

    /// The program discards pages (MADV_DONTNEED, FREE, REMOVE), the call has been made: a touch of them gives
    /// zeros, whatever was named.
    pub fn discarded(&self, t: Option<&Thread>, s: Span) {
        self.locked(t, |st| {
            let pages = Self::pages_of(s);
            self.vacate(st, pages);
            if self.arming() == Arming::Missing {
                // Resident pages of registered ranges are missing now, that is: armed.
                let mut at = pages.start;
                while let Some(r) = st.registered.next_from(at) {
                    let part = pages.intersect(Span::between(r.start, r.start + r.len));
                    if r.start >= pages.end {
                        break;
                    }
                    if self.pages.reserve(part).is_ok() {
                        self.pages.set(Bit::Vacant, part, true);
                        self.pages.set(Bit::Armed, part, true);
                    }
                    at = r.start + r.len;
                }
            }
            self.publish(st);
        });
    }

    /// Zeros are about to be written over `s`: its whole armed pages lose their names and read as zeros.
    pub fn discarded_inside(&self, t: Option<&Thread>, s: Span) {
        self.locked(t, |st| {
            self.vacate(st, s.inner_pages());
            self.publish(st);
        });
    }

    /// A touch of a page that is not armed, in a registered range of `sigbus` mode: memory that was discarded
    /// unseen. It gets the zeros that it would have had.
    pub(crate) fn unseen_missing(&self, st: &mut State, addr: u64) -> Option<Fault> {
        if self.arming() != Arming::Missing || st.registered.find(addr).is_none() {
            return None;
        }
        let page = page_down(addr);
        let page = Span::between(page, page + PAGE);
        let mut tries = 0;
        loop {
            match self.kernel.fill_zero(page) {
                Ok(_) => {
                    self.generation.fetch_add(1, Ordering::Release);
                    return Some(Fault::Resolved);
                }
                // The page is there, and the fault is about something else (its protection).
                Err(Errno::EXIST) => return None,
                Err(e) => {
                    if self.recover(st, page, e, &mut tries).is_err() {
                        return Some(Fault::Failed);
                    }
                }
            }
        }
    }
}
