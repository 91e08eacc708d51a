//! The tracker over a fake kernel, against a plain byte array: whatever a program does, it reads the bytes that
//! it would read without zio, and no system call meets an armed page.
//!
//! A test runs many worlds of random operations, each with its own seed and shape (mode, sizes, failures, threads
//! that take turns at the tracker's unlocked points). A failure prints the world's seed and its last operations:
//! `ZIO_SEED=<that>` repeats it as the first world of the same test. `ZIO_OPS` sets the number of operations in
//! all, `ZIO_WORLD` those of one world (small: short failing sequences).

#[path = "tracker_model/check.rs"]
mod check;
#[path = "tracker_model/life.rs"]
mod life;
#[path = "tracker_model/ops.rs"]
mod ops;
#[path = "tracker_model/oracle.rs"]
mod oracle;
#[path = "tracker_model/space.rs"]
mod space;
#[path = "tracker_model/world.rs"]
mod world;

use std::collections::BTreeMap;
use world::{Config, Rng, World};
use zio_tracker::state::Arming;
use zio_tracker::stats::{COUNTER_NAMES, Shard};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect(name))
}

/// A world of random shape.
fn shape(seed: u64, arming: Arming, failures: bool) -> Config {
    let r = Rng::new(!seed);
    let arena_pages = [4096, 4096, 4096, 700, 300][r.below(5) as usize];
    Config {
        seed,
        arming,
        threshold: [4096, 4096, 8192, 1][r.below(4) as usize],
        merge: r.coin(2),
        arena_pages,
        cap_pages: if r.coin(4) { 20 + r.below(200) } else { u64::from(arena_pages) },
        map_nodes: [2000, 2000, 2000, 12][r.below(4) as usize],
        failures: if failures { [3, 10, 50, 400][r.below(4) as usize] } else { 0 },
        // The kernel has no reason to refuse that.
        removal_fails: false,
        switches: [0, 4, 16][r.below(3) as usize],
    }
}

/// Prints how to repeat a world that fails.
struct Report<'a>(&'a World);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_log();
            println!("operation {} of a world of {:?}", self.0.ops.get(), self.0.config);
            println!("repeat with ZIO_SEED={}", self.0.config.seed);
        }
    }
}

/// A tracker is a static elsewhere: more than a megabyte, which an unoptimised build moves over the stack.
fn run(name: &'static str, ops: u64, shape: fn(u64) -> Config) {
    let worlds = std::thread::Builder::new().stack_size(64 << 20).spawn(move || worlds(name, ops, shape));
    if let Err(e) = worlds.unwrap().join() {
        std::panic::resume_unwind(e);
    }
}

fn worlds(name: &str, ops: u64, shape: fn(u64) -> Config) {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let first = setting("ZIO_SEED", clock.as_nanos() as u64 >> 8);
    let ops = setting("ZIO_OPS", if cfg!(debug_assertions) { ops / 100 } else { ops });
    let each = setting("ZIO_WORLD", 10_000).min(ops);
    println!("{name}: ZIO_SEED={first} ZIO_OPS={ops} ZIO_WORLD={each}");
    let check_every = setting("ZIO_CHECK", if cfg!(debug_assertions) { 512 } else { 32 });
    let (mut seed, mut done, mut kinds) = (first, 0, BTreeMap::new());
    while done < ops {
        let world = World::new(shape(seed));
        {
            // SAFETY: a fresh world, disposed of below, after the last use of this reference.
            let w = unsafe { &*world };
            let report = Report(w);
            ops::begin(w);
            for _ in 0..each {
                ops::step(w, check_every);
            }
            life::finish(w);
            drop(report);
            for (k, n) in w.done.borrow().iter() {
                *kinds.entry(*k).or_insert(0) += n;
            }
            for (i, k) in COUNTER_NAMES.iter().enumerate() {
                let count = |s: &Shard| s.counters[i].load(std::sync::atomic::Ordering::Relaxed);
                let n: u64 = w.tracker().stats().map_or(0, |p| p.shards.iter().map(count).sum());
                if n > 0 {
                    *kinds.entry(*k).or_insert(0) += n;
                }
            }
        }
        // SAFETY: `w` is gone.
        unsafe { World::dispose(world) };
        done += each;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    println!("{name}: {kinds:?}");
}

#[test]
fn guard_mode() {
    run("guard", 600_000, |seed| shape(seed, Arming::Guard, false));
}

#[test]
fn missing_mode() {
    run("missing", 500_000, |seed| shape(seed, Arming::Missing, false));
}

#[test]
fn guard_mode_with_failures() {
    run("guard, failing", 200_000, |seed| shape(seed, Arming::Guard, true));
}

#[test]
fn missing_mode_with_failures() {
    run("missing, failing", 200_000, |seed| shape(seed, Arming::Missing, true));
}
