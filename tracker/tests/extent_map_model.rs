//! The extent map against one cell per unit of a small address space, also with too little memory.
//! `ZIO_SEED` repeats a run, `ZIO_OPS` sets its length.

use std::ops::ControlFlow;

use proptest::prelude::*;
use zio_tracker::extent_map::{Extent, ExtentMap, MapFull};

mod extent_map_common;
use extent_map_common::{NODE, Region, Rng, env, rng};

const CELLS: usize = 4096;

/// One operation, in cells.
#[derive(Clone, Debug)]
enum Op {
    Insert {
        at: usize,
        len: usize,
        core: u64,
        site: u16,
    },
    Replace {
        at: usize,
        len: usize,
        core: u64,
        site: u16,
    },
    /// Name the range as the existing extent at or after it has it, with another core.
    Overwrite {
        at: usize,
        core: u64,
        site: u16,
    },
    Erase {
        at: usize,
        len: usize,
    },
    Query {
        at: usize,
        len: usize,
    },
}

type Cell = Option<(u64, u16)>;

/// A map and a model of it: cell `i` is the program bytes `[base + i * scale, base + (i + 1) * scale)`.
struct Rig {
    map: ExtentMap,
    cells: Vec<Cell>,
    base: u64,
    scale: u64,
    /// Operations that `has_room` promised.
    promised: usize,
    full: usize,
    _region: Region,
}

impl Rig {
    fn new(nodes: usize, base: u64, scale: u64) -> Rig {
        let region = Region::new(nodes * NODE);
        let map = region.map(nodes * NODE);
        Rig { map, cells: vec![None; CELLS], base, scale, promised: 0, full: 0, _region: region }
    }

    fn addr(&self, cell: usize) -> u64 {
        self.base + cell as u64 * self.scale
    }

    fn extent(&self, at: usize, len: usize, core: u64, site: u16) -> Extent {
        Extent { start: self.addr(at), len: len as u64 * self.scale, core: core * self.scale, site }
    }

    /// The maximal runs of the model in cells `[from, to)`, each only as far as the range goes.
    fn runs(&self, from: usize, to: usize) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        let mut last: Cell = None;
        for i in from..to {
            if let Some((core, site)) = self.cells[i] {
                match runs.last_mut() {
                    Some(run) if last.map(|(c, s)| (c + 1, s)) == self.cells[i] => run.len += self.scale,
                    _ => runs.push(self.extent(i, 1, core, site)),
                }
            }
            last = self.cells[i];
        }
        runs
    }

    /// Whether cells `i - 1` and `i` belong to one extent.
    fn joined(&self, i: usize) -> bool {
        i > 0 && i < CELLS && {
            let next = self.cells[i - 1].map(|(core, site)| (core + 1, site));
            next.is_some() && next == self.cells[i]
        }
    }

    /// The whole extent around a named cell.
    fn around(&self, cell: usize) -> Extent {
        let (mut from, mut to) = (cell, cell + 1);
        while self.joined(from) {
            from -= 1;
        }
        while self.joined(to) {
            to += 1;
        }
        let (core, site) = self.cells[from].unwrap();
        self.extent(from, to - from, core, site)
    }

    fn set(&mut self, at: usize, len: usize, name: Cell) {
        for i in 0..len {
            self.cells[at + i] = name.map(|(core, site)| (core + i as u64, site));
        }
    }

    fn finish(&mut self, result: Result<(), MapFull>, went: &[Extent], expect: &[Extent]) -> bool {
        match result {
            Ok(()) => assert_eq!(went, expect, "what was dropped"),
            Err(MapFull) => {
                assert_eq!(self.promised, 0, "has_room broke its promise");
                assert!(went.is_empty(), "dropped something, then failed");
                self.full += 1;
                self.verify();
            }
        }
        self.promised = self.promised.saturating_sub(1);
        result.is_ok()
    }

    fn step(&mut self, op: &Op) {
        let mut went = Vec::new();
        match *op {
            Op::Insert { at, len, core, site } => {
                if self.cells[at..at + len].iter().any(Option::is_some) {
                    return;
                }
                let result = self.map.insert(self.extent(at, len, core, site));
                if self.finish(result, &[], &[]) {
                    self.set(at, len, Some((core, site)));
                }
            }
            Op::Replace { at, len, core, site } => {
                let expect = self.runs(at, at + len);
                let result = self.map.replace(self.extent(at, len, core, site), |e| went.push(e));
                if self.finish(result, &went, &expect) {
                    self.set(at, len, Some((core, site)));
                }
            }
            Op::Overwrite { at, core, site } => {
                let Some(cell) = (at..CELLS).find(|&i| self.cells[i].is_some()) else {
                    return;
                };
                let old = self.around(cell);
                let at = ((old.start - self.base) / self.scale) as usize;
                let len = (old.len / self.scale) as usize;
                self.step(&Op::Replace { at, len, core, site });
            }
            Op::Erase { at, len } => {
                let expect = self.runs(at, at + len);
                let inside = self.joined(at) && self.joined(at + len) && expect.len() == 1;
                let result = self.map.erase(self.addr(at), self.addr(at + len), |e| went.push(e));
                assert!(result.is_ok() || inside, "only a split can need a node");
                if self.finish(result, &went, &expect) {
                    self.set(at, len, None);
                }
            }
            Op::Query { at, len } => self.query(at, len),
        }
    }

    fn query(&self, at: usize, len: usize) {
        let (from, to) = (self.addr(at), self.addr(at + len));
        let probe = from + self.scale / 2;
        let next = (at..CELLS).find(|&i| self.cells[i].is_some()).map(|i| self.around(i));
        assert_eq!(self.map.next_from(probe), next, "next_from");
        assert_eq!(self.map.find(probe), next.filter(|e| e.start <= probe), "find");
        let expect = self.runs(at, at + len);
        assert_eq!(self.map.any_in(from, to), !expect.is_empty(), "any_in");
        let mut got = Vec::new();
        self.map.for_each_in(from, to, |e| got.push(e));
        assert_eq!(got, expect, "for_each_in");
        let mut left = expect.len() / 2;
        let stopped = self.map.try_for_each_in(from, to, |e| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(e) } else { ControlFlow::Continue(()) }
        });
        let at = (expect.len() / 2).max(1) - 1;
        assert_eq!(stopped.break_value(), expect.get(at).copied(), "try_for_each_in");
    }

    /// Compares everything.
    fn verify(&self) {
        let mut got = Vec::new();
        self.map.for_each_in(0, u64::MAX, |e| got.push(e));
        let expect = self.runs(0, CELLS);
        if let Some(i) = got.iter().zip(&expect).position(|(a, b)| a != b) {
            panic!("extent {i} is {:?}, should be {:?}", got[i], expect[i]);
        }
        assert_eq!(got.len(), expect.len(), "extents found");
        assert_eq!(self.map.len(), got.len(), "extents counted");
        assert_eq!(self.map.is_empty(), got.is_empty());
    }
}

