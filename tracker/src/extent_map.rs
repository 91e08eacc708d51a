//! The live extent map: which program bytes name which core bytes.
//!
//! A B+tree keyed by program address, in a region of memory given at construction: no allocator, no
//! heap, no recursion in any operation. Leaves are linked both ways, so a scan costs one descent.
//!
//! ```text
//!                      [ sep 40 | sep 90 ]                      Inner: up to 64 kids
//!                     /         |         \
//!   { [0,8) [8,24) }  <->  { [40,64) }  <->  { [90,96) ... }    Leaf: up to 31 extents
//! ```
//!
//! - **M1** Extents are not empty, ascend and are disjoint.
//! - **M2** The map is canonical: no two neighbours could be one (program and core bytes both contiguous,
//!   same call site). So equal content means equal extents.
//! - **M3** Only a root leaf may be empty; an inner root has at least two kids.
//! - **M4** An extent's *start* obeys the separators above it (N2 in `nodes`), its end need not: the extent
//!   that contains an address is in the address's leaf, or is the last one of the leaf before.
//! - **M5** All leaves are at the same depth.
//!
//! Deletion is lazy: a node that became small merges with a neighbour under the same parent when both
//! fit with room to spare, and is freed when empty; nothing is borrowed from neighbours (compare Sen and
//! Tarjan, "Deletion without rebalancing in B-trees"). The height stays logarithmic in the number of
//! insertions, and merging bounds the memory that sparse nodes hold.
//!
//! Nothing here touches program or core memory, blocks, or panics in release builds. A request that
//! cannot be represented, or that would break M1, is refused like one that finds the map full, because
//! the caller's answer to that (copy as the program asked) is right for it too.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

mod nodes;
use nodes::{Entry, INNER_CAP, LEAF_CAP, NIL, Pool, VACANT};

/// Levels of the highest tree, leaves included. A root splits only after a thirty-twofold growth since it
/// was made, so the region's 2^32 nodes run out first.
const MAX_HEIGHT: usize = 16;
/// A leaf of at most this many extents looks for a neighbour to merge with ...
const LEAF_LOW: usize = LEAF_CAP / 4;
/// ... and merges if the result has at most this many.
const LEAF_MERGED: usize = LEAF_CAP * 3 / 4;
const INNER_LOW: usize = INNER_CAP / 4;
const INNER_MERGED: usize = INNER_CAP * 3 / 4;

/// Log2 of the number of hints.
const HINT_BITS: u32 = 8;

const CORE_BITS: u32 = 48;
const CORE_MASK: u64 = (1 << CORE_BITS) - 1;

/// Program bytes `[start, start + len)` name the core bytes `[core, core + len)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First program address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset of the first named byte in the core arena; `core + len` is at most 2^48.
    pub core: u64,
    /// Index of the call site that the policy charges for this extent.
    pub site: u16,
}

impl Extent {
    /// First program address past the extent.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.start.wrapping_add(self.len)
    }

    /// The part in `[start, end)`, which overlaps the extent.
    #[inline]
    fn clip(&self, start: u64, end: u64) -> Extent {
        let from = self.start.max(start);
        let to = self.end().min(end);
        debug_assert!(from < to);
        Extent { start: from, len: to - from, core: self.core + (from - self.start), site: self.site }
    }

    /// Whether `next` goes on where this one ends, in the program and in the core.
    #[inline]
    fn joins(&self, next: &Extent) -> bool {
        self.end() == next.start && self.core + self.len == next.core && self.site == next.site
    }

    /// Whether the packed form can hold it.
    #[inline]
    fn fits(&self) -> bool {
        let end = self.start.checked_add(self.len);
        let core_end = self.core.checked_add(self.len);
        end.is_some_and(|e| e < VACANT) && core_end.is_some_and(|e| e <= 1 << CORE_BITS)
    }

    #[inline]
    fn pack(&self) -> Entry {
        let val = self.core | u64::from(self.site) << CORE_BITS;
        Entry { key: self.start, len: self.len, val }
    }

    #[inline]
    fn unpack(e: Entry) -> Extent {
        Extent { start: e.key, len: e.len, core: e.val & CORE_MASK, site: (e.val >> CORE_BITS) as u16 }
    }
}

/// The region has no node left for the operation; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapFull;

/// Where an extent is: leaf and slot. Good until the tree changes.
#[derive(Clone, Copy)]
struct Pos {
    leaf: u32,
    slot: usize,
}

