//! The tracker: one private [`State`] behind one lock, and the lock-free page state beside it.
//!
//! ```text
//!   program memory                      tracker                               core arena
//!   +--------------------+   map: extent [start,end) -> (core offset, site)   +-----------+
//!   |res|elided |vac|res |  --------------------------------------------->    | page page |
//!   +--------------------+   pages: armed / vacant / hot, one bit each        +-----------+
//! ```
//!
//! - **I1** An elided page is fully covered by extents and armed.
//! - **I2** No extent overlaps a resident page, and none a vacant one.
//! - **I3** Core bytes that an extent names are never written.
//! - **I4** A core page is reused only when nothing names it and nothing pins it (I/O in flight, windows).
//! - **I5** While the lock is held, no program memory is touched (other than resident pages that nobody can
//!   take away meanwhile, see `child.rs` and `heal.rs`), nothing is allocated from the program's allocator, and no call
//!   is made that can wait for another thread. Page-table calls on our own ranges are allowed: they wait for
//!   the kernel only.
//!
//! [`Tracker::check`] verifies I1 and I2 over the whole map; debug builds call it after each test step.
//!
//! Soundness: `State` is reached through [`Tracker::locked`] only, which holds the lock for the closure's whole
//! run and defers program signal handlers on this thread; core memory is reached through [`Tracker::core_ptr`],
//! whose results stay inside the arena reservation.

use crate::addr::{PAGE, Span, page_down};
use crate::arena::{Arena, PageMeta, Run};
use crate::child::ChildPages;
use crate::extent_map::{Extent, ExtentMap};
use crate::ledger::Ledger;
use crate::lock::Lock;
use crate::page_state::{Bit, PageState};
use crate::policy::{self, Site};
use crate::stats::{Counter, SHARDS, StatsPage};
use crate::sys::Kernel;
use crate::thread::{FaultHistory, Thread};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Bytes of the assembly buffer for pages that several extents make up.
pub const BOUNCE: u64 = PAGE;
/// Core offset of the page of zeros; extents that name it name zeros.
pub const ZERO_CORE: u64 = 0;

/// How pages are armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Arming {
    /// Not at all: the tracker is off or not ready.
    Off = 0,
    /// Guard markers (`guard` mode).
    Guard = 1,
    /// Missing pages under UFFD_FEATURE_SIGBUS (`sigbus` mode).
    Missing = 2,
}

/// What is known of a mapping, as the `site` of its entry in [`State::known`].
pub const KNOWN_MAPPING: u16 = 1;
/// A block of an allocator that may unmap behind our back once the block is freed.
pub const KNOWN_BLOCK: u16 = 2;

/// Memory that the tracker is given, all of it fresh private mappings.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Base of the core arena and its pages.
    pub arena: (u64, u32),
    /// Cap on held core bytes.
    pub cap_bytes: u64,
    /// `PageMeta` array, one for each arena page.
    pub meta: u64,
    /// Nodes of the extent map: base and bytes.
    pub extents: (u64, u64),
    /// Nodes of the map of known mappings.
    pub known: (u64, u64),
    /// Nodes of the map of registered ranges.
    pub registered: (u64, u64),
    /// [`BOUNCE`] bytes.
    pub bounce: u64,
    /// [`crate::child::RING_BYTES`] bytes.
    pub child: u64,
    /// Table of [`policy::SITES`] zeroed sites.
    pub sites: u64,
}

/// Everything behind the lock.
pub struct State {
    /// Program bytes to core bytes.
    pub map: ExtentMap,
    /// Mappings and blocks whose whole life cycle the hooks see: only these are armed. Identity-coalesced
    /// (`core == start`); `site` is the kind.
    pub known: ExtentMap,
    /// Ranges registered with the descriptor. Identity-coalesced.
    pub registered: ExtentMap,
    /// Core pages.
    pub arena: Arena,
    /// Call sites.
    pub sites: &'static mut [Site; policy::SITES],
    /// What elision costs and saves in this process.
    pub ledger: Ledger,
    /// Where the next compaction step starts.
    pub cursor: u64,
    /// Pages of a forked child that may be given back.
    pub child: ChildPages,
    /// Assembly buffer.
    pub bounce: *mut u8,
    /// Threads that have, or had, a record: the first so many of `records`.
    pub threads: u64,
    /// The pool of records; null if there is none.
    pub records: *const Thread,
}

impl State {
    /// The records in use.
    pub fn records(&self) -> impl Iterator<Item = &Thread> {
        let n = if self.records.is_null() { 0 } else { self.threads as usize };
        // SAFETY: by the contract of `Tracker::set_records` the first `threads` records are valid for ever.
        (0..n).map(|i| unsafe { &*self.records.add(i) })
    }
}

