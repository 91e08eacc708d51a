//! The cost of a tracked copy: a large `memcpy` that the library renames instead of moving, as the program sees it.
//!
//! Each measurement is a child process ([`super::tracked_child`]); children run in interleaved order: plain, zio.
//! The library's counters tell whether the copies were renamed.

use std::process::Stdio;

use serde_json::{Value, json};

use super::Failure;
use super::columns::{Column, Columns, Pinning, ScratchDir};
use super::size::show_size;
use super::stats_math::Interval;
use super::table;
use super::tracked_child::ChildArgs;

/// Destinations without the library: each takes memory there.
const PLAIN_MOST: usize = 64;

/// One row's result, nanoseconds per copy.
pub struct TrackedCost {
    extents: usize,
    size: usize,
    plain: Interval,
    sequential: Interval,
    random: Interval,
    /// Why what was measured under zio is not the cost of tracked copies, if so.
    not_tracked: Option<String>,
}

fn ask_child(column: &Column, args: ChildArgs, pinning: Pinning, stats: &str) -> Result<(f64, f64), Failure> {
    let exe = std::env::current_exe().map_err(|e| Failure::io("finding this program", e))?;
    let out = column
        .command(&exe, pinning.server)
        .env("ZIO_STATS", stats)
        .args(["bench", "server", "tracked"])
        .args(["--extents", &args.extents.to_string(), "--size", &args.size.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::io("starting the copying process", e))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (out.status.success(), numbers.next(), numbers.next()) {
        (true, Some(Ok(sequential)), Some(Ok(random))) => Ok((sequential, random)),
        _ => Err(Failure::new(format!("the copying process, column {:?}, ended with {}", column.kind, out.status))),
    }
}

/// Measures one row in interleaved pairs.
///
/// # Errors
/// When a child fails, as it does when a byte is wrong.
pub fn measure(
    columns: &Columns,
    extents: usize,
    size: usize,
    pairs: usize,
    pinning: Pinning,
) -> Result<TrackedCost, Failure> {
    let scratch = ScratchDir::create(&std::env::temp_dir())?;
    let file = scratch.path().join("stats.json");
    // A percent sign in ZIO_STATS begins an expansion.
    let stats = file.to_string_lossy().replace('%', "%%");
    let (mut plain, mut sequential, mut random, mut not_tracked) = (Vec::new(), Vec::new(), Vec::new(), None);
    for _ in 0..pairs {
        let few = ChildArgs { extents: extents.min(PLAIN_MOST), size };
        plain.push(ask_child(&columns.plain, few, pinning, &stats)?.0);
        let (s, r) = ask_child(&columns.zio, ChildArgs { extents, size }, pinning, &stats)?;
        sequential.push(s);
        random.push(r);
        let written = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // The next child must not be judged by this one's file.
        let _ = std::fs::remove_file(&file);
        not_tracked = why_not_tracked(written.as_ref(), ChildArgs { extents, size });
        if not_tracked.is_some() {
            break; // more pairs would not make the row right
        }
    }
    let interval = |v: &[f64]| Interval::of(v).ok_or_else(|| Failure::new("no pairs to measure"));
    let (plain, sequential, random) = (interval(&plain)?, interval(&sequential)?, interval(&random)?);
    Ok(TrackedCost { extents, size, plain, sequential, random, not_tracked })
}

/// What the statistics of a child say against its copies having been renames in a map of that many extents.
fn why_not_tracked(stats: Option<&Value>, asked: ChildArgs) -> Option<String> {
    let Some(stats) = stats else {
        return Some("the library left no statistics (ZIO_DISABLE?)".into());
    };
    let copies = asked.copies();
    let count = |name: &str| stats[name].as_u64().unwrap_or(0);
    let (renames, found) = (count("renames"), count("extents"));
    // The check at the end may cost three destinations their extents; the sources have at least four.
    if renames >= copies as u64 && found >= asked.extents as u64 {
        return None;
    }
    let passed = stats["passthrough"].as_object().into_iter().flatten();
    let mut reasons: Vec<String> =
        passed.filter(|(_, n)| n.as_u64() != Some(0)).map(|(why, n)| format!("{why} {n}")).collect();
    reasons.extend(stats["reason"].as_str().filter(|r| !r.is_empty()).map(String::from));
    let reasons = if reasons.is_empty() { "no reason counted".into() } else { reasons.join(", ") };
    let mode = stats["mode"].as_str().unwrap_or("unknown");
    Some(format!("{renames} of {copies} copies renamed, {found} extents, mode {mode}: {reasons}"))
}

/// A child that gave up has no numbers.
fn cell(i: &Interval) -> String {
    match i.median {
        m if m.is_nan() => "-".into(),
        m => format!("{m:.0} [{:.0} {:.0}]", i.low, i.high),
    }
}

/// The results as text.
pub fn text(costs: &[TrackedCost]) -> String {
    let header = ["extents", "size", "plain ns", "zio ns sequential", "zio ns random"];
    let mut rows = vec![header.map(String::from).to_vec()];
    let mut warnings = String::new();
    for c in costs {
        let mut row = vec![c.extents.to_string(), show_size(c.size)];
        row.extend([&c.plain, &c.sequential, &c.random].map(cell));
        rows.push(row);
        if let Some(why) = &c.not_tracked {
            warnings += &format!("not tracked: {} extents of {}: {why}\n", c.extents, show_size(c.size));
        }
    }
    let note = format!(
        "One memcpy, median over interleaved pairs with the 95% bootstrap interval. zio: renamed, through the whole hook.\n\
         plain: moved, to at most {PLAIN_MOST} destinations over and over (all of them would take extents x size of memory):\n\
         caches hold a part of those, so plain would take longer with as many destinations as zio has.\n"
    );
    table::align(&rows) + &warnings + &note
}

/// One result as JSON.
pub fn row_json(c: &TrackedCost) -> Value {
    json!({
        "extents": c.extents,
        "size": c.size,
        "plain_destinations": c.extents.min(PLAIN_MOST),
        "plain_ns": table::interval_json(&c.plain),
        "zio_sequential_ns": table::interval_json(&c.sequential),
        "zio_random_ns": table::interval_json(&c.random),
        "tracked": c.not_tracked.is_none(),
        "not_tracked": c.not_tracked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untracked_copies_are_told_with_their_reasons() {
        let asked = ChildArgs { extents: 10, size: 64 << 10 };
        let renames = asked.copies();
        let mut stats = json!({"mode": "guard", "reason": "", "renames": renames, "extents": 14,
            "passthrough": {"backoff": 3, "flags": 0}});
        assert_eq!(why_not_tracked(Some(&stats), asked), None);
        stats["renames"] = json!(renames - 3);
        let why = why_not_tracked(Some(&stats), asked).unwrap();
        assert!(
            why.contains(&format!("{} of {renames}", renames - 3))
                && why.contains("backoff 3")
                && !why.contains("flags"),
            "{why}"
        );
        assert!(why_not_tracked(None, asked).is_some());
    }
}
