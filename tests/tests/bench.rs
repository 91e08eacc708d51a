//! `zio bench tracked` with the library that ships, on a small scale: its child checks the bytes that it copied, and
//! the counters must say that the copies were renames. No assertion is about time.

use std::path::PathBuf;
use std::process::Command;

use zio_tests::programs::library;

#[test]
fn tracked_copies_are_renamed_and_right() {
    let lib = library().expect("libzio.so not found: `cargo build --release --workspace` first, or set ZIO_LIB");
    let zio = std::env::var_os("ZIO_BIN").map_or_else(|| lib.with_file_name("zio"), PathBuf::from);
    for fault in ["guard", "sigbus"] {
        let mut command = Command::new(&zio);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ZIO_") {
                command.env_remove(name);
            }
        }
        command.args(["bench", "tracked", "--extents", "200", "--size", "64K,80K", "--pairs", "1", "--json", "--lib"]);
        let out = command.arg(&lib).env("ZIO_FAULT", fault).output();
        let out = out.unwrap_or_else(|e| panic!("{}: {e}; set ZIO_BIN", zio.display()));
        // The child that finds a wrong byte fails, and the benchmark with it.
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{fault}: {}: {err}", out.status);
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let rows = report["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert_eq!(row["tracked"], true, "{fault}: {}", row["not_tracked"]);
            assert_eq!(row["extents"], 200);
            for cost in ["plain_ns", "zio_sequential_ns", "zio_random_ns"] {
                let median = row[cost]["median"].as_f64();
                assert!(median.is_some_and(|ns| ns > 0.0), "{fault}: {cost} is {median:?}");
            }
        }
    }
}
