//! What the tests of the extent map share: memory for a map, and random numbers with a printed seed.
//!
//! Why the unsafe code here is sound: [`Region`] owns one allocation of the size and alignment it was
//! asked for and hands it to one map. Its users declare it after the map, or before it as a local, so
//! that it is dropped later.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use zio_tracker::extent_map::ExtentMap;

/// Bytes of a node of the map.
pub const NODE: usize = 832;

/// Memory for one map; outlives it.
pub struct Region {
    mem: *mut u8,
    layout: Layout,
}

impl Region {
    pub fn new(len: usize) -> Region {
        let layout = Layout::from_size_align(len.max(64), 64).unwrap();
        // SAFETY: the layout's size is not zero.
        let mem = unsafe { alloc_zeroed(layout) };
        assert!(!mem.is_null());
        if len < 1 << 20 {
            // SAFETY: the allocation has this size. The map must not rely on zeros.
            unsafe { mem.write_bytes(0xa5, len) };
        }
        Region { mem, layout }
    }

    /// The map over `len` bytes of it; called once.
    pub fn map(&self, len: usize) -> ExtentMap {
        assert!(len <= self.layout.size());
        // SAFETY: allocated above, aligned, and used by this map only.
        unsafe { ExtentMap::new(self.mem, len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the map is gone.
        unsafe { dealloc(self.mem, self.layout) };
    }
}

/// xorshift64*.
pub struct Rng(u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn coin(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A number from the environment.
pub fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |s| s.parse().expect(name))
}

/// The generator of one test, from `ZIO_SEED` or the clock; prints the seed.
pub fn rng(salt: u64) -> Rng {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = env("ZIO_SEED", clock.as_nanos() as u64 >> 4 | 1);
    println!("ZIO_SEED={seed}");
    let mut rng = Rng((seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
    rng.next();
    rng
}
