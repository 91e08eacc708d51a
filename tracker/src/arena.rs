//! The core arena's page accounting: which core pages are in use, and which run to hand out next.
//!
//! Pure bookkeeping over a table of [`PageMeta`] that the caller maps: no allocation, no system call, no
//! access to the core pages themselves. The one unsafe function here, [`Arena::new`], passes its caller's
//! promise about that table on to `table.rs`, which keeps it.

mod bytes;
mod check;
mod runs;
mod table;

pub use bytes::ByteWindow;
use table::{Kind, LARGE, LISTS, STUCK, Span, Table, Usage, WHOLE, covered};
pub use table::{MAX_PAGES, PAGE, PageMeta, Run};

/// Page accounting of the core arena. Names are counted in bytes per page, so splitting and merging extents
/// needs no call here.
///
/// ```text
///   +----------+  alloc      +-------------------+  both counts reach 0   +--------------+
///   | virgin   | ----------> | in use            | ---------------------> | dirty-free   |
///   +----------+  by bump    | named > 0 or      |                        | (has memory) |
///                            | pins > 0          | <--------------------- |              |
///   +----------+  alloc      |                   |  alloc: newest first   +--------------+
///   | clean-   | ----------> | (STUCK: for ever) |  take_purge: oldest first
///   | free     |             |                   |
///   | (no mem.)| <---------- |                   |
///   +----------+  purged(ok) +-------------------+
///
///   page 0        1                                       fresh              pages
///   | ZERO, stuck | in use, dirty-free and clean-free runs | virgin ......... |
///
///   held = in use + dirty-free, without page 0; alloc keeps it within the cap
/// ```
///
/// - **I3**, a core page that an extent names is never written: a run from [`Arena::alloc`] or
///   [`Arena::take_purge`] holds no named byte, and only the taker of a run writes (or discards) it, and only
///   bytes that it has not named yet. A page with `named > 0` is on no free list.
/// - **I4**, a core page is reused only when its refcount is zero and no IO in flight uses it: a page enters a
///   free list only in the call that brings *both* counts to zero, and leaves it pinned.
/// - Free runs of one kind never touch: a run's neighbours are in use, virgin, or free of the other kind. So a
///   free page beside a page in use is a border page, and its tag is valid; elsewhere tags are outdated.
/// - Misuse (more taken back than given, pages that are free) asserts in debug builds. In release builds it is
///   counted, and the page concerned stays as it is or becomes STUCK: leaked, never freed.
///
/// The arena is not synchronised: it lives behind the tracker's lock.
pub struct Arena {
    table: Table,
    /// Pages from here on are virgin.
    fresh: u32,
    cap_pages: u32,
    /// In use or dirty-free.
    held_pages: u32,
    dirty_pages: u32,
    named_bytes: u64,
    /// Clean and virgin pages handed out so far.
    fresh_pages: u64,
    misuses: u64,
    /// First page of the newest and of the oldest run of each list, 0 for none: page 0 is never free.
    newest: [u32; LISTS],
    oldest: [u32; LISTS],
    /// One bit for each list, in the order of sizes: set while it is not empty. Dirty runs, then clean ones.
    listed: [u128; 2],
}

/// Clean and virgin pages are preferred to parts of shorter dirty runs while fewer than one part in this many of
/// the named pages are dirty-free. Simulated with 2,000 values of 16 KiB to 1 MiB, overwritten at random: 9 pieces
/// a value with hardly any free page, 1.3 with 1/32, 1.0 with 1/16.
const SPARE_PART: u64 = 32;

impl Arena {
    /// An arena of `pages` virgin pages that holds at most `cap_bytes` of memory; page 0 is the all-zeros page,
    /// never handed out, never freed and not counted. Touches only the first entry of `meta`.
    ///
    /// # Safety
    /// `meta` points at `pages` zeroed entries that stay valid, and are accessed by nobody else, for as long as
    /// the arena is used.
    pub unsafe fn new(meta: *mut PageMeta, pages: u32, cap_bytes: u64) -> Self {
        // SAFETY: the caller's promise; fewer pages than promised may be used.
        let mut table = unsafe { Table::new(meta, pages.min(MAX_PAGES)) };
        table.set(0, Usage::stuck(0));
        Arena {
            fresh: table.pages().min(1),
            table,
            cap_pages: u32::try_from(cap_bytes / PAGE).unwrap_or(u32::MAX),
            held_pages: 0,
            dirty_pages: 0,
            named_bytes: 0,
            fresh_pages: 0,
            misuses: 0,
            newest: [0; LISTS],
            oldest: [0; LISTS],
            listed: [0; 2],
        }
    }

