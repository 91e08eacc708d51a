//! Free runs: listed by kind and size, merged with their neighbours, taken by closest fit.

use super::Arena;
use super::table::{Kind, Links, Run, SIZES, Span, Tag, list_of_size, size_of_run};

impl Arena {
    /// Makes the pages `[start, end)`, whose counts are 0, a free run, or part of its neighbours'.
    pub(super) fn insert_run(&mut self, start: u32, end: u32, kind: Kind) {
        match kind {
            Kind::Dirty => self.dirty_pages += end - start,
            Kind::Clean => self.held_pages = self.held_pages.saturating_sub(end - start),
        }
        let (mut left_len, mut right_len) = (0, 0);
        if let Some(left) = self.border(start - 1).filter(|tag| tag.kind == kind) {
            left_len = left.len.min(start - 1);
            self.unlink(start - left_len, left.list());
        }
        if end < self.fresh
            && let Some(right) = self.border(end).filter(|tag| tag.kind == kind)
        {
            right_len = right.len.min(self.fresh - end);
            self.unlink(end, right.list());
        }
        let tag = Tag { kind, hot_end: left_len > right_len, len: left_len + (end - start) + right_len };
        self.link(start - left_len, tag, false);
    }

    /// Tag of a border page of a free run; none for a page in use.
    fn border(&self, page: u32) -> Option<Tag> {
        self.table.usage(page).is_free().then(|| Tag::decode(self.table.links(page).tag))
    }

    /// Takes `max` pages, at most, off a run of at least `want`: the closest size first, the newest of each.
    pub(super) fn take_fitting(&mut self, kind: Kind, want: u32, max: u32) -> Option<Run> {
        let size = size_of_run(want);
        let own = list_of_size(kind, size);
        // Runs of the wish's own size may be a little shorter: one look. All longer sizes fit.
        let newest = *self.newest.get(own)?;
        if newest != 0 && Tag::decode(self.table.links(newest).tag).len >= want {
            return self.take(own, max, false);
        }
        let longer = self.listed.get(kind as usize)? >> size >> 1;
        if longer == 0 {
            return None;
        }
        self.take(own + 1 + longer.trailing_zeros() as usize, max, false)
    }

    /// Takes `max` pages, at most, off the newest of the longest runs, if those have `least` pages.
    pub(super) fn take_longest(&mut self, kind: Kind, least: u32, max: u32) -> Option<Run> {
        let list = self.longest(kind)?;
        if list < list_of_size(kind, size_of_run(least)) { None } else { self.take(list, max, false) }
    }

    /// The list of the longest free runs.
    pub(super) fn longest(&self, kind: Kind) -> Option<usize> {
        let last = self.listed.get(kind as usize)?.checked_ilog2()?;
        Some(list_of_size(kind, last as usize))
    }

    /// Records whether a list has runs.
    fn note_listed(&mut self, list: usize) {
        let (kind, size) = if list < SIZES { (0, list) } else { (1, list - SIZES) };
        let empty = self.newest.get(list).is_none_or(|&first| first == 0);
        if let Some(bits) = self.listed.get_mut(kind) {
            *bits = *bits & !(1 << size) | u128::from(!empty) << size;
        }
    }

    /// Takes at most `want` pages off the newest or oldest run of a list, and pins them.
    pub(super) fn take(&mut self, list: usize, want: u32, oldest: bool) -> Option<Run> {
        let first = *if oldest { self.oldest.get(list) } else { self.newest.get(list) }?;
        if first == 0 || want == 0 {
            return None;
        }
        let tag = Tag::decode(self.table.links(first).tag);
        self.unlink(first, list);
        let pages = want.min(tag.len);
        let rest = tag.len - pages;
        // Reuse wants the run's hot side, purging its cold side.
        let from_end = tag.hot_end != oldest;
        let (page, rest_first) = if from_end { (first + rest, first) } else { (first, first + pages) };
        if rest > 0 {
            self.link(rest_first, Tag { len: rest, ..tag }, oldest);
        }
        match tag.kind {
            Kind::Dirty => self.dirty_pages -= pages,
            Kind::Clean => {
                self.held_pages += pages;
                self.fresh_pages += u64::from(pages);
            }
        }
        Some(self.hand_out(page, pages))
    }

    pub(super) fn take_virgin(&mut self, want: u32) -> Option<Run> {
        let page = self.fresh;
        let pages = want.min(self.table.pages() - page);
        if pages == 0 {
            return None;
        }
        self.fresh += pages;
        self.held_pages += pages;
        self.fresh_pages += u64::from(pages);
        Some(self.hand_out(page, pages))
    }

    fn hand_out(&mut self, page: u32, pages: u32) -> Run {
        let span = Span::pages_only(page, page + pages);
        span.each(self.table.counts(span), |_, pins, _| *pins = 1);
        Run { page, pages }
    }

    /// Tags the run that starts at `first`, and puts it at the newest or oldest end of its list.
    fn link(&mut self, first: u32, tag: Tag, oldest: bool) {
        let list = tag.list();
        let (Some(head), Some(tail)) = (self.newest.get_mut(list), self.oldest.get_mut(list)) else {
            return;
        };
        let (newer, older) = if oldest { (*tail, 0) } else { (0, *head) };
        if newer == 0 {
            *head = first;
        }
        if older == 0 {
            *tail = first;
        }
        // The other end first: both are the same entry in a run of one page.
        let last = first + tag.len - 1;
        self.table.set_links(last, Links { tag: tag.encode(), ..Links::default() });
        self.table.set_links(first, Links { tag: tag.encode(), newer, older });
        self.join(newer, first);
        self.join(first, older);
        self.note_listed(list);
    }

    fn unlink(&mut self, first: u32, list: usize) {
        let Links { newer, older, .. } = self.table.links(first);
        if newer == 0
            && let Some(head) = self.newest.get_mut(list)
        {
            *head = older;
        }
        if older == 0
            && let Some(tail) = self.oldest.get_mut(list)
        {
            *tail = newer;
        }
        self.join(newer, older);
        self.note_listed(list);
    }

    /// Makes two runs neighbours in a list; 0 stands for its end.
    fn join(&mut self, newer: u32, older: u32) {
        if newer != 0 {
            self.table.set_links(newer, Links { older, ..self.table.links(newer) });
        }
        if older != 0 {
            self.table.set_links(older, Links { newer, ..self.table.links(older) });
        }
    }
}
