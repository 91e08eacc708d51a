//! Healing: resident runs next to elided pages get names again.
//!
//! Where a message came in two parts, the page in between was touched (a terminator) and stays resident; so do the
//! first pages of a message that was once looked into. Every later copy of the whole has to move them. After some such
//! copies the pages are moved to a core once and for all.
//!
//! Unlike a destination, which its program is overwriting, such a page may be in use by other threads, rightly:
//!
//! - A store between the copy to the core and the discard would be lost: the page is write-protected meanwhile, so
//!   that the store faults, waits for the lock, and finds an elided page. Only a page that is there can be protected:
//!   it is read first.
//! - MADV_GUARD_INSTALL first discards pages, then puts markers where there is nothing, and begins again where it finds
//!   a page. In between a store would make a page of zeros, which goes with the store in it, and a load would find
//!   zeros. So meanwhile the pages are registered for missing faults as well: a touch waits for the lock, too.
//! - A system call that reads the page would fail once it is armed. One whose hook has not looked yet will see the
//!   page armed, because it is marked first. One that is under way, or whose hook has looked, is found by asking the
//!   kernel what the other threads are doing ([`Kernel::others`]): all must be in a call that waits and has nothing to
//!   do with the pages. Between a hook's look and the kernel's use of the memory there are three such waits: for the
//!   tracker's own lock, which counts as using the pages; for a stream's lock in libc; and in a handler of the
//!   program's, after which the kernel may start the interrupted call again by itself
//!   ([`crate::thread::Thread::midway`]). The last holds for the running thread as well: the handler may be who copies.
//!
//! The kernel's own use of the pages without a thread (asynchronous reads into them) would race with the program's
//! copy of all their bytes, which is what brought us here; pages that it has pinned to read from do not change.

use crate::addr::{PAGE, Span};
use crate::extent_map::Extent;
use crate::page_state::Bit;
use crate::state::{Arming, State, Tracker};
use crate::stats::Counter;
use crate::sys::{Kernel, Others, Register};
use core::sync::atomic::{Ordering, fence};

/// Most pages healed in one copy: they are copied under the lock, 0.2 us each. A message whose beginning came in
/// small parts has a run of some dozen.
const PAGES_MAX: u64 = 64;
/// Most runs healed in one copy.
const RUNS_MAX: usize = 8;

impl<K: Kernel> Tracker<K> {
    /// Heals short resident runs next to armed pages of a copy's source, when the site's turn has come.
    pub(crate) fn heal(&self, st: &mut State, src: Span, dst: Span, site: u16) {
        if self.arming() != Arming::Guard || !src.intersect(dst).is_empty() {
            return;
        }
        let mut runs = [Span::default(); RUNS_MAX];
        let n = self.resident_runs(src.inner_pages(), &mut runs);
        let (Some(first), Some(last)) = (runs.first(), runs.get(n.wrapping_sub(1))) else { return };
        let after = self.heal_after.load(Ordering::Relaxed);
        if !Self::site(st, site).wants_healing(after) {
            return;
        }
        let all = Span::between(first.start, last.end);
        let runs = runs.get(..n).unwrap_or(&[]);
        // First the marks, then the look: see the file's paragraph.
        if runs.iter().any(|&r| !self.may_heal(st, r)) {
            Self::site(st, site).healed(0, after);
            return;
        }
        runs.iter().for_each(|&r| self.pages.set(Bit::Armed, r, true));
        fence(Ordering::SeqCst);
        // Only the lock: the tracker is a megabyte, and an unused argument may happen to point into it.
        let lock = self.lock_span();
        // A thread that is seen to wait has stored what it did before: its mark is looked at afterwards.
        let others = self.kernel.others(all, lock);
        let others = if self.midway(st) { Others::Unknown } else { others };
        let mut healed = 0;
        for &r in runs {
            let done = others != Others::Unknown && self.heal_run(st, r, site);
            if !done {
                self.generation.fetch_add(1, Ordering::Release);
                self.pages.set(Bit::Armed, r, false);
            }
            healed += if done { (r.len() / PAGE) as u32 } else { 0 };
        }
        Self::site(st, site).healed(healed, after);
    }

    /// True if a thread may use program memory that its hook has looked at, after a wait for something else.
    fn midway(&self, st: &State) -> bool {
        self.unrecorded_midway.load(Ordering::Relaxed) != 0
            || st.records().any(|t| t.midway.load(Ordering::Relaxed) != 0)
    }

