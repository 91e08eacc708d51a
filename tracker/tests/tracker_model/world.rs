//! A world: one tracker over one fake kernel, the program's threads, the oracle beside them, and the checks.
//!
//! Soundness: a world and its tracker live in boxes that are reached by pointer only, from [`World::new`] to
//! [`World::dispose`]; nothing moves or mutates them in between but through cells. Core memory belongs to the
//! arena's allocation; it is only touched where the tracker says so, on one thread.

use super::oracle::Oracle;
use super::space::{Access, FakeKernel, Space, is_program};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::arena::PageMeta;
use zio_tracker::child::RING_BYTES;
use zio_tracker::fault::Fault;
use zio_tracker::policy::{SITES, Site};
use zio_tracker::state::{Arming, Memory, Tracker};
use zio_tracker::stats::StatsPage;
use zio_tracker::sys::{Errno, Others, Register};
use zio_tracker::thread::Thread;

/// Threads of the program. They take turns at the points where the tracker holds no lock.
pub const THREADS: usize = 3;
/// Bytes of a node of an extent map, for a scale of "tiny".
const NODE: u64 = 832;

/// xorshift64*.
pub struct Rng(Cell<u64>);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        let r = Rng(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        for _ in 0..4 {
            r.next();
        }
        r
    }

    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn coin(&self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn bytes(&self, n: u64) -> Vec<u8> {
        let mut v = Vec::with_capacity(n as usize + 8);
        while (v.len() as u64) < n {
            v.extend_from_slice(&self.next().to_le_bytes());
        }
        v.truncate(n as usize);
        v
    }
}

/// What a world is like.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub arming: Arming,
    pub threshold: u64,
    /// See [`Space::merge`].
    pub merge: bool,
    pub arena_pages: u32,
    pub cap_pages: u64,
    pub map_nodes: u64,
    /// One kernel call in this many fails; 0: none.
    pub failures: u64,
    /// Removing guard markers fails too.
    pub removal_fails: bool,
    /// One unlocked point in this many lets another thread run; 0: none.
    pub switches: u64,
}

/// Bytes that an operation under way reads or writes.
#[derive(Clone, Copy)]
struct Busy {
    span: Span,
    write: bool,
    /// In a system call, or between looking at the memory and the call.
    call: bool,
    thread: usize,
}

/// Zeroed, page-aligned memory.
struct Block(*mut u8, Layout);

impl Block {
    fn new(len: u64) -> Block {
        let layout = Layout::from_size_align(len as usize, 4096).unwrap();
        // SAFETY: the size is not zero.
        let p = unsafe { alloc_zeroed(layout) };
        assert!(!p.is_null());
        Block(p, layout)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated so; the tracker that used it is gone.
        unsafe { dealloc(self.0, self.1) };
    }
}

