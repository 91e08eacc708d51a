//! `zio bench`: what zio gains and costs, on this machine, in interleaved pairs.
//!
//! | file | holds |
//! |---|---|
//! | `columns` | plain, zio, null-copy limit: how a server process is started in each |
//! | `pairs` | the interleaved rounds and their samples |
//! | `probe` | CPU time, faults and zio's counters of a live process |
//! | `stats_math`, `report`, `table` | medians and intervals; ratios, gain and verdict; printing |
//! | `echo_server`, `echo_client` | the example server and its verifying client |
//! | `redis`, `resp` | redis-server under redis-benchmark |
//! | `copy` | the cost of small copies |
//! | `tracked`, `tracked_child` | the cost of a large copy that is renamed |

mod columns;
mod copy;
mod echo_client;
mod echo_server;
mod pairs;
mod probe;
mod redis;
mod report;
mod resp;
mod size;
mod stats_math;
mod table;
mod tracked;
mod tracked_child;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use columns::{Columns, Pinning};
use echo_client::Echo;
use echo_server::Buffers;
use pairs::{Plan, Workload};
use redis::{Op, Redis};
use report::Report;
use size::parse_size;

/// zio's own error, as for `zio run`.
const EXIT_FAILURE: u8 = 125;

/// Why a benchmark could not be finished.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }

    fn io(doing: &str, e: std::io::Error) -> Failure {
        Failure(format!("{doing}: {e}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Measure plain, zio and the null-copy limit in interleaved pairs
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An echo server that copies each message through a chain of buffers
    Echo(EchoArgs),
    /// redis-server under redis-benchmark (both must be installed)
    Redis(RedisArgs),
    /// A few rows in about three minutes: echo with 0, 5 and 12 copies, Redis SET and GET
    Quick(QuickArgs),
    /// The cost of small memcpy calls, with and without the library
    Copy(CopyArgs),
    /// The cost of a large memcpy that the library renames, by the number of extents
    Tracked(TrackedArgs),
    /// The servers that the benchmarks start
    #[command(hide = true)]
    Server {
        #[command(subcommand)]
        which: ServerKind,
    },
}

#[derive(Subcommand)]
enum ServerKind {
    Echo(echo_server::ServerArgs),
    Copy(copy::ChildArgs),
    Tracked(tracked_child::ChildArgs),
}

#[derive(clap::Args)]
struct Common {
    /// Interleaved pairs of each kind (7 or more for a claim, 30 for a verdict)
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pairs: u64,
    /// Length of each measured window, seconds
    #[arg(long, value_name = "S", default_value_t = 1.5, value_parser = parse_seconds)]
    seconds_per_side: f64,
    /// Add pairs (up to 200) until the ratios are known to 2%
    #[arg(long)]
    until_resolved: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct Place {
    /// The library to measure [default: where `zio run` finds it]
    #[arg(long, value_name = "PATH")]
    lib: Option<PathBuf>,
    /// Do not pin the server and the load to a processor each
    #[arg(long)]
    no_pin: bool,
    /// Print JSON on standard output, and the table on standard error
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct EchoArgs {
    /// Copies between receive and send
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [0, 5, 12],
          value_parser = parse_copies)]
    copies: Vec<usize>,
    /// Message sizes
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', default_value = "512K",
          value_parser = parse_size)]
    size: Vec<usize>,
    /// Allocate buffers once, or for each message
    #[arg(long, value_enum, default_value = "fixed")]
    buffers: Buffers,
    /// Connections that are kept busy
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    connections: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct RedisArgs {
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["set", "get"])]
    ops: Vec<Op>,
    /// Value sizes
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', default_value = "256K",
          value_parser = parse_size)]
    size: Vec<usize>,
    /// Keys of the small data set
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// Few keys (--keys), or as many as 3 GiB of values take
    #[arg(long, value_enum, default_value = "50keys")]
    dataset: Dataset,
    /// redis-benchmark's connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// Directory for the server's files [default: memory for the append-only file, if there is room]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Dataset {
    #[value(name = "50keys")]
    FewKeys,
    #[value(name = "3g")]
    ThreeGigabytes,
}

#[derive(clap::Args)]
struct QuickArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct CopyArgs {
    /// Copy sizes
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', default_value = "64,1K,4K,8K",
          value_parser = parse_size)]
    size: Vec<usize>,
    /// Interleaved pairs
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pairs: u64,
    #[command(flatten)]
    place: Place,
}

const TRACKED_EXAMPLES: &str = "\
Examples:
  zio bench tracked
  zio bench tracked --extents 1000,1000000 --size 64K,256K --pairs 7

A row whose copies were not all renamed says so, and why. Copies under 32K cost more
than they save: zio pauses after 65,536 of them (`backoff`).";

#[derive(clap::Args)]
#[command(after_help = TRACKED_EXAMPLES)]
struct TrackedArgs {
    /// Destinations of the copies, an extent each; up to 2,000,000
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "100000",
          value_parser = clap::value_parser!(u64).range(1..=tracked_child::EXTENTS_MOST))]
    extents: Vec<u64>,
    /// Copy sizes, 16K to 4M in steps of 4K
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', default_value = "64K",
          value_parser = tracked_child::parse_tracked_size)]
    size: Vec<usize>,
    /// Interleaved pairs
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pairs: u64,
    #[command(flatten)]
    place: Place,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.05..=3600.0).contains(&s) => Ok(s),
        _ => Err("write seconds between 0.05 and 3600".into()),
    }
}

fn parse_copies(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= 1000 => Ok(n),
        _ => Err("write a number of copies from 0 to 1000".into()),
    }
}

