//! The fake kernel: a small program address space as a table, with the rules that the real one has for guard
//! markers, userfaultfd registrations and missing pages.
//!
//! Soundness: core memory is reached by pointers into the allocation that `World` gave the tracker, or into
//! buffers of the test that outlive the call; program memory is a `Vec` behind fake addresses. The pointer to
//! the world is valid for as long as the tracker that owns this kernel: `World::dispose` drops both.

use super::ops::UNKNOWN;
use super::world::World;
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::sys::{Errno, Kernel, Others, Register};

/// Pages of the program's address space.
pub const PAGES: u64 = 640;
/// Its first address. A GiB border (a block of the page state) lies inside.
pub const BASE: u64 = 0x10_4000_0000 - 300 * PAGE;
/// Its end.
pub const END: u64 = BASE + PAGES * PAGE;
/// What a failed MADV_POPULATE, or a system call on an armed page, gives.
const FAULT: Errno = Errno(14);
/// Registered with another descriptor.
const BUSY: Errno = Errno(16);

/// One page of the table. `mapping` tells the results of different mmap calls apart.
#[derive(Clone, Copy, Default, Debug)]
pub struct Page {
    pub mapped: bool,
    /// Private, anonymous, writable, and not made unfit otherwise.
    pub fit: bool,
    pub present: bool,
    pub guard: bool,
    /// Write-protected by userfaultfd.
    pub protected: bool,
    pub registered: Option<Register>,
    pub mapping: u32,
    /// The descriptor that it is registered with.
    owner: u32,
}

/// The address space.
pub struct Space {
    pub pages: Vec<Page>,
    pub bytes: Vec<u8>,
    /// Neighbouring mappings with equal registration are one (as when their anon_vma is the same).
    pub merge: bool,
    /// The descriptor is this process's, not a parent's.
    pub ours: bool,
    /// The program closed the descriptor unseen.
    pub closed: bool,
    descriptor: u32,
    mappings: u32,
}

/// Whether an access can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Fine,
    /// SIGSEGV or SIGBUS for the program, EFAULT for a system call.
    Armed,
    Unmapped,
}

pub fn is_program(addr: u64) -> bool {
    (BASE..END).contains(&addr)
}

fn indices(s: Span) -> std::ops::Range<usize> {
    assert!(s.start >= BASE && s.end <= END, "{s:x?} is not program memory");
    assert!(s.start.is_multiple_of(PAGE) && s.end.is_multiple_of(PAGE), "{s:x?} is not aligned");
    assert!(!s.is_empty(), "an empty page-table call");
    ((s.start - BASE) / PAGE) as usize..((s.end - BASE) / PAGE) as usize
}

impl Space {
    pub fn new(merge: bool) -> Space {
        let mut s = Space {
            pages: vec![Page::default(); PAGES as usize],
            bytes: vec![0; (PAGES * PAGE) as usize],
            merge,
            ours: true,
            closed: false,
            descriptor: 0,
            mappings: 0,
        };
        s.map(Span::between(BASE, END), true);
        s.map(UNKNOWN, false);
        s
    }

    pub fn page(&self, addr: u64) -> &Page {
        &self.pages[((addr - BASE) / PAGE) as usize]
    }

    pub fn slice(&self, addr: u64, len: u64) -> &[u8] {
        let at = (addr - BASE) as usize;
        &self.bytes[at..at + len as usize]
    }

    pub fn slice_mut(&mut self, addr: u64, len: u64) -> &mut [u8] {
        let at = (addr - BASE) as usize;
        &mut self.bytes[at..at + len as usize]
    }

    /// A fresh anonymous mapping replaces what was there.
    pub fn map(&mut self, s: Span, fit: bool) {
        self.mappings += 1;
        for i in indices(s) {
            self.pages[i] = Page { mapped: true, fit, mapping: self.mappings, ..Page::default() };
        }
        // What a page holds before it is present must not matter.
        self.slice_mut(s.start, s.len()).fill(0xee);
    }

    /// MADV_DONTNEED, by the program or the tracker: markers stay.
    pub fn discard(&mut self, s: Span) {
        for i in indices(s) {
            (self.pages[i].present, self.pages[i].protected) = (false, false);
        }
        self.slice_mut(s.start, s.len()).fill(0xdd);
    }

    /// What an access to the page of `addr` meets; a page that is only missing becomes present.
    pub fn access(&mut self, addr: u64, write: bool) -> Access {
        let i = ((addr - BASE) / PAGE) as usize;
        let p = &mut self.pages[i];
        if !p.mapped {
            return Access::Unmapped;
        }
        if p.present {
            assert!(!p.guard);
            return if write && p.protected { Access::Armed } else { Access::Fine };
        }
        if p.guard || matches!(p.registered, Some(Register::Missing | Register::Both)) {
            return Access::Armed;
        }
        p.present = true;
        self.bytes[i * PAGE as usize..(i + 1) * PAGE as usize].fill(0);
        Access::Fine
    }

