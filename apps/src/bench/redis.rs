//! Redis rows: a fresh redis-server per side, loaded by redis-benchmark, measured in the middle of the load.
//!
//! redis-benchmark is given more requests than it can make and is ended after the window; requests are
//! counted by the server itself (`INFO commandstats`), so that connection set-up does not count. What the
//! server stores is checked after the load in the columns whose data must be right.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Failure;
use super::columns::{Column, ScratchDir, Server, bound_command};
use super::echo_client::{first_difference, random_bytes};
use super::pairs::{Plan, Sample, Workload};
use super::probe::Snapshot;
use super::resp::{Connection, Reply};
use super::size::show_size;

/// Values of the large data set together, bytes.
pub const LARGE_DATASET: u64 = 3 << 30;
/// More requests than any window sees.
const ENDLESS: &str = "2000000000";
/// Keys that are read back after the load.
const READ_BACK: usize = 32;

/// What redis-benchmark does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Op {
    /// SET over existing keys
    Set,
    /// GET
    Get,
    /// SET with the append-only file on
    SetAof,
}

/// One Redis row.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Operation.
    pub op: Op,
    /// Value size, bytes.
    pub size: usize,
    /// Keys, all of which exist before the load starts.
    pub keys: usize,
    /// redis-benchmark's connections.
    pub clients: usize,
    /// Directory for the server's files; chosen when absent.
    pub dir: Option<PathBuf>,
}

/// Checks that both programs are installed.
///
/// # Errors
/// Names the missing one and the package.
pub fn check_installed() -> Result<(), Failure> {
    for program in ["redis-server", "redis-benchmark"] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|s| s.success()) {
            return Err(Failure::new(format!(
                "{program} is not installed (Debian: apt-get install redis-server redis-tools)"
            )));
        }
    }
    Ok(())
}

impl Workload for Redis {
    fn name(&self) -> String {
        let op = match self.op {
            Op::Set => "SET",
            Op::Get => "GET",
            Op::SetAof => "SET+AOF",
        };
        format!("redis {op} {}, {} keys", show_size(self.size), self.keys)
    }

    fn bytes_per_request(&self) -> u64 {
        self.size as u64
    }

    fn run_side(&self, column: &Column, plan: &Plan) -> Result<Sample, Failure> {
        let dir = ScratchDir::create(&self.parent_dir())?;
        let (mut server, port) = self.start_server(column, plan, dir.path())?;
        let mut control = connect(&mut server, port, dir.path())?;
        self.fill(&mut control)?;
        let mut load = self.start_load(port, plan)?;
        let measured = self.measure(&mut control, server.pid(), plan);
        let load_died = load.try_wait().ok().flatten();
        // Both fail only when the load has ended, which is reported next.
        let _ = load.kill();
        let _ = load.wait();
        if let Some(status) = load_died {
            return Err(Failure::new(format!("redis-benchmark ended early: {status}{}", last_words(dir.path()))));
        }
        let sample = measured?;
        if column.verified() {
            self.read_back(&mut control)?;
        }
        control.send_only(&[b"SHUTDOWN", b"NOSAVE"])?;
        server.wait()?;
        Ok(sample)
    }
}

impl Redis {
    /// The append-only file goes to memory where there is room: we measure the server, not the disk.
    fn parent_dir(&self) -> PathBuf {
        let shm = Path::new("/dev/shm");
        match &self.dir {
            Some(dir) => dir.clone(),
            None if self.op == Op::SetAof && shm.is_dir() && memory_available() > 12 << 30 => shm.to_path_buf(),
            None => std::env::temp_dir(),
        }
    }

