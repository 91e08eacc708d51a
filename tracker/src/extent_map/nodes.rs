//! Nodes of the extent map and the pool they come from.
//!
//! ```text
//!   region:  | node 0 | node 1 | ... | node fresh-1 | never touched ...            | cap
//!   Leaf:    pivots[3] count prev next | keys[32] | lens[32] | vals[32]    31 extents, keys[31] is VACANT
//!   Inner:   pivots[7] count           | seps[64] | kids[64]               64 kids,    seps[63] is VACANT
//! ```
//!
//! A search reads the line of pivots, then one line of keys.
//!
//! - **N1** Slots at and past `count` hold [`VACANT`] in `keys`; separators past the last kid do in
//!   `seps`; a pivot is the last key of its line. So a search needs no count, and its result is always a
//!   valid slot number.
//! - **N2** Kid `i` holds only keys in `[seps[i-1], seps[i])`.
//! - **N3** A node number that is stored anywhere is below `fresh`, or [`NIL`], which is never followed.
//!
//! # Why the unsafe code here is sound
//!
//! `Leaf` and `Inner` have the same size, consist of integers and are read only below `fresh`, where every
//! node was zeroed once: any such node may be viewed as either without reading uninitialised memory (neither
//! has padding, and any bit pattern is valid). The region belongs to the pool alone, for its life;
//! a view borrows the pool, mutably for a mutable one, so two views never conflict. N3 keeps views
//! inside the region; slot numbers are masked to the array's length and need no unsafe code.

use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

/// No node.
pub(super) const NIL: u32 = u32::MAX;
/// Extents in a full leaf.
pub(super) const LEAF_CAP: usize = 31;
/// Kids of a full inner node.
pub(super) const INNER_CAP: usize = 64;

/// The key in an unused slot: larger than any address that is searched for.
pub(super) const VACANT: u64 = i64::MAX as u64;

const NODE: usize = size_of::<Leaf>();
const _: () = assert!(NODE == size_of::<Inner>() && NODE == 64 + 96 * 8);
// So that the question may be asked of any node.
const _: () = assert!(offset_of!(Leaf, kind) == offset_of!(Inner, kind));

/// The kind of a node that is in use as a leaf; any other node has another.
const LEAF: u32 = 1;
const NOT_LEAF: u32 = 0;

/// `base` plus the number of `keys` that are `<= x`: a comparison and an addition with carry each.
#[inline(always)]
fn add_le(base: usize, keys: &[u64], x: u64) -> usize {
    let mut n = base;
    for &k in keys {
        n += usize::from(k <= x);
    }
    n
}

/// Extents in ascending order.
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// The last key of each line but the last line's.
    pivots: [u64; 3],
    count: u32,
    /// Neighbours in address order.
    pub(super) prev: u32,
    pub(super) next: u32,
    spare: [u32; 6],
    kind: u32,
    keys: [u64; 32],
    lens: [u64; 32],
    vals: [u64; 32],
}

/// One slot of a leaf: start, length in bytes, packed core offset and call site.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: u64,
    pub(super) len: u64,
    pub(super) val: u64,
}

impl Leaf {
    /// Whether this node is a leaf in use.
    #[inline(always)]
    pub(super) fn is_leaf(&self) -> bool {
        self.kind == LEAF
    }

    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    #[inline(always)]
    pub(super) fn rank(&self, addr: u64) -> usize {
        let line = add_le(0, &self.pivots, addr);
        add_le(line * 8, &self.keys.as_chunks::<8>().0[line & 3][..7], addr)
    }

    #[inline(always)]
    pub(super) fn entry(&self, slot: usize) -> Entry {
        let s = slot & 31;
        Entry { key: self.keys[s], len: self.lens[s], val: self.vals[s] }
    }

    #[inline(always)]
    pub(super) fn key(&self, slot: usize) -> u64 {
        self.keys[slot & 31]
    }

    pub(super) fn set(&mut self, slot: usize, e: Entry) {
        self.put(slot, e);
        self.update_pivots();
    }

    #[inline(always)]
    fn update_pivots(&mut self) {
        for (i, p) in self.pivots.iter_mut().enumerate() {
            *p = self.keys[i * 8 + 7];
        }
    }

    #[inline(always)]
    fn put(&mut self, slot: usize, e: Entry) {
        let s = slot & 31;
        self.keys[s] = e.key;
        self.lens[s] = e.len;
        self.vals[s] = e.val;
    }

    #[inline(always)]
    pub(super) fn set_len(&mut self, slot: usize, len: u64) {
        self.lens[slot & 31] = len;
    }

    #[inline(always)]
    pub(super) fn set_val(&mut self, slot: usize, val: u64) {
        self.vals[slot & 31] = val;
    }