    /// Hands out 1 to `want` contiguous pages, each pinned once. `None` if `want` is 0, or nothing is free and
    /// the cap or the reservation is reached.
    ///
    /// A run that is long enough comes first, a closely fitting one before a longer one: every piece that a value
    /// is cut into costs an extent, and each operation on the value pays for it again. Dirty runs go before clean
    /// and virgin pages, whose first touch is a fault; only while few pages are dirty-free ([`SPARE_PART`]) does a
    /// whole run of those go before a part of a dirty one. Free pages are what keeps free runs long. Tiny runs
    /// (below both `want` and 4 pages) come last. Among runs of one size: what was freed last, and so is still in
    /// the cache.
    pub fn alloc(&mut self, want: u32) -> Option<Run> {
        if want == 0 {
            return None;
        }
        let growth = want.min(self.cap_pages.saturating_sub(self.held_pages));
        if let Some(run) = self.take_fitting(Kind::Dirty, want, want) {
            return Some(run);
        }
        let spare = self.named_bytes / (PAGE * SPARE_PART);
        if growth == want && u64::from(self.dirty_pages) < spare {
            let whole = self.take_fitting(Kind::Clean, want, want);
            if let Some(run) = whole.or_else(|| self.take_virgin(want)) {
                return Some(run);
            }
        }
        self.take_longest(Kind::Dirty, want.min(LARGE), want)
            .or_else(|| self.take_fitting(Kind::Clean, want, growth))
            .or_else(|| self.take_longest(Kind::Clean, want.min(LARGE), growth))
            .or_else(|| self.take_virgin(growth))
            .or_else(|| self.take_longest(Kind::Dirty, 1, want))
            .or_else(|| self.take_longest(Kind::Clean, 1, growth))
    }

    /// Counts `len` more named bytes from byte offset `core` of the arena on. Every page must be in use.
    ///
    /// `false`, and nothing changed, if a page's count would overflow (or in case of misuse). On page 0 it
    /// succeeds without effect.
    pub fn name(&mut self, core: u64, len: u64) -> bool {
        let Some(span) = self.span(core, len) else {
            return false;
        };
        // Faults are collected and looked at once, so that the loop has no branch for them.
        let (mut free, mut new_names, mut gained) = (0u32, 0u32, 0u32);
        span.each(self.table.counts(span), |named, pins, bytes| {
            let old = *named;
            free |= u32::from(old | *pins == 0);
            gained += bytes.min(WHOLE - covered(old));
            *named = old.wrapping_add(bytes);
            new_names |= *named;
        });
        let overflow = new_names >> 31 != 0;
        if free == 0 && !overflow {
            self.named_bytes += u64::from(gained);
            return true;
        }
        // Wrapping addition is undone exactly, whatever the entries held.
        span.each(self.table.counts(span), |named, _, bytes| *named = named.wrapping_sub(bytes));
        if free != 0 {
            self.misused("a free page was named");
        }
        false
    }

    /// Takes back `len` named bytes from `core` on. Pages that nothing names and nothing pins any more become
    /// dirty-free, next in line for [`Arena::alloc`].
    pub fn unname(&mut self, core: u64, len: u64) {
        let Some(span) = self.span(core, len) else {
            return;
        };
        let (mut borrows, mut unused, mut lost) = (0u32, 0u32, 0u32);
        span.each(self.table.counts(span), |named, pins, bytes| {
            let new = named.wrapping_sub(bytes);
            borrows |= new;
            unused += u32::from(new | *pins == 0);
            lost += bytes.min(WHOLE - covered(new));
            *named = new;
        });
        // Counts are below 2^31, and so is what is subtracted.
        if borrows >> 31 != 0 {
            span.each(self.table.counts(span), |named, _, bytes| *named = named.wrapping_add(bytes));
            return self.take_back_singly(span, Kind::Dirty, |old, bytes| match old.named.checked_sub(bytes) {
                Some(named) => Ok(Usage { named, ..old }),
                None => Err(0),
            });
        }
        self.named_bytes = self.named_bytes.saturating_sub(u64::from(lost));
        self.free_unused(span, unused, Kind::Dirty);
    }

    /// Pins every page that `[core, core + len)` touches, once more. Every page must be in use.
    ///
    /// `false`, and nothing changed, if a page's count would overflow (or in case of misuse). On page 0 it
    /// succeeds without effect.
    pub fn pin(&mut self, core: u64, len: u64) -> bool {
        let Some(span) = self.span(core, len) else {
            return false;
        };
        let (mut free, mut overflow) = (0u32, 0u32);
        span.each(self.table.counts(span), |named, pins, _| {
            free |= u32::from(*named | *pins == 0);
            overflow |= u32::from(*pins == STUCK - 1);
        });
        if free != 0 {
            self.misused("a free page was pinned");
        }
        if free | overflow != 0 {
            return false;
        }
        span.each(self.table.counts(span), |_, pins, _| *pins += u32::from(*pins != STUCK));
        true
    }

    /// Takes back one pin of every page that `[core, core + len)` touches; frees as [`Arena::unname`] does.
    pub fn unpin(&mut self, core: u64, len: u64) {
        if let Some(span) = self.span(core, len) {
            self.release(span, Kind::Dirty);
        }
    }

    /// Takes back the pin that [`Arena::alloc`] gave each page of a run, or of a part of one.
    pub fn unpin_run(&mut self, r: Run) {
        self.unpin(r.core(), r.bytes());
    }

