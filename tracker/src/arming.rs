//! Arming, disarming and materialising pages: every page-table call of the tracker.
//!
//! Order matters (DESIGN.md, section 4, rule 1). To elide: mark armed, then discard: a racing reader that faults
//! waits for the lock. To materialise: fill, which makes all bytes of a page appear at once, then mark resident:
//! until then readers of the page state wait for the lock too.

use crate::addr::{PAGE, Span, page_down, page_up};
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::receive::FEW_PAGES;
use crate::state::{Arming, BOUNCE, KNOWN_BLOCK, State, Tracker, ZERO_CORE};
use crate::stats::Counter;
use crate::sys::{Errno, Kernel, Register};
use core::sync::atomic::Ordering;

/// Chunk that is registered at once in `sigbus` mode, bytes: neighbours merge into few mappings, and at most
/// this much is populated early.
const CHUNK: u64 = 2 << 20;
/// Bytes above the stack pointer that may belong to the running stack.
const STACK_REACH: u64 = 8 << 20;
/// Most runs of resident pages that one call arms.
const GAPS: usize = 16;
/// Resident runs further apart than this are armed by calls of their own, pages: walking over an armed page takes
/// 30 ns, a call 2 us.
const GAPS_APART: u64 = 32;
/// How often a fill is tried again when the kernel says EAGAIN.
const FILL_TRIES: u32 = 64;

impl<K: Kernel> Tracker<K> {
    /// True if every byte of the span lies in memory whose life cycle the hooks see.
    pub(crate) fn is_known(&self, st: &State, s: Span) -> bool {
        let mut at = s.start;
        while at < s.end {
            match st.known.find(at) {
                Some(e) => at = e.start + e.len,
                None => return false,
            }
        }
        true
    }

    /// The descriptor is new: nothing is registered with it.
    pub(crate) fn clear_registered(st: &mut State) {
        let _ = st.registered.erase(0, crate::addr::USER_END, |_| ());
    }

    fn how(&self) -> Register {
        if self.arming() == Arming::Missing { Register::Missing } else { Register::WriteProtect }
    }

    fn register_span(&self, st: &mut State, s: Span) -> Result<(), Errno> {
        if !st.registered.has_room(4) {
            return Err(Errno::NOMEM);
        }
        self.count(None, Counter::PageTableCalls, 1);
        self.kernel.register(s, self.how())?;
        let e = Extent { start: s.start, len: s.len(), core: s.start, site: 0 };
        let _ = st.registered.replace(e, |_| ());
        Ok(())
    }

    fn is_registered(&self, st: &State, s: Span) -> bool {
        let mut at = s.start;
        while at < s.end {
            match st.registered.find(at) {
                Some(e) => at = e.start + e.len,
                None => return false,
            }
        }
        true
    }

    /// Registers the whole known mapping around `s` (`guard`), or the chunks around it (`sigbus`).
    pub(crate) fn ensure_registered(&self, st: &mut State, s: Span) -> Result<(), Errno> {
        if !self.kernel.descriptor_is_ours() {
            self.kernel.reset_descriptor();
            Self::clear_registered(st);
        }
        if self.is_registered(st, s) {
            return Ok(());
        }
        let mut at = s.start;
        while at < s.end {
            let Some(k) = st.known.find(at) else { return Err(Errno::INVAL) };
            let known = Span::between(k.start, k.start + k.len);
            let part = s.intersect(known);
            if self.arming() == Arming::Missing {
                self.register_chunks(st, known, part, k.site == KNOWN_BLOCK)?;
            } else if !self.is_registered(st, part) {
                let whole = known.outer_pages();
                if self.register_span(st, whole).is_err() {
                    self.register_span(st, part.outer_pages())?;
                }
            }
            at = known.end;
        }
        Ok(())
    }