/// Runs `zio bench`. Exit status 0 when everything was measured (whatever the verdicts), 125 otherwise.
pub fn run(args: Args) -> ExitCode {
    let result = match args.what {
        What::Server { which: ServerKind::Echo(a) } => return echo_server::serve(a),
        What::Server { which: ServerKind::Copy(a) } => return copy::child(a),
        What::Server { which: ServerKind::Tracked(a) } => return tracked_child::child(a),
        What::Echo(a) => run_echo(&a),
        What::Redis(a) => run_redis(&a),
        What::Quick(a) => run_quick(&a),
        What::Copy(a) => run_copy(&a),
        What::Tracked(a) => run_tracked(&a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("zio bench: {e}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn run_echo(a: &EchoArgs) -> Result<(), Failure> {
    let mut rows: Vec<Box<dyn Workload>> = Vec::new();
    for &size in &a.size {
        for &copies in &a.copies {
            rows.push(Box::new(Echo { copies, size, buffers: a.buffers, connections: a.connections as usize }));
        }
    }
    run_rows("echo", &rows, &a.common.plan(), &a.common.place)
}

fn run_redis(a: &RedisArgs) -> Result<(), Failure> {
    redis::check_installed()?;
    if a.dataset == Dataset::ThreeGigabytes && redis::memory_available() < 8 << 30 {
        return Err(Failure::new(
            "3 GiB of values take 8 GiB of available memory with room to spare; use --dataset 50keys",
        ));
    }
    let mut rows: Vec<Box<dyn Workload>> = Vec::new();
    for &op in &a.ops {
        for &size in &a.size {
            let keys = match a.dataset {
                Dataset::FewKeys => a.keys as usize,
                Dataset::ThreeGigabytes => (redis::LARGE_DATASET / size as u64) as usize,
            };
            rows.push(Box::new(Redis { op, size, keys, clients: a.clients as usize, dir: a.dir.clone() }));
        }
    }
    run_rows("redis", &rows, &a.common.plan(), &a.common.place)
}

fn run_quick(a: &QuickArgs) -> Result<(), Failure> {
    let plan = Plan {
        pairs: 7,
        until_resolved: false,
        warm_up: Duration::from_millis(200),
        window: Duration::from_millis(800),
        pinning: Pinning::choose(!a.place.no_pin),
    };
    let mut rows: Vec<Box<dyn Workload>> = Vec::new();
    for copies in [0, 5, 12] {
        rows.push(Box::new(Echo { copies, size: 512 << 10, buffers: Buffers::Fixed, connections: 2 }));
    }
    match redis::check_installed() {
        Ok(()) => {
            for op in [Op::Set, Op::Get] {
                rows.push(Box::new(Redis { op, size: 256 << 10, keys: 50, clients: 50, dir: None }));
            }
        }
        Err(e) => eprintln!("zio bench: no Redis rows: {e}"),
    }
    run_rows("quick", &rows, &plan, &a.place)
}

fn run_copy(a: &CopyArgs) -> Result<(), Failure> {
    let columns = Columns::prepare(a.place.lib.as_deref())?;
    let pinning = Pinning::choose(!a.place.no_pin);
    let mut costs = Vec::new();
    for &size in &a.size {
        costs.push(copy::measure(&columns, size, a.pairs as usize, 60, pinning)?);
    }
    let rows = costs.iter().map(copy::row_json).collect();
    print("copy", &copy::text(&costs), rows, a.place.json)
}

fn run_tracked(a: &TrackedArgs) -> Result<(), Failure> {
    let columns = Columns::prepare(a.place.lib.as_deref())?;
    let pinning = Pinning::choose(!a.place.no_pin);
    let mut costs = Vec::new();
    for &extents in &a.extents {
        for &size in &a.size {
            costs.push(tracked::measure(&columns, extents as usize, size, a.pairs as usize, pinning)?);
        }
    }
    let rows = costs.iter().map(tracked::row_json).collect();
    print("tracked", &tracked::text(&costs), rows, a.place.json)
}

impl Common {
    fn plan(&self) -> Plan {
        Plan {
            pairs: self.pairs as usize,
            until_resolved: self.until_resolved,
            warm_up: Duration::from_millis(300),
            window: Duration::from_secs_f64(self.seconds_per_side),
            pinning: Pinning::choose(!self.place.no_pin),
        }
    }
}

fn run_rows(benchmark: &str, rows: &[Box<dyn Workload>], plan: &Plan, place: &Place) -> Result<(), Failure> {
    let columns = Columns::prepare(place.lib.as_deref())?;
    if plan.pinning.server.is_none() && !place.no_pin {
        eprintln!("zio bench: one processor only: server and load share it");
    }
    // What a hooked call costs that elides nothing: a copy of the smallest length that is looked up.
    let hook_ns = copy::measure(&columns, 8192, 7, 20, plan.pinning)?.extra.median.max(0.0);
    let mut reports = Vec::new();
    for row in rows {
        let series = pairs::measure(row.as_ref(), &columns, plan)?;
        let bytes = row.bytes_per_request();
        reports.extend(Report::of(row.name(), bytes, &series, Some(hook_ns)));
    }
    let json = reports.iter().map(table::row_json).collect();
    print(benchmark, &table::text(&reports), json, place.json)
}

fn print(benchmark: &str, text: &str, rows: Vec<Value>, json: bool) -> Result<(), Failure> {
    let document = table::document(benchmark, rows);
    let mut out = std::io::stdout();
    let written = if json {
        eprint!("{text}");
        writeln!(out, "{document:#}")
    } else {
        write!(out, "{text}")
    };
    written.map_err(|e| Failure::io("writing the table", e))
}
