//! The cost of small copies: `memcpy` through the dynamic symbol, with and without the library.
//!
//! Each measurement is a child process that copies one hot buffer to another for some milliseconds;
//! children run in interleaved order: plain, zio, plain.
//!
//! The one unsafe call copies between two vectors of the length that is passed.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failure;
use super::columns::{Column, Columns, Pinning};
use super::echo_server::program_copy;
use super::size::{parse_size, show_size};
use super::stats_math::{Interval, median};
use super::table;

/// Batches in one child; its result is their median.
const BATCHES: u32 = 20;

/// Arguments of the measuring child.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ChildArgs {
    /// Bytes per copy
    #[arg(long, value_parser = parse_size)]
    size: usize,
    /// Time to spend, milliseconds
    #[arg(long, default_value_t = 60)]
    millis: u64,
}

/// One size's result, nanoseconds per copy.
pub struct CopyCost {
    /// Bytes per copy.
    pub size: usize,
    /// Without the library.
    pub plain: f64,
    /// With it.
    pub zio: f64,
    /// zio less plain, pair by pair.
    pub extra: Interval,
    /// Plain less plain: the noise.
    pub noise: Interval,
}

/// Measures in this process and prints nanoseconds per copy.
pub fn child(args: ChildArgs) -> ExitCode {
    let source = vec![1u8; args.size];
    let mut target = vec![0u8; args.size];
    let mut batch = |calls: u64| -> Duration {
        let start = Instant::now();
        for _ in 0..calls {
            // SAFETY: two live buffers of `size` bytes, which do not overlap.
            unsafe { program_copy(target.as_mut_ptr(), source.as_ptr(), args.size) };
        }
        start.elapsed()
    };
    let mut calls = 64;
    let goal = Duration::from_millis(args.millis.max(1)) / BATCHES;
    while batch(calls) < goal && calls < 1 << 40 {
        calls *= 2;
    }
    let costs: Vec<f64> = (0..BATCHES).map(|_| batch(calls).as_nanos() as f64 / calls as f64).collect();
    println!("{}", median(&costs));
    ExitCode::SUCCESS
}

fn ask_child(column: &Column, size: usize, millis: u64, pinning: Pinning) -> Result<f64, Failure> {
    let exe = std::env::current_exe().map_err(|e| Failure::io("finding this program", e))?;
    let out = column
        .command(&exe, pinning.server)
        .args(["bench", "server", "copy"])
        .args(["--size", &size.to_string(), "--millis", &millis.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::io("starting the copying process", e))?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim()
        .parse()
        .map_err(|_| Failure::new(format!("the copying process, column {:?}, ended with {}", column.kind, out.status)))
}

/// Measures one size in interleaved pairs.
///
/// # Errors
/// When a child fails.
pub fn measure(
    columns: &Columns,
    size: usize,
    pairs: usize,
    millis: u64,
    pinning: Pinning,
) -> Result<CopyCost, Failure> {
    let (mut plain, mut zio, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        plain.push(ask_child(&columns.plain, size, millis, pinning)?);
        zio.push(ask_child(&columns.zio, size, millis, pinning)?);
        again.push(ask_child(&columns.plain, size, millis, pinning)?);
    }
    let differences = |a: &[f64], b: &[f64]| {
        let d: Vec<f64> = a.iter().zip(b).map(|(x, y)| x - y).collect();
        Interval::of(&d).ok_or_else(|| Failure::new("no pairs to measure"))
    };
    Ok(CopyCost {
        size,
        extra: differences(&zio, &plain)?,
        noise: differences(&again, &plain)?,
        plain: median(&plain),
        zio: median(&zio),
    })
}

/// The results as text.
pub fn text(costs: &[CopyCost]) -> String {
    let header = ["memcpy", "plain ns", "zio ns", "zio - plain ns", "plain - plain ns"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for c in costs {
        rows.push(vec![
            show_size(c.size),
            format!("{:.2}", c.plain),
            format!("{:.2}", c.zio),
            table::interval(&c.extra),
            table::interval(&c.noise),
        ]);
    }
    table::align(&rows)
}

/// One result as JSON.
pub fn row_json(c: &CopyCost) -> Value {
    json!({
        "size": c.size,
        "plain_ns": c.plain,
        "zio_ns": c.zio,
        "extra_ns": table::interval_json(&c.extra),
        "noise_ns": table::interval_json(&c.noise),
    })
}
