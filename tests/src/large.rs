//! What the large scenarios are made of: data sets, connections that load and read them back, a look at
//! a server's memory, and limits that are collected before a test fails.
//!
//! Content is a function of (seed, key), so gigabytes can be verified without being kept. Counters are read
//! from the running server with `zio stats PID --json`, so that a window in the middle of a phase can be
//! measured; all connections are idle at both ends of a window.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::redis::Failure;
use crate::redis::content::{Kind, Rng, fill};
use crate::redis::resp::{Conn, Reply, encode};
use crate::redis::server::{Launch, Server};

/// Requests that a loading or reading connection keeps in flight.
const DEPTH: usize = 4;

/// Bytes in a KiB, MiB and GiB.
pub const KIB: usize = 1 << 10;
/// See [`KIB`].
pub const MIB: usize = 1 << 20;

/// A set of keys `0..n` whose values can be made again at any time.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// Chooses the content.
    pub seed: u64,
    /// Smallest value, bytes.
    pub lo: usize,
    /// Largest value, bytes; sizes are uniform between the two.
    pub hi: usize,
    /// Whether every other value is compressible text instead of random bytes.
    pub half_text: bool,
}

impl Dataset {
    /// The name of a key.
    pub fn name(key: usize) -> String {
        format!("large:{key}")
    }

    /// Length of a key's value, bytes.
    pub fn len_bytes(&self, key: usize) -> usize {
        self.lo + Rng::new(self.seed, key as u64).below(self.hi - self.lo + 1)
    }

    /// The value of a key.
    pub fn value(&self, key: usize) -> Vec<u8> {
        let kind = match self.half_text && key % 2 == 1 {
            true => Kind::Lines,
            false => Kind::Random,
        };
        fill(self.seed, key, 0, kind, self.len_bytes(key))
    }

    /// SETs the keys; the commands are spread over the connections, a few in flight on each.
    ///
    /// # Errors
    /// When the server does not answer `OK` to one of them.
    pub fn load(&self, conns: &mut [Conn], keys: &[usize]) -> Result<(), Failure> {
        spread(conns, keys, &|conn, batch| {
            for &key in batch {
                let mut out = Vec::new();
                let name = Dataset::name(key);
                encode(&mut out, &[b"SET", name.as_bytes(), &self.value(key)]);
                conn.send(&out)?;
            }
            batch.iter().try_for_each(|key| match conn.reply()? {
                Reply::Status(s) if s == "OK" => Ok(()),
                other => Err(Failure(format!("SET {key}: {}", other.brief()))),
            })
        })
    }

    /// GETs the keys, compares all lengths, and every byte of each `sample`-th key.
    ///
    /// # Errors
    /// At the first value that is missing or wrong.
    pub fn verify(&self, conns: &mut [Conn], keys: &[usize], sample: usize) -> Result<(), Failure> {
        spread(conns, keys, &|conn, batch| {
            for &key in batch {
                let mut out = Vec::new();
                encode(&mut out, &["GET", &Dataset::name(key)]);
                conn.send(&out)?;
            }
            batch.iter().try_for_each(|&key| match conn.reply()? {
                Reply::Bulk(Some(got)) if got.len() == self.len_bytes(key) => match key % sample == 0 {
                    true => same(key, &got, &self.value(key)),
                    false => Ok(()),
                },
                other => {
                    Err(Failure(format!("GET {key}: expected {} bytes, got {}", self.len_bytes(key), other.brief())))
                }
            })
        })
    }
}

/// Compares a value with what it should be.
///
/// # Errors
/// With the first place where they differ.
pub fn same(key: usize, got: &[u8], want: &[u8]) -> Result<(), Failure> {
    if got == want {
        return Ok(());
    }
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    let at = at.unwrap_or(got.len().min(want.len()));
    let zeros = got[at..].iter().take_while(|&&b| b == 0).count();
    Err(Failure(format!(
        "key {key}: {} bytes for {}, first difference at {at}, followed by {zeros} zeros",
        got.len(),
        want.len()
    )))
}

type Step<'a> = &'a (dyn Fn(&mut Conn, &[usize]) -> Result<(), Failure> + Sync);

