//! Interleaved measuring: plain, zio, plain again, null-copy, and the same backwards in the next round.
//!
//! Machines drift by more than the effects we look for, so only neighbours in time are compared: each
//! round gives one ratio zio/plain, one null/plain and one plain/plain (the A/A row, which shows what the
//! machine's noise alone would make of "no difference").

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::Failure;
use super::columns::{Column, Columns, Pinning};
use super::probe::{Counters, Snapshot};
use super::stats_math::Interval;

/// Most rounds that an adaptive run takes.
pub const MOST_PAIRS: usize = 200;
/// Half-width below which an adaptive run counts a ratio as resolved.
const RESOLVED: f64 = 0.02;

/// How a workload is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds (each holds one pair of every kind).
    pub pairs: usize,
    /// Add rounds until the ratios are known to 2%, at most [`MOST_PAIRS`].
    pub until_resolved: bool,
    /// Load before the window opens.
    pub warm_up: Duration,
    /// The measured window.
    pub window: Duration,
    /// Where server and client run.
    pub pinning: Pinning,
}

/// One server's measured window.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Requests completed.
    pub requests: u64,
    /// Length of the window.
    pub seconds: f64,
    /// CPU time of the server, nanoseconds.
    pub cpu_ns: u64,
    /// Minor faults of the server.
    pub minor_faults: u64,
    /// zio's counters over the window.
    pub zio: Option<Counters>,
}

impl Sample {
    /// What happened between two snapshots.
    ///
    /// # Errors
    /// When no request completed: every ratio would be meaningless.
    pub fn between(before: &Snapshot, after: &Snapshot, requests: u64) -> Result<Sample, Failure> {
        if requests == 0 {
            return Err(Failure::new("no request completed in the window"));
        }
        let zio = match (&before.zio, &after.zio) {
            (Some(b), Some(a)) => Some(a.since(b)),
            _ => None,
        };
        Ok(Sample {
            requests,
            seconds: after.at.duration_since(before.at).as_secs_f64(),
            cpu_ns: after.cpu_ns.saturating_sub(before.cpu_ns),
            minor_faults: after.minor_faults.saturating_sub(before.minor_faults),
            zio,
        })
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Server CPU per request, nanoseconds.
    pub fn cpu_per_request(&self) -> f64 {
        self.cpu_ns as f64 / self.requests as f64
    }

    /// Minor faults per request.
    pub fn faults_per_request(&self) -> f64 {
        self.minor_faults as f64 / self.requests as f64
    }
}

/// Something to measure: one row of the table.
pub trait Workload {
    /// The row's name.
    fn name(&self) -> String;
    /// Payload bytes that one request serves.
    fn bytes_per_request(&self) -> u64;
    /// Starts a fresh server in `column`, loads it, measures, verifies and stops it.
    ///
    /// # Errors
    /// When a process fails, or an answer is wrong in a column that is verified.
    fn run_side(&self, column: &Column, plan: &Plan) -> Result<Sample, Failure>;
}

/// All samples of a workload; index i of each is from round i.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Plain, the partner of `zio`.
    pub plain: Vec<Sample>,
    /// Plain again, the partner of `null` and the other half of the A/A row.
    pub again: Vec<Sample>,
    /// Under zio.
    pub zio: Vec<Sample>,
    /// Null-copy limit; empty without a C compiler.
    pub null: Vec<Sample>,
}

impl Series {
    /// Throughput ratio of two of the columns.
    pub fn rate_ratio(over: &[Sample], under: &[Sample]) -> Option<Interval> {
        ratio(over, under, Sample::rate)
    }

    /// Ratio of server CPU per request of two of the columns.
    pub fn cpu_ratio(over: &[Sample], under: &[Sample]) -> Option<Interval> {
        ratio(over, under, Sample::cpu_per_request)
    }

    fn resolved(&self) -> bool {
        let narrow = |i: Option<Interval>| i.is_none_or(|i| i.half_width() < RESOLVED);
        narrow(Series::rate_ratio(&self.zio, &self.plain))
            && narrow(Series::rate_ratio(&self.null, &self.again))
            && narrow(Series::rate_ratio(&self.again, &self.plain))
    }
}

fn ratio(over: &[Sample], under: &[Sample], f: fn(&Sample) -> f64) -> Option<Interval> {
    let take = |s: &[Sample]| -> Vec<f64> { s.iter().map(f).collect() };
    Interval::of_ratios(&take(over), &take(under))
}