/// The inner nodes from the root down to a leaf, with the slot taken in each.
struct Path {
    nodes: [u32; MAX_HEIGHT],
    slots: [u8; MAX_HEIGHT],
    leaf: u32,
}

impl Path {
    /// Inner node and slot at `depth` (0 is the root).
    fn step(&self, depth: usize) -> (u32, usize) {
        let d = depth & (MAX_HEIGHT - 1);
        (self.nodes[d], usize::from(self.slots[d]))
    }
}

/// The live extent map; the module's head describes it.
pub struct ExtentMap {
    pool: Pool,
    root: u32,
    /// Levels, leaves included; 0 before the first insertion, when there is no root.
    height: usize,
    /// Extents.
    count: usize,
    /// Inner nodes in use.
    inners: usize,
    /// The leaf where the last search in some 16 KiB of program memory ended: low half of the word, the piece's
    /// number in the high half. Programs come back to the same buffers, and a leaf itself tells whether it
    /// has the answer, so a stale hint costs only time and nothing ever invalidates one.
    hints: [AtomicU64; 1 << HINT_BITS],
}

impl ExtentMap {
    /// A map without memory: empty, and every insertion finds it full.
    pub const fn empty() -> ExtentMap {
        ExtentMap {
            pool: Pool::empty(),
            root: NIL,
            height: 0,
            count: 0,
            inners: 0,
            hints: [const { AtomicU64::new(0) }; 1 << HINT_BITS],
        }
    }

    /// A map whose nodes live in the `len` bytes at `mem`. They are touched only as nodes get used: 832
    /// bytes for every 16 to 31 extents in typical use.
    ///
    /// # Safety
    ///
    /// `mem` is aligned to 64 bytes, valid for reads and writes of `len` bytes, and used by nothing else
    /// for the map's life. The content does not matter.
    pub unsafe fn new(mem: *mut u8, len: usize) -> ExtentMap {
        // SAFETY: the caller's contract is the pool's.
        let pool = unsafe { Pool::new(mem, len) };
        ExtentMap { pool, ..ExtentMap::empty() }
    }

    /// Number of extents.
    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is named.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Levels of the tree, leaves included.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Nodes in use, of 832 bytes each.
    pub fn nodes(&self) -> usize {
        self.pool.used()
    }

    /// True if `ops` inserts, erases and replaces in a row, in any mixture, cannot fail.
    ///
    /// Each adds at most two entries, an entry splits at most one leaf. An inner node splits into halves, and
    /// a merged one is at most three quarters full, so past the nodes there are now, an inner split takes
    /// 16 splits of the level below.
    #[inline]
    pub fn has_room(&self, ops: usize) -> bool {
        let leaves = ops.saturating_mul(2);
        let plain = leaves.saturating_mul(self.height + 2);
        if plain <= self.pool.free() {
            return true;
        }
        let inner = self.inners + self.inners / 8 + leaves / 8 + 2 * self.height + 4;
        leaves.saturating_add(inner) <= self.pool.free()
    }

