//! Resolving a touch of an armed page, on the thread that touched it.

use crate::addr::{PAGE, Span, page_down};
use crate::page_state::Bit;
use crate::state::Tracker;
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::Thread;
use core::sync::atomic::Ordering;

/// Most pages that one sequential touch brings in.
const AROUND_MAX: u32 = 64;
/// In a forked child readers go through everything once (a snapshot): whole runs at once.
const AROUND_CHILD: u32 = 256;

/// Faults at one address after which it is the program's own, for threads without a record.
const UNRECORDED_TRIES: u32 = 4096;

/// What a fault handler should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Resolved, or somebody else just did: return to the program.
    Resolved,
    /// The page could not be filled (out of memory): returning would fault again for ever.
    Failed,
    /// Not ours: the program's own fault.
    Foreign,
}

impl<K: Kernel> Tracker<K> {
    /// Resolves a touch at `addr`.
    ///
    /// A page that is not armed may have been a moment ago, and the touch may be older than that: the first such
    /// fault is answered with [`Fault::Resolved`], which repeats the instruction. A second one at the same
    /// address, with no page resolved anywhere in between, is the program's own.
    ///
    /// # Context
    /// Fault handler, all program signals blocked. Touches no program memory.
    pub fn fault(&self, thread: Option<&Thread>, addr: u64, write: bool) -> Fault {
        let generation = self.generation.load(Ordering::Acquire);
        let outcome = self.locked(None, |st| {
            let page = page_down(addr);
            if !self.pages.get(Bit::Armed, addr) {
                return self.unseen_missing(st, addr);
            }
            let vacant = self.pages.get(Bit::Vacant, addr);
            let tried = self.pages.get(Bit::Hot, addr);
            if !vacant && let Some(e) = st.map.find(addr) {
                let s = Self::site(st, e.site);
                s.fault();
                if tried {
                    s.edges.failed();
                }
            }
            if let Some(t) = thread
                && t.faults.tail.load(Ordering::Relaxed) == page
            {
                t.faults.tail.store(0, Ordering::Relaxed);
                Self::site(st, t.faults.tail_site.load(Ordering::Relaxed) as u16).tail_written();
            }
            let run = self.around(thread, page);
            let bounded = !write && !vacant && self.child_keeps();
            let r = if bounded { self.child_materialise(st, run) } else { self.materialise(st, run) };
            self.pages.set(Bit::Hot, Span::between(page, page + PAGE), true);
            self.publish(st);
            // The page that was touched must be there; pages around it are a courtesy.
            if r.is_ok() || !self.pages.get(Bit::Armed, addr) { Some(Fault::Resolved) } else { Some(Fault::Failed) }
        });
        match outcome.flatten() {
            Some(f) => {
                self.count(thread, Counter::Faults, 1);
                f
            }
            None => self.foreign(thread, addr, generation),
        }
    }

    /// What to bring in: the page, or, when touches keep coming near each other, the armed pages of a block around
    /// it that grows with their number. Blocks are aligned, so that forward, backward and strided readers all
    /// benefit.
    fn around(&self, thread: Option<&Thread>, page: u64) -> Span {
        let pages = if self.forked.load(Ordering::Relaxed) {
            AROUND_CHILD
        } else {
            match thread {
                Some(t) => streak(t, page),
                None => 1,
            }
        };
        let bytes = u64::from(pages) * PAGE;
        let block = page & !(bytes - 1);
        // Down and up from the page as far as pages are armed, inside the block.
        let mut start = page;
        while start > block && self.pages.get(Bit::Armed, start - PAGE) {
            start -= PAGE;
        }
        let run = self.armed_run(page, block + bytes - page);
        Span::between(start, run.end)
    }

    /// Without a record (the pool is used up) threads share one memory, and an address must come up often before it
    /// is the program's own: repeating an instruction is always harmless.
    fn foreign_unrecorded(&self, addr: u64) -> Fault {
        let f = &self.unrecorded;
        let same = f.last.swap(addr, Ordering::Relaxed) == addr;
        let n = if same { f.streak.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if !same {
            f.streak.store(0, Ordering::Relaxed);
        }
        if n >= UNRECORDED_TRIES { Fault::Foreign } else { Fault::Resolved }
    }

    fn foreign(&self, thread: Option<&Thread>, addr: u64, generation: u64) -> Fault {
        let Some(t) = thread else { return self.foreign_unrecorded(addr) };
        let f = &t.faults;
        let again =
            f.odd_addr.load(Ordering::Relaxed) == addr && f.odd_generation.load(Ordering::Relaxed) == generation;
        f.odd_addr.store(if again { 0 } else { addr }, Ordering::Relaxed);
        f.odd_generation.store(generation, Ordering::Relaxed);
        if again { Fault::Foreign } else { Fault::Resolved }
    }
}

/// Touches nearer than this belong together.
const NEAR: u64 = 1 << 20;

/// Pages to bring in at this touch of a thread.
fn streak(t: &Thread, page: u64) -> u32 {
    let last = t.faults.last.swap(page, Ordering::Relaxed);
    let near = page.abs_diff(last) < NEAR;
    let n = if near { t.faults.streak.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
    t.faults.streak.store(n, Ordering::Relaxed);
    match n {
        0 | 1 => 1,
        2 => 4,
        3 => 16,
        _ => AROUND_MAX,
    }
}