/// The tracker. One static in the preloaded library; one for each test.
pub struct Tracker<K: Kernel> {
    /// The seam.
    pub kernel: K,
    /// Lock-free page state.
    pub pages: PageState,
    lock: Lock,
    state: UnsafeCell<MaybeUninit<State>>,
    ready: AtomicBool,
    base: AtomicU64,
    arming: AtomicU32,
    stats: AtomicPtr<StatsPage>,
    /// Moves whenever an armed page stops being armed.
    pub generation: AtomicU64,
    /// Fault history of threads without a record.
    pub(crate) unrecorded: FaultHistory,
    /// [`Thread::midway`] of all threads without a record.
    pub(crate) unrecorded_midway: AtomicU32,
    /// Freed pages are due back to the kernel, as of the last [`Self::publish`].
    pub(crate) purge_due: AtomicBool,
    /// Set in a child after fork.
    pub forked: AtomicBool,
    /// Bytes in [`ChildPages`], for a look without the lock.
    pub(crate) child_bytes: AtomicU64,
    /// Smallest receive that lands in cores, bytes.
    pub threshold: AtomicU64,
    /// Copies that move short resident runs before those are healed.
    pub heal_after: AtomicU32,
    /// Called when a deferred signal may come in.
    pub on_leave: AtomicPtr<()>,
}

// SAFETY: `state` is only reached under `lock`; everything else is atomic.
unsafe impl<K: Kernel + Sync> Sync for Tracker<K> {}

