//! One promise of the arena per test: order of reuse, cap, page 0, overflow, misuse.

use std::hint::black_box;
use std::time::Instant;

use zio_tracker::arena::{PAGE, Run};

use super::{Fixture, Rng, arena, setting};

#[test]
fn the_run_freed_last_is_reused_first() {
    let Fixture { mut arena, _meta } = arena(1000, 1000);
    let runs: Vec<Run> = (0..6).map(|_| arena.alloc(16).unwrap()).collect();
    let (a, b) = (runs[1], runs[3]);
    arena.unpin_run(a);
    arena.unpin_run(b);
    assert_eq!(arena.alloc(16), Some(b));
    assert_eq!(arena.alloc(64), Some(a));
    // The same through names, which is how values go.
    for run in [b, a] {
        assert!(arena.name(run.core() + 24, run.bytes() - 24));
        arena.unpin_run(run);
        arena.unname(run.core() + 24, run.bytes() - 24);
    }
    assert_eq!(arena.alloc(16), Some(a));
    assert_eq!(arena.alloc(16), Some(b));
    arena.check();
}

#[test]
fn neighbours_merge_and_the_hot_side_is_reused() {
    let Fixture { mut arena, _meta } = arena(1000, 1000);
    let a = arena.alloc(16).unwrap();
    let b = arena.alloc(16).unwrap();
    arena.alloc(1).unwrap();
    for (cold, hot) in [(a, b), (b, a)] {
        arena.unpin_run(cold);
        arena.unpin_run(hot);
        assert_eq!(arena.alloc(16), Some(hot));
        assert_eq!(arena.alloc(16), Some(cold));
    }
    arena.unpin_run(a);
    arena.unpin_run(b);
    assert_eq!(arena.alloc(40), Some(Run { page: a.page, pages: 32 }));
    arena.check();
}

#[test]
fn purging_takes_the_oldest_of_the_longest_runs_and_its_cold_side() {
    let Fixture { mut arena, _meta } = arena(1000, 1000);
    let runs: Vec<Run> = (0..6).map(|_| arena.alloc(16).unwrap()).collect();
    for i in [4, 0, 2] {
        arena.unpin_run(runs[i]);
    }
    let part = arena.take_purge(10).unwrap();
    assert_eq!(part.pages, 10);
    assert!(part.page >= runs[4].page && part.page < runs[4].page + 16);
    // The rest is shorter than the others, and the closest fit for a wish of its size.
    let rest = arena.alloc(6).unwrap();
    assert_eq!(rest.pages, 6);
    assert!(rest.page >= runs[4].page && rest.page < runs[4].page + 16);
    let second = arena.take_purge(64).unwrap();
    assert_eq!(second, runs[0]);
    assert_eq!(arena.held_bytes(), 96 * PAGE);
    arena.purged(second, true);
    assert_eq!(arena.held_bytes(), 80 * PAGE);
    // Dirty before clean before virgin.
    assert_eq!(arena.alloc(16), Some(runs[2]));
    assert_eq!(arena.alloc(16), Some(second));
    assert_eq!(arena.alloc(16).unwrap().page, 97);
    arena.check();
}

#[test]
fn tiny_runs_come_last() {
    let Fixture { mut arena, _meta } = arena(64, 63);
    let run = arena.alloc(8).unwrap();
    let tiny = Run { page: run.page + 2, pages: 3 };
    arena.unpin_run(tiny);
    assert_eq!(arena.alloc(8), Some(Run { page: 9, pages: 8 }));
    // A small wish takes a tiny run at once.
    assert_eq!(arena.alloc(2).unwrap().pages, 2);
    assert_eq!(arena.alloc(100), Some(Run { page: 17, pages: 47 }));
    assert_eq!(arena.alloc(100).unwrap().pages, 1);
    assert_eq!(arena.alloc(1), None);
    arena.check();
}

#[test]
fn a_whole_run_is_preferred_to_parts() {
    let Fixture { mut arena, _meta } = arena(10_000, 10_000);
    let value = arena.alloc(4096).unwrap();
    assert!(arena.name(value.core(), value.bytes()));
    let runs: Vec<Run> = (0..6).map(|_| arena.alloc(16).unwrap()).collect();
    for i in [0, 2, 4] {
        arena.unpin_run(runs[i]);
    }
    // The closest fit: the rest of a shorter run, not a part of a longer one.
    let part = arena.alloc(10).unwrap();
    let rest = arena.alloc(6).unwrap();
    assert!(rest.page + 6 == part.page || part.page + 10 == rest.page);
    // Few pages are free: a virgin run, in one piece. One piece more would be taken from what is free.
    let whole = arena.alloc(32).unwrap();
    assert_eq!((whole.pages, whole.page), (32, 4096 + 6 * 16 + 1));
    assert_eq!(arena.alloc(16).unwrap().pages, 16);
    arena.check();
}

