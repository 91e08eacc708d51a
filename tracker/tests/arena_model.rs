//! The core arena against a naive model that keeps one record per page; single promises are in `cases`.
//!
//! `ZIO_SEED` and `ZIO_OPS` override the random test's seed and number of operations.

#[path = "arena_model/cases.rs"]
mod cases;

use zio_tracker::arena::{Arena, PAGE, PageMeta, Run};

/// An arena and the table it uses. A `Vec`, as a box would claim to be the only way to its content.
struct Fixture {
    arena: Arena,
    _meta: Vec<PageMeta>,
}

fn arena(pages: u32, cap_pages: u64) -> Fixture {
    let mut meta = vec![PageMeta::default(); pages as usize];
    // SAFETY: `pages` zeroed entries that only the arena uses; the fixture keeps them as long as the arena,
    // and never makes the vector grow.
    let arena = unsafe { Arena::new(meta.as_mut_ptr(), pages, cap_pages * PAGE) };
    Fixture { arena, _meta: meta }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Uniform in `[0, n)`; 0 for n = 0.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Virgin,
    Clean,
    Dirty,
    InUse,
}

#[derive(Clone, Copy)]
struct Page {
    state: State,
    named: u64,
    pins: u64,
}

/// Page 0 is in use and never touched.
struct Model {
    pages: Vec<Page>,
    cap: u64,
}

impl Model {
    fn new(pages: u32, cap: u64) -> Self {
        let mut pages = vec![Page { state: State::Virgin, named: 0, pins: 0 }; pages as usize];
        pages[0].state = State::InUse;
        Model { pages, cap }
    }

    fn count(&self, state: State) -> u64 {
        self.pages[1..].iter().filter(|p| p.state == state).count() as u64
    }

    fn held(&self) -> u64 {
        self.count(State::InUse) + self.count(State::Dirty)
    }

    fn named(&self) -> u64 {
        self.pages.iter().map(|p| p.named.min(PAGE)).sum()
    }

    /// Longest stretches of pages in one state.
    fn stretches(&self, state: State) -> Vec<Run> {
        let mut found: Vec<Run> = Vec::new();
        for page in 1..self.pages.len() as u32 {
            if self.pages[page as usize].state != state {
                continue;
            }
            match found.last_mut() {
                Some(run) if run.page + run.pages == page => run.pages += 1,
                _ => found.push(Run { page, pages: 1 }),
            }
        }
        found
    }

    /// Applies `f(page, bytes of the range in it)` and frees what became unused as `freed`.
    fn update(&mut self, core: u64, len: u64, freed: State, f: impl Fn(&mut Page, u64)) {
        if len == 0 {
            return;
        }
        let first = (core / PAGE).max(1);
        for (at, page) in self.pages.iter_mut().enumerate().skip(first as usize) {
            let (start, end) = (at as u64 * PAGE, (at as u64 + 1) * PAGE);
            if start >= core + len {
                break;
            }
            let bytes = end.min(core + len) - start.max(core);
            assert_eq!(page.state, State::InUse);
            f(page, bytes);
            if page.named == 0 && page.pins == 0 {
                page.state = freed;
            }
        }
    }

    /// Checks what `alloc(want)` answered against the order it promises, then applies it.
    fn allocated(&mut self, want: u32, got: Option<Run>) {
        let tiny = want.min(4);
        let room = (self.cap - self.held()).min(u64::from(want)) as u32;
        let (dirty, clean) = (self.stretches(State::Dirty), self.stretches(State::Clean));
        let virgin = self.stretches(State::Virgin);
        assert!(virgin.len() <= 1);
        let longest = |runs: &[Run]| runs.iter().map(|r| r.pages).max().unwrap_or(0);
        // A run of the same size as the wish, but longer, may be overlooked; one that is longer by a quarter not.
        let sure = |runs: &[Run]| want > 0 && longest(runs) >= want + want.div_ceil(4);
        let maybe = |runs: &[Run]| want > 0 && longest(runs) >= want;
        let state = got.map(|run| self.pages[run.page as usize].state);
        let fits = |state_of, runs: &[Run]| sure(runs) || state == Some(state_of) && maybe(runs);
        let spare = self.count(State::Dirty) < self.named() / PAGE / 32 && room == want;
        // Among the longest the newest is taken, whose size is the same.
        let listed = |runs: &[Run]| (longest(runs) * 4 / 5).max(tiny).min(longest(runs));
        let least = |runs: &[Run]| if sure(runs) { want } else { listed(runs).min(want) };
        let (candidates, least, most) = if fits(State::Dirty, &dirty) {
            (dirty.clone(), least(&dirty), want)
        } else if spare && fits(State::Clean, &clean) {
            (clean.clone(), least(&clean), want)
        } else if spare && virgin.first().is_some_and(|r| r.pages > 0) {
            (virgin, 1, want)
        } else if longest(&dirty) >= tiny {
            (dirty.clone(), least(&dirty), want)
        } else if room > 0 && longest(&clean) >= tiny {
            (clean.clone(), least(&clean), room)
        } else if room > 0 && !virgin.is_empty() {
            (virgin, 1, room)
        } else if !dirty.is_empty() {
            (dirty.clone(), longest(&dirty), want)
        } else if room > 0 && !clean.is_empty() {
            (clean.clone(), longest(&clean), room)
        } else {
            assert_eq!(got, None, "nothing to hand out for {want}");
            return;
        };
        let run = got.expect("there are pages to hand out");
        let end = run.page + run.pages;
        let whole = candidates
            .iter()
            .find(|r| r.page <= run.page && end <= r.page + r.pages)
            .unwrap_or_else(|| panic!("{run:?} is not within one of {candidates:?}"));
        assert!(whole.pages >= least, "{run:?} from a tiny run {whole:?} for {want}");
        assert_eq!(run.pages, most.min(whole.pages));
        assert!(run.page == whole.page || end == whole.page + whole.pages, "{run:?} in {whole:?}");
        self.take(run);
    }

