//! Reports as text and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::report::{Better, Ratios, Report, Summary};
use super::stats_math::Interval;

/// Version of the JSON's layout.
pub const SCHEMA: u32 = 1;

/// Columns of text, each as wide as its widest cell; the first is left-aligned, the others right-aligned.
pub fn align(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(i) {
                Some(w) => *w = (*w).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if i == 0 {
                line = format!("{cell}{pad}");
            } else {
                line = format!("{line}  {pad}{cell}");
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Every row's block of lines.
pub fn text(reports: &[Report]) -> String {
    let mut out = String::new();
    for r in reports {
        out.push_str(&block(r));
        out.push('\n');
    }
    out.push_str(
        "Ratios are medians over interleaved pairs with the 95% bootstrap interval of the median; plain/plain\n\
         is the same server against itself. gain: achieved / possible, n/a when the possible gain is within\n\
         the noise. CPU is the server's, from schedstat. null: large copies skipped outright (wrong data).\n",
    );
    out
}

fn block(r: &Report) -> String {
    let header = ["plain", "zio", "null", "zio/plain", "plain/plain", "null/plain", "gain"];
    let mut rows = vec![
        std::iter::once(format!("{} ({} pairs)", r.name, r.pairs)).chain(header.map(String::from)).collect::<Vec<_>>(),
    ];
    let measured = |label: &str, f: &dyn Fn(&Summary) -> String, ratios: Option<(&Ratios, Better)>| {
        let mut row = vec![format!("  {label}"), f(&r.plain), f(&r.zio), r.null.as_ref().map_or("-".into(), f)];
        if let Some((x, better)) = ratios {
            row.push(interval(&x.zio));
            row.push(interval(&x.same));
            row.push(x.null.as_ref().map_or("-".into(), interval));
            row.push(x.gain(better).map_or("n/a".into(), |g| format!("{g:.2}")));
        }
        row
    };
    rows.push(measured("Gbit/s", &|s| significant(r.gbit(s.rate)), Some((&r.rate, Better::Higher))));
    rows.push(measured("requests/s", &|s| significant(s.rate), None));
    let quartiles = |s: &Summary| {
        let (q1, q3) = s.rate_quartiles;
        format!("{}..{}", significant(q1), significant(q3))
    };
    rows.push(measured("  quartiles", &quartiles, None));
    rows.push(measured("server CPU µs/request", &|s| significant(s.cpu_ns / 1e3), Some((&r.cpu, Better::Lower))));
    rows.push(measured("minor faults/request", &|s| significant(s.minor_faults), None));
    if let Some(w) = &r.work {
        let mut counted = |label: &str, plain: &str, zio: f64| {
            rows.push(vec![format!("  {label}"), plain.to_string(), significant(zio)]);
        };
        let asked = significant(w.requested_per_byte);
        counted("bytes copied/byte served", &asked, w.copied_per_byte);
        counted("page-table calls/request", "-", w.page_table_calls);
        counted("elision faults/request", "-", w.faults);
    }
    let mut out = align(&rows);
    match &r.work {
        // Writing to a String does not fail.
        Some(w) => {
            let _ = writeln!(out, "  zio mode: {}", w.mode);
        }
        None => out.push_str("  zio counters: none (no statistics page in the server)\n"),
    }
    if let Some(share) = r.bookkeeping {
        let _ = writeln!(out, "  bookkeeping: about {:.2}% of the plain CPU", share * 100.0);
    }
    let _ = writeln!(out, "  verdict: {}", r.verdict.text());
    out
}

/// `1.86 [1.84 1.88]`
pub fn interval(i: &Interval) -> String {
    format!("{:.3} [{:.3} {:.3}]", i.median, i.low, i.high)
}

/// Three significant digits, whole numbers from 1000 on.
pub fn significant(x: f64) -> String {
    match x.abs() {
        a if !a.is_finite() => "-".into(),
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.0001 => format!("{x:.4}"),
        _ => format!("{x:.1e}"),
    }
}

/// The JSON document of a benchmark.
pub fn document(benchmark: &str, rows: Vec<Value>) -> Value {
    json!({
        "schema": SCHEMA,
        "zio_version": env!("CARGO_PKG_VERSION"),
        "benchmark": benchmark,
        "rows": rows,
    })
}

/// One row as JSON; the keys are the Rust names, with units.
pub fn row_json(r: &Report) -> Value {
    let column = |s: &Summary| {
        json!({
            "requests_per_second": s.rate,
            "requests_per_second_quartiles": [s.rate_quartiles.0, s.rate_quartiles.1],
            "gbit_per_second": r.gbit(s.rate),
            "cpu_ns_per_request": s.cpu_ns,
            "minor_faults_per_request": s.minor_faults,
        })
    };
    let counters = r.work.as_ref().map(|w| {
        json!({
            "mode": w.mode,
            "bytes_requested_per_byte_served": w.requested_per_byte,
            "bytes_copied_per_byte_served": w.copied_per_byte,
            "page_table_calls_per_request": w.page_table_calls,
            "faults_per_request": w.faults,
            "hooked_calls_per_request": w.hooked_calls,
        })
    });
    json!({
        "name": r.name,
        "pairs": r.pairs,
        "bytes_per_request": r.bytes_per_request,
        "plain": column(&r.plain),
        "zio": column(&r.zio),
        "null": r.null.as_ref().map(column),
        "throughput": ratios_json(&r.rate, Better::Higher),
        "cpu": ratios_json(&r.cpu, Better::Lower),
        "counters": counters,
        "bookkeeping_share": r.bookkeeping,
        "verdict": r.verdict.text(),
    })
}

fn ratios_json(x: &Ratios, better: Better) -> Value {
    json!({
        "zio_over_plain": interval_json(&x.zio),
        "plain_over_plain": interval_json(&x.same),
        "null_over_plain": x.null.as_ref().map(interval_json),
        "gain": x.gain(better),
    })
}

/// An interval as JSON.
pub fn interval_json(i: &Interval) -> Value {
    json!({"median": i.median, "low": i.low, "high": i.high, "q1": i.q1, "q3": i.q3})
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::series;
    use super::*;

    #[test]
    fn cells_line_up() {
        let rows = [["a", "10"], ["bcd", "7"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(align(&rows), "a    10\nbcd   7\n");
        let micro = [["µ", "1"], ["ab", "2"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(align(&micro), "µ   1\nab  2\n");
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (x, s) in [
            (0.0, "0"),
            (12_345.6, "12346"),
            (17.54, "17.5"),
            (1.234, "1.23"),
            (0.05, "0.0500"),
            (0.000_05, "5.0e-5"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(significant(x), s);
        }
    }

    #[test]
    fn a_known_row_prints_as_expected() {
        let r = Report::of("echo".into(), 1_000_000, &series(), Some(100.0)).unwrap();
        let t = text(std::slice::from_ref(&r));
        assert!(t.contains("echo (7 pairs)"), "{t}");
        assert!(t.contains("1.500 [1.500 1.500]"), "{t}");
        assert!(t.contains("0.50"), "{t}");
        assert!(t.contains("verdict: faster"), "{t}");
        assert!(t.contains("zio mode: guard"), "{t}");
        let j = document("echo", vec![row_json(&r)]);
        assert_eq!(j["rows"][0]["throughput"]["gain"], 0.5);
        assert_eq!(j["rows"][0]["counters"]["faults_per_request"], 0.1);
        assert_eq!(j["rows"][0]["null"]["requests_per_second"], 200.0);
        assert_eq!(j["schema"], 1);
    }
}
