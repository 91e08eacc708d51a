//! The books of the whole process: what memory that changes its purpose costs against what elision saves.
//!
//! Where values of mixed sizes come and go, each use of memory has its edges (a header, a terminator) elsewhere:
//! vacant pages become resident where a block begins and ends, and are armed again in the next use, two to five
//! page-table calls for each value. That pays for large values only, and cannot be charged to a call site: memory is
//! elided by one, freed and allocated by others. So edges that moved are charged here, and all bytes that copies did
//! not move are credited. A process that loses stops eliding for a while ([`Ledger::paused`]).
//!
//! Besides, each operation on names, a receive into cores, a copy, a send from them, takes its time however little it
//! carries, and so does each page-table call that it makes. Where all of them together cost more than the copies that
//! they avoid, that is another reason: messages that are copied once or twice and have less than some 100 KiB; or larger
//! ones that arrive in pieces, so that pages at ever other places become resident and are armed again.
//!
//! Large messages in buffers that keep their places have no such edges, and few operations a byte: a server of those is
//! never paused. Pausing and starting again both touch every page of the program's large buffers once, so they must be rare:
//! the pause grows each time, and only a good time many times as long makes it shorter.

use crate::addr::PAGE;

/// Bytes of copying that one moved edge is worth: the call that populates it, most of one that arms a range again, part
/// of another where the data ends, and more extents for each operation: 12 to 18 us in all. A copy of what was just
/// received, hot in the cache, takes 0.03 ns a byte. Measured: values of 16 KiB to 1 MiB, with two moved edges each, took
/// 1.0 to 1.2 of the plain server's CPU when elided.
pub const BYTES_PER_EDGE: u64 = 384 << 10;
/// Bytes of copying that one operation on names is worth: 0.6 to 0.8 us of bookkeeping, and for a send the kernel's
/// reading of what is in no cache near the processor, where a copy would just have put it.
pub const BYTES_PER_OPERATION: u64 = 32 << 10;
/// Bytes of copying that one page-table call of an operation is worth: 1.5 to 2.5 us.
pub const BYTES_PER_CALL: u64 = 64 << 10;
/// Operations between two looks at what they cost, and losing looks in a row that make a pause: a second or two of a busy
/// server.
const OPERATIONS: u32 = 4096;
const BAD_LOOKS: u32 = 12;
/// Most that one look counts.
const WORST: u64 = 4;
/// Receives between two looks at the edges.
const EPOCH: u32 = 1024;
/// Bad looks in a row that make the first pause: half a minute of a busy server, so that what passes, a load or a burst
/// of odd requests, does not count.
const BAD_EPOCHS: u32 = 128;
/// Bad looks in a row that make another one.
const BAD_AGAIN: u32 = 4;
/// First pause, receives, and the longest.
const PAUSE_MIN: u32 = 1 << 19;
const PAUSE_MAX: u32 = 1 << 25;
/// Good receives for each one of the last pause that make the next one shorter.
const FORGIVE: u64 = 16;

/// Costs and savings since the last look, and the pause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    edges: u64,
    elided: u64,
    received: u64,
    receives: u32,
    /// Core pages that were new to the arena, as of the last look.
    fresh: u64,
    /// Operations, and bytes that were not moved, since the last look at those.
    operations: u32,
    calls: u32,
    avoided: u64,
    /// Core pages that were new to the arena, as of the last receive and of the last look at operations.
    newest: [u64; 2],
    bad_looks: u32,
    bad: u32,
    good: u64,
    pause: u32,
    left: u32,
}

impl Ledger {
    /// A block was allocated, and its first or last page was vacant.
    pub fn edge_moved(&mut self) {
        self.edges += 1;
    }

    /// A copy was elided.
    pub fn elided(&mut self, bytes: u64) {
        self.elided += bytes;
        self.avoided += bytes;
    }

    /// A page-table call for an operation: pages at an edge of earlier data are armed, or one at an edge is populated.
    pub fn page_table_call(&mut self) {
        self.calls += 1;
    }

    /// A receive into cores, a copy of named bytes, or a send of some.
    pub fn operation(&mut self) {
        if self.paused() {
            return;
        }
        self.operations += 1;
        if self.operations < OPERATIONS {
            return;
        }
        let [fresh, before] = self.newest;
        // As in `receive`: new memory is armed once, and is populated by calls of the kernel's own otherwise.
        let grows = fresh.saturating_sub(before) * PAGE * 4 > self.avoided;
        let calls = if grows { 0 } else { u64::from(self.calls) };
        let cost = u64::from(self.operations) * BYTES_PER_OPERATION + calls * BYTES_PER_CALL;
        // A look at twice the cost of what it avoids counts twice, and so on.
        let times = (cost / self.avoided.max(1)).clamp(1, WORST) as u32;
        self.bad_looks = if cost > self.avoided { self.bad_looks + times } else { 0 };
        (self.operations, self.calls, self.avoided, self.newest) = (0, 0, 0, [fresh; 2]);
        if self.bad_looks >= BAD_LOOKS {
            self.pause();
        }
    }

    fn pause(&mut self) {
        self.pause = (self.pause * 8).clamp(PAUSE_MIN, PAUSE_MAX);
        self.left = self.pause;
        (self.bad, self.good, self.bad_looks) = (0, 0, 0);
    }