    /// Takes out and pins at most `max_pages` pages of the dirty-free run that has waited longest, of the longest
    /// ones. The caller discards their memory and then calls [`Arena::purged`].
    pub fn take_purge(&mut self, max_pages: u32) -> Option<Run> {
        let list = self.longest(Kind::Dirty)?;
        self.take(list, max_pages, true)
    }

    /// Returns a run from [`Arena::take_purge`]: clean if its memory was discarded (`ok`), else dirty.
    pub fn purged(&mut self, r: Run, ok: bool) {
        if let Some(span) = self.span(r.core(), r.bytes()) {
            self.release(span, if ok { Kind::Clean } else { Kind::Dirty });
        }
    }

    /// Bytes of pages that have physical memory as far as is known: named, pinned or dirty-free.
    pub fn held_bytes(&self) -> u64 {
        u64::from(self.held_pages) * PAGE
    }

    /// Bytes that are named, each page counted up to its size.
    pub fn named_bytes(&self) -> u64 {
        self.named_bytes
    }

    /// How many pages were handed out that had no memory yet, or none any more.
    pub fn fresh_pages(&self) -> u64 {
        self.fresh_pages
    }

    /// Bytes of dirty-free pages.
    pub fn dirty_free_bytes(&self) -> u64 {
        u64::from(self.dirty_pages) * PAGE
    }

    /// Times the arena was asked for something impossible; each is a bug in the caller.
    pub fn misuses(&self) -> u64 {
        self.misuses
    }

    /// Bytes that are named on a page, summed over the extents. 0 for page 0.
    pub fn page_named(&self, page: u32) -> u32 {
        self.table.usage(page).named
    }

    /// Pins of a page; page 0 and leaked pages have 2^31 - 1.
    pub fn page_pins(&self, page: u32) -> u32 {
        self.table.usage(page).pins
    }

    /// Cuts a byte range at page borders, without page 0. `None` if it reaches pages that were never handed out.
    #[inline]
    fn span(&mut self, core: u64, len: u64) -> Option<Span> {
        let skip = PAGE.saturating_sub(core).min(len);
        let (core, len) = (core + skip, len - skip);
        if len == 0 {
            return Some(Span::pages_only(0, 0));
        }
        let limit = u64::from(self.fresh.min(self.table.pages())) * PAGE;
        match core.checked_add(len) {
            Some(end) if end <= limit => Some(Span {
                first: (core / PAGE) as u32,
                end: end.div_ceil(PAGE) as u32,
                head: len.min(PAGE - core % PAGE) as u32,
                tail: ((end - 1) % PAGE + 1) as u32,
            }),
            _ => {
                self.misused("pages that were never handed out");
                None
            }
        }
    }

    /// Takes back one pin of each page; pages that become free get `kind`.
    fn release(&mut self, span: Span, kind: Kind) {
        let mut fault = 0u32;
        span.each(self.table.counts(span), |_, pins, _| fault |= u32::from(*pins == 0));
        if fault != 0 {
            return self.take_back_singly(span, kind, |old, _| match old.pins {
                0 => Err(old.named),
                STUCK => Ok(old),
                pins => Ok(Usage { pins: pins - 1, ..old }),
            });
        }
        let mut unused = 0;
        span.each(self.table.counts(span), |named, pins, _| {
            *pins -= u32::from(*pins != STUCK);
            unused += u32::from(*named | *pins == 0);
        });
        self.free_unused(span, unused, kind);
    }

    /// `take(usage, bytes)` on each page, for a span in which it fails somewhere: there, the page is in use for ever,
    /// with that many bytes named. A page that is already free stays free: nobody can tell whether it was freed too
    /// early. Those that become free get `kind`.
    #[cold]
    #[inline(never)]
    fn take_back_singly(&mut self, span: Span, kind: Kind, take: impl Fn(Usage, u32) -> Result<Usage, u32>) {
        for page in span.first..span.end {
            let bytes = match page {
                p if p == span.first => span.head,
                p if p + 1 == span.end => span.tail,
                _ => WHOLE,
            };
            let old = self.table.usage(page);
            let new = take(old, bytes).unwrap_or_else(|named| {
                self.misused("a count below zero");
                Usage::stuck(named)
            });
            if old.is_free() {
                continue;
            }
            self.table.set(page, new);
            let named = self.named_bytes + u64::from(covered(new.named));
            self.named_bytes = named.saturating_sub(u64::from(covered(old.named)));
            if new.is_free() {
                self.insert_run(page, page + 1, kind);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn misused(&mut self, what: &str) {
        self.misuses = self.misuses.wrapping_add(1);
        debug_assert!(false, "arena: {what}");
    }

    /// Frees the `unused` pages of a span whose counts are 0.
    #[inline]
    fn free_unused(&mut self, span: Span, unused: u32, kind: Kind) {
        if unused == 0 {
            return;
        }
        if unused == span.pages() {
            return self.insert_run(span.first, span.end, kind);
        }
        let mut start = span.first;
        for page in span.first..span.end {
            if !self.table.usage(page).is_free() {
                if start < page {
                    self.insert_run(start, page, kind);
                }
                start = page + 1;
            }
        }
        if start < span.end {
            self.insert_run(start, span.end, kind);
        }
    }
}