/// Runs `step` on batches of keys, each connection on a thread of its own with its share of the keys.
fn spread(conns: &mut [Conn], keys: &[usize], step: Step<'_>) -> Result<(), Failure> {
    let share = keys.len().div_ceil(conns.len().max(1)).max(1);
    scope(|s| {
        let threads: Vec<_> = conns
            .iter_mut()
            .zip(keys.chunks(share))
            .map(|(conn, mine)| s.spawn(move || mine.chunks(DEPTH).try_for_each(|b| step(conn, b))))
            .collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(Failure("a client panicked".into()))))
    })
}

/// Opens `n` connections.
///
/// # Errors
/// When the server does not accept one.
pub fn connect(server: &Server, n: usize) -> Result<Vec<Conn>, Failure> {
    (0..n).map(|_| server.connect()).collect()
}

/// One `/proc/PID` file as text.
///
/// # Errors
/// When the process has gone, or does not let us read it.
pub fn proc_file(pid: u32, name: &str) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).map_err(|e| Failure(format!("{path}: {e}")))
}

/// Number of mappings of a process.
///
/// # Errors
/// As [`proc_file`].
pub fn mappings(pid: u32) -> Result<u64, Failure> {
    Ok(proc_file(pid, "maps")?.lines().count() as u64)
}

/// A field of `status` or `smaps_rollup`, converted from kB to bytes.
///
/// # Errors
/// As [`proc_file`], or when the field is not there.
pub fn memory_bytes(pid: u32, file: &str, field: &str) -> Result<u64, Failure> {
    let text = proc_file(pid, file)?;
    let value = text.lines().find_map(|l| {
        let rest = l.strip_prefix(field)?.strip_prefix(':')?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    match value {
        Some(kib) => Ok(kib << 10),
        None => Err(Failure(format!("/proc/{pid}/{file} has no {field}"))),
    }
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// As [`memory_bytes`].
pub fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    memory_bytes(pid, "status", "VmRSS")
}

/// The fields of `/proc/PID/stat` after the command's name: state first, then the parent's pid.
fn stat_fields(pid: u32) -> Result<Vec<String>, Failure> {
    let text = proc_file(pid, "stat")?;
    let (_, rest) = text.rsplit_once(')').unwrap_or_default();
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// A process's minor faults and the time its threads have run on a processor.
///
/// # Errors
/// As [`proc_file`].
pub fn faults_and_cpu(pid: u32) -> Result<(u64, Duration), Failure> {
    let fields = stat_fields(pid)?;
    let faults = fields.get(7).and_then(|f| f.parse().ok());
    let faults = faults.ok_or_else(|| Failure(format!("/proc/{pid}/stat has no minor faults")))?;
    let mut ns = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        ns += text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Ok((faults, Duration::from_nanos(ns)))
}

/// The first living child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let parent = pid.to_string();
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let child: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let fields = stat_fields(child).ok()?;
        (fields.get(1) == Some(&parent) && fields[0] != "Z").then_some(child)
    })
}

/// What a snapshot took.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Largest PSS of parent and child together, bytes.
    pub peak_pss_bytes: u64,
    /// Largest PSS of the child alone, bytes.
    pub child_pss_bytes: u64,
    /// How often both were sampled.
    pub samples: u32,
    /// From the command to the child's end.
    pub duration: Duration,
    /// Processor time of the child, in clock ticks' resolution.
    pub child_cpu: Duration,
    /// Minor faults of the child.
    pub child_faults: u64,
}

