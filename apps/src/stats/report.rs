//! A statistics page as JSON and as a table.

use super::page::{printable, reason};
use crate::size::human;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use zio_tracker::stats::{COUNTER_DOCS, COUNTER_NAMES, Counter, JSON_SCHEMA, Mode, PASS_PREFIX, SHARDS, StatsPage};

/// Counters that have a place of their own near the top of the JSON, before and after `bytes_copied`.
const FIRST: [Counter; 4] = [Counter::BytesReceived, Counter::BytesSent, Counter::CopyCalls, Counter::BytesRequested];
const SECOND: [Counter; 4] =
    [Counter::BytesElided, Counter::BytesMaterialised, Counter::Faults, Counter::PageTableCalls];

/// All counters of a page with their names and descriptions, summed over the shards.
fn counters(page: &StatsPage) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    let names = COUNTER_NAMES.iter().zip(COUNTER_DOCS).enumerate();
    names.map(|(i, (name, doc))| {
        let shards = page.shards.iter().take(SHARDS);
        let sum = shards.fold(0u64, |a, s| a.wrapping_add(s.counters[i].load(Relaxed)));
        (*name, *doc, sum)
    })
}

fn mode(page: &StatsPage) -> &'static str {
    let number = page.mode.load(Relaxed);
    u32::try_from(number).ok().and_then(Mode::from_u32).map_or("unknown", Mode::name)
}

/// The object that `zio stats --json` prints; the library writes the same keys at exit.
pub fn json(pid: i32, page: &StatsPage) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    put("schema", json!(JSON_SCHEMA));
    put("zio_version", json!(env!("CARGO_PKG_VERSION")));
    put("pid", json!(pid));
    put("mode", json!(mode(page)));
    put("reason", json!(reason(page)));
    put("threshold", json!(page.threshold.load(Relaxed)));
    for c in FIRST {
        put(COUNTER_NAMES[c as usize], json!(page.total(c)));
    }
    put("bytes_copied", json!(page.bytes_copied()));
    for c in SECOND {
        put(COUNTER_NAMES[c as usize], json!(page.total(c)));
    }
    for (name, value) in gauges(page) {
        put(name, json!(value));
    }
    let placed: Vec<_> = FIRST.iter().chain(&SECOND).map(|&c| COUNTER_NAMES[c as usize]).collect();
    let mut passed = Map::new();
    let mut others = Map::new();
    for (name, _, value) in counters(page) {
        match name.strip_prefix(PASS_PREFIX) {
            Some(why) => _ = passed.insert(why.to_owned(), json!(value)),
            None if placed.contains(&name) => {}
            None => _ = others.insert(name.to_owned(), json!(value)),
        }
    }
    put("passthrough", Value::Object(passed));
    out.append(&mut others);
    Value::Object(out)
}

fn gauges(page: &StatsPage) -> [(&'static str, u64); 5] {
    [
        ("extents", page.extents.load(Relaxed)),
        ("core_bytes_held", page.core_bytes_held.load(Relaxed)),
        ("core_bytes_named", page.core_bytes_named.load(Relaxed)),
        ("core_bytes_cap", page.core_bytes_cap.load(Relaxed)),
        ("threads", page.threads.load(Relaxed)),
    ]
}

/// The same for people.
pub fn table(pid: i32, page: &StatsPage) -> String {
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let threshold = human(page.threshold.load(Relaxed));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{} (pid {pid}): mode {}, threshold {threshold}", printable(program.trim_end()), mode(page));
    let why = reason(page);
    if !why.is_empty() {
        let _ = writeln!(out, "{why}");
    }
    let asked = page.total(Counter::BytesRequested);
    let elided = page.total(Counter::BytesElided);
    if asked > 0 {
        let share = elided as f64 * 100.0 / asked as f64;
        let _ = writeln!(
            out,
            "{} of {} that the program asked to copy were elided ({share:.1}%)",
            human(elided),
            human(asked)
        );
    }
    let copied =
        ("bytes_copied", "every byte moved in user space, by the program's copies and by zio", page.bytes_copied());
    out.push_str("\nNow\n");
    for (name, value) in gauges(page) {
        row(&mut out, name, value, "");
    }
    out.push_str("\nSince the start\n");
    let all: Vec<_> = counters(page).collect();
    for (name, doc, value) in all.iter().copied().filter(|c| !c.0.starts_with(PASS_PREFIX)).chain([copied]) {
        row(&mut out, name, value, doc);
    }
    out.push_str("\nDone as the program asked, because of\n");
    let mut none = true;
    for (name, doc, value) in all {
        if let Some(why) = name.strip_prefix(PASS_PREFIX).filter(|_| value > 0) {
            row(&mut out, why, value, doc);
            none = false;
        }
    }
    if none {
        out.push_str("  (nothing so far)\n");
    }
    out
}

fn row(out: &mut String, name: &str, value: u64, doc: &str) {
    let is_bytes = name.contains("bytes") || name.starts_with("copied");
    let shown = if is_bytes { human(value) } else { value.to_string() };
    let line = format!("  {name:<22} {shown:>12}  {doc}");
    out.push_str(line.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::page::{decode, tests::page_bytes};
    use super::*;

    #[test]
    fn json_keys_come_in_the_documented_order() {
        let page = decode(&page_bytes(0)).expect("good header");
        page.shards[3].counters[Counter::CopiedFringe as usize].store(5, Relaxed);
        page.shards[4].counters[Counter::CopiedByProgram as usize].store(6, Relaxed);
        page.shards[0].counters[Counter::PassBackoff as usize].store(7, Relaxed);
        page.mode.store(Mode::Guard as u64, Relaxed);
        let value = json(42, &page);
        let keys: Vec<_> = value.as_object().expect("object").keys().map(String::as_str).collect();
        let documented = [
            "schema",
            "zio_version",
            "pid",
            "mode",
            "reason",
            "threshold",
            "bytes_received",
            "bytes_sent",
            "copy_calls",
            "bytes_requested",
            "bytes_copied",
            "bytes_elided",
            "bytes_materialised",
            "faults",
            "page_table_calls",
            "extents",
            "core_bytes_held",
            "core_bytes_named",
            "core_bytes_cap",
            "threads",
            "passthrough",
            "copied_by_program",
        ];
        assert_eq!(keys[..documented.len()], documented);
        let counted = COUNTER_NAMES.iter().filter(|n| !n.starts_with(PASS_PREFIX));
        assert!(counted.clone().all(|n| keys.contains(n)));
        assert_eq!(value["bytes_copied"], 11);
        assert_eq!(value["passthrough"]["backoff"], 7);
        assert_eq!((&value["pid"], &value["mode"]), (&json!(42), &json!("guard")));
    }

    #[test]
    fn table_shows_the_share() {
        let page = decode(&page_bytes(0)).expect("good header");
        page.shards[0].counters[Counter::BytesRequested as usize].store(4096, Relaxed);
        page.shards[1].counters[Counter::BytesElided as usize].store(1024, Relaxed);
        let text = table(std::process::id() as i32, &page);
        assert!(text.contains("1.0 KiB of 4.0 KiB") && text.contains("(25.0%)"), "{text}");
        assert!(text.contains("mode bootstrap"), "{text}");
    }
}