    /// Opens `slot` for `e`. The leaf has room.
    pub(super) fn insert(&mut self, slot: usize, e: Entry) {
        debug_assert!(self.count() < LEAF_CAP && slot <= self.count());
        let mut i = self.count();
        while i > slot {
            let below = self.entry(i - 1);
            self.put(i, below);
            i -= 1;
        }
        self.set(slot, e);
        self.count += 1;
    }

    /// Takes the slots `[from, to)` out.
    pub(super) fn remove(&mut self, from: usize, to: usize) {
        debug_assert!(from <= to && to <= self.count());
        let (mut put, mut take) = (from, to);
        while take < self.count() {
            let e = self.entry(take);
            self.put(put, e);
            put += 1;
            take += 1;
        }
        self.truncate(put);
    }

    /// Keeps the first `count` slots.
    pub(super) fn truncate(&mut self, count: usize) {
        let mut i = count;
        while i < self.count() {
            self.keys[i & 31] = VACANT;
            i += 1;
        }
        self.count = count as u32;
        self.update_pivots();
    }

    /// Whether N1 holds.
    pub(super) fn is_tidy(&self) -> bool {
        self.keys[self.count()..].iter().all(|&k| k == VACANT) && (0..3).all(|i| self.pivots[i] == self.keys[i * 8 + 7])
    }
}

/// Kids in ascending order, with the separators between them.
#[repr(C, align(64))]
pub(super) struct Inner {
    /// The last separator of each line but the last line's.
    pivots: [u64; 7],
    count: u32,
    kind: u32,
    seps: [u64; 64],
    kids: [u32; 64],
}

impl Inner {
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// The slot of the kid whose range holds `addr`.
    #[inline(always)]
    pub(super) fn rank(&self, addr: u64) -> usize {
        let line = add_le(0, &self.pivots, addr);
        add_le(line * 8, &self.seps.as_chunks::<8>().0[line & 7][..7], addr)
    }

    #[inline(always)]
    pub(super) fn kid(&self, slot: usize) -> u32 {
        self.kids[slot & 63]
    }

    /// The separator between the kids `slot` and `slot + 1`.
    pub(super) fn sep(&self, slot: usize) -> u64 {
        self.seps[slot & 63]
    }

    pub(super) fn set_sep(&mut self, slot: usize, sep: u64) {
        debug_assert!(slot + 1 < self.count());
        self.seps[slot & 63] = sep;
        self.update_pivots();
    }

    fn update_pivots(&mut self) {
        for (i, p) in self.pivots.iter_mut().enumerate() {
            *p = self.seps[i * 8 + 7];
        }
    }

    /// Puts `kid` at the end; `sep` divides it from the kid before, if there is one. The node has room.
    pub(super) fn push(&mut self, sep: u64, kid: u32) {
        debug_assert!(self.count() < INNER_CAP);
        let n = self.count();
        if n > 0 {
            self.seps[(n - 1) & 63] = sep;
        }
        self.kids[n & 63] = kid;
        self.count += 1;
        self.update_pivots();
    }

    /// Puts `kid`, which starts at `sep`, right after the kid in `slot`. The node has room.
    pub(super) fn insert_after(&mut self, slot: usize, sep: u64, kid: u32) {
        debug_assert!(self.count() < INNER_CAP && slot < self.count());
        let mut i = self.count();
        while i > slot + 1 {
            self.kids[i & 63] = self.kids[(i - 1) & 63];
            self.seps[(i - 1) & 63] = self.seps[(i - 2) & 63];
            i -= 1;
        }
        self.kids[(slot + 1) & 63] = kid;
        self.seps[slot & 63] = sep;
        self.count += 1;
        self.update_pivots();
    }

    /// Takes the kid in `slot` out; its range goes to the kid before it, or to the new first one.
    pub(super) fn remove(&mut self, slot: usize) {
        debug_assert!(slot < self.count());
        let last = self.count().saturating_sub(1);
        let mut i = slot;
        while i < last {
            self.kids[i & 63] = self.kids[(i + 1) & 63];
            i += 1;
        }
        let mut i = slot.saturating_sub(1);
        while i < last {
            self.seps[i & 63] = self.seps[(i + 1) & 63];
            i += 1;
        }
        self.truncate(last);
    }

    /// Keeps the first `count` kids.
    pub(super) fn truncate(&mut self, count: usize) {
        let mut i = count.saturating_sub(1);
        while i < self.count() {
            self.seps[i & 63] = VACANT;
            i += 1;
        }
        self.count = count as u32;
        self.update_pivots();
    }

    /// Whether N1 holds.
    pub(super) fn is_tidy(&self) -> bool {
        self.seps[self.count().saturating_sub(1)..].iter().all(|&k| k == VACANT)
            && (0..7).all(|i| self.pivots[i] == self.seps[i * 8 + 7])
    }
}