/// Issues `command` (BGSAVE or BGREWRITEAOF), follows its child, and waits until the server calls the
/// result a success: `done_field` of INFO persistence is `ok`.
///
/// # Errors
/// When no child appears, it does not end within ten minutes, or the server reports a failure.
pub fn snapshot(server: &Server, command: &str, done_field: &str) -> Result<Snapshot, Failure> {
    let mut conn = server.connect()?;
    let start = Instant::now();
    conn.text(&[command])?;
    // Redis 7 may put the fork off to its next cron tick.
    let child = loop {
        match child_of(server.pid()) {
            Some(child) => break child,
            None if start.elapsed() > Duration::from_secs(5) => {
                return Err(Failure(format!("{command} started no child")));
            }
            None => sleep(Duration::from_millis(1)),
        }
    };
    let mut out = Snapshot {
        peak_pss_bytes: 0,
        child_pss_bytes: 0,
        samples: 0,
        duration: Duration::ZERO,
        child_cpu: Duration::ZERO,
        child_faults: 0,
    };
    let mut next_sample = start;
    while let Ok(fields) = stat_fields(child)
        && fields.first().is_some_and(|state| state != "Z")
    {
        let number = |n: usize| fields.get(n).and_then(|f| f.parse().ok()).unwrap_or(0u64);
        // USER_HZ is 100 on every Linux that this runs on.
        out.child_cpu = Duration::from_millis(10 * (number(11) + number(12)));
        out.child_faults = number(7);
        if Instant::now() >= next_sample {
            let parent = memory_bytes(server.pid(), "smaps_rollup", "Pss")?;
            if let Ok(own) = memory_bytes(child, "smaps_rollup", "Pss") {
                out.peak_pss_bytes = out.peak_pss_bytes.max(parent + own);
                out.child_pss_bytes = out.child_pss_bytes.max(own);
                out.samples += 1;
            }
            next_sample = Instant::now() + Duration::from_millis(100);
        }
        if start.elapsed() > Duration::from_secs(600) {
            return Err(Failure(format!("{command} still runs after ten minutes")));
        }
        sleep(Duration::from_millis(5));
    }
    out.duration = start.elapsed();
    let deadline = Instant::now() + Duration::from_secs(30);
    let busy = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress"];
    while busy.iter().try_fold(false, |any, f| Ok::<_, Failure>(any | (conn.info("persistence", f)? != "0")))? {
        if Instant::now() > deadline {
            return Err(Failure(format!("{command}: its end goes unnoticed")));
        }
        sleep(Duration::from_millis(20));
    }
    match conn.info("persistence", done_field)?.as_str() {
        "ok" => Ok(out),
        other => Err(Failure(format!("{command}: {done_field} is {other:?}"))),
    }
}

/// The live counters of a process under zio.
#[derive(Clone, Debug)]
pub struct Live(serde_json::Value);

impl Live {
    /// Reads them with the `zio` command that was built with the library.
    ///
    /// # Errors
    /// When there is no such command, or it can't read the process.
    pub fn read(server: &Server, launch: &Launch) -> Result<Option<Live>, Failure> {
        let Launch::Zio { lib, .. } = launch else {
            return Ok(None);
        };
        let zio = std::env::var_os("ZIO_BIN").map_or_else(|| lib.with_file_name("zio"), PathBuf::from);
        let pid = server.pid().to_string();
        let got = Command::new(&zio).args(["stats", &pid, "--json"]).output();
        let got = got.map_err(|e| {
            Failure(format!("{}: {e}; remedy: cargo build --release --workspace, or set ZIO_BIN", zio.display()))
        })?;
        if !got.status.success() {
            let why = String::from_utf8_lossy(&got.stderr).into_owned();
            return Err(Failure(format!("zio stats {pid}: {why}")));
        }
        serde_json::from_slice(&got.stdout)
            .map(|json| Some(Live(json)))
            .map_err(|e| Failure(format!("zio stats {pid}: {e}")))
    }

    /// A counter or gauge, 0 when it is not there.
    pub fn get(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(0)
    }

    /// What the core arena may hold for what is named: 1.25 times, and 1 MiB a thread.
    pub fn held_limit(&self) -> u64 {
        self.get("core_bytes_named") * 5 / 4 + self.get("threads").max(1) * MIB as u64
    }

    /// Why copies and receives were left to the program, as `reason n` words.
    pub fn passed(&self) -> String {
        let reasons = self.0["passthrough"].as_object().into_iter().flatten();
        let words = reasons.filter(|(_, n)| n.as_u64() != Some(0));
        let words: Vec<_> = words.map(|(why, n)| format!("{why} {n}")).collect();
        words.join(", ")
    }