/// Which of the four sides of a round.
#[derive(Clone, Copy)]
enum Slot {
    Plain,
    Zio,
    Again,
    Null,
}

/// Measures a workload in interleaved rounds, with progress on standard error.
///
/// # Errors
/// The first failure of a side, with the column's name.
pub fn measure(work: &dyn Workload, columns: &Columns, plan: &Plan) -> Result<Series, Failure> {
    let mut series = Series::default();
    let mut round = 0;
    let name = work.name();
    loop {
        let mut order = [Slot::Plain, Slot::Zio, Slot::Again, Slot::Null];
        // The other way round every second time, so that a steady drift cancels.
        if round % 2 == 1 {
            order.reverse();
        }
        for slot in order {
            let (column, into) = match slot {
                Slot::Plain => (Some(&columns.plain), &mut series.plain),
                Slot::Zio => (Some(&columns.zio), &mut series.zio),
                Slot::Again => (Some(&columns.plain), &mut series.again),
                Slot::Null => (columns.null.as_ref(), &mut series.null),
            };
            let Some(column) = column else { continue };
            progress(&name, round, plan, column);
            let sample = work
                .run_side(column, plan)
                .map_err(|e| Failure::new(format!("{name}, column {:?}: {e}", column.kind)))?;
            into.push(sample);
        }
        round += 1;
        let enough = round >= plan.pairs && (!plan.until_resolved || round >= MOST_PAIRS || series.resolved());
        if enough {
            break;
        }
    }
    finish_progress(&name, round);
    Ok(series)
}

fn progress(name: &str, round: usize, plan: &Plan, column: &Column) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let of = if plan.until_resolved { MOST_PAIRS } else { plan.pairs };
        // Progress is a courtesy: a closed standard error must not end the measurement.
        let _ = write!(err, "\r\x1b[K{name}: pair {} of {of}, {:?}", round + 1, column.kind);
        let _ = err.flush();
    }
}

fn finish_progress(name: &str, rounds: usize) {
    let mut err = std::io::stderr();
    let start = if err.is_terminal() { "\r\x1b[K" } else { "" };
    // As above.
    let _ = writeln!(err, "{start}{name}: {rounds} pairs measured");
}

#[cfg(test)]
mod tests {
    use super::super::columns::Kind;
    use super::*;
    use std::cell::RefCell;

    pub fn sample(rate: u64, cpu_us: u64) -> Sample {
        Sample { requests: rate, seconds: 1.0, cpu_ns: rate * cpu_us * 1000, minor_faults: 2 * rate, zio: None }
    }

    struct Fake(RefCell<Vec<Kind>>);
    impl Workload for Fake {
        fn name(&self) -> String {
            "fake".into()
        }
        fn bytes_per_request(&self) -> u64 {
            1
        }
        fn run_side(&self, column: &Column, _: &Plan) -> Result<Sample, Failure> {
            self.0.borrow_mut().push(column.kind);
            Ok(sample(if column.kind == Kind::Zio { 200 } else { 100 }, 10))
        }
    }

    fn plan(pairs: usize, until_resolved: bool) -> Plan {
        Plan {
            pairs,
            until_resolved,
            warm_up: Duration::ZERO,
            window: Duration::ZERO,
            pinning: Pinning { server: None, client: None },
        }
    }

    #[test]
    fn rounds_are_interleaved_and_turn_round() {
        let fake = Fake(RefCell::new(Vec::new()));
        let columns = Columns::prepare(Some(std::path::Path::new("/proc/self/exe"))).unwrap();
        let series = measure(&fake, &columns, &plan(2, true)).unwrap();
        let order: Vec<Kind> = fake.0.borrow().iter().copied().filter(|k| *k != Kind::Null).collect();
        use Kind::{Plain, Zio};
        assert_eq!(order, [Plain, Zio, Plain, Plain, Zio, Plain]);
        assert_eq!(series.zio.len(), 2);
        let r = Series::rate_ratio(&series.zio, &series.plain).unwrap();
        assert_eq!((r.median, r.half_width()), (2.0, 0.0));
    }

    #[test]
    fn a_sample_divides_by_its_requests() {
        let s = sample(50, 10);
        assert_eq!(s.rate(), 50.0);
        assert_eq!(s.cpu_per_request(), 10_000.0);
        assert_eq!(s.faults_per_request(), 2.0);
    }
}
