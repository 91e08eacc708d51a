//! Structural changes of the extent map: entries in and out of leaves, splits, merges, separators.

use super::nodes::{INNER_CAP, LEAF_CAP, NIL};
use super::{Extent, ExtentMap, INNER_LOW, INNER_MERGED, LEAF_LOW, LEAF_MERGED, MAX_HEIGHT, MapFull, Path, Pos};

impl ExtentMap {
    /// Erases `[start, end)` from the inside of the extent at `pos`. On error nothing was changed.
    pub(super) fn punch(
        &mut self,
        pos: Pos,
        start: u64,
        end: u64,
        mut dropped: impl FnMut(Extent),
    ) -> Result<(), MapFull> {
        let whole = self.extent(pos);
        let rest = whole.clip(end, whole.end());
        // By M4 the second half's leaf need not be this one. Its slot number holds either way: the extent
        // at `pos` keeps its start.
        let path = self.descend(rest.start);
        let slot = self.pool.leaf(path.leaf).rank(rest.start);
        self.pool.leaf_mut(pos.leaf).set_len(pos.slot, start - whole.start);
        if let Err(full) = self.add(&path, slot, rest) {
            self.pool.leaf_mut(pos.leaf).set_len(pos.slot, whole.len);
            return Err(full);
        }
        dropped(whole.clip(start, end));
        Ok(())
    }

    /// Erases, from `pos` on in its leaf, all that lies before `end`; no extent there starts earlier than the
    /// range. Returns where to go on, if the range may reach into the next leaf.
    pub(super) fn erase_in_leaf(&mut self, pos: Pos, end: u64, dropped: &mut impl FnMut(Extent)) -> Option<Pos> {
        let first_key = self.pool.leaf(pos.leaf).key(pos.slot);
        let count = self.pool.leaf(pos.leaf).count();
        let mut slot = pos.slot;
        while slot < count {
            let e = self.extent(Pos { leaf: pos.leaf, slot });
            if e.start >= end {
                break;
            }
            dropped(e.clip(e.start, end));
            if e.end() > end {
                self.trim_front(Pos { leaf: pos.leaf, slot }, e, end);
                break;
            }
            slot += 1;
        }
        let next = self.pool.leaf(pos.leaf).next;
        let resume = (slot == count && next != NIL).then(|| self.pool.leaf(next).key(0));
        if slot > pos.slot {
            self.remove(pos, slot, first_key);
        }
        resume.filter(|&key| key < end).and_then(|key| self.seek(key))
    }

    /// Lets the extent `e` at `pos` start at `to`, inside it.
    fn trim_front(&mut self, pos: Pos, e: Extent, to: u64) {
        let path = (pos.slot + 1 == self.pool.leaf(pos.leaf).count()).then(|| self.descend(e.start));
        self.pool.leaf_mut(pos.leaf).set(pos.slot, e.clip(to, e.end()).pack());
        // By M4 the new start may lie past the separator to the next leaf, all of whose keys are at least the
        // extent's end.
        if let Some(path) = path {
            self.set_right_sep(&path, e.end());
        }
    }

    /// Takes `[pos.slot, to)` out of a leaf; `key` is one that leads to the leaf.
    pub(super) fn remove(&mut self, pos: Pos, to: usize, key: u64) {
        self.pool.leaf_mut(pos.leaf).remove(pos.slot, to);
        self.count -= to - pos.slot;
        if self.pool.leaf(pos.leaf).count() <= LEAF_LOW && self.height > 1 {
            self.settle(key);
        }
    }

    /// Sets the separator between the leaf at the end of `path` and the next one, if there is one. All keys
    /// on the left are smaller than `sep`, none on the right is.
    pub(super) fn set_right_sep(&mut self, path: &Path, sep: u64) {
        for depth in (0..self.height.saturating_sub(1)).rev() {
            let (node, slot) = path.step(depth);
            let inner = self.pool.inner_mut(node);
            if slot + 1 < inner.count() {
                inner.set_sep(slot, sep);
                return;
            }
        }
    }

    /// Puts `e` into `slot` of the leaf at the end of `path`. On error nothing was changed.
    pub(super) fn add(&mut self, path: &Path, slot: usize, e: Extent) -> Result<(), MapFull> {
        if self.pool.leaf(path.leaf).count() == LEAF_CAP {
            if self.pool.free() < self.nodes_to_split(path) || self.height == MAX_HEIGHT {
                return Err(MapFull);
            }
            self.split_leaf(path, slot, e)?;
        } else {
            self.pool.leaf_mut(path.leaf).insert(slot, e.pack());
        }
        self.count += 1;
        Ok(())
    }