impl<K: Kernel> Tracker<K> {
    /// Off, without memory.
    pub const fn new(kernel: K) -> Self {
        Tracker {
            kernel,
            pages: PageState::new(),
            lock: Lock::new(),
            state: UnsafeCell::new(MaybeUninit::uninit()),
            ready: AtomicBool::new(false),
            base: AtomicU64::new(0),
            arming: AtomicU32::new(0),
            stats: AtomicPtr::new(core::ptr::null_mut()),
            generation: AtomicU64::new(1),
            unrecorded: FaultHistory::new(),
            unrecorded_midway: AtomicU32::new(0),
            purge_due: AtomicBool::new(false),
            forked: AtomicBool::new(false),
            child_bytes: AtomicU64::new(0),
            threshold: AtomicU64::new(u64::MAX),
            heal_after: AtomicU32::new(policy::HEAL_MIN),
            on_leave: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Gives the tracker its memory.
    ///
    /// # Safety
    /// Called once; every mapping of `m` is as documented, zeroed, ours alone, and stays for the process's
    /// life; `stats` likewise.
    pub unsafe fn init(&self, m: Memory, stats: *mut StatsPage, threshold: u64) {
        self.base.store(m.arena.0, Ordering::Relaxed);
        self.stats.store(stats, Ordering::Release);
        self.threshold.store(threshold, Ordering::Relaxed);
        // SAFETY: caller's contract.
        let state = unsafe {
            State {
                map: ExtentMap::new(m.extents.0 as *mut u8, m.extents.1 as usize),
                known: ExtentMap::new(m.known.0 as *mut u8, m.known.1 as usize),
                registered: ExtentMap::new(m.registered.0 as *mut u8, m.registered.1 as usize),
                arena: Arena::new(m.meta as *mut PageMeta, m.arena.1, m.cap_bytes),
                sites: &mut *(m.sites as *mut [Site; policy::SITES]),
                ledger: Ledger::default(),
                cursor: 0,
                child: ChildPages::new(m.child as *mut Extent),
                bounce: m.bounce as *mut u8,
                threads: 0,
                records: core::ptr::null(),
            }
        };
        // SAFETY: not ready yet, so nobody else looks.
        unsafe { (*self.state.get()).write(state) };
        if !stats.is_null() {
            // SAFETY: caller's contract.
            unsafe { (*stats).core_bytes_cap.store(m.cap_bytes, Ordering::Relaxed) };
        }
        self.ready.store(true, Ordering::Release);
    }

    /// Tells the tracker where the threads' records are.
    ///
    /// # Safety
    /// `records` is an array of initialised records, longer than `State::threads` ever gets, that stays for ever.
    pub unsafe fn set_records(&self, records: *const Thread) {
        self.locked(None, |st| st.records = records);
    }

    /// From here on the thread may wait for something else and then use program memory, already looked at: see
    /// [`Thread::midway`].
    pub fn midway_begins(&self, t: Option<&Thread>) {
        match t {
            // Only the thread itself, and handlers on it, which leave it as it was.
            Some(t) => t.midway.store(t.midway.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed),
            None => {
                self.unrecorded_midway.fetch_add(1, Ordering::SeqCst);
            }
        }
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// It is over. `t` is what it began with, whether or not the thread has got a record since.
    pub fn midway_ends(&self, t: Option<&Thread>) {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        match t {
            Some(t) => t.midway.store(t.midway.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed),
            None => {
                self.unrecorded_midway.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// How pages are armed; `Off` means that no new page may be.
    #[inline]
    pub fn arming(&self) -> Arming {
        match self.arming.load(Ordering::Relaxed) {
            1 => Arming::Guard,
            2 => Arming::Missing,
            _ => Arming::Off,
        }
    }

    /// Switches arming on, or off for new pages.
    pub fn set_arming(&self, a: Arming) {
        self.arming.store(a as u32, Ordering::Release);
    }

    /// Runs `f` with the state, under the lock. `None` before [`Self::init`].
    ///
    /// # Context
    /// Hook or fault handler. `thread` is the running thread's record; without one, the caller has all
    /// signals blocked.
    pub fn locked<R>(&self, thread: Option<&Thread>, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        if !self.ready.load(Ordering::Acquire) {
            return None;
        }
        if let Some(t) = thread {
            t.enter();
        }
        self.lock.acquire();
        // SAFETY: `ready` says initialised; the lock makes this the only reference.
        let r = f(unsafe { (*self.state.get()).assume_init_mut() });
        self.lock.release();
        if let Some(t) = thread
            && t.leave()
        {
            self.let_signals_in(t);
        }
        Some(r)
    }

    #[cold]
    fn let_signals_in(&self, t: &Thread) {
        let f = self.on_leave.load(Ordering::Acquire);
        if !f.is_null() {
            // SAFETY: set once by the preloaded library to a function of this type.
            let f: fn(&Thread) = unsafe { core::mem::transmute(f) };
            f(t);
        }
    }

    /// Takes the lock and keeps it: before fork, so that the child's copy is consistent.
    pub fn hold(&self) {
        self.lock.acquire();
    }

    /// Gives back what [`Self::hold`] took.
    pub fn unhold(&self) {
        self.lock.release();
    }

    /// In a forked child: the lock is free, the state ours alone.
    ///
    /// # Safety
    /// The single thread of a fresh child, whose parent called [`Self::hold`] before fork.
    pub unsafe fn after_fork_in_child(&self, stats: *mut StatsPage) {
        // SAFETY: caller's contract.
        unsafe { self.lock.reset() };
        self.forked.store(true, Ordering::Relaxed);
        if !stats.is_null() {
            self.stats.store(stats, Ordering::Release);
        }
        self.kernel.reset_descriptor();
        let missing = self.arming() == Arming::Missing;
        self.locked(None, |st| {
            if missing {
                if !self.register_all_again(st) {
                    self.fill_all_alone(st);
                }
            } else {
                Self::clear_registered(st);
            }
        });
    }

    /// Where the lock is: who waits for it waits at a futex in here.
    pub(crate) fn lock_span(&self) -> Span {
        let at = &raw const self.lock as u64;
        Span::between(at, at + size_of::<Lock>() as u64)
    }

    /// Pointer to core bytes.
    #[inline]
    pub fn core_ptr(&self, core: u64) -> *mut u8 {
        (self.base.load(Ordering::Relaxed) + core) as *mut u8
    }

    /// Adds to a counter: on the thread's own shard without a locked instruction.
    #[inline]
    pub fn count(&self, thread: Option<&Thread>, c: Counter, n: u64) {
        let stats = self.stats.load(Ordering::Relaxed);
        if stats.is_null() {
            return;
        }
        let shard = match thread {
            Some(t) => t.shard.load(Ordering::Relaxed) as usize,
            None => SHARDS - 1,
        };
        // SAFETY: `init`'s contract.
        let Some(s) = (unsafe { (*stats).shards.get(shard) }) else { return };
        let Some(cell) = s.counters.get(c as usize) else { return };
        if shard == SHARDS - 1 {
            cell.fetch_add(n, Ordering::Relaxed);
        } else {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// The statistics page, if there is one.
    pub fn stats(&self) -> Option<&StatsPage> {
        // SAFETY: null or valid for the process's life, by `init`'s contract.
        unsafe { self.stats.load(Ordering::Acquire).as_ref() }
    }

    /// Publishes the gauges.
    pub fn publish(&self, st: &State) {
        self.purge_due.store(Self::wants_purge(st), Ordering::Relaxed);
        if let Some(p) = self.stats() {
            p.extents.store(st.map.len() as u64, Ordering::Relaxed);
            p.core_bytes_held.store(st.arena.held_bytes(), Ordering::Relaxed);
            p.core_bytes_named.store(st.arena.named_bytes(), Ordering::Relaxed);
            p.threads.store(st.threads, Ordering::Relaxed);
        }
    }

    /// Names program bytes: replaces what the range named, keeps the arena's books. Every page of the range
    /// is armed and, where it was vacant, the caller covers the rest of it ([`Self::cover_gaps`]).
    /// False (nothing changed) when the map or a page's count is full.
    pub(crate) fn name(&self, st: &mut State, e: Extent) -> bool {
        if e.len == 0 {
            return true;
        }
        if !st.map.has_room(4) || !st.arena.name(e.core, e.len) {
            return false;
        }
        let arena = &mut st.arena;
        if st.map.replace(e, |d| arena.unname(d.core, d.len)).is_err() {
            st.arena.unname(e.core, e.len);
            return false;
        }
        true
    }

    /// Drops the names of a range; the pages stay as they are (the caller changes their state).
    pub(crate) fn unname(&self, st: &mut State, s: Span) -> bool {
        if s.is_empty() {
            return true;
        }
        let arena = &mut st.arena;
        st.map.erase(s.start, s.end, |d| arena.unname(d.core, d.len)).is_ok()
    }

    /// Makes armed page `page` (its first address), which may be vacant and now has a name on part of it,
    /// fully covered again: the rest names zeros.
    pub(crate) fn cover_gaps(&self, st: &mut State, page: u64, site: u16) {
        if !self.pages.get(Bit::Vacant, page) {
            return;
        }
        self.pages.set(Bit::Vacant, Span::between(page, page + PAGE), false);
        let end = page + PAGE;
        let mut at = page;
        while at < end {
            let next = st.map.next_from(at);
            let gap_end = match next {
                Some(e) if e.start < end => {
                    if e.start <= at {
                        at = e.start + e.len;
                        continue;
                    }
                    e.start
                }
                _ => end,
            };
            let core = ZERO_CORE + (at - page);
            // `name` checked for room for this before it named the part.
            let _ = st.map.insert(Extent { start: at, len: gap_end - at, core, site });
            at = gap_end;
        }
    }

    /// Marks whole armed pages as vacant: their names go, a touch gives zeros.
    pub(crate) fn vacate(&self, st: &mut State, pages: Span) {
        let (mut p, end) = (pages.start >> 12, pages.end >> 12);
        while p < end {
            let a = self.pages.find(Bit::Armed, true, p, end);
            if a >= end {
                break;
            }
            let b = self.pages.find(Bit::Armed, false, a, end);
            let run = Span::between(a << 12, b << 12);
            if self.unname_surely(st, run).is_ok() {
                self.pages.set(Bit::Vacant, run, true);
                self.pages.set(Bit::Hot, run, false);
            }
            p = b;
        }
    }

    /// One more use of a site.
    pub(crate) fn site(st: &mut State, site: u16) -> &mut Site {
        let i = site as usize & (policy::SITES - 1);
        // The mask keeps the index inside the table.
        &mut st.sites[i]
    }

    /// The run of armed pages around `addr`, going up from its page, at most `max` bytes.
    pub(crate) fn armed_run(&self, addr: u64, max: u64) -> Span {
        let start = page_down(addr);
        let end = self.pages.find(Bit::Armed, false, start >> 12, (start + max) >> 12) << 12;
        Span::between(start, end)
    }

    /// Verifies I1 and I2. Slow: tests and debug builds.
    ///
    /// # Panics
    /// When an invariant does not hold.
    pub fn check(&self) {
        self.locked(None, |st| {
            st.map.check();
            st.arena.check();
            let mut at = 0;
            let mut armed = 0;
            while let Some(e) = st.map.next_from(at) {
                let end = e.start + e.len;
                let mut p = page_down(e.start);
                while p < end {
                    assert!(self.pages.get(Bit::Armed, p), "I2: extent over resident page {p:#x}");
                    assert!(!self.pages.get(Bit::Vacant, p), "I2: extent over vacant page {p:#x}");
                    let mut covered = 0;
                    st.map.for_each_in(p, p + PAGE, |x| covered += x.len);
                    assert!(covered == PAGE, "I1: page {p:#x} covered {covered}");
                    armed += 1;
                    p += PAGE;
                }
                at = end;
            }
            let _ = armed;
        });
    }

    /// A run's bytes in the arena as a span of addresses.
    pub(crate) fn run_span(&self, r: Run) -> Span {
        let start = self.core_ptr(r.core()) as u64;
        Span::between(start, start + r.bytes())
    }
}
