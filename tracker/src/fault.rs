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
                if self.unseen_missing(st, addr) {
                    return Some(Fault::Resolved);
                }
                return None;
            }
            let vacant = self.pages.get(Bit::Vacant, addr);
            if !vacant && let Some(e) = st.map.find(addr) {
                Self::site(st, e.site).fault();
            }
            self.pages.set(Bit::Hot, Span::between(page, page + PAGE), true);
            let around = self.around(thread, page);
            let run = self.armed_run(addr, u64::from(around) * PAGE);
            if let Some(t) = thread {
                t.faults.next.store(run.end, Ordering::Relaxed);
            }
            let bounded = !write && !vacant && self.child_keeps(st);
            let r = if bounded { self.child_materialise(st, run) } else { self.materialise(st, run) };
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

    /// Pages to bring in: one, doubling while touches go on where the last run ended.
    fn around(&self, thread: Option<&Thread>, page: u64) -> u32 {
        if self.forked.load(Ordering::Relaxed) {
            return AROUND_CHILD;
        }
        let Some(t) = thread else { return 1 };
        let n = if t.faults.next.load(Ordering::Relaxed) == page {
            (t.faults.window.load(Ordering::Relaxed) * 2).clamp(2, AROUND_MAX)
        } else {
            1
        };
        t.faults.window.store(n, Ordering::Relaxed);
        n
    }

    fn foreign(&self, thread: Option<&Thread>, addr: u64, generation: u64) -> Fault {
        let Some(t) = thread else { return Fault::Foreign };
        let f = &t.faults;
        let again = f.odd_addr.load(Ordering::Relaxed) == addr && f.odd_generation.load(Ordering::Relaxed) == generation;
        f.odd_addr.store(if again { 0 } else { addr }, Ordering::Relaxed);
        f.odd_generation.store(generation, Ordering::Relaxed);
        if again { Fault::Foreign } else { Fault::Resolved }
    }
}