/// How a stretch of random operations behaves: the longest range, and the weights of what it does.
#[derive(Clone, Copy)]
struct Regime {
    longest: u64,
    cores: u64,
    erase: u64,
    replace: u64,
    insert: u64,
}

const REGIMES: [Regime; 5] = [
    // Single cells: thousands of extents, splits at all levels.
    Regime { longest: 1, cores: 1 << 14, erase: 1, replace: 4, insert: 4 },
    // The same going away: merges.
    Regime { longest: 3, cores: 1 << 14, erase: 8, replace: 1, insert: 1 },
    // Few names: neighbours join.
    Regime { longest: 4, cores: 2, erase: 2, replace: 4, insert: 6 },
    Regime { longest: 64, cores: 8, erase: 2, replace: 5, insert: 2 },
    // Long ranges: many extents go at once.
    Regime { longest: 2000, cores: 1 << 14, erase: 1, replace: 2, insert: 1 },
];

impl Regime {
    fn op(&self, rng: &mut Rng) -> Op {
        let len = 1 + rng.below(self.longest) as usize;
        let at = rng.below((CELLS - len + 1) as u64) as usize;
        let site = rng.below(2) as u16 * 0xffff;
        // With few names, a core that follows the address makes neighbours contiguous.
        let core = rng.below(self.cores) * 8192 % 16384 + if self.cores < 16 { at as u64 } else { rng.below(8000) };
        let mut dice = rng.below(self.erase + self.replace + self.insert + 3);
        for (weight, op) in [
            (self.erase, Op::Erase { at, len }),
            (self.replace, Op::Replace { at, len, core, site }),
            (self.insert, Op::Insert { at, len, core, site }),
            (1, Op::Overwrite { at, core, site }),
        ] {
            if dice < weight {
                return op;
            }
            dice -= weight;
        }
        Op::Query { at, len: len.min(200) }
    }
}

