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

/// One pin, as `PageMeta::usage` counts it.
pub(super) const ONE_PIN: u64 = 1 << 32;
/// The pin count of a page that never becomes free: page 0, and pages leaked by an underflow.
pub(super) const STUCK: u32 = 0x7fff_ffff;
pub(super) const STUCK_USAGE: u64 = (STUCK as u64) << 32;
/// The bits of `PageMeta::usage` that count named bytes.
pub(super) const NAMED: u64 = ONE_PIN - 1;

/// What is known about one core page; all zeros is a virgin page.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct PageMeta {
    /// In use: bytes named in the low half, pins in the high half; as one word, so that "free now?" is a single
    /// comparison with zero. Border page of a free run: a [`Tag`], negative as an `i64`. Inside a free run: not
    /// in use, i.e. zero or an outdated tag; never positive.
    pub(super) usage: u64,
    /// First page of a free run: the next newer run of its list, 0 for none. Else meaningless.
    pub(super) newer: u32,
    /// First page of a free run: the next older run of its list, 0 for none. Else meaningless.
    pub(super) older: u32,
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
    pub(super) const FREE: u64 = 1 << 63;
    const CLEAN: u64 = 1 << 62;
    const HOT_END: u64 = 1 << 61;

    pub(super) fn encode(self) -> u64 {
        let clean = if self.kind == Kind::Clean { Tag::CLEAN } else { 0 };
        let hot = if self.hot_end { Tag::HOT_END } else { 0 };
        Tag::FREE | clean | hot | u64::from(self.len & MAX_PAGES) << 32
    }

    pub(super) fn decode(usage: u64) -> Option<Tag> {
        if usage & Tag::FREE == 0 {
            return None;
        }
        let kind = if usage & Tag::CLEAN != 0 { Kind::Clean } else { Kind::Dirty };
        let len = (usage >> 32) as u32 & MAX_PAGES;
        Some(Tag { kind, hot_end: usage & Tag::HOT_END != 0, len })
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

/// Free, in the sense of [`PageMeta::usage`]: nothing names the page and nothing pins it.
pub(super) const fn is_free(usage: u64) -> bool {
    usage as i64 <= 0
}

/// The pin count of a page in use; of a free page, something above [`STUCK`] or 0.
pub(super) const fn pins(usage: u64) -> u32 {
    (usage >> 32) as u32
}

/// Bytes of a page that count as named when `usage` names that many, overlaps included.
pub(super) const fn covered(usage: u64) -> u64 {
    let named = usage & NAMED;
    if named < PAGE { named } else { PAGE }
}

/// The page table; page numbers out of range read as in use for ever, and writes to them go nowhere.
pub(super) struct Table {
    meta: *mut PageMeta,
    pages: u32,
}

impl Table {
    /// # Safety
    /// `meta` points at `pages` initialised entries that stay valid, and are accessed by nobody else, for as
    /// long as the table is used.
    pub(super) unsafe fn new(meta: *mut PageMeta, pages: u32) -> Self {
        Table { meta, pages }
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The entries of a span; none if it leaves the table.
    #[inline(always)]
    pub(super) fn entries(&mut self, span: Span) -> &mut [PageMeta] {
        if span.first >= span.end || span.end > self.pages {
            return &mut [];
        }
        let len = (span.end - span.first) as usize;
        // SAFETY: needs `len` initialised entries that nothing else accesses meanwhile: they are within the
        // length that `new`'s caller vouched for, and the result borrows the only path to them.
        unsafe { core::slice::from_raw_parts_mut(self.meta.add(span.first as usize), len) }
    }

    pub(super) fn entry(&self, page: u32) -> PageMeta {
        if page >= self.pages {
            return PageMeta { usage: STUCK_USAGE, newer: 0, older: 0 };
        }
        // SAFETY: needs an initialised entry: in range as above, and `&self` excludes a writer.
        unsafe { *self.meta.add(page as usize) }
    }

    pub(super) fn usage(&self, page: u32) -> u64 {
        self.entry(page).usage
    }

    pub(super) fn change(&mut self, page: u32, f: impl FnOnce(&mut PageMeta)) {
        let end = page.saturating_add(1);
        if let [meta] = self.entries(Span::pages_only(page, end)) {
            f(meta);
        }
    }

    pub(super) fn set(&mut self, page: u32, usage: u64) {
        self.change(page, |meta| meta.usage = usage);
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
    pub(super) head: u64,
    pub(super) tail: u64,
}

impl Span {
    /// Whole pages.
    pub(super) fn pages_only(first: u32, end: u32) -> Span {
        Span { first, end, head: PAGE, tail: PAGE }
    }

    /// Calls `f(usage, bytes)` for each page's entry, ascending. Inlined, so that whole pages get a loop of
    /// their own in which `bytes` is constant.
    #[inline(always)]
    pub(super) fn each(self, entries: &mut [PageMeta], mut f: impl FnMut(&mut u64, u64)) {
        match entries {
            [] => {}
            [only] => f(&mut only.usage, self.head),
            [first, whole @ .., last] => {
                f(&mut first.usage, self.head);
                for meta in whole {
                    f(&mut meta.usage, PAGE);
                }
                f(&mut last.usage, self.tail);
            }
        }
    }

    pub(super) fn pages(self) -> u32 {
        self.end - self.first
    }
}
