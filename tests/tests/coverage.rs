//! docs/coverage.md and libzio.so name the same symbols: a hook that nobody wrote down, or a row without a hook, fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use zio_tests::programs::library;

/// Names in the first column of the tables whose first heading is `call`.
fn documented(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| ") else {
            inside &= line.starts_with("|--");
            continue;
        };
        let first = row.split(" |").next().unwrap_or("").trim();
        if first == "call" {
            inside = true;
        } else if inside {
            assert!(names.insert(first.to_owned()), "docs/coverage.md names {first} twice");
        }
    }
    names
}

fn exported(library: &Path) -> BTreeSet<String> {
    let out = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output();
    let out = out.expect("nm cannot be run: install binutils");
    assert!(out.status.success(), "nm: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().filter_map(|l| l.split_whitespace().last()).map(str::to_owned).collect()
}

#[test]
fn every_export_is_documented_and_every_row_exported() {
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/coverage.md");
    let doc = documented(&std::fs::read_to_string(doc).expect("docs/coverage.md"));
    let lib = library().expect("libzio.so not found: `cargo build --release` first, or set ZIO_LIB");
    let exports = exported(&lib);
    let missing: Vec<_> = exports.difference(&doc).collect();
    let extra: Vec<_> = doc.difference(&exports).collect();
    assert!(missing.is_empty(), "{} exports, but docs/coverage.md lacks {missing:?}", lib.display());
    assert!(extra.is_empty(), "docs/coverage.md names what {} does not export: {extra:?}", lib.display());
    assert!(exports.len() > 200, "only {} exports", exports.len());
}

#[test]
fn only_call_tables_count() {
    let text = "| word | meaning |\n|---|---|\n| x | y |\n\n| call | how | test |\n|---|---|---|\n| read | z | h |\n";
    assert_eq!(documented(text).into_iter().collect::<Vec<_>>(), ["read"]);
}
