//! The scenarios: what the server is set up to do while the workers verify it.

use std::fmt;
use std::time::{Duration, Instant};

use super::content::Sizes;
use super::model::{Shape, Space};
use super::resp::Reply;
use super::server::{Launch, Server, Stats, TempDir};
use super::worker::{Done, drive, verify_all};
use super::{Failure, errors, trouble};

/// What is exercised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The main one: 8 connections, every command, append-only file with fsync each second.
    AofEverysec,
    /// The same with fsync before each reply.
    AofAlways,
    /// BGSAVE and BGREWRITEAOF again and again while writing, then a restart from what the children wrote.
    Snapshots,
    /// `maxmemory` with `allkeys-lru`: keys vanish, bytes never change.
    Eviction,
    /// `io-threads 4`, reads too.
    IoThreads,
    /// `activedefrag yes`, where the build has it.
    ActiveDefrag,
    /// SAVE, stop, start.
    RestartRdb,
    /// SIGKILL under `appendfsync always`, start.
    RestartAof,
    /// A second server follows the first, by socket and by file.
    Replication,
    /// Clients are killed, or hang up, in the middle of large transfers.
    ClientKill,
    /// Error replies, compared with a plain server's.
    Errors,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 11] = [
        Scenario::AofEverysec,
        Scenario::AofAlways,
        Scenario::Snapshots,
        Scenario::Eviction,
        Scenario::IoThreads,
        Scenario::ActiveDefrag,
        Scenario::RestartRdb,
        Scenario::RestartAof,
        Scenario::Replication,
        Scenario::ClientKill,
        Scenario::Errors,
    ];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Scenario::AofEverysec => "aof-everysec",
            Scenario::AofAlways => "aof-always",
            Scenario::Snapshots => "snapshots",
            Scenario::Eviction => "eviction",
            Scenario::IoThreads => "io-threads",
            Scenario::ActiveDefrag => "activedefrag",
            Scenario::RestartRdb => "restart-rdb",
            Scenario::RestartAof => "restart-aof",
            Scenario::Replication => "replication",
            Scenario::ClientKill => "client-kill",
            Scenario::Errors => "errors",
        }
    }

    /// Commands of a short run.
    pub const fn ops(self) -> u64 {
        match self {
            Scenario::AofEverysec => 100_000,
            Scenario::Snapshots => 20_000,
            Scenario::Errors => 0,
            _ => 10_000,
        }
    }
}

/// How long and with what seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Commands in all, over all connections.
    pub ops: u64,
    /// When traffic stops, whether or not all commands are done.
    pub limit: Duration,
    /// Seed of every choice.
    pub seed: u64,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Scenario's name.
    pub scenario: &'static str,
    /// Launch mode's name.
    pub mode: &'static str,
    /// Work done.
    pub done: Done,
    /// The library's counters, summed over the scenario's servers that ended by themselves.
    pub stats: Option<Stats>,
    /// Anything else worth a word.
    pub note: String,
    /// Wall time.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis {} {}: {} ops, {} bytes verified", self.scenario, self.mode, self.done.ops, self.done.bytes)?;
        if let Some(s) = &self.stats {
            write!(
                f,
                ", requested {}, elided {}, materialised {}, faults {}, page_table_calls {}",
                s.requested, s.elided, s.materialised, s.faults, s.page_table_calls
            )?;
        }
        if !self.note.is_empty() {
            write!(f, ", {}", self.note)?;
        }
        write!(f, " ({:.1} s)", self.took.as_secs_f64())
    }
}

/// A scenario in progress: its directory, launch and what its servers have reported so far.
pub(super) struct Run<'a> {
    pub launch: &'a Launch,
    pub dir: TempDir,
    pub plan: Plan,
    pub deadline: Instant,
    pub done: Done,
    pub stats: Option<Stats>,
    pub note: String,
}