    /// What changed since `before`, as `name +n` words.
    pub fn since(&self, before: &Live) -> String {
        let mut out = String::new();
        let both = [(&self.0, &before.0), (&self.0["passthrough"], &before.0["passthrough"])];
        for (now, old) in both {
            for (name, value) in now.as_object().into_iter().flatten() {
                let old = old[name].as_i64().unwrap_or(0);
                let by = value.as_i64().unwrap_or(old) - old;
                if by != 0 {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "{name} {by:+} ");
                }
            }
        }
        out
    }
}

/// Prints one line per figure and remembers which were over their limit.
#[derive(Debug)]
pub struct Table {
    scenario: &'static str,
    over: Vec<String>,
}

impl Table {
    /// An empty table.
    pub fn new(scenario: &'static str) -> Table {
        Table { scenario, over: Vec::new() }
    }

    /// A line past libtest's capture: a passing run's figures are wanted too.
    pub fn note(&self, what: &str, column: &str, value: &str) {
        let line = format!("large {:<9} {what:<44} {column:<7} {value}", self.scenario);
        let _ = writeln!(std::io::stderr(), "{}", line.trim_end());
    }

    /// A figure that must not be above `most`.
    pub fn limit(&mut self, what: &str, column: &str, value: f64, most: f64) {
        let verdict = if value <= most { "ok" } else { "OVER" };
        let text = format!("{} (at most {}) {verdict}", short(value), short(most));
        self.note(what, column, &text);
        if value > most {
            self.over.push(format!("{what}, {column}: {text}"));
        }
    }

    /// The figures that were over their limits.
    ///
    /// # Errors
    /// When there was any.
    pub fn verdict(self) -> Result<(), Failure> {
        match self.over.is_empty() {
            true => Ok(()),
            false => Err(Failure(self.over.join("\n"))),
        }
    }
}

fn short(value: f64) -> String {
    match value.abs() >= 100.0 {
        true => format!("{value:.0}"),
        false => format!("{value:.4}"),
    }
}

/// Bytes as MiB for a table.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

/// A connection with fixed-length replies, for traffic at full speed.
pub struct Lane {
    conn: Conn,
    reply: Vec<u8>,
}

impl Lane {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not accept.
    pub fn open(server: &Server) -> Result<Lane, Failure> {
        let conn = server.connect()?;
        Ok(Lane { conn, reply: Vec::new() })
    }

    /// Sends a SET without waiting for its reply.
    ///
    /// # Errors
    /// As write(2).
    pub fn send_set(&mut self, key: usize, value: &[u8]) -> Result<(), Failure> {
        let name = Dataset::name(key);
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${}\r\n", name.len(), value.len());
        let mut out = Vec::with_capacity(head.len() + value.len() + 2);
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
        Ok(self.conn.send(&out)?)
    }

    /// Waits for the reply of a SET.
    ///
    /// # Errors
    /// When it is not `OK`.
    pub fn expect_ok(&mut self) -> Result<(), Failure> {
        match self.exactly(5)? {
            b"+OK\r\n" => Ok(()),
            other => Err(Failure(format!("SET: {}", other.escape_ascii()))),
        }
    }

    /// GETs a value of a known length; the slice lasts until the next call.
    ///
    /// # Errors
    /// When the reply is of another length, or an error.
    pub fn get(&mut self, key: usize, len: usize) -> Result<&[u8], Failure> {
        let mut out = Vec::new();
        encode(&mut out, &["GET", &Dataset::name(key)]);
        self.conn.send(&out)?;
        let head = format!("${len}\r\n");
        let reply = self.exactly(head.len() + len + 2)?;
        match reply.strip_prefix(head.as_bytes()).and_then(|r| r.strip_suffix(b"\r\n")) {
            Some(value) => Ok(value),
            None => {
                let brief = reply[..reply.len().min(60)].escape_ascii();
                Err(Failure(format!("GET {key}: not {len} bytes: {brief}")))
            }
        }
    }

    fn exactly(&mut self, len: usize) -> Result<&[u8], Failure> {
        if self.reply.len() < len {
            self.reply.resize(len, 0);
        }
        let mut stream = self.conn.stream();
        stream.read_exact(&mut self.reply[..len])?;
        Ok(&self.reply[..len])
    }
}
