//! Every hazard program, plain and under the library: one line per program and mode.
//!
//! `cargo test -p zio-tests --test programs -- h05 h09` runs the programs whose names contain one of the
//! words. The library is the one that `ZIO_LIB` names, or else the build directory's; with `ZIO_LIB=none` each
//! program runs plainly twice, which shows whether its transcript is deterministic.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use zio_tests::programs::{Mode, Program, Run, execute, library, open_dir, problems};

/// Programs that run at the same time.
const WORKERS: usize = 2;

struct Setup {
    dir: PathBuf,
    lib: Option<PathBuf>,
    modes: Vec<Mode>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match run_all(&words) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("programs: {failed} runs FAILED");
            ExitCode::FAILURE
        }
        Err(why) => {
            println!("programs: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(words: &[String]) -> Result<usize, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let mut programs = Program::load_all(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    programs.retain(|p| words.is_empty() || words.iter().any(|w| p.name.contains(w)));
    let setup = set_up().map_err(|e| format!("setting up: {e}"))?;
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|s| {
        for _ in 0..WORKERS {
            s.spawn(|| {
                while let Some(p) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (report, bad) = run_one(p, &setup);
                    print!("{report}");
                    failed.fetch_add(bad, Ordering::Relaxed);
                }
            });
        }
    });
    let failed = failed.into_inner();
    if failed == 0 {
        let _ = fs::remove_dir_all(&setup.dir);
    } else {
        println!("programs: outputs are kept in {}", setup.dir.display());
    }
    Ok(failed)
}

/// Puts the library where any user can load it, and decides the modes.
fn set_up() -> Result<Setup, String> {
    let dir = std::env::temp_dir().join(format!("zio-programs-{}", std::process::id()));
    open_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if std::env::var_os("ZIO_LIB").is_some_and(|v| v == "none") {
        return Ok(Setup { dir, lib: None, modes: vec![Mode::Plain] });
    }
    let built = library().ok_or("libzio.so not found: `cargo build --release` first, or set ZIO_LIB")?;
    let lib = dir.join("libzio.so");
    fs::copy(&built, &lib).map_err(|e| format!("{}: {e}", built.display()))?;
    fs::set_permissions(&lib, Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let mut modes = Mode::PRELOADED.to_vec();
    // A directory of our own tells our user id without another dependency.
    if fs::metadata(&dir).is_ok_and(|m| m.uid() != 0) {
        println!("programs: not root, so no runs as another user");
        modes.retain(|m| *m != Mode::Unprivileged);
    }
    Ok(Setup { dir, lib: Some(lib), modes })
}

/// Compiles and runs one program in every mode; the report and the number of failed runs.
fn run_one(p: &Program, setup: &Setup) -> (String, usize) {
    let bin = match p.compile(&setup.dir) {
        Ok(bin) => bin,
        Err(why) => return (format!("{:<16} does not compile: FAIL\n{why}", p.name), 1),
    };
    let run = |mode: Mode, tag: &str| {
        let dir = setup.dir.join(format!("{}-{tag}", p.name));
        execute(&bin, mode, setup.lib.as_deref(), &dir)
    };
    let plain = match run(Mode::Plain, "reference") {
        Ok(r) => r,
        Err(e) => return (format!("{:<16} cannot be run: {e} FAIL\n", p.name), 1),
    };
    let mut report = String::new();
    let mut failed = 0;
    if plain.status != "exit 0" {
        let text = String::from_utf8_lossy(&plain.stdout);
        report += &format!("{:<16} plain        {} FAIL\n", p.name, plain.status);
        for l in text.lines().filter(|l| l.contains("FAIL") || l.contains("SETUP")).take(8) {
            report += &format!("    {l}\n");
        }
        failed += 1;
    }
    for &mode in setup.modes.iter().filter(|m| !p.skip.iter().any(|s| s == m.name())) {
        match run(mode, mode.name()) {
            Ok(r) => {
                let found = problems(p, mode, &plain, &r);
                report += &line(p, mode, &r, found.is_empty());
                report.extend(found.iter().map(|f| format!("    {f}\n")));
                failed += usize::from(!found.is_empty());
            }
            Err(e) => {
                report += &format!("{:<16} {:<12} cannot be run: {e} FAIL\n", p.name, mode.name());
                failed += 1;
            }
        }
    }
    (report, failed)
}

fn line(p: &Program, mode: Mode, r: &Run, ok: bool) -> String {
    let n = |key: &str| r.stats.as_ref().map_or(0, |s| s.number(key));
    format!(
        "{:<16} {:<12} elided {:>10} materialised {:>9} core receives {:>6} faults {:>6} {:>6.2} s {}\n",
        p.name,
        mode.name(),
        n("bytes_elided"),
        n("bytes_materialised"),
        n("core_receives"),
        n("faults"),
        r.took.as_secs_f64(),
        if ok { "ok" } else { "FAIL" }
    )
}