    /// `sigbus`: a page of a registered range is elided, vacant or populated, always. So what is not there yet
    /// is populated before its range is registered.
    fn register_chunks(&self, st: &mut State, known: Span, part: Span, block: bool) -> Result<(), Errno> {
        let wide = Span::between(part.start & !(CHUNK - 1), (part.end + CHUNK - 1) & !(CHUNK - 1));
        let target = if block { part.outer_pages() } else { wide.intersect(known).inner_pages() };
        let mut at = target.start;
        while at < target.end {
            let (gap_end, next) = match st.registered.next_from(at) {
                Some(e) if e.start < target.end => (if e.start > at { e.start } else { at }, e.start + e.len),
                _ => (target.end, target.end),
            };
            let gap = Span::between(at, gap_end);
            if !gap.is_empty() {
                self.count(None, Counter::PageTableCalls, 1);
                self.kernel.populate(gap)?;
                self.register_span(st, gap)?;
            }
            at = next;
        }
        Ok(())
    }

    /// After fork in `sigbus` mode: registrations are gone, and missing pages would read as zeros. False if a range
    /// could not be registered.
    pub(crate) fn register_all_again(&self, st: &mut State) -> bool {
        let mut at = 0;
        let mut all = true;
        while let Some(e) = st.registered.next_from(at) {
            self.count(None, Counter::PageTableCalls, 1);
            let s = Span::between(e.start, e.start + e.len);
            all &= self.kernel.register(s, Register::Missing).is_ok();
            at = s.end;
        }
        all
    }

    /// In a child of `sigbus` mode that cannot register: its one thread fills all pages by copying, and elides no
    /// more. The pages are ordinary missing ones, so that touching them cannot need the lock.
    pub(crate) fn fill_all_alone(&self, st: &mut State) {
        self.set_arming(Arming::Off);
        let mut at = 0;
        while let Some(e) = st.map.next_from(at) {
            at = e.start + e.len;
            // SAFETY: named program memory is known, writable, and unregistered in this child.
            unsafe { self.kernel.core_to_prog(e.start, self.core_ptr(e.core), e.len) };
            self.unname(st, Span::between(e.start, at));
        }
        let mut at = 0;
        while let Some(r) = st.registered.next_from(at) {
            self.set_resident(Span::between(r.start, r.start + r.len));
            at = r.start + r.len;
        }
        Self::clear_registered(st);
    }

    /// Only known memory is armed, and no part of the stack that is running, should the program have put it into
    /// such memory: the kernel writes signal frames there.
    pub(crate) fn may_arm(&self, st: &State, pages: Span) -> Result<(), Errno> {
        let here = 0u8;
        let sp = &raw const here as u64;
        let on_stack = st.known.find(sp).is_some() && pages.end > sp && pages.start < sp.saturating_add(STACK_REACH);
        if on_stack || !self.is_known(st, pages) { Err(Errno::INVAL) } else { Ok(()) }
    }

