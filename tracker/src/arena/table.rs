//! One entry per core page: how it is encoded, and access to it.
//!
//! # What keeps the unsafe code sound
//!
//! All raw access is in [`Table`], which compares every page number with the table's length. [`Table::new`]
//! has the one promise: the length is right and the table is exclusively ours. Nothing read *from* the table
//! (tags, links) is ever trusted for a bound, so a damaged table gives wrong accounting, not a wild access.

/// Bytes in a core page.
pub const PAGE: u64 = 4096;
/// Most pages an arena can have (2 TiB); a larger reservation is used up to here.
pub const MAX_PAGES: u32 = (1 << 29) - 1;

/// Free runs of fewer pages than this are tiny: a larger wish gets one only when there is nothing else.
pub(super) const LARGE: u32 = 4;
/// Sizes of free runs that have a list of their own: 1, 2 and 3 pages, then four to each power of two up to
/// 1 MiB pages; longer runs share the last.
pub(super) const SIZES: usize = 3 + 4 * 18;
/// Free lists: one for each kind and size.
pub(super) const LISTS: usize = 2 * SIZES;

/// The pin count of a page that never becomes free: page 0, and pages leaked by an underflow.
pub(super) const STUCK: u32 = 0x7fff_ffff;
/// Bytes in a core page, as they are counted on a page.
pub(super) const WHOLE: u32 = PAGE as u32;

/// Memory for what is known about one core page; all zeros is a virgin page. An array of these is cut into arrays
/// of the counts and of the links: operations on runs of pages are loops over dense integers then.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PageMeta {
    _counts: [u32; 2],
    _links: Links,
}

/// What the first page of a free run records, and of which the last page records the tag. Outdated elsewhere.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Links {
    pub(super) tag: u32,
    /// The next newer run of its list, 0 for none.
    pub(super) newer: u32,
    /// The next older run of its list, 0 for none.
    pub(super) older: u32,
}

/// What uses a page. None of both: the page is free, or virgin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    /// Bytes named, summed over the extents; at most 2^31 - 1.
    pub(super) named: u32,
    pub(super) pins: u32,
}

impl Usage {
    /// A page that is in use for ever.
    pub(super) const fn stuck(named: u32) -> Usage {
        Usage { named, pins: STUCK }
    }

    pub(super) const fn is_free(self) -> bool {
        self.named | self.pins == 0
    }
}

/// A run of contiguous core pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first page's number.
    pub page: u32,
    /// Number of pages, at least 1.
    pub pages: u32,
}

impl Run {
    /// Byte offset of the run in the arena.
    pub const fn core(self) -> u64 {
        self.page as u64 * PAGE
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.pages as u64 * PAGE
    }
}

/// Whether a free run has physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Dirty,
    Clean,
}

/// What the first and the last page of a free run record about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    pub(super) kind: Kind,
    /// The pages freed last are at the run's end rather than at its start.
    pub(super) hot_end: bool,
    pub(super) len: u32,
}

impl Tag {
    const CLEAN: u32 = 1 << 31;
    const HOT_END: u32 = 1 << 30;

    pub(super) fn encode(self) -> u32 {
        let clean = if self.kind == Kind::Clean { Tag::CLEAN } else { 0 };
        let hot = if self.hot_end { Tag::HOT_END } else { 0 };
        clean | hot | (self.len & MAX_PAGES)
    }

    pub(super) fn decode(tag: u32) -> Tag {
        let kind = if tag & Tag::CLEAN != 0 { Kind::Clean } else { Kind::Dirty };
        Tag { kind, hot_end: tag & Tag::HOT_END != 0, len: tag & MAX_PAGES }
    }

    /// Index of the list that holds runs like this one.
    pub(super) fn list(self) -> usize {
        list_of(self.kind, self.len)
    }
}

pub(super) fn list_of(kind: Kind, len: u32) -> usize {
    list_of_size(kind, size_of_run(len))
}

pub(super) fn list_of_size(kind: Kind, size: usize) -> usize {
    if kind == Kind::Clean { size + SIZES } else { size }
}

/// Index of the size that a run of `len` pages is listed under: it grows with the length.
pub(super) fn size_of_run(len: u32) -> usize {
    if len < LARGE {
        return len.max(1) as usize - 1;
    }
    // The two bits below the highest one cut each power of two into four.
    let power = len.ilog2();
    let quarter = (len >> (power - 2)) & 3;
    let size = 3 + 4 * (power - 2) as usize + quarter as usize;
    if size < SIZES { size } else { SIZES - 1 }
}

