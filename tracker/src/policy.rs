//! The first policy: a threshold, and per call site a back-off driven by faults against bytes elided.
//!
//! [`decide`] is a pure function of a [`Question`]; the table around it only remembers. Replaceable as a whole.
//!
//! A fault costs about as much as copying twenty pages (DESIGN.md, section 2), so elision at a site pays while
//! it elides more than [`BYTES_PER_FAULT`] between two faults. A site that does not pay copies for a while,
//! twice as long each time.

/// Bytes of copying that one fault is worth: twenty pages.
pub const BYTES_PER_FAULT: u64 = 20 * 4096;
/// Elisions of a site between two looks at its record.
const EPOCH: u32 = 16;
/// Elisions without a fault after which a site counts as calm.
const CALM: u32 = 32;
/// Longest back-off: 2^LEVEL_MAX epochs.
const LEVEL_MAX: u32 = 12;
/// Allocations for which one written last page counts.
const TAILS: u32 = 64;
/// Slots of the site table; sites whose addresses fall together share one, and its verdict.
pub const SITES: usize = 4096;
/// A site retries pages that were touched once ("hot") every this many elisions at first, and up to
/// [`REARM_MAX`].
const REARM_MIN: u32 = 32;
const REARM_MAX: u32 = 4096;

/// Copies that move short resident runs between two times that such runs are healed.
pub const HEAL_MIN: u32 = 32;

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Bytes of this receive or copy.
    pub len: u64,
    /// Smallest length that is elided.
    pub threshold: u64,
    /// Elisions that the site must still let pass.
    pub backoff_left: u32,
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Name, do not copy.
    Elide,
    /// Copy, as the program asked: too small.
    CopySmall,
    /// Copy, as the program asked: the site does not pay.
    CopyBackoff,
}

/// Elide or copy. Pure.
pub fn decide(q: Question) -> Plan {
    if q.len < q.threshold {
        Plan::CopySmall
    } else if q.backoff_left > 0 {
        Plan::CopyBackoff
    } else {
        Plan::Elide
    }
}

/// Pages that must have been tried before a [`Retry`] judges them.
const EVIDENCE: u32 = 8;
/// Longest pause between two tries.
const PAUSE_MAX: u32 = 4096;

/// When to arm pages again that stayed resident from an earlier use of the memory: its edges, which the program
/// writes. If they are edges again, arming them only buys page-table calls, and a copy of a page is cheaper. If
/// the edges of this use are elsewhere, they stand in its way for good: each cuts the data, its iovecs and its
/// extents in two. Which of the two is learned by trying.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    /// Operations to let pass until the next try.
    left: u32,
    /// Pause after a try.
    pause: u32,
    /// Pages tried since the last judgement, and how many of them were written again in that use.
    tried: u32,
    failed: u32,
}

impl Retry {
    /// True if this operation arms such pages.
    pub fn due(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        if self.tried >= EVIDENCE {
            let worse = self.failed.saturating_mul(4) > self.tried;
            self.pause = if worse { (self.pause * 4 + 4).min(PAUSE_MAX) } else { self.pause / 4 };
            (self.tried, self.failed) = (0, 0);
        }
        self.left = self.pause;
        true
    }

    /// So many pages were armed again.
    pub fn tried(&mut self, pages: u32) {
        self.tried = self.tried.saturating_add(pages);
    }

    /// One of them was written.
    pub fn failed(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }
}

/// Resident pages that one operation arms again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Again {
    /// Those that were touched in this use of the memory.
    pub hot: bool,
    /// A few between armed ones, from an earlier use.
    pub edges: bool,
}

/// What is remembered of a call site. All zeros is a site that was never seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Site {
    /// Bytes elided since the last look.
    elided: u64,
    /// Faults on pages that this site elided, since the last look.
    faults: u32,
    /// Elisions since the last look.
    ops: u32,
    backoff_left: u32,
    level: u32,
    /// Elisions until touched pages are tried again.
    rearm_left: u32,
    rearm_every: u32,
    rearm_faults: u32,
    /// Elisions since the last fault.
    calm: u32,
    /// Copies with short resident runs in their source until those are healed.
    heal_left: u32,
    heal_every: u32,
    /// Pages that were healed last time, and faults since.
    heal_pages: u32,
    heal_faults: u32,
    /// Edges of earlier uses of the memory.
    pub edges: Retry,
    /// Allocating sites: allocations whose last page is taken to be written at once.
    tails: u32,
    /// Receive sites: moving average of results, bytes; `seen` says it means something.
    average: u32,
    seen: u32,
}

impl Site {
    /// Answers for one receive or copy and counts a passed-up chance.
    pub fn ask(&mut self, len: u64, threshold: u64) -> Plan {
        let plan = decide(Question { len, threshold, backoff_left: self.backoff_left });
        if plan == Plan::CopyBackoff {
            self.backoff_left -= 1;
        }
        plan
    }

    /// An elision of `bytes` happened.
    pub fn elided(&mut self, bytes: u64) {
        self.elided = self.elided.saturating_add(bytes);
        self.ops += 1;
        self.calm = self.calm.saturating_add(1);
        if self.ops < EPOCH {
            return;
        }
        if u64::from(self.faults).saturating_mul(BYTES_PER_FAULT) > self.elided {
            self.level = if self.level < LEVEL_MAX { self.level + 1 } else { LEVEL_MAX };
            self.backoff_left = EPOCH << self.level;
        } else {
            self.level = self.level.saturating_sub(1);
        }
        (self.elided, self.faults, self.ops) = (0, 0, 0);
    }