    /// Every registration is gone: the descriptor was closed, or this is a forked child.
    pub fn lose_registrations(&mut self) {
        for p in &mut self.pages {
            (p.registered, p.protected) = (None, false);
        }
    }

    fn guard_install(&mut self, s: Span) -> Result<(), Errno> {
        for i in indices(s) {
            if !self.pages[i].mapped {
                return Err(Errno::NOMEM);
            }
            let p = &mut self.pages[i];
            assert!(p.fit, "memory that is not for it is armed: {s:x?}");
            (p.guard, p.present, p.protected) = (true, false, false);
        }
        self.slice_mut(s.start, s.len()).fill(0xcc);
        Ok(())
    }

    fn guard_remove(&mut self, s: Span) {
        indices(s).for_each(|i| self.pages[i].guard = false);
    }

    fn populate(&mut self, s: Span) -> Result<(), Errno> {
        for i in indices(s) {
            match self.access(BASE + i as u64 * PAGE, true) {
                Access::Fine => {}
                Access::Armed => return Err(FAULT),
                Access::Unmapped => return Err(Errno::NOMEM),
            }
        }
        Ok(())
    }

    fn register(&mut self, s: Span, how: Register) -> Result<(), Errno> {
        if self.closed {
            return Err(Errno::BADF);
        }
        self.ours = true;
        let range = indices(s);
        if range.clone().any(|i| !self.pages[i].mapped) {
            return Err(Errno::INVAL);
        }
        assert!(self.pages[range.clone()].iter().all(|p| p.fit), "memory that is not for it is registered: {s:x?}");
        let foreign = |p: &Page| p.registered.is_some() && p.owner != self.descriptor;
        if self.pages[range.clone()].iter().any(foreign) {
            return Err(BUSY);
        }
        for p in &mut self.pages[range] {
            // Modes are added, never taken away.
            let how = if p.registered.is_some_and(|old| old != how) { Register::Both } else { how };
            (p.registered, p.owner) = (Some(how), self.descriptor);
        }
        Ok(())
    }

    fn unregister(&mut self, s: Span) -> Result<(), Errno> {
        if self.closed {
            return Err(Errno::BADF);
        }
        for i in indices(s) {
            (self.pages[i].registered, self.pages[i].protected) = (None, false);
        }
        Ok(())
    }

    fn protect(&mut self, s: Span, on: bool) -> Result<(), Errno> {
        if self.closed {
            return Err(Errno::BADF);
        }
        for i in indices(s) {
            let p = &mut self.pages[i];
            if !matches!(p.registered, Some(Register::WriteProtect | Register::Both)) {
                return Err(Errno::NOENT);
            }
            p.protected = on && p.present;
        }
        Ok(())
    }

    /// UFFDIO_COPY and UFFDIO_ZEROPAGE: one registered mapping holds the whole range, or nothing happens.
    fn fill(&mut self, s: Span, src: *const u8, limit: usize) -> Result<u64, Errno> {
        if self.closed {
            return Err(Errno::BADF);
        }
        self.ours = true;
        let range = indices(s);
        let first = self.pages[range.start];
        let same =
            |p: &Page| p.mapped && p.registered == first.registered && (self.merge || p.mapping == first.mapping);
        if first.registered.is_none() || !self.pages[range.clone()].iter().all(same) {
            return Err(Errno::NOENT);
        }
        let mut done = 0;
        for i in range.take(limit) {
            let p = &mut self.pages[i];
            // Zero pages do not replace markers.
            if p.present || (p.guard && src.is_null()) {
                return if done == 0 { Err(Errno::EXIST) } else { Ok(done) };
            }
            (p.present, p.guard, p.protected) = (true, false, false);
            let at = i * PAGE as usize;
            let to = &mut self.bytes[at..at + PAGE as usize];
            if src.is_null() {
                to.fill(0);
            } else {
                // SAFETY: the tracker's contract: `src` is valid for the whole span.
                unsafe { src.add(done as usize).copy_to(to.as_mut_ptr(), PAGE as usize) };
            }
            done += PAGE;
        }
        Ok(done)
    }
}

/// The seam's other side.
pub struct FakeKernel(pub *const World);

impl FakeKernel {
    fn world(&self) -> &World {
        // SAFETY: see the top of this file.
        unsafe { &*self.0 }
    }

    /// Bytes of core memory, or of the test's own.
    fn outside(p: *const u8, len: u64) -> *const u8 {
        assert!(!is_program(p as u64) && !is_program(p as u64 + len));
        p
    }

    /// A part of a span that a call gets done before an injected failure.
    fn part(&self, s: Span) -> Span {
        let pages = self.world().rng.below(s.len() / PAGE + 1);
        Span::between(s.start, s.start + pages * PAGE)
    }
}