    /// True while nothing is elided that is not already.
    pub fn paused(&self) -> bool {
        self.left > 0
    }

    /// A large receive was passed on because of the pause.
    pub fn pass(&mut self) {
        self.left -= u32::from(self.left > 0);
        if self.left == 0 {
            (self.edges, self.elided, self.received, self.receives) = (0, 0, 0, 0);
            (self.operations, self.calls, self.avoided) = (0, 0, 0);
        }
    }

    /// A receive landed in cores; `fresh` is the number of pages that the arena ever handed out for the first time
    /// since they last had memory.
    pub fn receive(&mut self, bytes: u64, fresh: u64) {
        self.received += bytes;
        self.receives += 1;
        self.newest[0] = fresh;
        if self.receives < EPOCH {
            return;
        }
        // While the data grows, the program's own pages would be new too, and their faults cost more than anything
        // here: nothing to learn from that.
        let grows = fresh.saturating_sub(self.fresh) * PAGE * 4 > self.received;
        let loses = self.edges * BYTES_PER_EDGE > self.elided;
        if !loses {
            self.bad = 0;
            self.good += u64::from(self.receives);
            if self.good > u64::from(self.pause) * FORGIVE {
                (self.pause, self.good) = (self.pause / 8, 0);
            }
        } else if !grows {
            self.bad += 1;
        }
        if self.bad >= if self.pause == 0 { BAD_EPOCHS } else { BAD_AGAIN } {
            self.pause();
        }
        (self.edges, self.elided, self.received, self.receives, self.fresh) = (0, 0, 0, 0, fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One epoch of receives of 64 KiB with so many edges moved, all of them copied once.
    fn epoch(l: &mut Ledger, edges: u64, fresh: u64) {
        for _ in 0..EPOCH {
            assert!(!l.paused());
            (0..edges).for_each(|_| l.edge_moved());
            l.elided(64 << 10);
            l.receive(64 << 10, fresh);
        }
    }

    fn pause(l: &mut Ledger) -> u32 {
        let mut n = 0;
        while l.paused() {
            l.pass();
            n += 1;
        }
        n
    }

    #[test]
    fn a_process_that_loses_pauses_longer_each_time() {
        let mut l = Ledger::default();
        (0..BAD_EPOCHS).for_each(|_| epoch(&mut l, 1, 0));
        let mut want = PAUSE_MIN;
        for _ in 0..4 {
            assert_eq!(pause(&mut l), want);
            (0..BAD_AGAIN).for_each(|_| epoch(&mut l, 1, 0));
            want = (want * 8).min(PAUSE_MAX);
        }
        assert_eq!(want, PAUSE_MAX);
    }

    #[test]
    fn growth_and_single_bad_epochs_do_not_count() {
        let mut l = Ledger::default();
        (1..300).for_each(|n| epoch(&mut l, 5, n * u64::from(EPOCH) * 16));
        let fresh = 299 * u64::from(EPOCH) * 16;
        for _ in 0..10 {
            (1..BAD_EPOCHS).for_each(|_| epoch(&mut l, 5, fresh));
            epoch(&mut l, 0, fresh);
        }
        assert!(!l.paused());
    }

    /// Messages of so many bytes, each received, copied so many times and sent.
    fn messages(l: &mut Ledger, n: u32, bytes: u64, copies: u64) {
        for _ in 0..n {
            l.operation();
            for _ in 0..copies {
                l.operation();
                l.elided(bytes);
            }
            l.operation();
        }
    }

    /// Messages of 256 KiB in pieces, with so many calls each: as redis-benchmark's SETs.
    #[test]
    fn page_table_calls_must_pay() {
        for (calls, fresh, pays) in [(0, 0, true), (1, 0, false), (1, 1, true)] {
            let mut l = Ledger::default();
            for n in 0..u64::from(OPERATIONS * BAD_LOOKS).div_ceil(3) {
                (0..calls).for_each(|_| l.page_table_call());
                l.receive(256 << 10, n * 64 * fresh);
                (0..3).for_each(|_| l.operation());
                l.elided(120 << 10);
            }
            assert_eq!(l.paused(), !pays, "{calls} calls, {fresh}");
        }
    }

    #[test]
    fn operations_must_pay() {
        for (bytes, copies, pays) in [
            (64 << 10, 1, false),
            (48 << 10, 2, false),
            (256 << 10, 1, true),
            (64 << 10, 5, true),
            (512 << 10, 0, false),
        ] {
            let mut l = Ledger::default();
            messages(&mut l, OPERATIONS * BAD_LOOKS, bytes, copies);
            assert_eq!(l.paused(), !pays, "{copies} copies of {bytes} bytes");
        }
        // What costs four times what it avoids pauses four times as soon.
        let mut l = Ledger::default();
        messages(&mut l, OPERATIONS * (BAD_LOOKS / 4 - 1) / 3, 16 << 10, 1);
        assert!(!l.paused());
        messages(&mut l, OPERATIONS, 16 << 10, 1);
        assert!(l.paused());
        // A burst is not enough.
        let mut l = Ledger::default();
        for _ in 0..100 {
            messages(&mut l, OPERATIONS * (BAD_LOOKS - 2) / 3, 64 << 10, 1);
            messages(&mut l, OPERATIONS, 1 << 20, 1);
            assert!(!l.paused());
        }
    }
}