#[test]
fn the_cap_stops_allocation_until_pages_return() {
    let Fixture { mut arena, _meta } = arena(1000, 20);
    let a = arena.alloc(16).unwrap();
    let b = arena.alloc(16).unwrap();
    assert_eq!((a.pages, b.pages), (16, 4));
    assert_eq!(arena.alloc(1), None);
    arena.unpin_run(b);
    assert_eq!(arena.alloc(16), Some(b));
    arena.unpin_run(a);
    let purge = arena.take_purge(6).unwrap();
    arena.purged(purge, true);
    assert_eq!(arena.held_bytes(), 14 * PAGE);
    assert_eq!(arena.alloc(64).unwrap().pages, 10);
    assert_eq!(arena.alloc(64), Some(purge));
    assert_eq!(arena.alloc(64), None);
    arena.check();
}

#[test]
fn pages_freed_in_any_order_become_one_run() {
    let mut rng = Rng(setting("ZIO_SEED", 42) | 1);
    for _ in 0..20 {
        let Fixture { mut arena, _meta } = arena(513, 512);
        let all = arena.alloc(512).unwrap();
        assert_eq!(all, Run { page: 1, pages: 512 });
        let mut order: Vec<u32> = (1..513).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        for page in order {
            arena.unpin_run(Run { page, pages: 1 });
            arena.check();
        }
        assert_eq!(arena.take_purge(1000), Some(all));
        arena.purged(all, true);
        assert_eq!(arena.alloc(512), Some(all));
        arena.check();
    }
}

#[test]
fn the_zero_page_is_neither_counted_nor_freed() {
    let Fixture { mut arena, _meta } = arena(4, 3);
    for _ in 0..3 {
        assert!(arena.name(0, PAGE));
        assert!(arena.name(100, 8));
        assert!(arena.pin(0, PAGE));
        arena.unpin(17, 1);
    }
    arena.unname(0, PAGE);
    arena.unname(0, PAGE);
    assert_eq!((arena.page_named(0), arena.named_bytes(), arena.held_bytes()), (0, 0, 0));
    assert_eq!(arena.alloc(10), Some(Run { page: 1, pages: 3 }));
    assert_eq!(arena.misuses(), 0);
    arena.check();
}

#[test]
fn a_name_count_that_would_overflow_changes_nothing() {
    let Fixture { mut arena, _meta } = arena(8, 7);
    let run = arena.alloc(3).unwrap();
    let middle = run.core() + PAGE;
    for _ in 0..(1 << 19) - 1 {
        assert!(arena.name(middle, PAGE));
    }
    assert!(arena.name(middle, PAGE - 1));
    assert_eq!(arena.page_named(run.page + 1), i32::MAX as u32);
    assert!(!arena.name(middle, 1));
    assert!(!arena.name(run.core() + 7, run.bytes() - 14));
    assert_eq!((arena.page_named(run.page), arena.page_named(run.page + 2)), (0, 0));
    assert_eq!(arena.page_pins(run.page + 1), 1);
    assert_eq!(arena.named_bytes(), PAGE);
    arena.check();
    arena.unname(middle, PAGE);
    assert!(arena.name(run.core() + 7, run.bytes() - 14));
    arena.check();
}