impl Run<'_> {
    pub fn start(&self, options: &[&str]) -> Result<Server, Failure> {
        Server::start(self.launch, self.dir.path(), options)
    }

    /// Ends a server and collects its counters, which are checked one server at a time.
    pub fn stop(&mut self, server: Server) -> Result<(), Failure> {
        let Some(stats) = server.stop()? else {
            return Ok(());
        };
        if let Launch::Zio { mode, .. } = self.launch {
            stats.check(*mode)?;
        }
        match &mut self.stats {
            Some(sum) => sum.add(&stats),
            None => self.stats = Some(stats),
        }
        Ok(())
    }

    /// Traffic only.
    pub fn traffic(&mut self, server: &mut Server, spaces: &mut [Space], ops: u64) -> Result<(), Failure> {
        let driven = drive(server, spaces, ops, self.deadline, |_| Ok(()));
        self.done += driven.map_err(|e| server.explain(e))?.0;
        Ok(())
    }

    /// Reads all keys.
    pub fn verify(&mut self, server: &mut Server, spaces: &mut [Space]) -> Result<(), Failure> {
        self.done += verify_all(server, spaces).map_err(|e| server.explain(e))?;
        Ok(())
    }
}

/// Key spaces for `n` connections that together hold at most `total_bytes`.
pub(super) fn spaces(n: usize, seed: u64, total_bytes: usize) -> Vec<Space> {
    let shape = Shape {
        keys: 64,
        budget_bytes: total_bytes / n.max(1),
        sizes: Sizes { middle: 285, large: 6 },
        evicting: false,
        longest_batch: 24,
    };
    (0..n).map(|id| Space::new(id, seed, shape.clone())).collect()
}

const MIB: usize = 1 << 20;

/// Runs one scenario once.
///
/// # Errors
/// On any mismatch, unexpected error reply, broken connection or crash; and under libzio.so when its
/// counters contradict themselves or, in the main scenario, when it elided less than half.
pub fn run(scenario: Scenario, launch: &Launch, plan: Plan) -> Result<Report, Failure> {
    let began = Instant::now();
    errors::ErrorTexts::reference()?;
    let mut run = Run {
        launch,
        dir: TempDir::new()?,
        plan,
        deadline: began + plan.limit,
        done: Done::default(),
        stats: None,
        note: String::new(),
    };
    let outcome = match scenario {
        Scenario::AofEverysec => plainly(&mut run, &aof("everysec"), 8),
        Scenario::AofAlways => plainly(&mut run, &aof("always"), 8),
        Scenario::Snapshots => trouble::snapshots(&mut run),
        Scenario::Eviction => eviction(&mut run),
        Scenario::IoThreads => io_threads(&mut run),
        Scenario::ActiveDefrag => active_defrag(&mut run),
        Scenario::RestartRdb => restart_rdb(&mut run),
        Scenario::RestartAof => restart_aof(&mut run),
        Scenario::Replication => trouble::replication(&mut run),
        Scenario::ClientKill => trouble::client_kill(&mut run),
        Scenario::Errors => compare_errors(&mut run),
    };
    let outcome = outcome.and_then(|()| match (&run.stats, launch, scenario) {
        (Some(s), Launch::Zio { .. }, Scenario::AofEverysec)
            if s.elided.saturating_sub(s.materialised) <= s.requested / 2 =>
        {
            Err(Failure(format!(
                "elided {} less materialised {} is not over half of requested {}",
                s.elided, s.materialised, s.requested
            )))
        }
        _ => Ok(()),
    });
    let report = Report {
        scenario: scenario.name(),
        mode: launch.name(),
        done: run.done,
        stats: run.stats,
        note: run.note,
        took: began.elapsed(),
    };
    outcome.map_err(|e| Failure(format!("{report}\nFAILED (seed {}): {e}", plan.seed)))?;
    Ok(report)
}

fn aof(fsync: &str) -> Vec<&str> {
    vec!["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-min-size", "512mb"]
}

fn plainly(run: &mut Run, options: &[&str], connections: usize) -> Result<(), Failure> {
    let mut server = run.start(options)?;
    let mut spaces = spaces(connections, run.plan.seed, 192 * MIB);
    run.traffic(&mut server, &mut spaces, run.plan.ops)?;
    run.verify(&mut server, &mut spaces)?;
    run.stop(server)
}