    /// Finds the resident runs next to armed pages, of at most [`PAGES_MAX`] pages together; of a longer one, its end
    /// at the armed pages.
    fn resident_runs(&self, inner: Span, runs: &mut [Span; RUNS_MAX]) -> usize {
        let (first, end) = (inner.start >> 12, inner.end >> 12);
        let (mut p, mut n, mut left) = (first, 0, PAGES_MAX);
        while p < end {
            let a = self.pages.find(Bit::Armed, false, p, end);
            let b = self.pages.find(Bit::Armed, true, a, end);
            let beside = |page: u64| self.pages.get(Bit::Armed, page << 12);
            let (before, after) = (beside(a.wrapping_sub(1)), beside(b));
            if a < b && (before || after) {
                let pages = if left == PAGES_MAX { left.min(b - a) } else { b - a };
                let Some(slot) = runs.get_mut(n).filter(|_| pages <= left) else { break };
                let start = if before { a } else { b - pages };
                *slot = Span::between(start << 12, (start + pages) << 12);
                n += 1;
                left -= pages;
            }
            p = b;
        }
        n
    }

    fn may_heal(&self, st: &mut State, run: Span) -> bool {
        self.may_arm(st, run).is_ok()
            && st.map.has_room(8)
            && self.ensure_registered(st, run).is_ok()
            && self.pages.reserve(run).is_ok()
    }

    /// Moves a run to a core. Its pages are marked as armed, and resident; on false they are resident and as before.
    fn heal_run(&self, st: &mut State, run: Span, site: u16) -> bool {
        let pages = (run.len() / PAGE) as u32;
        let Some(r) = st.arena.alloc(pages) else { return false };
        if r.pages != pages || !st.map.has_room(8) || !self.protect_present(run, self.core_ptr(r.core())) {
            st.arena.unpin_run(r);
            return false;
        }
        // SAFETY: known memory, resident (the lock is held since it was seen to be), so that the touch cannot need the
        // lock, and unchanging as the file's paragraph says; the core run is ours.
        unsafe { self.kernel.prog_to_core(self.core_ptr(r.core()), run.start, run.len()) };
        let extent = Extent { start: run.start, len: run.len(), core: r.core(), site };
        if !(self.trap(run) && self.name(st, extent)) {
            self.protect(run, false);
            self.untrap(st, run);
            st.arena.unpin_run(r);
            return false;
        }
        self.count(None, Counter::CopiedFringe, run.len());
        self.count(None, Counter::PageTableCalls, 1);
        self.pages.set(Bit::Hot, run, false);
        let done = self.kernel.guard_install(run).is_ok();
        if done {
            self.count(None, Counter::PagesHealed, u64::from(pages));
            self.untrap(st, run);
        } else {
            self.put_back(st, run, r.core());
        }
        st.arena.unpin_run(r);
        done
    }

    /// After a discard that failed half-way: every page gets its bytes, or keeps them, and is resident again.
    fn put_back(&self, st: &mut State, run: Span, core: u64) {
        let page = |at| Span::between(at, at + PAGE);
        let mut missing = [false; PAGES_MAX as usize];
        for (at, missing) in (run.start..run.end).step_by(PAGE as usize).zip(&mut missing) {
            *missing = self.fill_by_kernel(st, page(at), self.core_ptr(core + (at - run.start))).is_err();
        }
        self.protect(run, false);
        self.untrap(st, run);
        for (at, missing) in (run.start..run.end).step_by(PAGE as usize).zip(missing) {
            if missing {
                // The kernel will neither discard nor fill: what is left is to take the marker off and store. A thread
                // that comes awake just now may see zeros for an instant.
                let _ = self.kernel.guard_remove(page(at));
                // SAFETY: an ordinary, writable page of known memory by now; the core run is ours.
                unsafe { self.kernel.core_to_prog(at, self.core_ptr(core + (at - run.start)), PAGE) };
            }
        }
        let _ = self.unname_surely(st, run);
        self.set_resident(run);
    }

    /// Makes stores to a resident run fault. `scratch` is core memory of ours. On false they do not.
    fn protect_present(&self, run: Span, scratch: *mut u8) -> bool {
        for page in (run.start..run.end).step_by(PAGE as usize) {
            // SAFETY: as the copy in `heal_run`: a page that the program has discarded is an ordinary missing one.
            unsafe { self.kernel.prog_to_core(scratch, page, 1) };
        }
        self.protect(run, true) || {
            self.protect(run, false);
            false
        }
    }

    fn protect(&self, run: Span, on: bool) -> bool {
        self.count(None, Counter::PageTableCalls, 1);
        self.kernel.write_protect(run, on).is_ok()
    }

    /// Makes touches of a run's pages fault while they are not there. Not before the copy of their bytes: another thread
    /// may discard them, and this one's own touch must not need the lock.
    fn trap(&self, run: Span) -> bool {
        self.count(None, Counter::PageTableCalls, 1);
        self.kernel.register(run, Register::Both).is_ok()
    }

    /// Ends that. The only way back to the registration of before is through none; elided pages have their markers.
    fn untrap(&self, st: &mut State, run: Span) {
        self.count(None, Counter::PageTableCalls, 2);
        // The run is a mapping of its own by now, so that this takes no memory.
        let _ = self.kernel.unregister(run);
        if self.kernel.register(run, Register::WriteProtect).is_err() {
            // The next use of the pages tries again.
            let _ = st.registered.erase(run.start, run.end, |_| ());
        }
    }
}