/// Runs in which the caller breaks its side: they assert in debug builds, and leak at worst in release builds.
mod misuse {
    use super::{Fixture, PAGE, Run, arena};

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "below zero"))]
    fn unnaming_more_than_was_named_leaks_the_page() {
        let Fixture { mut arena, _meta } = arena(10, 9);
        let run = arena.alloc(4).unwrap();
        assert!(arena.name(run.core(), run.bytes()));
        arena.unname(run.core() + PAGE, 10);
        arena.unname(run.core() + PAGE, PAGE);
        arena.unpin_run(run);
        arena.unname(run.core(), PAGE);
        arena.unname(run.core() + 2 * PAGE, 2 * PAGE);
        arena.check();
        assert_eq!(arena.misuses(), 1);
        assert_eq!(arena.named_bytes(), 0);
        // Pages 1, 3 and 4 came back, page 2 never does.
        assert_eq!(arena.dirty_free_bytes(), 3 * PAGE);
        while let Some(got) = arena.alloc(9) {
            assert!(!(got.page..got.page + got.pages).contains(&(run.page + 1)), "{got:?}");
        }
        assert_eq!(arena.held_bytes(), 9 * PAGE);
        arena.check();
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "below zero"))]
    fn unpinning_twice_leaks_the_page() {
        let Fixture { mut arena, _meta } = arena(10, 9);
        let run = arena.alloc(2).unwrap();
        assert!(arena.name(run.core(), PAGE));
        arena.unpin_run(Run { page: 1, pages: 1 });
        arena.unpin_run(Run { page: 1, pages: 1 });
        arena.unname(run.core(), PAGE);
        arena.unpin_run(Run { page: 2, pages: 1 });
        arena.check();
        assert_eq!((arena.dirty_free_bytes(), arena.held_bytes()), (PAGE, 2 * PAGE));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "arena: "))]
    fn calls_on_free_pages_change_nothing() {
        let Fixture { mut arena, _meta } = arena(20, 19);
        let run = arena.alloc(12).unwrap();
        arena.unpin_run(Run { page: 2, pages: 7 });
        // Border and inner pages of the free run, with pages in use on either side.
        for page in 2..9u32 {
            let core = u64::from(page) * PAGE;
            assert!(!arena.name(core, 1) && !arena.pin(core, 1));
            arena.unname(core, PAGE);
            arena.unpin(core, PAGE);
            arena.check();
        }
        assert!(!arena.name(run.core(), run.bytes()) && !arena.pin(run.core(), run.bytes()));
        assert_eq!(arena.named_bytes(), 0);
        assert_eq!((arena.page_named(1), arena.page_pins(1)), (0, 1));
        arena.unpin_run(run);
        arena.check();
        assert_eq!(arena.dirty_free_bytes(), 12 * PAGE);
        assert_eq!(arena.take_purge(100), Some(run));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "never handed out"))]
    fn ranges_outside_the_arena_change_nothing() {
        let Fixture { mut arena, _meta } = arena(10, 9);
        let run = arena.alloc(2).unwrap();
        for (core, len) in [(PAGE, 3 * PAGE), (9 * PAGE, 1), (u64::MAX, 2), (u64::MAX - 5, 5), (PAGE, u64::MAX)] {
            assert!(!arena.name(core, len) && !arena.pin(core, len));
            arena.unname(core, len);
            arena.unpin(core, len);
        }
        arena.unpin_run(Run { page: u32::MAX, pages: u32::MAX });
        arena.purged(Run { page: 2, pages: u32::MAX }, true);
        arena.check();
        assert_eq!((arena.held_bytes(), arena.page_pins(run.page)), (2 * PAGE, 1));
        assert_eq!(arena.alloc(100), Some(Run { page: 3, pages: 7 }));
    }
}

/// Prints the cost of the hot calls; `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_naming() {
    for pages in [1u32, 16, 64, 128, 512] {
        let Fixture { mut arena, _meta } = arena(4096, 4095);
        let run = arena.alloc(pages).unwrap();
        let (core, len) = (run.core() + 24, run.bytes() - 48);
        let rounds = 100u32;
        let (mut name, mut unname, mut cycle) = ([u128::MAX; 3]).into();
        for _ in 0..2000 {
            name = name.min(nanoseconds(rounds, || assert!(arena.name(black_box(core), len))));
            unname = unname.min(nanoseconds(rounds, || arena.unname(black_box(core), len)));
            cycle = cycle.min(nanoseconds(rounds, || {
                let run = arena.alloc(black_box(pages)).unwrap();
                assert!(arena.name(run.core() + 24, len));
                arena.unpin_run(run);
                arena.unname(run.core() + 24, len);
            }));
        }
        let each = |ns: u128| ns as f64 / f64::from(rounds);
        println!(
            "{pages} pages: name {:.1} ns, unname {:.1} ns, alloc+name+unpin+unname {:.1} ns",
            each(name),
            each(unname),
            each(cycle)
        );
    }
}

fn nanoseconds(rounds: u32, mut f: impl FnMut()) -> u128 {
    let start = Instant::now();
    for _ in 0..rounds {
        f();
    }
    start.elapsed().as_nanos()
}
