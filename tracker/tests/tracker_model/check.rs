//! What must hold between operations: contents, invariants, books.
//!
//! Soundness: as in `world.rs`; extents name bytes of the arena, which is what their pointers are made from.

use super::space::{BASE, END, PAGES};
use super::world::{THREADS, World};
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::page_state::Bit;
use zio_tracker::sys::Register;

impl World {
    /// What the program would read at a page, without touching it.
    pub fn peek(&self, page: u64, out: &mut [u8]) {
        let t = self.tracker();
        if !t.pages.get(Bit::Armed, page) {
            let s = self.space.borrow();
            let p = s.page(page);
            if p.present {
                out.copy_from_slice(s.slice(page, PAGE))
            } else {
                out.fill(0)
            }
            return;
        }
        out.fill(0);
        t.locked(None, |st| {
            st.map.for_each_in(page, page + PAGE, |e| {
                let to = &mut out[(e.start - page) as usize..][..e.len as usize];
                // SAFETY: extents name bytes of the arena.
                unsafe { t.core_ptr(e.core).copy_to(to.as_mut_ptr(), e.len as usize) };
            });
        });
    }

    /// Compares a range with the oracle, unless another thread's operation is changing it.
    pub fn compare(&self, s: Span) {
        if !self.is_free(s, false) {
            return;
        }
        let mut page = [0; PAGE as usize];
        let mut at = s.outer_pages().start;
        while at < s.end {
            self.peek(at, &mut page);
            let part = Span::between(at, at + PAGE).intersect(s);
            let bytes = &page[(part.start - at) as usize..(part.end - at) as usize];
            if let Some(wrong) = self.oracle.borrow().differs(part.start, bytes) {
                let t = self.tracker();
                let state = [Bit::Armed, Bit::Vacant, Bit::Hot].map(|b| t.pages.get(b, at));
                let extent = t.locked(None, |st| st.map.find(wrong)).flatten();
                let have = page[(wrong - at) as usize];
                panic!("wrong byte {have:#x} at {wrong:#x}: armed, vacant, hot {state:?}, {extent:x?}");
            }
            at += PAGE;
        }
    }

    pub fn compare_all(&self) {
        self.compare(Span::between(BASE, END));
    }

    /// The tracker's own invariants, and its page state against the page table.
    pub fn check(&self) {
        self.tracker().check();
        let space = self.space.borrow();
        self.tracker().locked(None, |st| {
            st.known.for_each_in(BASE, END, |e| {
                Self::by_page(e.start, e.len, |a, _, _| assert!(space.page(a).fit, "{a:#x} is held for fit: {e:x?}"));
            });
        });
        for i in 0..PAGES {
            let at = BASE + i * PAGE;
            let p = space.page(at);
            let armed = self.tracker().pages.get(Bit::Armed, at);
            if armed {
                let reached = p.guard || p.registered == Some(Register::Missing);
                assert!(reached && !p.present, "page {at:#x} is armed, but a touch goes unseen: {p:?}");
            } else {
                assert!(!p.guard, "resident page {at:#x} has a guard marker");
                let lost = p.registered == Some(Register::Missing) && !p.present;
                // After a discard that failed half-way; a touch of such a page is resolved all the same.
                assert!(!lost || self.config.failures > 0, "resident page {at:#x} is missing: {p:?}");
            }
            assert!(armed || !self.tracker().pages.get(Bit::Vacant, at), "vacant page {at:#x} is not armed");
        }
    }

    /// Ends a thread's hold on core pages.
    pub fn return_windows(&self, i: usize) {
        let here = 0u64;
        let mut claim = self.thread_at(i).claim(&raw const here as u64).unwrap();
        let x = claim.scratch();
        self.tracker().locked(None, |st| {
            while let Some(r) = x.window.pop() {
                st.arena.unpin_run(r);
            }
            x.bytes.clear(&mut st.arena);
        });
    }

    /// Names and pins of every core page, counted anew. Only between operations.
    pub fn audit(&self) {
        let pages = self.config.arena_pages as usize;
        let (mut names, mut pins) = (vec![0u64; pages], vec![0u32; pages]);
        for i in 0..THREADS {
            let here = 0u64;
            let mut claim = self.thread_at(i).claim(&raw const here as u64).unwrap();
            let x = claim.scratch();
            for r in x.window.as_slice() {
                (r.page..r.page + r.pages).for_each(|p| pins[p as usize] += 1);
            }
            let (from, to) = x.bytes.pages();
            (from / PAGE..to / PAGE).for_each(|p| pins[p as usize] += 1);
        }
        let forked = self.forked.get();
        self.tracker().locked(None, |st| {
            st.map.for_each_in(BASE, END, |e| {
                Self::by_page(e.core, e.len, |core, n, _| names[(core / PAGE) as usize] += n);
            });
            assert_eq!(st.arena.misuses(), 0, "the arena was misused");
            for p in 1..pages {
                let (n, k) = (u64::from(st.arena.page_named(p as u32)), st.arena.page_pins(p as u32));
                let named = if forked { n >= names[p] } else { n == names[p] };
                assert!(named, "core page {p}: {n} bytes named, extents have {}", names[p]);
                assert_eq!(k, pins[p], "core page {p}: pins, and what the windows hold");
            }
        });
    }
}
