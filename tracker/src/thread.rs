//! What a thread owns: its receive window, scratch space for one operation, and the marks that keep signal
//! handlers out of critical sections.
//!
//! A record belongs to the thread whose id it carries. Only that thread and signal handlers on it touch it;
//! a record whose thread is gone is taken over, window and all. [`Scratch`] is handed out by
//! [`Thread::claim`] to one operation at a time: a signal handler that copies while its thread is inside an
//! operation gets none, and passes through.

use crate::addr::Span;
use crate::arena::{ByteWindow, Run};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Length of the alternate signal stack that a thread gets from us, bytes.
pub const SIGNAL_STACK: u64 = 64 << 10;
/// Frames further apart than this are not on one stack.
const STACK_MAX: u64 = 8 << 20;
/// Most pieces that one operation may be cut into (IOV_MAX).
pub const MAX_PIECES: usize = 1024;
/// Most segments of a destination.
pub const MAX_SEGMENTS: usize = 128;
/// Most runs in a receive window.
pub const MAX_RUNS: usize = 128;

/// Most deferred copies of one operation.
pub const MAX_LATE: usize = 256;

/// Where some bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Place {
    /// Program memory; `at` is an address.
    Resident,
    /// Core memory; `at` is an offset into the arena.
    Core,
    /// Zeros, `at` is meaningless.
    Zero,
}

/// A run of bytes of an operation's source.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What `at` means.
    pub place: Place,
}

/// What happens to a run of an operation's destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Fate {
    /// The bytes go to the program's own page.
    Direct,
    /// The pages are armed already: the bytes get names.
    Armed,
    /// Some of the pages are resident: they get armed, and all the bytes names.
    ToArm,
}

/// A run of an operation's destination.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First byte, program address.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What happens to it.
    pub fate: Fate,
}

/// The kernel's `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoVec {
    /// Address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// A list in fixed storage. A full list is an answer (copy), never an abort.
pub struct List<T: Copy, const N: usize> {
    len: usize,
    items: [core::mem::MaybeUninit<T>; N],
}

impl<T: Copy, const N: usize> List<T, N> {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.len = 0;
    }
    /// Appends; false when full.
    pub fn push(&mut self, x: T) -> bool {
        match self.items.get_mut(self.len) {
            Some(slot) => {
                slot.write(x);
                self.len += 1;
                true
            }
            None => false,
        }
    }
    /// Takes the last item.
    pub fn pop(&mut self) -> Option<T> {
        let n = self.len.checked_sub(1)?;
        self.len = n;
        // SAFETY: items below the old `len` are initialised.
        self.items.get(n).map(|x| unsafe { x.assume_init() })
    }
    /// Removes the first item, keeping the order.
    pub fn remove_first(&mut self) {
        if self.len > 0 {
            self.items.copy_within(1..self.len, 0);
            self.len -= 1;
        }
    }
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the first `len` (<= N) items were written by `push`.
        unsafe { core::slice::from_raw_parts(self.items.as_ptr().cast(), self.len) }
    }
    /// The items, to change.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`.
        unsafe { core::slice::from_raw_parts_mut(self.items.as_mut_ptr().cast(), self.len) }
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Scratch space of one operation, and the receive window that outlives it.
pub struct Scratch {
    /// Core runs, pinned, of which nothing is named: where the next receive lands. Last one first.
    pub window: List<Run, MAX_RUNS>,
    /// The exception: the last receive ended inside the first page of the window's last run. A receive that goes on
    /// where that one ended, in program memory, goes on there, too; before any other, the page leaves the window.
    pub tail: Option<Tail>,
    /// For resident bytes that must become core bytes.
    pub bytes: ByteWindow,
    /// Resident source bytes that were captured into cores, in this copy.
    pub captured: u64,
    /// Source pieces.
    pub pieces: List<Piece, MAX_PIECES>,
    /// Source pieces after resident ones were copied into cores.
    pub split: List<Piece, MAX_PIECES>,
    /// Destination segments.
    pub segments: List<Segment, MAX_SEGMENTS>,
    /// The program's own buffers of a send, copied before the lock is taken.
    pub input: List<IoVec, MAX_PIECES>,
    /// What the real call gets.
    pub iov: List<IoVec, MAX_PIECES>,
    /// The core parts of a receive's destination, in order.
    pub parts: List<Part, MAX_RUNS>,
    /// Copies to resident pages that must wait until the lock is gone.
    pub late: List<Late, MAX_LATE>,
}

/// A part of a receive's destination that is backed by one core run.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Program bytes.
    pub span: Span,
    /// Core pages; the first byte is at the same page offset as the program's.
    pub run: Run,
    /// Pages that are not armed yet are to be.
    pub to_arm: bool,
    /// Bytes of the first page may be named already, up to the first byte of the part ([`Scratch::tail`]).
    pub goes_on: bool,
    /// Where the names end, bytes from the start of `run`; 0 before any is given.
    pub named_to: u64,
}

/// Where a receive ended inside a core page. Nothing after it is named on that page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Program address after the last byte: at the same offset in its page as the core byte after it.
    pub program: u64,
}

/// Core bytes that go to a resident program page.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Program address.
    pub dst: u64,
    /// Arena offset.
    pub core: u64,
    /// Bytes.
    pub len: u64,
}

/// Fault history of a thread: written by its fault handler only.
#[derive(Default)]
pub struct FaultHistory {
    /// Last faulting address that was not ours when looked at, and the generation then.
    pub odd_addr: AtomicU64,
    /// See `odd_addr`.
    pub odd_generation: AtomicU64,
    /// Page of the last touch that was resolved.
    pub last: AtomicU64,
    /// How many touches came near each other, without one elsewhere in between.
    pub streak: AtomicU32,
    /// Last page of the block that was allocated last, if it was left vacant, else 0; and the allocating site.
    pub tail: AtomicU64,
    /// See `tail`.
    pub tail_site: AtomicU32,
}