    fn take(&mut self, run: Run) {
        for page in &mut self.pages[run.page as usize..(run.page + run.pages) as usize] {
            assert_eq!((page.named, page.pins), (0, 0), "handed out while in use");
            *page = Page { state: State::InUse, named: 0, pins: 1 };
        }
    }

    fn compare(&self, arena: &Arena) {
        for (at, page) in self.pages.iter().enumerate().skip(1) {
            assert_eq!(u64::from(arena.page_named(at as u32)), page.named, "named, page {at}");
            assert_eq!(u64::from(arena.page_pins(at as u32)), page.pins, "pins, page {at}");
        }
        assert_eq!(arena.held_bytes(), self.held() * PAGE);
        assert_eq!(arena.named_bytes(), self.named());
        assert_eq!(arena.dirty_free_bytes(), self.count(State::Dirty) * PAGE);
        assert!(arena.held_bytes() <= self.cap * PAGE);
        assert_eq!(arena.misuses(), 0);
    }
}

/// What a program holds: everything in here must be given back exactly once.
#[derive(Default)]
struct Holds {
    runs: Vec<Run>,
    purging: Vec<Run>,
    names: Vec<(u64, u64)>,
    pins: Vec<(u64, u64)>,
}

struct Round<'a> {
    rng: &'a mut Rng,
    fixture: Fixture,
    model: Model,
    holds: Holds,
}