/// Hands out nodes of one region: freed ones first, last in first out, so that they are hot in cache.
pub(super) struct Pool {
    base: NonNull<Leaf>,
    cap: u32,
    /// Nodes below this one have been handed out, and zeroed, at least once.
    fresh: u32,
    /// Freed nodes, linked by `Leaf::next`.
    free_head: u32,
    free_len: u32,
}

// SAFETY: the pool owns its region alone (contract of `Pool::new`), so it may move between threads.
unsafe impl Send for Pool {}
// SAFETY: through a shared reference a pool is only read; there is no interior mutability.
unsafe impl Sync for Pool {}

impl Pool {
    pub(super) const fn empty() -> Pool {
        Pool { base: NonNull::dangling(), cap: 0, fresh: 0, free_head: NIL, free_len: 0 }
    }

    /// # Safety
    ///
    /// `mem` is valid for reads and writes of `len` bytes and used by nothing else for the pool's life.
    pub(super) unsafe fn new(mem: *mut u8, len: usize) -> Pool {
        let Some(base) = NonNull::new(mem.cast::<Leaf>()) else {
            return Pool::empty();
        };
        if !base.is_aligned() {
            debug_assert!(false, "the region is not aligned to a cache line");
            return Pool::empty();
        }
        // NIL is not a node number, so a larger region is used in part.
        let cap = u32::try_from(len / NODE).unwrap_or(NIL).min(NIL - 1);
        Pool { base, cap, ..Pool::empty() }
    }

    /// Nodes that can still be allocated.
    pub(super) fn free(&self) -> usize {
        (self.cap - self.fresh) as usize + self.free_len as usize
    }

    /// Nodes in use.
    pub(super) fn used(&self) -> usize {
        (self.fresh - self.free_len) as usize
    }

    #[inline(always)]
    fn at(&self, n: u32) -> NonNull<Leaf> {
        debug_assert!(n < self.fresh);
        // SAFETY: in bounds of the region, as n < fresh <= cap by N3.
        unsafe { self.base.add(n as usize) }
    }

    #[inline(always)]
    pub(super) fn leaf(&self, n: u32) -> &Leaf {
        // SAFETY: an initialised node (N3); the borrow of self excludes writers. See the file's head.
        unsafe { self.at(n).as_ref() }
    }

    #[inline(always)]
    pub(super) fn leaf_mut(&mut self, n: u32) -> &mut Leaf {
        // SAFETY: an initialised node (N3); the mutable borrow of self excludes other views.
        unsafe { self.at(n).as_mut() }
    }

    #[inline(always)]
    pub(super) fn inner(&self, n: u32) -> &Inner {
        // SAFETY: an initialised node (N3) of Inner's size and alignment; the borrow excludes writers.
        unsafe { self.at(n).cast::<Inner>().as_ref() }
    }

    #[inline(always)]
    pub(super) fn inner_mut(&mut self, n: u32) -> &mut Inner {
        // SAFETY: as for `inner`; the mutable borrow of self excludes other views.
        unsafe { self.at(n).cast::<Inner>().as_mut() }
    }

    fn alloc(&mut self) -> Option<u32> {
        if self.free_head != NIL {
            let n = self.free_head;
            self.free_head = self.leaf(n).next;
            self.free_len -= 1;
            return Some(n);
        }
        if self.fresh == self.cap {
            return None;
        }
        let n = self.fresh;
        // SAFETY: n < cap, so the node lies in the region, which is ours to write; no view of it exists.
        unsafe { self.base.add(n as usize).write_bytes(0, 1) };
        self.fresh += 1;
        Some(n)
    }

    /// An empty leaf without neighbours.
    pub(super) fn alloc_leaf(&mut self) -> Option<u32> {
        let n = self.alloc()?;
        let leaf = self.leaf_mut(n);
        leaf.pivots = [VACANT; 3];
        leaf.keys = [VACANT; 32];
        leaf.count = 0;
        leaf.prev = NIL;
        leaf.next = NIL;
        leaf.kind = LEAF;
        Some(n)
    }

    /// An inner node without kids.
    pub(super) fn alloc_inner(&mut self) -> Option<u32> {
        let n = self.alloc()?;
        let inner = self.inner_mut(n);
        inner.pivots = [VACANT; 7];
        inner.seps = [VACANT; 64];
        inner.count = 0;
        inner.kind = NOT_LEAF;
        Some(n)
    }

    /// Takes back a node that nothing refers to any more.
    pub(super) fn release(&mut self, n: u32) {
        let head = self.free_head;
        let node = self.leaf_mut(n);
        node.next = head;
        node.kind = NOT_LEAF;
        self.free_head = n;
        self.free_len += 1;
    }
}
