//! Deterministic content in which a shift, a stale byte or a byte of another value shows.

/// A small generator of pseudo-random numbers (splitmix64): the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator of its own for `(seed, stream)`.
    pub fn new(seed: u64, stream: u64) -> Rng {
        Rng(mix(seed ^ mix(stream.wrapping_add(GOLDEN))))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A log-uniform number in `lo..=hi`, both at least 1.
    pub fn log_uniform(&mut self, lo: usize, hi: usize) -> usize {
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        let (a, b) = ((lo as f64).ln(), ((hi + 1) as f64).ln());
        ((a + unit * (b - a)).exp() as usize).clamp(lo, hi)
    }
}

/// What a run of content looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Incompressible 64-bit words.
    Random,
    /// Lines of 64 bytes that carry version and line number: compresses well, yet no two lines agree.
    Lines,
}

/// The largest value that is ever written, bytes.
pub const LARGEST: usize = 4 << 20;

/// The bytes of `(seed, space, version)`; every 8 bytes (or every line) differ from all others.
pub fn fill(seed: u64, space: usize, version: u32, kind: Kind, len: usize) -> Vec<u8> {
    let base = mix(seed ^ mix(((space as u64) << 32) | u64::from(version)));
    let mut out = vec![0u8; len];
    match kind {
        Kind::Random => {
            let mut z = base;
            let mut words = out.chunks_exact_mut(8);
            for word in &mut words {
                z = z.wrapping_add(GOLDEN);
                word.copy_from_slice(&mix(z).to_le_bytes());
            }
            let last = mix(z.wrapping_add(GOLDEN)).to_le_bytes();
            for (to, from) in words.into_remainder().iter_mut().zip(last) {
                *to = from;
            }
        }
        Kind::Lines => {
            let line = format!("{base:016x} v={version:08x} line=________ of compressible text.\n");
            for (n, to) in out.chunks_mut(64).enumerate() {
                let mut full = [b' '; 64];
                full[..line.len().min(64)].copy_from_slice(&line.as_bytes()[..line.len().min(64)]);
                for (digit, byte) in full[33..41].iter_mut().enumerate() {
                    let nibble = (n >> (28 - 4 * digit)) & 15;
                    *byte = b"0123456789abcdef"[nibble];
                }
                to.copy_from_slice(&full[..to.len()]);
            }
        }
    }
    out
}

/// Shares of the three size classes, in per mille; the rest is 1 byte to 16 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// 16 KiB to 1 MiB, log-uniform.
    pub middle: usize,
    /// 1 MiB to 4 MiB, log-uniform, a quarter of them exactly 4 MiB.
    pub large: usize,
}

impl Sizes {
    /// A size and a kind for a new run of content.
    pub fn pick(self, rng: &mut Rng) -> (usize, Kind) {
        let class = rng.below(1000);
        let len = if class < self.large {
            if rng.one_in(4) { LARGEST } else { rng.log_uniform(1 << 20, LARGEST) }
        } else if class < self.large + self.middle {
            // Powers of two, and one beside them, are where page arithmetic goes wrong.
            if rng.one_in(6) {
                (16 << 10 << rng.below(6)) + rng.below(3) - 1
            } else {
                rng.log_uniform(16 << 10, 1 << 20)
            }
        } else {
            rng.log_uniform(1, 16 << 10)
        };
        (len, if rng.one_in(5) { Kind::Lines } else { Kind::Random })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_the_length_and_repeats_nothing() {
        for kind in [Kind::Random, Kind::Lines] {
            let a = fill(1, 2, 3, kind, 100_003);
            assert_eq!(a, fill(1, 2, 3, kind, 100_003));
            assert_eq!(a[..5000], fill(1, 2, 3, kind, 5000));
            assert_ne!(a[..64], fill(1, 2, 4, kind, 64));
            let mut lines: Vec<&[u8]> = a.chunks_exact(64).collect();
            lines.sort_unstable();
            assert!(lines.windows(2).all(|w| w[0] != w[1]));
        }
    }

    #[test]
    fn sizes_cover_the_classes() {
        let mut rng = Rng::new(7, 0);
        let sizes = Sizes { middle: 280, large: 6 };
        let all: Vec<usize> = (0..20_000).map(|_| sizes.pick(&mut rng).0).collect();
        let middle = all.iter().filter(|&&n| (16 << 10..=1 << 20).contains(&n)).count();
        assert!(middle * 4 >= all.len(), "{middle} of {}", all.len());
        assert!(all.contains(&LARGEST) && all.iter().all(|&n| (1..=LARGEST).contains(&n)));
    }
}