    /// Nodes that splitting the full leaf at the end of `path` takes.
    fn nodes_to_split(&self, path: &Path) -> usize {
        let mut need = 1;
        for depth in (0..self.height.saturating_sub(1)).rev() {
            if self.pool.inner(path.step(depth).0).count() < INNER_CAP {
                return need;
            }
            need += 1;
        }
        need + 1
    }

    /// Splits the full leaf at the end of `path` and puts `e` where `slot` was. The nodes were counted: the
    /// allocations here and above do not fail.
    fn split_leaf(&mut self, path: &Path, slot: usize, e: Extent) -> Result<(), MapFull> {
        let new = self.pool.alloc_leaf().ok_or(MapFull)?;
        let next = self.pool.leaf(path.leaf).next;
        // Addresses that only grow leave full leaves behind.
        let mid = if slot == LEAF_CAP && next == NIL { LEAF_CAP } else { LEAF_CAP / 2 + 1 };
        for i in mid..LEAF_CAP {
            let entry = self.pool.leaf(path.leaf).entry(i);
            self.pool.leaf_mut(new).insert(i - mid, entry);
        }
        let old_leaf = self.pool.leaf_mut(path.leaf);
        old_leaf.truncate(mid);
        old_leaf.next = new;
        if slot <= mid && mid < LEAF_CAP {
            old_leaf.insert(slot, e.pack());
        } else {
            self.pool.leaf_mut(new).insert(slot - mid, e.pack());
        }
        let new_leaf = self.pool.leaf_mut(new);
        new_leaf.prev = path.leaf;
        new_leaf.next = next;
        let sep = new_leaf.key(0);
        if next != NIL {
            self.pool.leaf_mut(next).prev = new;
        }
        self.add_kid(path, sep, new)
    }

    /// Puts the leaf `kid`, which starts at `sep`, right after the leaf at the end of `path`.
    fn add_kid(&mut self, path: &Path, mut sep: u64, mut kid: u32) -> Result<(), MapFull> {
        const MID: usize = INNER_CAP / 2;
        for depth in (0..self.height.saturating_sub(1)).rev() {
            let (node, slot) = path.step(depth);
            if self.pool.inner(node).count() < INNER_CAP {
                self.pool.inner_mut(node).insert_after(slot, sep, kid);
                return Ok(());
            }
            let right = self.alloc_inner()?;
            let up = self.pool.inner(node).sep(MID - 1);
            self.move_kids(node, MID, right, up);
            if slot < MID {
                self.pool.inner_mut(node).insert_after(slot, sep, kid);
            } else {
                self.pool.inner_mut(right).insert_after(slot - MID, sep, kid);
            }
            (sep, kid) = (up, right);
        }
        let root = self.alloc_inner()?;
        let old = self.root;
        let inner = self.pool.inner_mut(root);
        inner.push(0, old);
        inner.push(sep, kid);
        self.root = root;
        self.height += 1;
        Ok(())
    }

    fn alloc_inner(&mut self) -> Result<u32, MapFull> {
        let n = self.pool.alloc_inner().ok_or(MapFull)?;
        self.inners += 1;
        Ok(n)
    }

    /// Appends the kids of `from`, those in slot `first` and later, to `to`; `sep` is where the first begins.
    fn move_kids(&mut self, from: u32, first: usize, to: u32, mut sep: u64) {
        let count = self.pool.inner(from).count();
        for slot in first..count {
            let inner = self.pool.inner(from);
            let (kid, next_sep) = (inner.kid(slot), inner.sep(slot));
            self.pool.inner_mut(to).push(sep, kid);
            sep = next_sep;
        }
        self.pool.inner_mut(from).truncate(first);
    }

    /// Frees or merges the nodes that became empty or small on the way to `key`, from its leaf up.
    fn settle(&mut self, key: u64) {
        let path = self.descend(key);
        let mut node = path.leaf;
        let leaf_depth = self.height - 1;
        for depth in (0..leaf_depth).rev() {
            let (parent, slot) = path.step(depth);
            let is_leaf = depth + 1 == leaf_depth;
            let count = self.kid_count(node, is_leaf);
            let low = if is_leaf { LEAF_LOW } else { INNER_LOW };
            if count == 0 {
                self.release(node, is_leaf);
                self.pool.inner_mut(parent).remove(slot);
            } else if count > low || !self.merge(parent, slot, is_leaf) {
                break;
            }
            node = parent;
        }
        while self.height > 1 && self.pool.inner(self.root).count() == 1 {
            let old = self.root;
            self.root = self.pool.inner(old).kid(0);
            self.release(old, false);
            self.height -= 1;
        }
    }

    fn kid_count(&self, node: u32, is_leaf: bool) -> usize {
        if is_leaf { self.pool.leaf(node).count() } else { self.pool.inner(node).count() }
    }

