//! The one seam to the kernel: everything the tracker asks of the operating system, and every byte of
//! program memory that it moves, goes through [`Kernel`]. The real one is [`linux::Linux`]; tests put a
//! fake behind it that keeps pages in a table and can fail any call.

pub mod linux;
mod tasks;

use crate::addr::Span;

/// An `errno` value, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// No such descriptor.
    pub const BADF: Errno = Errno(9);
    /// Try again.
    pub const AGAIN: Errno = Errno(11);
    /// Out of memory, or out of mappings.
    pub const NOMEM: Errno = Errno(12);
    /// A page is there already.
    pub const EXIST: Errno = Errno(17);
    /// Not registered.
    pub const NOENT: Errno = Errno(2);
    /// Not a descriptor of that kind.
    pub const NOTTY: Errno = Errno(25);
    /// Invalid argument.
    pub const INVAL: Errno = Errno(22);
}

/// How a mapping is registered with userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// Write-protect mode: makes UFFDIO_COPY and write protection possible (`guard` mode).
    WriteProtect,
    /// Missing faults raise SIGBUS (`sigbus` mode).
    Missing,
    /// Both, for as long as pages are taken away that other threads may touch (`guard` mode). `WriteProtect` does not
    /// end it: the kernel only adds.
    Both,
}

/// What the other threads of this process may be doing with a range of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// There are none.
    None,
    /// Each of them waits in a system call, such as futex or epoll_wait, that has nothing to do with the range.
    Elsewhere,
    /// Anything: one runs, or its system call is not understood, or nothing can be found out.
    Unknown,
}

/// What the tracker needs of the kernel. Spans are page-aligned. Every method that changes mappings, page
/// tables or registrations is counted as a page-table call by its caller.
///
/// # Context
/// Any, signal handlers included: no method allocates, locks in user space or touches `errno`.
pub trait Kernel {
    /// Puts guard markers on every page, discarding what was there (MADV_GUARD_INSTALL).
    fn guard_install(&self, s: Span) -> Result<(), Errno>;
    /// Removes guard markers; pages that are there stay (MADV_GUARD_REMOVE).
    fn guard_remove(&self, s: Span) -> Result<(), Errno>;
    /// Discards pages (MADV_DONTNEED).
    fn discard(&self, s: Span) -> Result<(), Errno>;
    /// Makes every page present and writable, contents kept (MADV_POPULATE_WRITE).
    fn populate(&self, s: Span) -> Result<(), Errno>;
    /// Registers the span with this process's userfaultfd, which is opened when needed.
    fn register(&self, s: Span, how: Register) -> Result<(), Errno>;
    /// Takes a registration back; pages stay.
    fn unregister(&self, s: Span) -> Result<(), Errno>;
    /// Write-protects resident pages of a registered range, or ends that. A store to a protected page raises a
    /// fault signal, as a touch of an armed page does.
    fn write_protect(&self, s: Span, on: bool) -> Result<(), Errno>;
    /// Atomically fills missing (or guarded) pages at `dst` from `src`; returns the bytes done, which may
    /// be fewer than asked when an error stopped it after a part.
    fn fill(&self, dst: Span, src: *const u8) -> Result<u64, Errno>;
    /// Atomically fills missing pages with zeros.
    fn fill_zero(&self, dst: Span) -> Result<u64, Errno>;
    /// Drops a descriptor that serves this process no more (a parent's, or one that the program closed or put
    /// something else in the place of), so that the next `register` opens a new one. False if the descriptor is open
    /// and ours: nothing was dropped, and what is registered with it still is.
    fn reset_descriptor(&self) -> bool;
    /// True if the descriptor belongs to this process (not to the parent of a raw clone).
    fn descriptor_is_ours(&self) -> bool;
    /// True if this process has one thread, however others may have been made. False when unsure.
    fn single_thread(&self) -> bool;
    /// What the other threads are doing, as far as it concerns `s` or a futex in `own`. They may go on to something
    /// else at once.
    fn others(&self, s: Span, own: Span) -> Others;

    /// Copies program bytes to core memory.
    /// # Safety
    /// `core` is valid for `len` writes. `prog` is what the program passed to a call that reads it: a bad
    /// address faults as it would have without zio.
    unsafe fn prog_to_core(&self, core: *mut u8, prog: u64, len: u64);
    /// Copies core bytes to program memory.
    /// # Safety
    /// As [`Kernel::prog_to_core`], the other way.
    unsafe fn core_to_prog(&self, prog: u64, core: *const u8, len: u64);
    /// Moves program bytes; the ranges may overlap.
    /// # Safety
    /// Both ranges are what the program passed to a copy function.
    unsafe fn prog_to_prog(&self, dst: u64, src: u64, len: u64);
    /// True if program bytes equal core bytes.
    /// # Safety
    /// `prog` is resident program memory, `core` valid for `len` reads.
    unsafe fn prog_equals(&self, prog: u64, core: *const u8, len: u64) -> bool;
}