    /// A page that this site elided was touched.
    pub fn fault(&mut self) {
        self.faults = self.faults.saturating_add(1);
        self.rearm_faults = self.rearm_faults.saturating_add(1);
        self.heal_faults = self.heal_faults.saturating_add(1);
        self.calm = 0;
    }

    /// True while what the site elides is not touched at all: then every page is worth arming.
    pub fn is_calm(&self) -> bool {
        self.calm >= CALM
    }

    /// The last page of a block that this site allocated was written before anything else happened to it.
    pub fn tail_written(&mut self) {
        self.tails = TAILS;
    }

    /// True if the last page of a block from this site will be written.
    pub fn expects_tail(&mut self) -> bool {
        let expects = self.tails > 0;
        self.tails = self.tails.saturating_sub(1);
        expects
    }

    /// Which resident pages this operation arms again.
    pub fn again(&mut self) -> Again {
        Again { hot: self.rearm(), edges: self.edges.due() }
    }

    /// True when it is time to try pages again that were touched before.
    pub fn rearm(&mut self) -> bool {
        if self.rearm_every == 0 {
            self.rearm_every = REARM_MIN;
            self.rearm_left = REARM_MIN;
        }
        if self.rearm_left > 0 {
            self.rearm_left -= 1;
            return false;
        }
        // More than a fault for each try since the last one: the touched pages are touched again.
        let worse = self.rearm_faults > 2;
        let next = if worse { self.rearm_every * 2 } else { self.rearm_every / 2 };
        self.rearm_every = next.clamp(REARM_MIN, REARM_MAX);
        self.rearm_left = self.rearm_every;
        self.rearm_faults = 0;
        true
    }

    /// True when short resident runs in a copy's source should be moved to cores for good: that costs as much as
    /// copying them some dozen times.
    ///
    /// `first` is the number of such copies before the first try ([`HEAL_MIN`]).
    pub fn wants_healing(&mut self, first: u32) -> bool {
        if self.heal_every == 0 {
            (self.heal_every, self.heal_left) = (first, first);
        }
        self.heal_left = self.heal_left.saturating_sub(1);
        self.heal_left == 0
    }

    /// It was tried, and so many pages were healed. Next time soon again; or later and later, if other threads were
    /// in the way, or what was healed before has been touched again.
    pub fn healed(&mut self, pages: u32, first: u32) {
        let vain = pages == 0 || self.heal_faults.saturating_mul(2) > self.heal_pages;
        self.heal_every = if vain { (self.heal_every * 2).min(REARM_MAX) } else { first };
        self.heal_left = self.heal_every;
        (self.heal_pages, self.heal_faults) = (pages, 0);
    }

    /// Expected result of a receive that asks for `asked` bytes.
    pub fn predicted(&self, asked: u64) -> u64 {
        let avg = u64::from(self.average);
        if self.seen == 0 || avg > asked { asked } else { avg }
    }

    /// A receive returned `got` bytes. The average follows growth at once and forgets slowly: missing a
    /// large message costs a copy, expecting one too many costs a few table steps.
    pub fn received(&mut self, got: u64) {
        let got = if got > u64::from(u32::MAX) { u32::MAX } else { got as u32 };
        self.seen = 1;
        self.average = if got > self.average { got } else { self.average - (self.average - got) / 16 };
    }
}

/// Slot of a call site's return address.
pub fn slot(return_address: u64) -> u16 {
    let h = return_address.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (h >> 52) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries per 1,000 operations that pass 3 such pages each, of which `failing` are written again.
    fn tries(r: &mut Retry, failing: u32) -> u32 {
        (0..1000)
            .filter(|_| {
                let due = r.due();
                if due {
                    r.tried(3);
                    (0..failing).for_each(|_| r.failed());
                }
                due
            })
            .count() as u32
    }

    #[test]
    fn healing_backs_off_where_pages_are_touched_again() {
        let wait = |s: &mut Site| 1 + (0..).take_while(|_| !s.wants_healing(HEAL_MIN)).count() as u32;
        let mut s = Site::default();
        assert_eq!(wait(&mut s), HEAL_MIN);
        s.healed(64, HEAL_MIN);
        assert_eq!(wait(&mut s), HEAL_MIN);
        (0..40).for_each(|_| s.fault());
        s.healed(64, HEAL_MIN);
        assert_eq!(wait(&mut s), 2 * HEAL_MIN);
        s.healed(0, HEAL_MIN);
        assert_eq!(wait(&mut s), 4 * HEAL_MIN);
        s.healed(3, HEAL_MIN);
        assert_eq!(wait(&mut s), HEAL_MIN);
    }

    #[test]
    fn edges_are_tried_always_or_hardly_ever() {
        let mut r = Retry::default();
        assert_eq!(tries(&mut r, 0), 1000);
        assert!(tries(&mut r, 3) < 25);
        assert!(tries(&mut r, 3) < 5);
        (0..40).for_each(|_| _ = tries(&mut r, 0));
        assert_eq!(tries(&mut r, 0), 1000);
    }
}
