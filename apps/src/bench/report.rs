//! What the samples of a row mean: medians, ratios with intervals, the gain, and the verdict.

use zio_tracker::stats::Counter;

use super::pairs::{Sample, Series};
use super::probe::Counters;
use super::stats_math::{Interval, median, quantile};

/// Slowdown that counts as "not slower", before the machine's own noise is added.
const TOLERATED: f64 = 1.02;
/// Share of CPU per request that bookkeeping may take.
const BOOKKEEPING_SHARE: f64 = 0.01;
/// Half-width of the A/A interval above which nothing can be said.
const TOO_NOISY: f64 = 0.05;
/// Pairs that a "not slower" needs.
const PAIRS_FOR_VERDICT: usize = 30;
/// Cost of a touch of an elided page, nanoseconds (measured between 3.8 and 4.6 µs).
const FAULT_NS: f64 = 4600.0;

/// One column's own figures.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Median throughput, requests per second.
    pub rate: f64,
    /// First and third quartile of it.
    pub rate_quartiles: (f64, f64),
    /// Median server CPU per request, nanoseconds.
    pub cpu_ns: f64,
    /// Median minor faults per request.
    pub minor_faults: f64,
}

impl Summary {
    fn of(samples: &[Sample]) -> Option<Summary> {
        if samples.is_empty() {
            return None;
        }
        let all = |f: fn(&Sample) -> f64| -> Vec<f64> { samples.iter().map(f).collect() };
        let rates = all(Sample::rate);
        Some(Summary {
            rate: median(&rates),
            rate_quartiles: (quantile(&rates, 0.25), quantile(&rates, 0.75)),
            cpu_ns: median(&all(Sample::cpu_per_request)),
            minor_faults: median(&all(Sample::faults_per_request)),
        })
    }
}

/// zio's counters over all measured windows, per unit of work.
#[derive(Clone, Debug)]
pub struct Work {
    /// The library's mode and the reason for it.
    pub mode: String,
    /// Copied bytes that the program asked for, per payload byte served.
    pub requested_per_byte: f64,
    /// Bytes moved in user space per payload byte served.
    pub copied_per_byte: f64,
    /// Page-table calls per request.
    pub page_table_calls: f64,
    /// Touches of elided pages per request.
    pub faults: f64,
    /// Calls that entered the tracker, per request.
    pub hooked_calls: f64,
}

impl Work {
    fn of(samples: &[Sample], bytes_per_request: u64) -> Option<Work> {
        let mut sum: Option<Counters> = None;
        let mut requests = 0u64;
        for s in samples {
            let c = s.zio.as_ref()?;
            requests += s.requests;
            match &mut sum {
                Some(total) => total.add(c),
                None => sum = Some(c.clone()),
            }
        }
        let sum = sum?;
        let requests = requests as f64;
        let bytes = requests * bytes_per_request as f64;
        let mode = match sum.reason.as_str() {
            "" => sum.mode.to_string(),
            reason => format!("{} ({reason})", sum.mode),
        };
        Some(Work {
            mode,
            requested_per_byte: sum.get(Counter::BytesRequested) as f64 / bytes,
            copied_per_byte: sum.bytes_copied() as f64 / bytes,
            page_table_calls: sum.get(Counter::PageTableCalls) as f64 / requests,
            faults: sum.get(Counter::Faults) as f64 / requests,
            hooked_calls: sum.get(Counter::HookedCalls) as f64 / requests,
        })
    }
}

/// The answer to "is it slower?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Faster, beyond the machine's noise.
    Faster,
    /// By the rule: enough pairs, both bounds kept.
    NotSlower,
    /// The bounds are kept, by fewer pairs than the rule asks for.
    NotSlowerSoFar,
    /// Slower, beyond tolerance and noise.
    Slower,
    /// More pairs are needed.
    Undecided,
    /// The bookkeeping takes more of the CPU than is allowed.
    Bookkeeping,
    /// The machine is too noisy.
    Inconclusive,
}

impl Verdict {
    /// How it is printed.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::NotSlower => "not slower",
            Verdict::NotSlowerSoFar => "not slower so far (the rule asks for 30 pairs)",
            Verdict::Slower => "SLOWER",
            Verdict::Undecided => "undecided (more pairs needed)",
            Verdict::Bookkeeping => "not slower, but bookkeeping takes over 1% of the CPU",
            Verdict::Inconclusive => "inconclusive (plain against plain varies by over 5%)",
        }
    }
}