fn eviction(run: &mut Run) -> Result<(), Failure> {
    let options = ["--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru"];
    let mut server = run.start(&options)?;
    let mut spaces = spaces(8, run.plan.seed, 480 * MIB);
    for space in &mut spaces {
        space.shape.evicting = true;
        space.shape.keys = 300;
        space.shape.sizes = Sizes { middle: 450, large: 10 };
    }
    run.traffic(&mut server, &mut spaces, run.plan.ops)?;
    let before = run.done.bytes;
    run.verify(&mut server, &mut spaces)?;
    let evicted = server.connect()?.info("stats", "evicted_keys")?;
    run.note = format!("{evicted} keys evicted");
    if evicted == "0" && run.plan.ops >= 5000 {
        return Err(Failure("nothing was evicted: the scenario shows nothing".into()));
    }
    if run.done.bytes == before {
        return Err(Failure("no key is left: eviction went too far".into()));
    }
    run.stop(server)
}

fn io_threads(run: &mut Run) -> Result<(), Failure> {
    let mut server = run.start(&["--io-threads", "4", "--io-threads-do-reads", "yes"])?;
    // Redis uses the threads only while at least twice as many clients wait.
    let mut spaces = spaces(24, run.plan.seed, 192 * MIB);
    run.traffic(&mut server, &mut spaces, run.plan.ops)?;
    run.verify(&mut server, &mut spaces)?;
    let mut conn = server.connect()?;
    let reads = conn.info("stats", "io_threaded_reads_processed")?;
    let writes = conn.info("stats", "io_threaded_writes_processed")?;
    run.note = format!("{reads} threaded reads, {writes} threaded writes");
    run.stop(server)
}

fn active_defrag(run: &mut Run) -> Result<(), Failure> {
    let mut server = run.start(&[])?;
    let mut conn = server.connect()?;
    for (name, value) in [
        ("active-defrag-ignore-bytes", "1mb"),
        ("active-defrag-threshold-lower", "1"),
        ("active-defrag-cycle-min", "10"),
        ("activedefrag", "yes"),
    ] {
        if let Reply::Error(e) = conn.call(&["CONFIG", "SET", name, value])? {
            run.note = format!("skipped, the build refuses: {e}");
            return run.stop(server);
        }
    }
    let mut spaces = spaces(8, run.plan.seed, 192 * MIB);
    run.traffic(&mut server, &mut spaces, run.plan.ops)?;
    run.verify(&mut server, &mut spaces)?;
    run.note = format!("{} hits", conn.info("stats", "active_defrag_hits")?);
    run.stop(server)
}

fn restart_rdb(run: &mut Run) -> Result<(), Failure> {
    let mut server = run.start(&[])?;
    let mut spaces = spaces(8, run.plan.seed, 192 * MIB);
    run.traffic(&mut server, &mut spaces, run.plan.ops / 2)?;
    let saved = server.connect()?.call(&["SAVE"])?;
    if saved != Reply::Status("OK".into()) {
        return Err(Failure(format!("SAVE: {}", saved.brief())));
    }
    run.verify(&mut server, &mut spaces)?;
    run.stop(server)?;
    let mut server = run.start(&[])?;
    run.verify(&mut server, &mut spaces)?;
    run.traffic(&mut server, &mut spaces, run.plan.ops / 2)?;
    run.verify(&mut server, &mut spaces)?;
    run.stop(server)
}

fn restart_aof(run: &mut Run) -> Result<(), Failure> {
    let options = aof("always");
    let mut server = run.start(&options)?;
    let mut spaces = spaces(8, run.plan.seed, 192 * MIB);
    run.traffic(&mut server, &mut spaces, run.plan.ops / 2)?;
    server.crash()?;
    let mut server = run.start(&options)?;
    run.verify(&mut server, &mut spaces)?;
    run.traffic(&mut server, &mut spaces, run.plan.ops / 2)?;
    run.verify(&mut server, &mut spaces)?;
    run.stop(server)
}

fn compare_errors(run: &mut Run) -> Result<(), Failure> {
    let plain = Server::start(&Launch::Plain, run.dir.path(), &[])?;
    let want = errors::probe(&plain)?;
    plain.stop()?;
    let mut server = run.start(&[])?;
    let got = errors::probe(&server).map_err(|e| server.explain(e))?;
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        if want != got {
            let part = |s: &str| s.chars().take(200).collect::<String>();
            return Err(Failure(format!("{name}: plain {}, here {}", part(want), part(got))));
        }
        run.done.ops += 1;
    }
    run.stop(server)
}
