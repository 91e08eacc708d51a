//! Addresses, page arithmetic and ranges of program memory.
//!
//! A [`Span`] is an *allegation* about program memory: a base and an end. It is never turned into a
//! slice; only [`crate::sys::Kernel`] moves bytes of program memory.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Page size, bytes. x86-64 only.
pub const PAGE: u64 = 1 << PAGE_SHIFT;
/// First address past the user half with four-level page tables; anything above is never elided.
pub const USER_END: u64 = 1 << 47;

/// `a` rounded down to a page border.
pub const fn page_down(a: u64) -> u64 {
    a & !(PAGE - 1)
}

/// `a` rounded up to a page border; saturates at the last page border of the address space.
pub const fn page_up(a: u64) -> u64 {
    page_down(a.saturating_add(PAGE - 1))
}

/// Bytes `[start, end)` of program memory; `start <= end` always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// The span of `len` bytes at `start`; `None` if it leaves the part of the address space that zio
    /// tracks. Callers pass such calls on untouched.
    pub const fn new(start: u64, len: u64) -> Option<Span> {
        match start.checked_add(len) {
            Some(end) if end <= USER_END => Some(Span { start, end }),
            _ => None,
        }
    }

    /// The span between two addresses; empty if they are in the wrong order.
    pub const fn between(start: u64, end: u64) -> Span {
        Span { start, end: if end > start { end } else { start } }
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// True if there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The whole pages inside it (possibly empty).
    pub const fn inner_pages(self) -> Span {
        Span::between(page_up(self.start), page_down(self.end))
    }

    /// The whole pages that it touches.
    pub const fn outer_pages(self) -> Span {
        if self.is_empty() {
            return Span { start: page_down(self.start), end: page_down(self.start) };
        }
        Span::between(page_down(self.start), page_up(self.end))
    }

    /// The part that lies in `other`.
    pub const fn intersect(self, other: Span) -> Span {
        let s = if self.start > other.start { self.start } else { other.start };
        let e = if self.end < other.end { self.end } else { other.end };
        Span::between(s, e)
    }

    /// True if every byte of `other` is in it.
    pub const fn contains(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}