/// Bytes of a page that count as named when `named` are, overlaps included.
pub(super) const fn covered(named: u32) -> u32 {
    if named < WHOLE { named } else { WHOLE }
}

/// The page table; page numbers out of range read as in use for ever, and writes to them go nowhere.
pub(super) struct Table {
    named: *mut u32,
    pins: *mut u32,
    links: *mut Links,
    pages: u32,
}

impl Table {
    /// # Safety
    /// `meta` points at `pages` initialised entries that stay valid, and are accessed by nobody else, for as
    /// long as the table is used.
    pub(super) unsafe fn new(meta: *mut PageMeta, pages: u32) -> Self {
        const { assert!(size_of::<PageMeta>() == 2 * size_of::<u32>() + size_of::<Links>()) };
        const { assert!(align_of::<PageMeta>() >= align_of::<Links>() && align_of::<Links>() >= align_of::<u32>()) };
        let named = meta.cast::<u32>();
        let n = pages as usize;
        // SAFETY: the three arrays have the size of `n` entries together, and no alignment above theirs.
        unsafe { Table { named, pins: named.add(n), links: named.add(2 * n).cast(), pages } }
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The counts of a span's pages, named bytes and pins; none if it leaves the table.
    #[inline(always)]
    pub(super) fn counts(&mut self, span: Span) -> (&mut [u32], &mut [u32]) {
        if span.first >= span.end || span.end > self.pages {
            return (&mut [], &mut []);
        }
        let (first, len) = (span.first as usize, (span.end - span.first) as usize);
        // SAFETY: needs `len` initialised counts in each of two arrays, which do not overlap and which nothing else
        // accesses meanwhile: they are within the length that `new`'s caller vouched for, and the result borrows
        // the only path to them.
        unsafe {
            let named = core::slice::from_raw_parts_mut(self.named.add(first), len);
            (named, core::slice::from_raw_parts_mut(self.pins.add(first), len))
        }
    }

    pub(super) fn usage(&self, page: u32) -> Usage {
        if page >= self.pages {
            return Usage::stuck(0);
        }
        // SAFETY: needs initialised counts: in range as above, and `&self` excludes a writer.
        unsafe { Usage { named: *self.named.add(page as usize), pins: *self.pins.add(page as usize) } }
    }

    pub(super) fn set(&mut self, page: u32, usage: Usage) {
        if let ([named], [pins]) = self.counts(Span::pages_only(page, page.saturating_add(1))) {
            (*named, *pins) = (usage.named, usage.pins);
        }
    }

    pub(super) fn links(&self, page: u32) -> Links {
        if page >= self.pages {
            return Links::default();
        }
        // SAFETY: as in `usage`.
        unsafe { *self.links.add(page as usize) }
    }

    pub(super) fn set_links(&mut self, page: u32, links: Links) {
        if page < self.pages {
            // SAFETY: in range, and `&mut self` is the only path.
            unsafe { *self.links.add(page as usize) = links };
        }
    }
}

// SAFETY: needs that no other thread reaches the entries through the raw pointer: they belong to this value
// alone (contract of `new`) and are accessed only through it.
unsafe impl Send for Table {}

/// A byte range cut at page borders: pages `[first, end)`, `head` bytes in the first and, if there are more
/// pages than one, `tail` bytes in the last.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) end: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
}

impl Span {
    /// Whole pages.
    pub(super) fn pages_only(first: u32, end: u32) -> Span {
        Span { first, end, head: WHOLE, tail: WHOLE }
    }

    /// Calls `f(named, pins, bytes)` for each page's counts, ascending. Inlined, so that whole pages get a loop of
    /// their own in which `bytes` is constant.
    #[inline(always)]
    pub(super) fn each(self, counts: (&mut [u32], &mut [u32]), mut f: impl FnMut(&mut u32, &mut u32, u32)) {
        match counts {
            ([named], [pins]) => f(named, pins, self.head),
            ([named, all_named @ .., last_named], [pins, all_pins @ .., last_pins]) => {
                f(named, pins, self.head);
                for (named, pins) in all_named.iter_mut().zip(all_pins) {
                    f(named, pins, WHOLE);
                }
                f(last_named, last_pins, self.tail);
            }
            _ => {}
        }
    }

    pub(super) fn pages(self) -> u32 {
        self.end - self.first
    }
}