    fn start_server(&self, column: &Column, plan: &Plan, dir: &Path) -> Result<(Server, u16), Failure> {
        let port = free_port()?;
        let log =
            std::fs::File::create(dir.join("server.log")).map_err(|e| Failure::io("creating the server's log", e))?;
        let errors = log.try_clone().map_err(|e| Failure::io("sharing the server's log", e))?;
        let aof = if self.op == Op::SetAof { "yes" } else { "no" };
        let child = column
            .command(Path::new("redis-server"), plan.pinning.server)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--daemonize", "no", "--logfile", ""])
            .args(["--appendonly", aof, "--auto-aof-rewrite-percentage", "0"])
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| Failure::io("starting redis-server", e))?;
        Ok((Server::new(child, "redis-server".into()), port))
    }

    /// Random values in every key, through the server's ordinary receive path.
    fn fill(&self, control: &mut Connection) -> Result<(), Failure> {
        let pool = random_bytes(self.size + self.slide(), 11);
        let depth = ((4 << 20) / self.size).clamp(1, 64);
        let mut waiting = 0;
        for i in 0..self.keys {
            control.send_only(&[b"SET", key(i).as_bytes(), self.value(&pool, i)])?;
            waiting += 1;
            if waiting == depth || i + 1 == self.keys {
                for _ in 0..waiting {
                    control.reply()?.expect_ok("SET")?;
                }
                waiting = 0;
            }
        }
        Ok(())
    }

    fn slide(&self) -> usize {
        self.keys.min(64 << 10)
    }

    fn value<'p>(&self, pool: &'p [u8], i: usize) -> &'p [u8] {
        let at = i % self.slide();
        &pool[at..at + self.size]
    }

    fn start_load(&self, port: u16, plan: &Plan) -> Result<Child, Failure> {
        let test = if self.op == Op::Get { "get" } else { "set" };
        bound_command(Path::new("redis-benchmark"), plan.pinning.client)
            .env_remove("LD_PRELOAD")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "-t", test])
            .args(["-c", &self.clients.to_string(), "-n", ENDLESS])
            .args(["-d", &self.size.to_string()])
            .args(["-r", &self.keys.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Failure::io("starting redis-benchmark", e))
    }

    fn measure(&self, control: &mut Connection, pid: u32, plan: &Plan) -> Result<Sample, Failure> {
        // The load's own start takes a while under a slow server: the warm-up begins with its requests.
        let before_load = self.calls(control)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.calls(control)? == before_load && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(plan.warm_up);
        let calls_before = self.calls(control)?;
        let before = Snapshot::take(pid)?;
        std::thread::sleep(plan.window);
        let calls_after = self.calls(control)?;
        let after = Snapshot::take(pid)?;
        Sample::between(&before, &after, calls_after - calls_before)
    }

    /// How often the server has run the row's command.
    fn calls(&self, control: &mut Connection) -> Result<u64, Failure> {
        let command = if self.op == Op::Get { "get" } else { "set" };
        let text = control.command(&[b"INFO", b"commandstats"])?.bulk("INFO")?;
        Ok(calls_of(&String::from_utf8_lossy(&text), command))
    }

    fn read_back(&self, control: &mut Connection) -> Result<(), Failure> {
        let wrong = |k: &str, at: usize| Failure::new(format!("WRONG DATA: value of {k} differs from offset {at} on"));
        let pool = random_bytes(self.size + self.slide(), 11);
        let step = self.keys.div_ceil(READ_BACK);
        let mut written: Option<Vec<u8>> = None;
        for i in (0..self.keys).step_by(step) {
            let name = key(i);
            let got = control.command(&[b"GET", name.as_bytes()])?.bulk("GET")?;
            let expected = self.value(&pool, i);
            if got == expected {
                continue;
            }
            // The load writes one and the same value everywhere.
            let by_load = self.op != Op::Get && got.len() == self.size && looks_like_load(&got);
            match &written {
                None if by_load => written = Some(got),
                Some(first) if by_load && *first == got => {}
                _ => {
                    let like = written.as_deref().unwrap_or(expected);
                    return Err(wrong(&name, first_difference(like, &got).unwrap_or(0)));
                }
            }
        }
        for i in 0..4 {
            let value = self.value(&pool, i * 7);
            control.command(&[b"SET", b"zio:check", value])?.expect_ok("SET")?;
            let got = control.command(&[b"GET", b"zio:check"])?.bulk("GET")?;
            if let Some(at) = first_difference(value, &got) {
                return Err(wrong("zio:check", at));
            }
        }
        Ok(())
    }
}

/// redis-benchmark fills values with 64 characters from '0' on.
fn looks_like_load(value: &[u8]) -> bool {
    value.iter().all(|b| (b'0'..b'0' + 64).contains(b))
}

/// redis-benchmark's name for key `i`.
fn key(i: usize) -> String {
    format!("key:{i:012}")
}

fn calls_of(commandstats: &str, command: &str) -> u64 {
    let start = format!("cmdstat_{command}:calls=");
    commandstats
        .lines()
        .find_map(|l| l.strip_prefix(&start))
        .and_then(|rest| rest.split(',').next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn connect(server: &mut Server, port: u16, dir: &Path) -> Result<Connection, Failure> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(mut connection) = Connection::open(port)
            && matches!(connection.command(&[b"PING"]), Ok(Reply::Simple(_)))
        {
            return Ok(connection);
        }
        if server.ended().is_some() || Instant::now() > deadline {
            return Err(Failure::new(format!("redis-server did not start{}", last_words(dir))));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of the server's log, to print after an error.
fn last_words(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(5)..];
    if tail.is_empty() {
        return String::new();
    }
    format!("; its log ends with:\n{}", tail.join("\n"))
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|l| l.local_addr())
        .map(|a| a.port())
        .map_err(|e| Failure::io("looking for a free port", e))
}

/// Memory that can be used without swapping, bytes; 0 when unknown.
pub fn memory_available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.split_ascii_whitespace().next())
        .and_then(|n| n.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commandstats() {
        let text = "# Commandstats\r\ncmdstat_get:calls=17,usec=4\r\ncmdstat_getdel:calls=3,usec=1\r\n";
        assert_eq!(calls_of(text, "get"), 17);
        assert_eq!(calls_of(text, "set"), 0);
    }

    #[test]
    fn keys_are_named_as_redis_benchmark_names_them() {
        assert_eq!(key(12), "key:000000000012");
        assert!(looks_like_load(b"0o_XA") && !looks_like_load(&[200, 48]));
    }
}