/// Most handlers of the program's that can be interrupted, one inside the other, off our signal stack.
pub const AWAY_MAX: usize = 8;

/// What a thread's signal handlers leave for each other. Only the thread itself touches it.
#[derive(Default)]
pub struct SignalBooks {
    /// Handlers of the program's that run off our signal stack while a frame below them is on it, outermost first:
    /// the stack pointer that each started with, and how many bytes of our stack are free meanwhile.
    pub away: [[AtomicU64; 2]; AWAY_MAX],
    /// How many entries of `away` are in use.
    pub depth: AtomicU32,
    /// Fault signals that were sent while the program believed to have blocked them: to the thread in the low half,
    /// to the process in the high one.
    pub pending: AtomicU64,
    /// The `siginfo_t` of each pending one: SIGSEGV to the thread, to the process, SIGBUS likewise.
    pub info: [[AtomicU64; 16]; 4],
}

impl FaultHistory {
    /// Nothing happened yet.
    pub const fn new() -> Self {
        FaultHistory {
            odd_addr: AtomicU64::new(0),
            odd_generation: AtomicU64::new(0),
            last: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            tail: AtomicU64::new(0),
            tail_site: AtomicU32::new(0),
        }
    }
}

/// A thread's record. All zeros is a free one.
#[repr(C)]
pub struct Thread {
    /// Kernel thread id; 0 when free.
    pub tid: AtomicU32,
    /// Non-zero while the thread holds, or is about to take, the tracker's lock.
    pub critical: AtomicU32,
    /// A signal arrived in a critical section and waits.
    pub deferred: AtomicU32,
    /// Counter shard; `SHARDS - 1` is shared.
    pub shard: AtomicU32,
    /// Stack pointer of the operation that has the scratch space; 0 when none.
    busy: AtomicU64,
    /// Base of the alternate signal stack ([`SIGNAL_STACK`] bytes) that we gave the thread, 0 when none.
    pub stack: AtomicU64,
    /// The program's own view of its alternate stack: base, length, flags.
    pub program_stack: [AtomicU64; 3],
    /// Fault signals that the program believes to have blocked.
    pub believed_mask: AtomicU64,
    /// Signal mask to restore after a deferral.
    pub saved_mask: AtomicU64,
    /// Handlers in progress, and signals that wait.
    pub signals: SignalBooks,
    /// Fault handler's memory.
    pub faults: FaultHistory,
    /// How often the thread may be midway between a look at program memory and its use by the kernel, and wait for
    /// something else: in calls of libc's that take a stream's lock, and in handlers of the program's. A jump out of one
    /// leaves it too high, which only keeps pages from being healed while the record is the thread's.
    pub midway: AtomicU32,
    scratch: UnsafeCell<Scratch>,
}

impl Thread {
    /// Claims the scratch space for one operation; `sp` is the operation's stack pointer. `None` while an
    /// outer operation of this thread has it. An outer operation whose frame lies *below* `sp` was left by
    /// longjmp: its claim is void.
    pub fn claim(&self, sp: u64) -> Option<Claim<'_>> {
        let holder = self.busy.load(Ordering::Relaxed);
        if holder != 0 && (holder >= sp || sp - holder >= STACK_MAX || self.on_signal_stack(sp)) {
            return None;
        }
        self.busy.store(sp, Ordering::Relaxed);
        Some(Claim { thread: self })
    }

    fn on_signal_stack(&self, sp: u64) -> bool {
        let within = |base: u64, len: u64| sp.wrapping_sub(base) < len;
        let ours = self.stack.load(Ordering::Relaxed);
        let [base, len, _] = &self.program_stack;
        (ours != 0 && within(ours, SIGNAL_STACK)) || within(base.load(Ordering::Relaxed), len.load(Ordering::Relaxed))
    }

    /// In a forked child: no outer operation exists.
    pub fn reset(&self, tid: u32) {
        self.tid.store(tid, Ordering::Relaxed);
        self.busy.store(0, Ordering::Relaxed);
        self.critical.store(0, Ordering::Relaxed);
        self.deferred.store(0, Ordering::Relaxed);
        self.believed_mask.store(0, Ordering::Relaxed);
        self.signals.depth.store(0, Ordering::Relaxed);
        self.signals.pending.store(0, Ordering::Relaxed);
        self.midway.store(0, Ordering::Relaxed);
    }

    /// Stack pointer of the operation in progress, 0 when there is none.
    pub fn operation(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Enters a critical section: program signal handlers are deferred until [`Self::leave`].
    #[inline]
    pub fn enter(&self) {
        let n = self.critical.load(Ordering::Relaxed);
        self.critical.store(n + 1, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// Leaves it; true if a signal was deferred and must be let in now.
    #[inline]
    pub fn leave(&self) -> bool {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        let n = self.critical.load(Ordering::Relaxed);
        self.critical.store(n.wrapping_sub(1), Ordering::Relaxed);
        n == 1 && self.deferred.load(Ordering::Relaxed) != 0
    }
}

/// The right to use a thread's scratch space.
pub struct Claim<'a> {
    thread: &'a Thread,
}

impl Claim<'_> {
    /// The scratch space.
    pub fn scratch(&mut self) -> &mut Scratch {
        // SAFETY: `busy` is set, so no other claim exists on this thread, and other threads never look.
        unsafe { &mut *self.thread.scratch.get() }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.thread.busy.store(0, Ordering::Relaxed);
    }
}
