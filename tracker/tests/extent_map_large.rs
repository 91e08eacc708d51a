//! The extent map at 10^5 extents against `rangemap`, and its shape at 10^6. `ZIO_SEED` repeats a run,
//! `ZIO_OPS` sets its length.

use rangemap::RangeMap;
use zio_tracker::extent_map::{Extent, ExtentMap};

mod extent_map_common;
use extent_map_common::{NODE, Region, Rng, env, rng};

/// A map and `rangemap`, whose value is what equal names share: core minus start, and the site.
struct Big {
    map: ExtentMap,
    oracle: RangeMap<u64, (u64, u16)>,
    _region: Region,
}

impl Big {
    fn new(nodes: usize) -> Big {
        let region = Region::new(nodes * NODE);
        Big { map: region.map(nodes * NODE), oracle: RangeMap::new(), _region: region }
    }

    fn expect(&self, from: u64, to: u64) -> Vec<Extent> {
        let clip = |(r, &(delta, site)): (&std::ops::Range<u64>, &(u64, u16))| {
            let (start, end) = (r.start.max(from), r.end.min(to));
            Extent { start, len: end - start, core: start.wrapping_add(delta), site }
        };
        self.oracle.overlapping(&(from..to)).map(clip).collect()
    }

    fn replace(&mut self, e: Extent) {
        let expect = self.expect(e.start, e.end());
        let mut went = Vec::new();
        self.map.replace(e, |d| went.push(d)).unwrap();
        assert_eq!(went, expect);
        self.oracle.insert(e.start..e.end(), (e.core.wrapping_sub(e.start), e.site));
    }

    fn erase(&mut self, from: u64, to: u64) {
        let expect = self.expect(from, to);
        let mut went = Vec::new();
        self.map.erase(from, to, |d| went.push(d)).unwrap();
        assert_eq!(went, expect);
        self.oracle.remove(from..to);
    }

    fn verify(&self) {
        let mut got = Vec::new();
        self.map.for_each_in(0, 1 << 47, |e| got.push(e));
        assert!(got == self.expect(0, 1 << 47), "the maps differ");
        self.map.check();
    }
}

#[test]
fn a_large_map_matches_rangemap() {
    let mut rng = rng(3);
    let mut big = Big::new(60_000);
    // Slots of 1 MiB, 2^18 of them, so that most fill up; lengths of zio's typical messages, and long ones.
    let place = |rng: &mut Rng| (1 << 40) + (rng.below(1 << 18) << 20) + rng.below(64);
    let ops = env("ZIO_OPS", 1_200_000) / 3;
    let mut most = 0;
    for i in 0..ops {
        let start = place(&mut rng);
        let long = rng.coin(2000);
        let len = if long { 1 + rng.below(1 << 27) } else { 1 + rng.below(900 << 10) };
        let core = rng.below(1 << 47);
        match rng.below(16) {
            0 => big.erase(start, start + len),
            1 => {
                let found = big.map.next_from(start);
                assert_eq!(found.filter(|e| e.start <= start), big.map.find(start));
                assert_eq!(big.map.find(start).is_some(), big.oracle.contains_key(&start));
                if let Some(e) = found {
                    // A rename of a part, and an overlapping move by a header.
                    big.replace(Extent { start: start + 4096, len: e.len, core: e.core, site: e.site });
                    big.replace(Extent { start: e.start, len: e.len, core, site: 9 });
                }
            }
            _ => big.replace(Extent { start, len, core, site: 7 }),
        }
        most = most.max(big.map.len());
        if i % 50_000 == 0 {
            big.verify();
        }
    }
    big.verify();
    assert!(ops < 400_000 || most > 100_000, "only {most} extents");
    big.erase(0, 1 << 47);
    assert!(big.map.is_empty() && big.map.nodes() <= 1);
}

/// Levels that a tree of `extents` has if all nodes are half full, leaves and root included.
fn levels_half_full(extents: usize) -> usize {
    let (mut nodes, mut levels) = (extents / 15 + 1, 1);
    while nodes > 1 {
        nodes = nodes.div_ceil(32);
        levels += 1;
    }
    levels
}

#[test]
fn a_million_extents_stay_shallow() {
    const N: u64 = 1 << 20;
    let spread = |i: u64| (i.wrapping_mul(0x9e37_79b1) % N) << 16;
    let same = |i: u64| i << 16;
    for (place, nodes_per_extent) in [(&spread as &dyn Fn(u64) -> u64, 1.0 / 15.0), (&same, 1.0 / 29.0)] {
        let region = Region::new(90_000 * NODE);
        let mut map = region.map(90_000 * NODE);
        for i in 0..N {
            map.insert(Extent { start: place(i), len: 40_000, core: i << 20, site: 1 }).unwrap();
        }
        map.check();
        assert_eq!(map.len() as u64, N);
        assert!(map.height() <= levels_half_full(map.len()), "height {}", map.height());
        let bound = (N as f64 * nodes_per_extent) as usize;
        assert!(map.nodes() <= bound, "{} nodes, more than {bound}", map.nodes());

        // A random nine tenths of the values are deleted: the nodes go too.
        let mut rng = rng(4);
        for i in 0..N {
            if !rng.coin(10) {
                map.erase(i << 16, (i + 1) << 16, |_| ()).unwrap();
            }
        }
        map.check();
        assert!(map.nodes() <= map.len() / 5, "{} nodes for {} extents", map.nodes(), map.len());
        assert!(map.height() <= levels_half_full(N as usize));
    }
}

#[test]
fn churn_does_not_grow_the_tree() {
    let region = Region::new(3000 * NODE);
    let mut map = region.map(3000 * NODE);
    // A window of 10^4 extents moves through the address space, as an allocator's fresh chunks do.
    for i in 0..400_000u64 {
        map.insert(Extent { start: i << 16, len: 50_000, core: i << 4, site: 0 }).unwrap();
        if i >= 10_000 {
            let old = (i - 10_000) ^ 5;
            map.erase(old << 16, (old + 1) << 16, |_| ()).unwrap();
        }
    }
    map.check();
    assert!(map.height() <= 4 && map.nodes() < map.len() / 5, "{} levels, {} nodes", map.height(), map.nodes());
}

#[test]
fn a_promise_of_many_operations_holds() {
    const OPS: usize = 1000;
    let mut rng = rng(6);
    for nodes in [2300, 3000, 5000] {
        let region = Region::new(nodes * NODE);
        let mut map = region.map(nodes * NODE);
        let whole = Extent { start: 0, len: 1 << 40, core: 0, site: 0 };
        map.insert(whole).unwrap();
        let mut rounds = 0;
        while map.has_room(OPS) {
            // All of it in one place, then another: the same nodes split again and again.
            let (place, spread) = (rng.below(1 << 39), 1 << (16 + rng.below(24)));
            for _ in 0..OPS {
                let start = place + rng.below(spread);
                map.erase(start, start + 1, |_| ()).unwrap();
            }
            map.check();
            rounds += 1;
        }
        assert!(rounds > 0, "no room in {nodes} nodes");
    }
}