impl Round<'_> {
    fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
        from.get(rng.below(from.len() as u64) as usize).copied()
    }

    /// Part of a range that is in use, mostly not at page borders; sometimes all of it.
    fn part(rng: &mut Rng, (core, len): (u64, u64)) -> (u64, u64) {
        if len == 0 || rng.below(4) == 0 {
            return (core, len);
        }
        let skip = rng.below(len);
        (core + skip, rng.below(len - skip + 1))
    }

    fn in_use(&mut self) -> Option<(u64, u64)> {
        match self.rng.below(8) {
            // The ZERO page, on its own and with its neighbour.
            0 => {
                let beyond = self.model.pages.get(1).is_some_and(|p| p.state == State::InUse);
                Some((0, if beyond { 2 * PAGE } else { PAGE }))
            }
            1..5 => Self::pick(self.rng, &self.holds.runs).map(|r| (r.core(), r.bytes())),
            _ => Self::pick(self.rng, &self.holds.names),
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..20 => self.alloc(),
            20..45 => self.name(),
            45..68 => self.unname(),
            68..74 => {
                let Some(range) = self.in_use() else { return };
                let (core, len) = Self::part(self.rng, range);
                assert!(self.fixture.arena.pin(core, len));
                self.model.update(core, len, State::InUse, |p, _| p.pins += 1);
                self.holds.pins.push((core, len));
            }
            74..80 => self.unpin(),
            80..92 => self.unpin_run(),
            92..96 => {
                let max = self.rng.below(12) as u32;
                let got = self.fixture.arena.take_purge(max);
                assert_eq!(got.is_some(), max > 0 && self.model.count(State::Dirty) > 0);
                let Some(run) = got else { return };
                assert!(run.pages <= max);
                let pages = &self.model.pages[run.page as usize..][..run.pages as usize];
                assert!(pages.iter().all(|p| p.state == State::Dirty));
                self.model.take(run);
                self.holds.purging.push(run);
            }
            _ => self.purged(),
        }
    }

    fn alloc(&mut self) {
        let want = if self.rng.below(2) == 0 { self.rng.below(6) } else { self.rng.below(40) } as u32;
        let got = self.fixture.arena.alloc(want);
        if want == 0 {
            assert_eq!(got, None);
            return;
        }
        self.model.allocated(want, got);
        self.holds.runs.extend(got);
    }

    fn name(&mut self) {
        let Some(range) = self.in_use() else { return };
        let (core, len) = Self::part(self.rng, range);
        assert!(self.fixture.arena.name(core, len));
        self.model.update(core, len, State::InUse, |p, bytes| p.named += bytes);
        self.holds.names.push((core, len));
    }

    fn unname(&mut self) {
        if self.holds.names.is_empty() {
            return;
        }
        let at = self.rng.below(self.holds.names.len() as u64) as usize;
        let (core, len) = self.holds.names.swap_remove(at);
        let (from, bytes) = Self::part(self.rng, (core, len));
        // As when the middle of an extent is dropped: its two remains stay named.
        let remains = [(core, from - core), (from + bytes, core + len - from - bytes)];
        self.holds.names.extend(remains.into_iter().filter(|r| r.1 > 0));
        self.fixture.arena.unname(from, bytes);
        self.model.update(from, bytes, State::Dirty, |p, bytes| p.named -= bytes);
    }

    fn unpin(&mut self) {
        if self.holds.pins.is_empty() {
            return;
        }
        let at = self.rng.below(self.holds.pins.len() as u64) as usize;
        let (core, len) = self.holds.pins.swap_remove(at);
        self.fixture.arena.unpin(core, len);
        self.model.update(core, len, State::Dirty, |p, _| p.pins -= 1);
    }

    fn unpin_run(&mut self) {
        if self.holds.runs.is_empty() {
            return;
        }
        let at = self.rng.below(self.holds.runs.len() as u64) as usize;
        let mut run = self.holds.runs.swap_remove(at);
        if run.pages > 1 && self.rng.below(4) == 0 {
            let keep = 1 + self.rng.below(u64::from(run.pages) - 1) as u32;
            self.holds.runs.push(Run { page: run.page, pages: keep });
            run = Run { page: run.page + keep, pages: run.pages - keep };
        }
        self.fixture.arena.unpin_run(run);
        self.model.update(run.core(), run.bytes(), State::Dirty, |p, _| p.pins -= 1);
    }

    fn purged(&mut self) {
        let Some(run) = self.holds.purging.pop() else {
            return;
        };
        let ok = self.rng.below(4) != 0;
        self.fixture.arena.purged(run, ok);
        let freed = if ok { State::Clean } else { State::Dirty };
        self.model.update(run.core(), run.bytes(), freed, |p, _| p.pins -= 1);
    }

    /// Gives everything back; nothing may stay in use.
    fn finish(mut self) {
        while !self.holds.purging.is_empty() {
            self.purged();
        }
        while !self.holds.runs.is_empty() {
            self.unpin_run();
        }
        while !self.holds.pins.is_empty() {
            self.unpin();
        }
        while !self.holds.names.is_empty() {
            self.unname();
        }
        self.model.compare(&self.fixture.arena);
        self.fixture.arena.check();
        assert_eq!(self.model.count(State::InUse), 0);
        assert_eq!(self.fixture.arena.named_bytes(), 0);
        while let Some(run) = self.fixture.arena.take_purge(u32::MAX) {
            self.fixture.arena.purged(run, true);
        }
        self.fixture.arena.check();
        assert_eq!(self.fixture.arena.held_bytes(), 0);
    }
}

#[test]
fn random_operations_against_the_model() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = setting("ZIO_SEED", clock.as_nanos() as u64) | 1;
    let ops = setting("ZIO_OPS", if cfg!(debug_assertions) { 100_000 } else { 4_000_000 });
    println!("ZIO_SEED={seed} ZIO_OPS={ops}");
    let mut rng = Rng(seed);
    let mut done = 0;
    while done < ops {
        let pages = [1, 2, 3, 8, 40, 150, 300][rng.below(7) as usize];
        let cap = rng.below(u64::from(pages) * 5 / 4);
        let mut round =
            Round { rng: &mut rng, fixture: arena(pages, cap), model: Model::new(pages, cap), holds: Holds::default() };
        let steps = 200 + round.rng.below(8000);
        for step in 0..steps {
            round.step();
            round.model.compare(&round.fixture.arena);
            if step % 64 == 0 {
                round.fixture.arena.check();
            }
        }
        round.finish();
        done += steps;
    }
}
