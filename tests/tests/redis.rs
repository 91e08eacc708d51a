//! redis-server, plainly and under zio in both fault modes, against a client that knows every byte.
//!
//! `ZIO_FULL=1` makes the runs ten times longer, `ZIO_SEED` changes the traffic, and `ZIO_MODES`
//! (default `plain,guard,sigbus`) selects what is run. One line per run goes to standard error.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zio_tests::redis::crosscheck::count_both;
use zio_tests::redis::scenario::{Plan, Scenario, run};
use zio_tests::redis::server::{FaultMode, Launch, require_redis, zio_library};

/// Runs are timed and use most of a small machine's memory bandwidth: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Past libtest's capture: a passing run's line is wanted too.
fn say(line: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn full() -> bool {
    std::env::var("ZIO_FULL").is_ok_and(|v| v == "1")
}

fn seed() -> u64 {
    std::env::var("ZIO_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

fn launches() -> Vec<Launch> {
    let modes = std::env::var("ZIO_MODES").unwrap_or_else(|_| "plain,guard,sigbus".into());
    let zio = |mode| match zio_library() {
        Ok(lib) => Launch::Zio { lib, mode },
        Err(e) => panic!("{e}"),
    };
    modes
        .split(',')
        .map(|word| match word {
            "plain" => Launch::Plain,
            "guard" => zio(FaultMode::Guard),
            "sigbus" => zio(FaultMode::Sigbus),
            other => panic!("ZIO_MODES: {other:?} is not one of plain, guard, sigbus"),
        })
        .collect()
}

fn in_all_modes(scenario: Scenario) {
    let _one = alone();
    if let Err(e) = require_redis() {
        panic!("{e}");
    }
    let times = if full() { 10 } else { 1 };
    for launch in launches() {
        // Plain runs show only that the driver is sound.
        let share = if matches!(launch, Launch::Plain) { 5 } else { 1 };
        let plan = Plan { ops: scenario.ops() * times / share, limit: Duration::from_secs(120 * times), seed: seed() };
        match run(scenario, &launch, plan) {
            Ok(report) => {
                say(&report);
                let skipped = report.note.starts_with("skipped");
                assert!(
                    skipped || report.done.ops >= plan.ops * 9 / 10,
                    "time limit: {} of {} commands in {:?}",
                    report.done.ops,
                    plan.ops,
                    plan.limit
                );
            }
            Err(e) => {
                say(&e);
                panic!("redis {} {}: failed, see above", scenario.name(), launch.name());
            }
        }
    }
}

#[test]
fn aof_everysec_every_command() {
    in_all_modes(Scenario::AofEverysec);
}

#[test]
fn aof_always() {
    in_all_modes(Scenario::AofAlways);
}

#[test]
fn snapshots_while_writing() {
    in_all_modes(Scenario::Snapshots);
}

#[test]
fn eviction() {
    in_all_modes(Scenario::Eviction);
}

#[test]
fn io_threads() {
    in_all_modes(Scenario::IoThreads);
}

#[test]
fn active_defrag() {
    in_all_modes(Scenario::ActiveDefrag);
}

#[test]
fn restart_from_rdb() {
    in_all_modes(Scenario::RestartRdb);
}

#[test]
fn restart_from_aof_after_a_crash() {
    in_all_modes(Scenario::RestartAof);
}

#[test]
fn replication() {
    in_all_modes(Scenario::Replication);
}

#[test]
fn clients_killed_mid_transfer() {
    in_all_modes(Scenario::ClientKill);
}

#[test]
fn errors_as_a_plain_server_gives_them() {
    in_all_modes(Scenario::Errors);
}

#[test]
fn counters_agree_with_an_independent_shim() {
    let _one = alone();
    if let Err(e) = require_redis() {
        panic!("{e}");
    }
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../apps/shims/count.c");
    let ops = if full() { 5000 } else { 800 };
    for launch in launches() {
        let Launch::Zio { lib, mode } = &launch else { continue };
        let c = count_both(&shim, lib, *mode, ops, seed()).unwrap_or_else(|e| panic!("{e}"));
        let apart = 100.0 * (c.zio as f64 - c.shim as f64) / c.shim.max(1) as f64;
        let line = format!("shim {}, zio {}, {apart:+.3}%, elided {}", c.shim, c.zio, c.elided);
        say(&format!("redis crosscheck {}: {line}", mode.name()));
        assert!(c.shim > 0 && apart.abs() <= 1.0, "{}: zio's count is {apart:.3}% off", mode.name());
        assert!(c.elided * 2 > c.zio, "{}: stacked on the shim, zio elides too little to count", mode.name());
    }
}
