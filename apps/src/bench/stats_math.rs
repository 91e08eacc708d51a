//! Medians, quartiles and bootstrap intervals of a few paired measurements.
//!
//! The generator is seeded with a constant, so that the same samples give the same interval every time.

/// Number of bootstrap resamples behind an interval.
const RESAMPLES: usize = 2000;
/// Seed of the resampling.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// xorshift64*: small, and good enough to pick samples and to fill messages.
pub struct Xorshift(u64);

impl Xorshift {
    /// A generator; a zero seed, which would stay zero for ever, is replaced.
    pub fn new(seed: u64) -> Self {
        Xorshift(if seed == 0 { SEED } else { seed })
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// An index below `n`, which must not be zero.
    fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }
}

/// The centre and the spread of paired ratios (or differences).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Median of the pairs.
    pub median: f64,
    /// Lower end of the 95% bootstrap interval of the median.
    pub low: f64,
    /// Upper end of the 95% bootstrap interval of the median.
    pub high: f64,
    /// First quartile of the pairs.
    pub q1: f64,
    /// Third quartile of the pairs.
    pub q3: f64,
}

impl Interval {
    /// The interval of some values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Interval> {
        if values.is_empty() {
            return None;
        }
        let mut rng = Xorshift::new(SEED);
        let mut medians = Vec::with_capacity(RESAMPLES);
        let mut picked = vec![0.0; values.len()];
        for _ in 0..RESAMPLES {
            for slot in &mut picked {
                *slot = values[rng.below(values.len())];
            }
            medians.push(median(&picked));
        }
        Some(Interval {
            median: median(values),
            low: quantile(&medians, 0.025),
            high: quantile(&medians, 0.975),
            q1: quantile(values, 0.25),
            q3: quantile(values, 0.75),
        })
    }

    /// The interval of `over[i] / under[i]`, pair by pair.
    pub fn of_ratios(over: &[f64], under: &[f64]) -> Option<Interval> {
        let ratios: Vec<f64> = over.iter().zip(under).filter(|(_, u)| **u > 0.0).map(|(o, u)| o / u).collect();
        Interval::of(&ratios)
    }

    /// Half the width of the 95% interval.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// The interval of the reciprocals (a throughput ratio as a ratio of times per request).
    pub fn reciprocal(&self) -> Interval {
        Interval {
            median: 1.0 / self.median,
            low: 1.0 / self.high,
            high: 1.0 / self.low,
            q1: 1.0 / self.q3,
            q3: 1.0 / self.q1,
        }
    }
}

/// The median; NaN for no values.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The quantile `q` (0 to 1), linear between neighbours; NaN for no values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = at.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_of_known_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let nine: Vec<f64> = (1..=9).map(f64::from).collect();
        assert_eq!(quantile(&nine, 0.25), 3.0);
        assert_eq!(quantile(&nine, 0.75), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_constant_has_no_width() {
        let i = Interval::of(&[1.5; 7]).unwrap();
        assert_eq!((i.median, i.low, i.high), (1.5, 1.5, 1.5));
        assert_eq!(i.half_width(), 0.0);
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_stays_inside_the_values() {
        let v = [0.92, 1.11, 1.0, 0.98, 1.03, 0.99, 1.01];
        let i = Interval::of(&v).unwrap();
        assert_eq!(i.median, 1.0);
        assert!(i.low >= 0.92 && i.low <= 1.0, "{i:?}");
        assert!(i.high <= 1.11 && i.high >= 1.0, "{i:?}");
        assert_eq!(Interval::of(&v), Some(i), "same samples, same interval");
    }

    #[test]
    fn more_pairs_narrow_the_interval() {
        let noise = |n: usize| -> Vec<f64> {
            let mut rng = Xorshift::new(7);
            (0..n).map(|_| 1.0 + (rng.next_u64() % 1000) as f64 / 5000.0).collect()
        };
        let few = Interval::of(&noise(7)).unwrap();
        let many = Interval::of(&noise(200)).unwrap();
        assert!(many.half_width() < few.half_width() / 2.0);
        assert!((many.median - 1.1).abs() < 0.03);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let i = Interval::of_ratios(&[2.0, 40.0, 6.0], &[1.0, 20.0, 3.0]).unwrap();
        assert_eq!(i.median, 2.0);
        assert_eq!(i.reciprocal().median, 0.5);
        assert_eq!(Interval::of_ratios(&[1.0], &[0.0]), None);
    }
}