    /// The extent that contains `addr`.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<Extent> {
        let e = self.next_from(addr)?;
        (e.start <= addr).then_some(e)
    }

    /// The first extent that ends after `addr`: the one that contains it or else the next one. Not clipped.
    #[inline]
    pub fn next_from(&self, addr: u64) -> Option<Extent> {
        self.seek(addr).map(|p| self.extent(p))
    }

    /// Whether a byte of `[start, end)` is named.
    #[inline]
    pub fn any_in(&self, start: u64, end: u64) -> bool {
        start < end && self.next_from(start).is_some_and(|e| e.start < end)
    }

    /// Calls `f` with the extents in `[start, end)`, clipped to it, in ascending order.
    #[inline]
    pub fn for_each_in(&self, start: u64, end: u64, mut f: impl FnMut(Extent)) {
        let _ = self.try_for_each_in(start, end, |e| {
            f(e);
            ControlFlow::<()>::Continue(())
        });
    }

    /// As [`for_each_in`](ExtentMap::for_each_in), until `f` breaks; returns what it broke with.
    #[inline]
    pub fn try_for_each_in<B>(
        &self,
        start: u64,
        end: u64,
        mut f: impl FnMut(Extent) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut at = if start < end { self.seek(start) } else { None };
        while let Some(pos) = at {
            let e = self.extent(pos);
            if e.start >= end {
                break;
            }
            f(e.clip(start, end))?;
            at = self.at_or_next(pos.leaf, pos.slot + 1);
        }
        ControlFlow::Continue(())
    }

    /// Removes every name in `[start, end)`, splitting extents at its borders, and reports what went,
    /// clipped, in ascending order.
    ///
    /// # Errors
    ///
    /// [`MapFull`] if one extent reaches over both borders and there is no node for the second half.
    pub fn erase(&mut self, start: u64, end: u64, mut dropped: impl FnMut(Extent)) -> Result<(), MapFull> {
        if start >= end {
            return Ok(());
        }
        let Some(mut pos) = self.seek(start) else {
            return Ok(());
        };
        let first = self.extent(pos);
        if first.start < start {
            if first.end() > end {
                return self.punch(pos, start, end, dropped);
            }
            self.pool.leaf_mut(pos.leaf).set_len(pos.slot, start - first.start);
            dropped(first.clip(start, end));
            match self.at_or_next(pos.leaf, pos.slot + 1) {
                Some(next) => pos = next,
                None => return Ok(()),
            }
        }
        let mut at = Some(pos);
        while let Some(pos) = at {
            at = self.erase_in_leaf(pos, end, &mut dropped);
        }
        Ok(())
    }

    /// Names `e`, whose program bytes name nothing yet. Joins it to its neighbours where they go on in the
    /// program and in the core and have the same site. An empty extent is ignored.
    ///
    /// # Errors
    ///
    /// [`MapFull`] if there is no node for it, or `e` overlaps an extent or cannot be represented.
    pub fn insert(&mut self, e: Extent) -> Result<(), MapFull> {
        if e.len == 0 {
            return Ok(());
        }
        if !e.fits() {
            return Err(MapFull);
        }
        if self.height == 0 {
            self.root = self.pool.alloc_leaf().ok_or(MapFull)?;
            self.height = 1;
        }
        let path = self.descend(e.start);
        let slot = self.pool.leaf(path.leaf).rank(e.start);
        let left = self.before(path.leaf, slot).map(|p| (p, self.extent(p)));
        let right = self.at_or_next(path.leaf, slot).map(|p| (p, self.extent(p)));
        if left.is_some_and(|(_, l)| l.end() > e.start) || right.is_some_and(|(_, r)| r.start < e.end()) {
            debug_assert!(false, "the range is named already");
            return Err(MapFull);
        }
        match (left.filter(|(_, l)| l.joins(&e)), right.filter(|(_, r)| e.joins(r))) {
            (Some((lp, l)), Some((rp, r))) => {
                self.pool.leaf_mut(lp.leaf).set_len(lp.slot, l.len + e.len + r.len);
                self.remove(rp, rp.slot + 1, r.start);
            }
            (Some((lp, l)), None) => self.pool.leaf_mut(lp.leaf).set_len(lp.slot, l.len + e.len),
            (None, Some((rp, r))) => {
                self.pool.leaf_mut(rp.leaf).set(rp.slot, Extent { len: e.len + r.len, ..e }.pack());
                if rp.leaf != path.leaf {
                    self.set_right_sep(&path, e.start);
                }
            }
            (None, None) => self.add(&path, slot, e)?,
        }
        Ok(())
    }

    /// [`erase`](ExtentMap::erase) of `e`'s range, then [`insert`](ExtentMap::insert) of `e`. An extent with
    /// the same range is overwritten in one descent.
    ///
    /// # Errors
    ///
    /// [`MapFull`] if the nodes that this could need in the worst case are not there, or `e` cannot be
    /// represented. Overwriting never fails.
    pub fn replace(&mut self, e: Extent, mut dropped: impl FnMut(Extent)) -> Result<(), MapFull> {
        if e.len == 0 {
            return Ok(());
        }
        if !e.fits() {
            return Err(MapFull);
        }
        let old = match self.seek(e.start) {
            Some(pos) => {
                let old = self.extent(pos);
                if old.start == e.start && old.len == e.len && !self.joins_around(pos, &e) {
                    self.pool.leaf_mut(pos.leaf).set_val(pos.slot, e.pack().val);
                    dropped(old);
                    return Ok(());
                }
                old
            }
            None => return self.insert(e),
        };
        if old.start >= e.end() {
            return self.insert(e);
        }
        // Erasing adds an entry only inside one extent; the insertion adds one. An entry costs a node a level and
        // perhaps a new root, by which the second one's path is longer.
        let per_entry = self.height + 1;
        let inside = old.start < e.start && old.end() > e.end();
        let need = if inside { 2 * per_entry + 1 } else { per_entry };
        if self.pool.free() < need {
            return Err(MapFull);
        }
        self.erase(e.start, e.end(), dropped)?;
        self.insert(e)
    }

    // Reading.

    #[inline(always)]
    fn extent(&self, p: Pos) -> Extent {
        Extent::unpack(self.pool.leaf(p.leaf).entry(p.slot))
    }

    /// The leaf whose range holds `addr`. There is a root.
    #[inline(always)]
    fn locate(&self, addr: u64) -> u32 {
        let mut n = self.root;
        for _ in 1..self.height {
            let inner = self.pool.inner(n);
            n = inner.kid(inner.rank(addr));
        }
        n
    }

    /// As `locate`, keeping the way.
    fn descend(&self, addr: u64) -> Path {
        let mut path = Path { nodes: [NIL; MAX_HEIGHT], slots: [0; MAX_HEIGHT], leaf: self.root };
        for d in 0..self.height.saturating_sub(1) {
            let inner = self.pool.inner(path.leaf);
            let slot = inner.rank(addr);
            path.nodes[d & (MAX_HEIGHT - 1)] = path.leaf;
            path.slots[d & (MAX_HEIGHT - 1)] = slot as u8;
            path.leaf = inner.kid(slot);
        }
        path
    }

    /// The first extent that ends after `addr`.
    #[inline]
    fn seek(&self, addr: u64) -> Option<Pos> {
        if self.height == 0 || addr >= VACANT {
            return None;
        }
        let piece = (addr >> 14) as u32;
        let hint = &self.hints[(piece.wrapping_mul(0x85eb_ca6b) >> (32 - HINT_BITS)) as usize];
        let word = hint.load(Relaxed);
        if (word >> 32) as u32 == piece
            && let Some(p) = self.seek_in(word as u32, addr)
        {
            return Some(p);
        }
        let leaf = self.locate(addr);
        hint.store(u64::from(piece) << 32 | u64::from(leaf), Relaxed);
        let slot = self.pool.leaf(leaf).rank(addr);
        match self.before(leaf, slot) {
            Some(p) if self.extent(p).end() > addr => Some(p),
            _ => self.at_or_next(leaf, slot),
        }
    }

    /// `seek`, if node `n` is a leaf and certainly holds the answer: an extent in it starts at or before `addr`,
    /// and that one or a later one in it ends after `addr`.
    #[inline]
    fn seek_in(&self, n: u32, addr: u64) -> Option<Pos> {
        let leaf = self.pool.leaf(n);
        let slot = leaf.rank(addr);
        if !leaf.is_leaf() || slot == 0 {
            return None;
        }
        let before = Pos { leaf: n, slot: slot - 1 };
        if self.extent(before).end() > addr {
            return Some(before);
        }
        (slot < leaf.count()).then_some(Pos { leaf: n, slot })
    }

    /// What is in `slot`, or first in the next leaf if `slot` is past the last.
    #[inline(always)]
    fn at_or_next(&self, leaf: u32, slot: usize) -> Option<Pos> {
        let l = self.pool.leaf(leaf);
        if slot < l.count() {
            return Some(Pos { leaf, slot });
        }
        (l.next != NIL).then_some(Pos { leaf: l.next, slot: 0 })
    }

    /// What is before `slot`, in the leaf before if `slot` is the first.
    #[inline(always)]
    fn before(&self, leaf: u32, slot: usize) -> Option<Pos> {
        if slot > 0 {
            return Some(Pos { leaf, slot: slot - 1 });
        }
        let prev = self.pool.leaf(leaf).prev;
        (prev != NIL).then(|| Pos { leaf: prev, slot: self.pool.leaf(prev).count().wrapping_sub(1) })
    }

    /// Whether `e`, in place of the extent at `p`, would join a neighbour of it.
    #[inline(always)]
    fn joins_around(&self, p: Pos, e: &Extent) -> bool {
        self.before(p.leaf, p.slot).is_some_and(|l| self.extent(l).joins(e))
            || self.at_or_next(p.leaf, p.slot + 1).is_some_and(|r| e.joins(&self.extent(r)))
    }
}

mod edit;