/// Everything that is printed about one row.
#[derive(Clone, Debug)]
pub struct Report {
    /// The workload's name.
    pub name: String,
    /// Rounds measured.
    pub pairs: usize,
    /// Payload bytes of a request.
    pub bytes_per_request: u64,
    /// Plain, all its samples.
    pub plain: Summary,
    /// Under zio.
    pub zio: Summary,
    /// Null-copy limit.
    pub null: Option<Summary>,
    /// Throughput: zio / plain, plain / plain, null / plain.
    pub rate: Ratios,
    /// Server CPU per request: zio / plain, plain / plain, null / plain.
    pub cpu: Ratios,
    /// Counters under zio.
    pub work: Option<Work>,
    /// Share of the plain CPU per request that hooks and faults take, estimated.
    pub bookkeeping: Option<f64>,
    /// Slower or not.
    pub verdict: Verdict,
}

/// The ratios of one quantity.
#[derive(Clone, Copy, Debug)]
pub struct Ratios {
    /// zio over plain.
    pub zio: Interval,
    /// Plain over plain: the noise.
    pub same: Interval,
    /// Null-copy limit over plain.
    pub null: Option<Interval>,
}

impl Ratios {
    /// Gain achieved over gain possible, where `better` says which way a gain goes. `None` when there is
    /// no limit column, when skipping copies gains nothing, or when what it gains is within the noise
    /// (the limit's interval holds 1, or the gain is smaller than the A/A half-width).
    pub fn gain(&self, better: Better) -> Option<f64> {
        let null = self.null?;
        let sign = match better {
            Better::Higher => 1.0,
            Better::Lower => -1.0,
        };
        let possible = (null.median - 1.0) * sign;
        let within_noise = (null.low <= 1.0 && null.high >= 1.0) || possible <= self.same.half_width();
        (!within_noise).then(|| (self.zio.median - 1.0) * sign / possible)
    }
}

/// Which way a quantity improves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// Throughput.
    Higher,
    /// CPU per request.
    Lower,
}

impl Report {
    /// Evaluates the samples of a row. `None` without at least one complete round.
    ///
    /// `hook_ns` is the measured extra cost of a hooked call that elides nothing, when known.
    pub fn of(name: String, bytes: u64, s: &Series, hook_ns: Option<f64>) -> Option<Report> {
        let ratios = |f: fn(&[Sample], &[Sample]) -> Option<Interval>| {
            Some(Ratios { zio: f(&s.zio, &s.plain)?, same: f(&s.again, &s.plain)?, null: f(&s.null, &s.again) })
        };
        let rate = ratios(Series::rate_ratio)?;
        let cpu = ratios(Series::cpu_ratio)?;
        let both: Vec<Sample> = s.plain.iter().chain(&s.again).cloned().collect();
        let plain = Summary::of(&both)?;
        let work = Work::of(&s.zio, bytes);
        let bookkeeping =
            work.as_ref().zip(hook_ns).map(|(w, ns)| (w.hooked_calls * ns + w.faults * FAULT_NS) / plain.cpu_ns);
        Some(Report {
            name,
            pairs: s.zio.len(),
            bytes_per_request: bytes,
            zio: Summary::of(&s.zio)?,
            null: Summary::of(&s.null),
            verdict: verdict(&rate, &cpu, s.zio.len(), bookkeeping),
            plain,
            rate,
            cpu,
            work,
            bookkeeping,
        })
    }

    /// Gigabits of payload per second at a request rate.
    pub fn gbit(&self, rate: f64) -> f64 {
        rate * self.bytes_per_request as f64 * 8.0 / 1e9
    }
}