    /// Takes a node that holds nothing out of the chain of leaves, if it is one, and frees it.
    fn release(&mut self, node: u32, is_leaf: bool) {
        if is_leaf {
            let leaf = self.pool.leaf(node);
            let (prev, next) = (leaf.prev, leaf.next);
            if prev != NIL {
                self.pool.leaf_mut(prev).next = next;
            }
            if next != NIL {
                self.pool.leaf_mut(next).prev = prev;
            }
        } else {
            self.inners -= 1;
        }
        self.pool.release(node);
    }

    /// Merges the kid in `slot` of `parent` with the one after or before it, if they fit well.
    fn merge(&mut self, parent: u32, slot: usize, is_leaf: bool) -> bool {
        let limit = if is_leaf { LEAF_MERGED } else { INNER_MERGED };
        let p = self.pool.inner(parent);
        let fits = |s: usize| {
            s + 1 < p.count() && self.kid_count(p.kid(s), is_leaf) + self.kid_count(p.kid(s + 1), is_leaf) <= limit
        };
        let left_slot = match slot.checked_sub(1) {
            _ if fits(slot) => slot,
            Some(s) if fits(s) => s,
            _ => return false,
        };
        let (left, right, sep) = (p.kid(left_slot), p.kid(left_slot + 1), p.sep(left_slot));
        if is_leaf {
            let (at, moved) = (self.pool.leaf(left).count(), self.pool.leaf(right).count());
            for i in 0..moved {
                let entry = self.pool.leaf(right).entry(i);
                self.pool.leaf_mut(left).insert(at + i, entry);
            }
        } else {
            self.move_kids(right, 0, left, sep);
        }
        self.release(right, is_leaf);
        self.pool.inner_mut(parent).remove(left_slot + 1);
        true
    }

    /// Checks the whole structure: order, bounds, padding, links, depths, counts and canonical form.
    ///
    /// # Panics
    ///
    /// If an invariant of the module is broken. For tests and debug builds: it visits every node.
    pub fn check(&self) {
        let mut seen = Census { last_leaf: NIL, last: None, extents: 0, leaves: 0, inners: 0 };
        if self.height > 0 {
            self.check_node(self.root, 1, 0, u64::MAX, &mut seen);
        }
        if seen.last_leaf != NIL {
            assert_eq!(self.pool.leaf(seen.last_leaf).next, NIL, "the chain goes on past the last leaf");
        }
        assert_eq!(seen.extents, self.count, "extents");
        assert_eq!(seen.inners, self.inners, "inner nodes");
        assert_eq!(seen.leaves + seen.inners, self.pool.used(), "nodes in use");
    }

    fn check_node(&self, node: u32, level: usize, low: u64, high: u64, seen: &mut Census) {
        if level == self.height {
            return self.check_leaf(node, low, high, seen);
        }
        let inner = self.pool.inner(node);
        let n = inner.count();
        assert!(n <= INNER_CAP && n >= if level == 1 { 2 } else { 1 }, "kids of an inner node");
        assert!(inner.is_tidy(), "separators past the last kid");
        seen.inners += 1;
        let mut from = low;
        for slot in 0..n {
            let to = if slot + 1 < n { inner.sep(slot) } else { high };
            assert!(from < to, "separators ascend within the parent's");
            self.check_node(inner.kid(slot), level + 1, from, to, seen);
            from = to;
        }
    }

    fn check_leaf(&self, node: u32, low: u64, high: u64, seen: &mut Census) {
        let leaf = self.pool.leaf(node);
        assert!(leaf.count() <= LEAF_CAP && (leaf.count() > 0 || self.height == 1), "M3");
        assert!(leaf.is_tidy(), "keys past the count");
        assert_eq!(leaf.prev, seen.last_leaf, "link back");
        if seen.last_leaf != NIL {
            assert_eq!(self.pool.leaf(seen.last_leaf).next, node, "link on");
        }
        seen.last_leaf = node;
        seen.leaves += 1;
        for slot in 0..leaf.count() {
            let e = self.extent(Pos { leaf: node, slot });
            assert!(e.start >= low && e.start < high, "M4: {e:?} is outside its leaf");
            assert!(e.len > 0 && e.fits(), "M1: {e:?}");
            if let Some(last) = seen.last {
                assert!(last.end() <= e.start, "M1: {last:?} overlaps {e:?}");
                assert!(!last.joins(&e), "M2: {last:?} and {e:?} are one");
            }
            seen.last = Some(e);
            seen.extents += 1;
        }
    }
}

/// What `check` has met so far.
struct Census {
    last_leaf: u32,
    last: Option<Extent>,
    extents: usize,
    leaves: usize,
    inners: usize,
}