impl Kernel for FakeKernel {
    fn guard_install(&self, s: Span) -> Result<(), Errno> {
        let w = self.world();
        if let Some(e) = w.injected() {
            let part = self.part(s);
            if !part.is_empty() {
                let _ = w.space.borrow_mut().guard_install(part);
            }
            return Err(e);
        }
        w.space.borrow_mut().guard_install(s)
    }

    fn guard_remove(&self, s: Span) -> Result<(), Errno> {
        let w = self.world();
        if w.config.removal_fails
            && let Some(e) = w.injected()
        {
            return Err(e);
        }
        w.space.borrow_mut().guard_remove(s);
        Ok(())
    }

    fn discard(&self, s: Span) -> Result<(), Errno> {
        let w = self.world();
        // The real one refuses at once, if at all.
        if let Some(e) = w.injected() {
            return Err(e);
        }
        if is_program(s.start) {
            w.space.borrow_mut().discard(s)
        } else {
            w.poison_cores(s)
        }
        Ok(())
    }

    fn populate(&self, s: Span) -> Result<(), Errno> {
        let w = self.world();
        if let Some(e) = w.injected() {
            return Err(e);
        }
        w.space.borrow_mut().populate(s)
    }

    fn register(&self, s: Span, how: Register) -> Result<(), Errno> {
        let w = self.world();
        if let Some(e) = w.injected() {
            return Err(e);
        }
        w.space.borrow_mut().register(s, how)
    }

    fn unregister(&self, s: Span) -> Result<(), Errno> {
        let w = self.world();
        // No mapping is split where a part of it was registered by itself.
        if w.space.borrow().page(s.start).registered != Some(Register::Both)
            && let Some(e) = w.injected()
        {
            return Err(e);
        }
        w.space.borrow_mut().unregister(s)
    }

    fn write_protect(&self, s: Span, on: bool) -> Result<(), Errno> {
        let w = self.world();
        if (on || w.config.removal_fails)
            && let Some(e) = w.injected()
        {
            return Err(e);
        }
        w.space.borrow_mut().protect(s, on)
    }

    fn fill(&self, dst: Span, src: *const u8) -> Result<u64, Errno> {
        let w = self.world();
        if let Some(e) = w.injected() {
            return Err(e);
        }
        // Part of the work is a result that the kernel gives when a signal comes in, too.
        let limit = if w.rng.coin(8) { 1 + w.rng.below(4) as usize } else { usize::MAX };
        w.space.borrow_mut().fill(dst, Self::outside(src, dst.len()), limit)
    }

    fn fill_zero(&self, dst: Span) -> Result<u64, Errno> {
        let w = self.world();
        if let Some(e) = w.injected() {
            return Err(e);
        }
        w.space.borrow_mut().fill(dst, std::ptr::null(), usize::MAX)
    }

    fn reset_descriptor(&self) -> bool {
        let mut s = self.world().space.borrow_mut();
        if s.ours && !s.closed {
            return false;
        }
        // An open descriptor that is merely forgotten would keep what is registered with it.
        s.descriptor += 1;
        s.closed = false;
        true
    }

    fn descriptor_is_ours(&self) -> bool {
        self.world().space.borrow().ours
    }

    fn single_thread(&self) -> bool {
        self.world().config.switches == 0
    }

    fn others(&self, s: Span, _own: Span) -> Others {
        self.world().others(s)
    }

    unsafe fn prog_to_core(&self, core: *mut u8, prog: u64, len: u64) {
        let w = self.world();
        let core = Self::outside(core, len).cast_mut();
        // SAFETY: the tracker's contract.
        w.load(prog, len, |at, b| unsafe { core.add(at).copy_from(b.as_ptr(), b.len()) });
        w.let_others_run();
    }

    unsafe fn core_to_prog(&self, prog: u64, core: *const u8, len: u64) {
        let w = self.world();
        let core = Self::outside(core, len);
        if is_program(prog) {
            // SAFETY: the tracker's contract.
            w.store(prog, len, |at, b| unsafe { core.add(at).copy_to(b.as_mut_ptr(), b.len()) });
        } else {
            // SAFETY: `gather` moves to a buffer of the test.
            unsafe { core.copy_to(prog as *mut u8, len as usize) };
        }
        w.let_others_run();
    }

    unsafe fn prog_to_prog(&self, dst: u64, src: u64, len: u64) {
        let w = self.world();
        if is_program(dst) {
            w.program_move(dst, src, len);
        } else {
            let out = dst as *mut u8;
            // SAFETY: `gather` moves to a buffer of the test.
            w.load(src, len, |at, b| unsafe { out.add(at).copy_from(b.as_ptr(), b.len()) });
        }
        w.let_others_run();
    }

    unsafe fn prog_equals(&self, prog: u64, core: *const u8, len: u64) -> bool {
        let w = self.world();
        let core = Self::outside(core, len);
        let mut same = true;
        w.load(prog, len, |at, b| {
            // SAFETY: the tracker's contract.
            same &= b == unsafe { std::slice::from_raw_parts(core.add(at), b.len()) };
        });
        same
    }
}