/// An operation, for the log that a failure prints.
type Event = (u64, usize, &'static str, [u64; 3]);

pub struct World {
    pub config: Config,
    pub rng: Rng,
    pub space: RefCell<Space>,
    pub oracle: RefCell<Oracle>,
    /// Allocated blocks of the region that glibc's malloc has, with "mapped".
    pub blocks: RefCell<Vec<(Span, bool)>>,
    /// Ranges that were used lately: operations that have to do with each other are more interesting.
    pub recent: RefCell<Vec<Span>>,
    /// What the last receive left of its destination: messages arrive in pieces.
    pub rest: Cell<Span>,
    pub forked: Cell<bool>,
    pub depth: Cell<u32>,
    pub ops: Cell<u64>,
    pub done: RefCell<std::collections::BTreeMap<&'static str, u64>>,
    tracker: Cell<*const Tracker<FakeKernel>>,
    current: Cell<usize>,
    in_fault: Cell<u32>,
    injecting: Cell<bool>,
    busy: RefCell<Vec<Busy>>,
    log: RefCell<VecDeque<Event>>,
    arena: Block,
    memory: Vec<Block>,
}

impl World {
    pub fn new(config: Config) -> *mut World {
        let lens = [
            u64::from(config.arena_pages) * size_of::<PageMeta>() as u64,
            config.map_nodes * NODE,
            64 * NODE,
            64 * NODE,
            PAGE,
            (SITES * size_of::<Site>()) as u64,
            size_of::<StatsPage>() as u64,
            (THREADS * size_of::<Thread>()) as u64,
            RING_BYTES,
        ];
        let memory: Vec<Block> = lens.iter().map(|n| Block::new(*n)).collect();
        let arena = Block::new(u64::from(config.arena_pages) * PAGE);
        let at = |i: usize| memory[i].0 as u64;
        let m = Memory {
            arena: (arena.0 as u64, config.arena_pages),
            cap_bytes: config.cap_pages * PAGE,
            meta: at(0),
            extents: (at(1), lens[1]),
            known: (at(2), lens[2]),
            registered: (at(3), lens[3]),
            bounce: at(4),
            sites: at(5),
            child: at(8),
        };
        let stats = memory[6].0.cast::<StatsPage>();
        let world = Box::into_raw(Box::new(World {
            rng: Rng::new(config.seed),
            space: RefCell::new(Space::new(config.merge)),
            oracle: RefCell::new(Oracle::new()),
            blocks: RefCell::default(),
            recent: RefCell::default(),
            rest: Cell::default(),
            forked: Cell::new(false),
            depth: Cell::new(0),
            ops: Cell::new(0),
            done: RefCell::default(),
            tracker: Cell::new(std::ptr::null()),
            current: Cell::new(0),
            in_fault: Cell::new(0),
            injecting: Cell::new(true),
            busy: RefCell::default(),
            log: RefCell::default(),
            arena,
            memory,
            config,
        }));
        let tracker = Box::new(Tracker::new(FakeKernel(world)));
        // SAFETY: a fresh box; the tracker's memory lives as long as the world.
        unsafe {
            tracker.init(m, stats, (*world).config.threshold);
            tracker.set_arming((*world).config.arming);
            (*world).tracker.set(Box::into_raw(tracker));
            for i in 0..THREADS {
                (*world).thread_at(i).tid.store(i as u32 + 1, std::sync::atomic::Ordering::Relaxed);
                (*world).thread_at(i).shard.store(i as u32, std::sync::atomic::Ordering::Relaxed);
            }
            // Worlds are short.
            (*world).tracker().heal_after.store(2, std::sync::atomic::Ordering::Relaxed);
            (*world).tracker().set_records((*world).thread_at(0));
            (*world).tracker().locked(None, |st| st.threads = THREADS as u64);
        }
        world
    }

    /// # Safety
    /// `world` came from [`World::new`], and no reference to it or its tracker is left.
    pub unsafe fn dispose(world: *mut World) {
        // SAFETY: caller's contract; both boxes were made in `new`.
        unsafe {
            drop(Box::from_raw((*world).tracker.get().cast_mut()));
            drop(Box::from_raw(world));
        }
    }

    pub fn tracker(&self) -> &Tracker<FakeKernel> {
        // SAFETY: set in `new`, dropped with the world.
        unsafe { &*self.tracker.get() }
    }

    pub fn thread_at(&self, i: usize) -> &Thread {
        assert!(i < THREADS);
        // SAFETY: zeroed records, as many as there are threads; records are changed through atomics and claims.
        unsafe { &*self.memory[7].0.cast::<Thread>().add(i) }
    }

    /// The record of the thread that runs.
    pub fn thread(&self) -> &Thread {
        self.thread_at(self.current.get())
    }

    /// Notes an operation.
    pub fn note(&self, what: &'static str, args: [u64; 3]) {
        *self.done.borrow_mut().entry(what).or_default() += 1;
        let mut log = self.log.borrow_mut();
        if log.len() == 40 {
            log.pop_front();
        }
        log.push_back((self.ops.get(), self.current.get(), what, args));
    }

    pub fn print_log(&self) {
        for (op, thread, what, args) in self.log.borrow().iter() {
            println!("  op {op} thread {thread}: {what} {args:x?}");
        }
    }

    /// An error, if this kernel call is to fail.
    pub fn injected(&self) -> Option<Errno> {
        let n = self.config.failures;
        if n == 0 || !self.injecting.get() || !self.rng.coin(n) {
            return None;
        }
        let all = [Errno::AGAIN, Errno::NOMEM, Errno::INVAL, Errno::NOENT, Errno::BADF];
        // In missing mode a lost registration, which the last three stand for, is lost memory: it is kept by
        // other means, and does not happen here.
        let kinds = if self.config.arming == Arming::Missing { 2 } else { 5 };
        Some(all[self.rng.below(kinds) as usize])
    }

    /// Runs something that must succeed once the kernel does.
    pub fn without_failures<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = self.injecting.replace(false);
        let r = f();
        self.injecting.set(before);
        r
    }

    pub fn failing(&self) -> bool {
        self.config.failures != 0 && self.injecting.get()
    }

    /// True if an operation may read, or write, `s` now: no other thread's operation is at it.
    pub fn is_free(&self, s: Span, write: bool) -> bool {
        let clash = |b: &Busy| !b.span.intersect(s).is_empty() && (write || b.write);
        !self.busy.borrow().iter().any(clash)
    }

    /// Keeps other threads off while `f` runs.
    pub fn busy<R>(&self, spans: &[(Span, bool)], f: impl FnOnce() -> R) -> R {
        let n = self.busy.borrow().len();
        let thread = self.current.get();
        self.busy.borrow_mut().extend(spans.iter().map(|&(span, write)| Busy { span, write, call: false, thread }));
        let r = f();
        self.busy.borrow_mut().truncate(n);
        r
    }

    /// Notes that the running thread's operation is, or no longer is, in a system call with its memory.
    pub fn in_call(&self, call: bool) {
        let thread = self.current.get();
        self.busy.borrow_mut().iter_mut().filter(|b| b.thread == thread).for_each(|b| b.call = call);
    }

    /// What the kernel says of the threads that are not running.
    pub fn others(&self, s: Span) -> Others {
        let thread = self.current.get();
        let uses = |b: &Busy| b.thread != thread && b.call && !b.span.intersect(s).is_empty();
        if self.config.switches == 0 {
            Others::None
        } else if self.busy.borrow().iter().any(uses) || self.rng.coin(8) {
            Others::Unknown
        } else {
            Others::Elsewhere
        }
    }

    fn lock_is_held(&self) -> bool {
        let critical = |i| self.thread_at(i).critical.load(std::sync::atomic::Ordering::Relaxed) > 0;
        self.in_fault.get() > 0 || (0..THREADS).any(critical)
    }

    /// A point at which another thread may get the processor.
    pub fn let_others_run(&self) {
        let n = self.config.switches;
        let depth = self.depth.get();
        if n == 0 || depth as usize + 1 >= THREADS || self.lock_is_held() || !self.rng.coin(n) {
            return;
        }
        let injecting = self.injecting.get();
        self.depth.set(depth + 1);
        let me = self.current.replace(depth as usize + 1);
        super::ops::operation(self);
        self.current.set(me);
        self.depth.set(depth);
        self.injecting.set(injecting);
    }

    /// The program's access to the page of `addr`, with the fault handler's help.
    fn touch(&self, addr: u64, write: bool) {
        for _ in 0..200 {
            match self.space.borrow_mut().access(addr, write) {
                Access::Fine => return,
                Access::Unmapped => panic!("access to unmapped memory at {addr:#x}"),
                Access::Armed => {}
            }
            assert!(!self.lock_is_held(), "I5: armed page {addr:#x} touched under the lock");
            self.in_fault.set(self.in_fault.get() + 1);
            let f = self.tracker().fault(Some(self.thread()), addr, write);
            self.in_fault.set(self.in_fault.get() - 1);
            match f {
                Fault::Resolved => {}
                Fault::Failed if self.failing() => self.injecting.set(false),
                _ => panic!("touch of {addr:#x} gave {f:?}: {:?}", self.space.borrow().page(addr)),
            }
        }
        panic!("touch of {addr:#x} is never resolved");
    }

    pub fn by_page(at: u64, len: u64, mut f: impl FnMut(u64, u64, usize)) {
        let mut done = 0;
        while done < len {
            let a = at + done;
            let n = (PAGE - a % PAGE).min(len - done);
            f(a, n, done as usize);
            done += n;
        }
    }

    /// The program reads memory; `f` gets offset and bytes.
    pub fn load(&self, at: u64, len: u64, mut f: impl FnMut(usize, &[u8])) {
        let before = self.injecting.get();
        Self::by_page(at, len, |a, n, offset| {
            self.touch(a, false);
            f(offset, self.space.borrow().slice(a, n));
        });
        self.injecting.set(before);
    }

    /// The program writes memory; `f` gets offset and place.
    pub fn store(&self, at: u64, len: u64, mut f: impl FnMut(usize, &mut [u8])) {
        let before = self.injecting.get();
        Self::by_page(at, len, |a, n, offset| {
            self.touch(a, true);
            f(offset, self.space.borrow_mut().slice_mut(a, n));
        });
        self.injecting.set(before);
    }

    /// memmove by the program itself, in pieces that stay inside a page on either side.
    pub fn program_move(&self, dst: u64, src: u64, len: u64) {
        let mut cuts = vec![0, len];
        for base in [dst, src] {
            let mut at = PAGE - base % PAGE;
            while at < len {
                cuts.push(at);
                at += PAGE;
            }
        }
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|c| (c[0], c[1] - c[0])).filter(|p| p.1 > 0);
        let step = |(at, n): (u64, u64)| {
            let mut piece = Vec::new();
            self.load(src + at, n, |_, b| piece.extend_from_slice(b));
            self.store(dst + at, n, |_, b| b.copy_from_slice(&piece));
        };
        if dst > src {
            pieces.collect::<Vec<_>>().into_iter().rev().for_each(step);
        } else {
            pieces.for_each(step);
        }
    }

    /// A system call's access to program or core memory: there is no fault handler in it.
    pub fn kernel_reads(&self, at: u64, len: u64, out: &mut Vec<u8>) {
        if is_program(at) {
            Self::by_page(at, len, |a, n, _| {
                let r = self.space.borrow_mut().access(a, false);
                assert_eq!(r, Access::Fine, "EFAULT at {a:#x} in a system call that reads");
                out.extend_from_slice(self.space.borrow().slice(a, n));
            });
        } else {
            self.assert_core(at, len);
            // SAFETY: inside the arena.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) });
        }
    }

    pub fn kernel_writes(&self, at: u64, bytes: &[u8]) {
        if is_program(at) {
            Self::by_page(at, bytes.len() as u64, |a, n, offset| {
                let r = self.space.borrow_mut().access(a, true);
                assert_eq!(r, Access::Fine, "EFAULT at {a:#x} in a system call that writes");
                self.space.borrow_mut().slice_mut(a, n).copy_from_slice(&bytes[offset..][..n as usize]);
            });
        } else {
            self.assert_core(at, bytes.len() as u64);
            // SAFETY: inside the arena, not shared.
            unsafe { (at as *mut u8).copy_from(bytes.as_ptr(), bytes.len()) };
        }
    }

    /// Whether a system call could use a whole range.
    pub fn assert_usable(&self, at: u64, len: u64) {
        if is_program(at) {
            Self::by_page(at, len, |a, _, _| {
                let p = *self.space.borrow().page(a);
                let armed = p.guard || (!p.present && p.registered == Some(Register::Missing));
                assert!(!armed && p.mapped, "a system call is given the armed page {a:#x}");
            });
        } else {
            self.assert_core(at, len);
        }
    }

    fn assert_core(&self, at: u64, len: u64) {
        let base = self.arena.0 as u64;
        let size = u64::from(self.config.arena_pages) * PAGE;
        assert!(at >= base && at + len <= base + size, "{at:#x} is neither program nor core memory");
    }

    /// MADV_DONTNEED of core pages: whoever still needs them finds rubbish.
    pub fn poison_cores(&self, s: Span) {
        self.assert_core(s.start, s.len());
        assert!(s.is_empty() || s.start > self.arena.0 as u64, "the page of zeros is discarded");
        // SAFETY: inside the arena.
        unsafe { (s.start as *mut u8).write_bytes(0xdb, s.len() as usize) };
    }
}