fn drive(rig: &mut Rig, rng: &mut Rng, ops: u64) {
    let mut regime = REGIMES[0];
    for i in 0..ops {
        if i % 4096 == 0 || rng.coin(2048) {
            regime = REGIMES[rng.below(REGIMES.len() as u64) as usize];
        }
        if rng.coin(16) {
            let ops = 1 << rng.below(8);
            if rig.map.has_room(ops) {
                rig.promised = rig.promised.max(ops);
            }
        }
        let op = regime.op(rng);
        rig.step(&op);
        if i % 256 == 0 {
            rig.map.check();
            rig.verify();
        }
    }
    rig.step(&Op::Erase { at: 0, len: CELLS });
    rig.map.check();
    assert!(rig.map.is_empty() && rig.map.height() <= 1 && rig.map.nodes() <= 1);
}

#[test]
fn random_operations_match_the_cell_model() {
    let mut rng = rng(1);
    let ops = env("ZIO_OPS", 1_200_000);
    // Bytes, and units of 8 GiB: extents beyond 32 bits, addresses up to 2^47, cores up to 2^48.
    for (base, scale) in [(0, 1), (0x7fff_f7ff_0000, 1), (1 << 46, 8 << 30)] {
        let mut rig = Rig::new(4096, base, scale);
        drive(&mut rig, &mut rng, ops / 3);
        assert_eq!(rig.full, 0);
    }
}

#[test]
fn a_full_map_changes_nothing() {
    let mut rng = rng(2);
    let ops = env("ZIO_OPS", 1_200_000);
    let mut full = 0;
    for nodes in [0, 1, 2, 3, 4, 7, 12, 20, 40, 70, 100] {
        let mut rig = Rig::new(nodes, 1 << 20, 1 + nodes as u64);
        drive(&mut rig, &mut rng, ops / 40);
        full += rig.full;
    }
    assert!(full > 1000, "the regions were not small enough: {full}");
}

#[test]
fn unrepresentable_extents_are_refused() {
    let mut rig = Rig::new(64, 0, 1);
    for (start, len, core) in
        [(4096, 2, (1 << 48) - 1), (u64::MAX - 4, 8, 0), (u64::MAX - 4, 4, 0), (4096, 1, u64::MAX)]
    {
        let e = Extent { start, len, core, site: 0 };
        assert_eq!(rig.map.insert(e), Err(MapFull));
        assert_eq!(rig.map.replace(e, |_| panic!("nothing to drop")), Err(MapFull));
    }
    let empty = Extent { start: 4096, len: 0, core: 0, site: 0 };
    assert_eq!(rig.map.insert(empty), Ok(()));
    assert_eq!(rig.map.replace(empty, |_| panic!("nothing to drop")), Ok(()));
    assert_eq!(rig.map.erase(u64::MAX - 1, u64::MAX, |_| panic!("nothing to drop")), Ok(()));
    assert!(rig.map.is_empty());
    let last = Extent { start: (1 << 47) - 8, len: 8, core: (1 << 48) - 8, site: u16::MAX };
    rig.map.insert(last).unwrap();
    assert_eq!(rig.map.find((1 << 47) - 1), Some(last));
    assert_eq!(rig.map.find(1 << 47), None);
    assert_eq!(rig.map.next_from(u64::MAX), None);
    assert_eq!(ExtentMap::empty().insert(last), Err(MapFull));
}

fn op() -> impl Strategy<Value = Op> {
    // A few positions and names, so that short sequences meet.
    let name = || (0..4u64, 0..2u16);
    let range = || (0..300usize, prop_oneof![4 => 1..3usize, 1 => 1..200usize]);
    prop_oneof![
        6 => (range(), name()).prop_map(|((at, len), (c, site))| {
            Op::Insert { at, len, core: c * 1000 + at as u64, site }
        }),
        4 => (range(), name()).prop_map(|((at, len), (c, site))| {
            Op::Replace { at, len, core: c * 1000 + at as u64, site }
        }),
        1 => (0..500usize, name()).prop_map(|(at, (core, site))| Op::Overwrite { at, core, site }),
        3 => range().prop_map(|(at, len)| Op::Erase { at, len }),
        1 => range().prop_map(|(at, len)| Op::Query { at, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_sequences_match_the_cell_model(
        ops in prop::collection::vec(op(), 1..400),
        nodes in prop_oneof![2 => Just(200usize), 1 => 1..12usize],
    ) {
        let mut rig = Rig::new(nodes, 1 << 32, 3);
        for op in &ops {
            rig.step(op);
            rig.map.check();
        }
        rig.verify();
        rig.query(0, CELLS);
    }
}
