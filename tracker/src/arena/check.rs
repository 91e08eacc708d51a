//! The arena's invariants as assertions, for tests and debug builds.

use super::Arena;
use super::table::{Kind, LISTS, Tag, Usage, covered};

impl Arena {
    /// Checks every invariant of the table and of the lists, in time linear in the pages ever handed out.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        let (mut in_use, mut dirty, mut clean, mut named) = (0u32, 0u32, 0u32, 0u64);
        let mut runs = [0u32; LISTS];
        let mut before = None;
        let mut page = 1;
        while page < self.fresh {
            let usage = self.table.usage(page);
            if !usage.is_free() {
                named += u64::from(covered(usage.named));
                in_use += 1;
                before = None;
                page += 1;
                continue;
            }
            let tag = Tag::decode(self.table.links(page).tag);
            assert!(tag.len >= 1 && tag.len <= self.fresh - page, "run at {page}: {tag:?}");
            assert!(before != Some(tag.kind), "two {:?} runs meet at page {page}", tag.kind);
            assert_eq!(Tag::decode(self.table.links(page + tag.len - 1).tag), tag, "last page of {page}");
            assert!((page..page + tag.len).all(|p| self.table.usage(p).is_free()), "in use in run {page}");
            match tag.kind {
                Kind::Dirty => dirty += tag.len,
                Kind::Clean => clean += tag.len,
            }
            runs[tag.list()] += 1;
            before = Some(tag.kind);
            page += tag.len;
        }
        assert!(self.table.pages() == 0 || self.table.usage(0) == Usage::stuck(0), "page 0");
        assert_eq!(page, self.fresh.max(1), "runs end at the virgin pages");
        assert_eq!(in_use + dirty, self.held_pages, "held");
        assert_eq!(dirty, self.dirty_pages, "dirty");
        assert_eq!(in_use + dirty + clean + 1, self.fresh.max(1), "every page is in one state");
        assert_eq!(named, self.named_bytes, "named");
        assert!(self.held_pages <= self.cap_pages, "cap");
        // Looking at all virgin entries would give the whole table memory.
        let virgin = self.fresh..self.table.pages().min(self.fresh.saturating_add(64));
        assert!(virgin.clone().all(|p| self.table.usage(p) == Usage::default()), "virgin pages {virgin:?}");
        for (list, &count) in runs.iter().enumerate() {
            self.check_list(list, count);
        }
    }

    /// Follows a list, which must have exactly `count` runs.
    fn check_list(&self, list: usize, count: u32) {
        let (mut at, mut newer) = (self.newest[list], 0);
        for _ in 0..count {
            assert!(self.table.usage(at).is_free(), "a listed run is free");
            let tag = Tag::decode(self.table.links(at).tag);
            assert_eq!(tag.list(), list, "run {at} is in the wrong list");
            assert_eq!(self.table.links(at).newer, newer, "back link of {at}");
            (newer, at) = (at, self.table.links(at).older);
        }
        assert_eq!((at, self.oldest[list]), (0, newer), "end of list {list}");
    }
}

#[cfg(test)]
mod tests {
    use crate::arena::table::{STUCK, Usage};
    use crate::arena::{Arena, PAGE, PageMeta};

    #[test]
    fn pins_stop_below_stuck() {
        let mut meta = [PageMeta::default(); 4];
        // SAFETY: the array has 4 zeroed entries, outlives the arena and is used through it only.
        let mut arena = unsafe { Arena::new(meta.as_mut_ptr(), 4, 3 * PAGE) };
        let run = arena.alloc(2).unwrap();
        // As if 2^31 - 3 more calls had pinned it.
        arena.table.set(run.page + 1, Usage { named: 0, pins: STUCK - 1 });
        assert!(!arena.pin(run.core(), run.bytes()));
        assert_eq!(arena.page_pins(run.page), 1);
        arena.unpin(run.core() + PAGE, 1);
        assert!(arena.pin(run.core(), run.bytes()));
        assert_eq!((arena.page_pins(run.page), arena.page_pins(run.page + 1)), (2, STUCK - 1));
        arena.check();
    }
}