/// Applies the rule of "not slower" to time per request, elapsed and CPU.
fn verdict(rate: &Ratios, cpu: &Ratios, pairs: usize, bookkeeping: Option<f64>) -> Verdict {
    let elapsed = rate.zio.reciprocal();
    let noise = (rate.same.half_width(), cpu.same.half_width());
    if noise.0.max(noise.1) > TOO_NOISY {
        return Verdict::Inconclusive;
    }
    let limit = (TOLERATED + noise.0, TOLERATED + noise.1);
    if elapsed.low > limit.0 || cpu.zio.low > limit.1 {
        return Verdict::Slower;
    }
    if elapsed.high > limit.0 || cpu.zio.high > limit.1 {
        return Verdict::Undecided;
    }
    if elapsed.high < 1.0 - noise.0 {
        return Verdict::Faster;
    }
    if pairs < PAIRS_FOR_VERDICT {
        return Verdict::NotSlowerSoFar;
    }
    match bookkeeping {
        Some(share) if share > BOOKKEEPING_SHARE => Verdict::Bookkeeping,
        _ => Verdict::NotSlower,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn flat(median: f64, half: f64) -> Interval {
        Interval { median, low: median - half, high: median + half, q1: median, q3: median }
    }

    fn ratios(zio: f64, same_half: f64, null: f64) -> Ratios {
        Ratios { zio: flat(zio, 0.01), same: flat(1.0, same_half), null: Some(flat(null, 0.01)) }
    }

    fn sample(rate: u64, zio: Option<Counters>) -> Sample {
        Sample { requests: rate, seconds: 1.0, cpu_ns: 1_000_000_000, minor_faults: 0, zio }
    }

    /// Seven rounds: plain 100, zio 150, null 200 requests a second, 1 CPU second each.
    pub fn series() -> Series {
        let counters = Counters::with(&[
            (Counter::BytesRequested, 150_000),
            (Counter::CopiedByProgram, 2000),
            (Counter::CopiedFringe, 1000),
            (Counter::Faults, 15),
            (Counter::PageTableCalls, 30),
            (Counter::HookedCalls, 300),
        ]);
        Series {
            plain: vec![sample(100, None); 7],
            again: vec![sample(100, None); 7],
            zio: vec![sample(150, Some(counters)); 7],
            null: vec![sample(200, None); 7],
        }
    }

    #[test]
    fn known_numbers() {
        let r = Report::of("row".into(), 1000, &series(), Some(100.0)).unwrap();
        assert_eq!(r.plain.rate, 100.0);
        assert_eq!(r.rate.zio.median, 1.5);
        assert_eq!(r.rate.gain(Better::Higher), Some(0.5));
        // CPU per request 10 ms, 6.67 ms, 5 ms: two thirds of what is possible.
        assert!((r.cpu.gain(Better::Lower).unwrap() - 2.0 / 3.0).abs() < 1e-9);
        let w = r.work.unwrap();
        assert_eq!(w.requested_per_byte, 1.0);
        assert_eq!(w.copied_per_byte, 0.02);
        assert_eq!((w.faults, w.page_table_calls), (0.1, 0.2));
        // 2 calls of 100 ns and a tenth of a fault, of 10 ms.
        assert!((r.bookkeeping.unwrap() - 660.0 / 1e7).abs() < 1e-12);
        assert_eq!(r.verdict, Verdict::Faster);
        assert!((Report::gbit(&Report::of("r".into(), 1000, &series(), None).unwrap(), 1e6) - 8.0).abs() < 1e-9);
    }

    #[test]
    fn no_rounds_no_report() {
        assert!(Report::of("row".into(), 1, &Series::default(), None).is_none());
    }

    #[test]
    fn a_gain_within_the_noise_is_not_a_number() {
        assert_eq!(ratios(1.1, 0.01, 1.2).gain(Better::Higher).map(|g| (g * 10.0).round()), Some(5.0));
        assert_eq!(ratios(1.1, 0.01, 1.005).gain(Better::Higher), None, "the limit's interval holds 1");
        assert_eq!(ratios(1.1, 0.04, 1.03).gain(Better::Higher), None, "smaller than the A/A half-width");
        assert_eq!(ratios(1.1, 0.01, 0.8).gain(Better::Higher), None, "skipping copies made it worse");
        let none = Ratios { null: None, ..ratios(1.1, 0.01, 1.2) };
        assert_eq!(none.gain(Better::Higher), None);
    }

    #[test]
    fn verdicts() {
        let v = |rate: f64, cpu: f64, noise: f64, pairs, book| {
            verdict(&ratios(rate, noise, 1.0), &ratios(cpu, noise, 1.0), pairs, book)
        };
        assert_eq!(v(1.5, 0.7, 0.06, 40, None), Verdict::Inconclusive);
        assert_eq!(v(1.5, 0.7, 0.01, 7, None), Verdict::Faster);
        assert_eq!(v(1.0, 1.0, 0.01, 7, None), Verdict::NotSlowerSoFar);
        assert_eq!(v(1.0, 1.0, 0.01, 30, Some(0.005)), Verdict::NotSlower);
        assert_eq!(v(1.0, 1.0, 0.01, 30, Some(0.02)), Verdict::Bookkeeping);
        assert_eq!(v(0.9, 1.0, 0.01, 30, None), Verdict::Slower);
        assert_eq!(v(1.2, 1.2, 0.01, 30, None), Verdict::Slower, "CPU counts too");
        assert_eq!(v(0.97, 1.0, 0.01, 30, None), Verdict::Undecided);
    }
}
