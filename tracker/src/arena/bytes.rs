//! Core bytes that are handed out a few at a time, from either end of a run.

use super::{Arena, PAGE};

/// Core bytes `[start, end)`, of which nothing is named; each page that they touch is pinned once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ByteWindow {
    start: u64,
    end: u64,
}

impl ByteWindow {
    /// Takes 1 to `len` bytes, each page that they touch pinned once more: their core offset and how many. From the
    /// end with `down`, if there are `len`. `None` when there are no bytes and the arena has none; it is asked for
    /// `pages` at least.
    pub fn take(&mut self, arena: &mut Arena, len: u64, pages: u64, down: bool) -> Option<(u64, u64)> {
        if self.start == self.end {
            let pages = len.div_ceil(PAGE).clamp(pages, PAGES_MAX) as u32;
            let run = arena.alloc(pages)?;
            (self.start, self.end) = (run.core(), run.core() + run.bytes());
        }
        let n = len.min(self.end - self.start);
        let down = down && n == len;
        let core = if down { self.end - n } else { self.start };
        if n == 0 || !arena.pin(core, n) {
            return None;
        }
        let before = *self;
        if down {
            self.end = core
        } else {
            self.start += n
        }
        // Pages that are used up are let go.
        let (held, kept) = (before.pages(), self.pages());
        for (from, to) in [(held.0, kept.0), (kept.1, held.1)] {
            arena.unpin(from, to - from);
        }
        Some((core, n))
    }

    /// Lets go of what is left.
    pub fn clear(&mut self, arena: &mut Arena) {
        let (from, to) = self.pages();
        arena.unpin(from, to - from);
        *self = ByteWindow::default();
    }

    /// First byte of the first page that the bytes touch, and of the first page after them. Without bytes, nothing.
    pub fn pages(&self) -> (u64, u64) {
        let (from, to) = (self.start / PAGE * PAGE, self.end.div_ceil(PAGE) * PAGE);
        if self.start < self.end { (from, to) } else { (to, to) }
    }
}

/// Most pages that are asked of the arena at once.
const PAGES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::PageMeta;

    /// Whatever is taken from either end, in the end no page is pinned, and no byte was given twice.
    #[test]
    fn both_ends() {
        let mut meta = [PageMeta::default(); 16];
        // SAFETY: 16 zeroed entries that outlive the arena and are used through it only.
        let mut arena = unsafe { Arena::new(meta.as_mut_ptr(), 16, 15 * PAGE) };
        for pattern in 0..64u32 {
            let mut w = ByteWindow::default();
            let mut given = [0u8; 16 * PAGE as usize];
            let (mut taken, mut left) = ([(0, 0); 64], 3 * PAGE);
            let mut n = 0;
            while left > 0 {
                let want = if n == 0 { left.min(2 * PAGE + 1) } else { (left / 2).max(1) };
                let (core, len) =
                    w.take(&mut arena, want.max(PAGE / 3).min(left), 1, pattern >> (n % 6) & 1 == 1).unwrap();
                for b in &mut given[core as usize..(core + len) as usize] {
                    assert_eq!(*b, 0);
                    *b = 1;
                }
                taken[n] = (core, len);
                left -= len;
                n += 1;
            }
            for &(core, len) in &taken[..n] {
                arena.unpin(core, len);
            }
            w.clear(&mut arena);
            assert_eq!(arena.held_bytes(), arena.dirty_free_bytes(), "pattern {pattern:b}");
            assert_eq!(arena.misuses(), 0);
            arena.check();
        }
    }
}