    /// Arms resident pages (whole pages, known memory) as vacant; the caller names them right after. On an
    /// error they are as before.
    pub(crate) fn arm(&self, st: &mut State, pages: Span) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        self.may_arm(st, pages)?;
        self.ensure_registered(st, pages)?;
        self.pages.reserve(pages)?;
        self.pages.set(Bit::Vacant, pages, true);
        self.pages.set(Bit::Armed, pages, true);
        self.pages.set(Bit::Hot, pages, false);
        self.count(None, Counter::PageTableCalls, 1);
        self.count(None, Counter::PagesRearmed, pages.len() / PAGE);
        let r = match self.arming() {
            Arming::Guard => self.kernel.guard_install(pages),
            Arming::Missing => self.kernel.discard(pages),
            Arming::Off => Err(Errno::INVAL),
        };
        if r.is_err() {
            // A guard install that fails part-way leaves markers: take them off again.
            if self.arming() == Arming::Guard {
                let _ = self.kernel.guard_remove(pages);
            }
            self.pages.set(Bit::Armed, pages, false);
            self.pages.set(Bit::Vacant, pages, false);
        }
        r
    }

    /// Arms the resident pages among `pages`. The fresh ones are vacant until the caller names them. On an error
    /// some are as before.
    pub(crate) fn arm_gaps(&self, st: &mut State, pages: Span, site: u16) -> Result<(), Errno> {
        let (mut p, end) = (pages.start >> 12, pages.end >> 12);
        loop {
            let mut gaps = [Span::default(); GAPS];
            let mut n = 0;
            // Gaps that are near each other are armed by one call: arming an armed page again changes nothing.
            for slot in &mut gaps {
                let a = self.pages.find(Bit::Armed, false, p, end);
                if a >= end || n > 0 && a - p > GAPS_APART {
                    break;
                }
                p = self.pages.find(Bit::Armed, true, a, end);
                *slot = Span::between(a << 12, p << 12);
                n += 1;
            }
            let Some(gaps) = gaps.get(..n).filter(|g| !g.is_empty()) else { return Ok(()) };
            self.arm_near(st, gaps, site)?;
        }
    }

    /// Arms runs of resident pages, ascending, with one call over all of them. On an error they are as before.
    fn arm_near(&self, st: &mut State, gaps: &[Span], site: u16) -> Result<(), Errno> {
        let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else { return Ok(()) };
        let cover = Span::between(first.start, last.end);
        self.may_arm(st, cover)?;
        self.ensure_registered(st, cover)?;
        self.pages.reserve(cover)?;
        let (mut fresh, mut few) = (0, 0);
        for &g in gaps {
            let n = g.len() / PAGE;
            self.pages.set(Bit::Vacant, g, true);
            self.pages.set(Bit::Armed, g, true);
            // On an armed page this says that it was an edge once, and is tried.
            self.pages.set(Bit::Hot, g, n < FEW_PAGES);
            fresh += n;
            few += if n < FEW_PAGES { n } else { 0 };
        }
        self.count(None, Counter::PageTableCalls, 1);
        self.count(None, Counter::PagesRearmed, fresh);
        if fresh == few {
            // Long runs are memory in its first use, where the copy would have faulted at each page.
            st.ledger.page_table_call();
        }
        Self::site(st, site).edges.tried(few as u32);
        let r = match self.arming() {
            Arming::Guard => self.kernel.guard_install(cover),
            Arming::Missing => self.kernel.discard(cover),
            Arming::Off => Err(Errno::INVAL),
        };
        if r.is_err() {
            for &g in gaps {
                // An install that fails part-way leaves markers: take them off again.
                if self.arming() == Arming::Guard {
                    let _ = self.kernel.guard_remove(g);
                }
                self.set_resident(g);
            }
        }
        r
    }

    /// Makes a vacant page resident, and populated: it is about to be written. One call, where taking the marker
    /// off and the fault at the first store are two ways into the kernel.
    pub(crate) fn populate_vacant(&self, st: &mut State, page: Span) -> Result<(), Errno> {
        st.ledger.page_table_call();
        if self.fill(st, page, self.core_ptr(ZERO_CORE)).is_err() {
            return self.disarm(st, page);
        }
        self.set_resident(page);
        Ok(())
    }

    /// Makes armed pages resident and empty (zeros): their names are dropped.
    pub(crate) fn disarm(&self, st: &mut State, pages: Span) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        self.unname_surely(st, pages)?;
        self.pages.set(Bit::Vacant, pages, true);
        match self.arming() {
            Arming::Missing => self.zero_fill(st, pages)?,
            _ => {
                self.count(None, Counter::PageTableCalls, 1);
                self.kernel.guard_remove(pages)?;
            }
        }
        self.set_resident(pages);
        Ok(())
    }

    pub(crate) fn set_resident(&self, pages: Span) {
        self.generation.fetch_add(1, Ordering::Release);
        self.pages.set(Bit::Armed, pages, false);
        self.pages.set(Bit::Vacant, pages, false);
        self.pages.set(Bit::Hot, pages, false);
    }

    fn zero_fill(&self, st: &mut State, pages: Span) -> Result<(), Errno> {
        let mut at = pages.start;
        let mut tries = 0;
        let mut whole = true;
        while at < pages.end {
            self.count(None, Counter::PageTableCalls, 1);
            let stop = if whole { pages.end } else { at + PAGE };
            match self.kernel.fill_zero(Span::between(at, stop)) {
                // An error further on must not leave pages that are there marked as armed.
                Ok(n) => {
                    self.set_resident(Span::between(at, at + n));
                    at += n;
                }
                Err(Errno::EXIST) => {
                    self.set_resident(Span::between(at, at + PAGE));
                    at += PAGE;
                }
                // The range may cross into another mapping, which one call cannot: page by page then.
                Err(Errno::NOENT) if whole && pages.end - at > PAGE => whole = false,
                Err(e) => {
                    self.recover(st, Span::between(at, at + PAGE), e, &mut tries)?;
                }
            }
        }
        Ok(())
    }

    /// After a failed fill: makes another try possible, or gives the error.
    pub(crate) fn recover(&self, st: &mut State, page: Span, e: Errno, tries: &mut u32) -> Result<(), Errno> {
        *tries += 1;
        if *tries > FILL_TRIES {
            return Err(e);
        }
        match e {
            Errno::AGAIN => Ok(()),
            // The descriptor, or the registration, is gone: the program closed it, or this is a child.
            Errno::BADF | Errno::NOTTY | Errno::NOENT | Errno::INVAL if *tries <= 2 => {
                if e != Errno::NOENT && self.kernel.reset_descriptor() {
                    if self.arming() == Arming::Missing {
                        return if self.register_all_again(st) { Ok(()) } else { Err(e) };
                    }
                    Self::clear_registered(st);
                } else if e == Errno::BADF || e == Errno::NOTTY {
                    // It has just got another number.
                    return Ok(());
                } else {
                    let _ = st.registered.erase(page.start, page.end, |_| ());
                }
                match self.ensure_registered(st, page) {
                    Ok(()) => Ok(()),
                    Err(_) => self.register_span(st, page),
                }
            }
            _ => Err(e),
        }
    }

    /// Gives the armed pages among `pages` their bytes. On an error some pages are still armed.
    pub(crate) fn materialise(&self, st: &mut State, pages: Span) -> Result<(), Errno> {
        let (mut p, end) = (pages.start >> 12, pages.end >> 12);
        loop {
            let a = self.pages.find(Bit::Armed, true, p, end);
            if a >= end {
                return Ok(());
            }
            let b = self.pages.find(Bit::Armed, false, a, end);
            let mut at = a << 12;
            while at < b << 12 {
                at = self.materialise_some(st, Span::between(at, b << 12))?;
            }
            p = b;
        }
    }

    /// Materialises the first page of an armed run, and as many more as one call can; returns where it stopped.
    fn materialise_some(&self, st: &mut State, run: Span) -> Result<u64, Errno> {
        if self.pages.get(Bit::Vacant, run.start) {
            let end = self.pages.find(Bit::Vacant, false, run.start >> 12, run.end >> 12) << 12;
            self.disarm(st, Span::between(run.start, end))?;
            return Ok(end);
        }
        let (src, len) = match st.map.find(run.start) {
            Some(e) if e.start + e.len >= run.start + PAGE => {
                let end = page_down(e.start + e.len);
                let end = if end < run.end { end } else { run.end };
                (self.core_ptr(e.core + (run.start - e.start)) as *const u8, end - run.start)
            }
            _ => (self.assemble(st, run.start), PAGE),
        };
        let dst = Span::between(run.start, run.start + len);
        let done = self.fill(st, dst, src)?;
        let filled = Span::between(dst.start, dst.start + done);
        self.unname_surely(st, filled)?;
        self.set_resident(filled);
        self.count(None, Counter::BytesMaterialised, done);
        Ok(filled.end)
    }

    /// [`Self::unname`] of whole pages that name nothing any more, whether there is room in the map or not. Without a
    /// node for the second half of an extent, the pages of that half are materialised, last one first, so that what
    /// goes is the end of an extent.
    pub(crate) fn unname_surely(&self, st: &mut State, pages: Span) -> Result<(), Errno> {
        if self.unname(st, pages) {
            return Ok(());
        }
        let mut at = st.map.find(pages.start).map_or(pages.end, |e| page_up(e.start + e.len));
        while at > pages.end {
            self.materialise(st, Span::between(at - PAGE, at))?;
            at -= PAGE;
        }
        if self.unname(st, pages) { Ok(()) } else { Err(Errno::NOMEM) }
    }

    fn assemble(&self, st: &mut State, page: u64) -> *const u8 {
        let bounce = st.bounce;
        st.map.for_each_in(page, page + PAGE, |x| {
            let at = bounce.wrapping_add((x.start - page) as usize);
            // SAFETY: the extent lies in the page, `bounce` is BOUNCE (one page) long; cores are ours.
            unsafe { crate::raw::copy(at, self.core_ptr(x.core), x.len) };
        });
        const { assert!(BOUNCE == PAGE) };
        bounce
    }

    fn fill(&self, st: &mut State, dst: Span, src: *const u8) -> Result<u64, Errno> {
        let page = Span::between(dst.start, dst.start + PAGE);
        self.fill_by_kernel(st, dst, src).or_else(|e| self.fill_alone(page, src).ok_or(e))
    }

    /// Fills without touching a page. The bytes done, at least a page's.
    pub(crate) fn fill_by_kernel(&self, st: &mut State, dst: Span, src: *const u8) -> Result<u64, Errno> {
        let mut tries = 0;
        let page = Span::between(dst.start, dst.start + PAGE);
        let mut part = dst;
        loop {
            self.count(None, Counter::PageTableCalls, 1);
            match self.kernel.fill(part, src) {
                Ok(n) => return Ok(n),
                // The range may cross into another mapping, which one call cannot: page by page then.
                Err(Errno::NOENT | Errno::EXIST) if part.len() > PAGE => part = page,
                // A page is there although it should not be: memory changed hands unseen. What is there is
                // the program's truth.
                Err(Errno::EXIST) => return Ok(PAGE),
                Err(e) => self.recover(st, page, e, &mut tries)?,
            }
        }
    }

    /// The last resort of a process with one thread, such as a child that finds no free descriptor: takes the
    /// marker off and copies. Nobody else can look in between, and the page is an ordinary one by then, so that
    /// touching it cannot need the lock.
    fn fill_alone(&self, page: Span, src: *const u8) -> Option<u64> {
        if self.arming() != Arming::Guard || !self.kernel.single_thread() {
            return None;
        }
        self.kernel.guard_remove(page).ok()?;
        // SAFETY: an armed page is writable known memory; `src` is a page of core or bounce memory.
        unsafe { self.kernel.core_to_prog(page.start, src, PAGE) };
        Some(PAGE)
    }

    /// Ends the registration of a range that zio gives up: from then on the kernel treats its pages as if zio had
    /// never been there. All of them are resident.
    pub(crate) fn unregister(&self, st: &mut State, pages: Span) {
        let mut at = pages.start;
        while at < pages.end
            && let Some(r) = st.registered.next_from(at)
        {
            let part = pages.intersect(Span::between(r.start, r.start + r.len));
            if r.start >= pages.end {
                break;
            }
            self.count(None, Counter::PageTableCalls, 1);
            if self.kernel.unregister(part).is_ok() {
                let _ = st.registered.erase(part.start, part.end, |_| ());
            }
            at = part.end;
        }
    }

    /// A range is about to be, or was, unmapped or mapped over: nothing of it is ours any more. Makes no
    /// page-table call, unless the map is full.
    pub(crate) fn forget(&self, st: &mut State, pages: Span) {
        if self.unname_surely(st, pages).is_err() {
            // The map is full and the kernel has no memory for the pages beside. What is left in the map is never
            // looked at while its pages count as resident, which they do for good if nothing is armed any more.
            self.set_arming(Arming::Off);
        }
        self.generation.fetch_add(1, Ordering::Release);
        self.pages.set(Bit::Armed, pages, false);
        self.pages.set(Bit::Vacant, pages, false);
        self.pages.set(Bit::Hot, pages, false);
        let _ = st.known.erase(pages.start, pages.end, |_| ());
        let _ = st.registered.erase(pages.start, pages.end, |_| ());
    }

    /// Whole pages, from the first that the range touches to the last.
    pub(crate) fn pages_of(s: Span) -> Span {
        Span::between(page_down(s.start), page_up(s.end))
    }
}
