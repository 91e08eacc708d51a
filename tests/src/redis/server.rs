//! Starts and ends redis-server, plainly or with a library preloaded, and reads what libzio.so reports.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::resp::{Conn, Reply};
use super::{Failure, sys};

const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Which fault mode libzio.so is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultMode {
    /// Guard markers.
    Guard,
    /// Missing pages and SIGBUS.
    Sigbus,
}

impl FaultMode {
    /// The word for `ZIO_FAULT`, which is also `mode` in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            FaultMode::Guard => "guard",
            FaultMode::Sigbus => "sigbus",
        }
    }
}

/// How a server is started.
#[derive(Clone, Debug)]
pub enum Launch {
    /// The program as it is.
    Plain,
    /// libzio.so preloaded.
    Zio { lib: PathBuf, mode: FaultMode },
    /// Other libraries preloaded (`preload` as for LD_PRELOAD), with variables for them.
    Shim { preload: OsString, env: Vec<(OsString, OsString)> },
    /// Words before the program's name, such as `zio run --fault guard --`.
    Prefix(Vec<String>),
}

impl Launch {
    /// The mode's name on a report line.
    pub fn name(&self) -> &'static str {
        match self {
            Launch::Plain => "plain",
            Launch::Zio { mode, .. } => mode.name(),
            Launch::Shim { .. } => "shim",
            Launch::Prefix(_) => "prefix",
        }
    }
}

/// Finds libzio.so: `ZIO_LIB`, or `{release,debug}/libzio.so` in `CARGO_TARGET_DIR` or the workspace's
/// `target`.
///
/// # Errors
/// When there is none; the text says how to get one.
pub fn zio_library() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os("ZIO_LIB") {
        let path = PathBuf::from(path);
        return fs::canonicalize(&path).map_err(|e| Failure(format!("ZIO_LIB={}: {e}", path.display())));
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let candidates: Vec<PathBuf> = set
        .into_iter()
        .chain([own])
        .flat_map(|dir| ["release", "debug"].map(|p| dir.join(p).join("libzio.so")))
        .collect();
    candidates.iter().find_map(|p| fs::canonicalize(p).ok()).ok_or_else(|| {
        let tried: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
        Failure(format!(
            "libzio.so not found (tried {}); remedy: cargo build --release --workspace, or set ZIO_LIB",
            tried.join(", ")
        ))
    })
}

/// Says whether redis-server can be run.
///
/// # Errors
/// When it can't; the text has the remedy.
pub fn require_redis() -> Result<(), Failure> {
    match Command::new("redis-server").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure(format!("redis-server --version ended with {status}"))),
        Err(e) => Err(Failure(format!("redis-server can't be run ({e}); remedy: apt-get install redis-server"))),
    }
}

/// A directory that goes away with its owner, unless `ZIO_KEEP` is set.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes an empty directory below the system's temporary directory.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn new() -> Result<TempDir, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("zio-redis-{}-{n}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(TempDir(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("ZIO_KEEP").is_none() {
            // Nothing depends on it: a leftover in the temporary directory is only untidy.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The counters that libzio.so writes at exit. All in bytes or events; 0 when a key is missing.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// `mode`.
    pub mode: String,
    /// `reason`, if it gives one.
    pub reason: String,
    /// `bytes_requested`.
    pub requested: u64,
    /// `bytes_elided`.
    pub elided: u64,
    /// `copied_by_program`; `None` when the JSON does not have it.
    pub copied_by_program: Option<u64>,
    /// `bytes_materialised`.
    pub materialised: u64,
    /// `faults`.
    pub faults: u64,
    /// `page_table_calls`.
    pub page_table_calls: u64,
}

impl Stats {
    /// Reads the file that `ZIO_STATS` named.
    ///
    /// # Errors
    /// When it is missing or not the expected JSON.
    pub fn read(path: &Path) -> Result<Stats, Failure> {
        let bad = |e: &dyn std::fmt::Display| Failure(format!("the statistics of libzio.so ({}): {e}", path.display()));
        let text = fs::read_to_string(path).map_err(|e| bad(&e))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(&e))?;
        let word = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| json[key].as_u64();
        Ok(Stats {
            mode: word("mode"),
            reason: word("reason"),
            requested: number("bytes_requested").ok_or_else(|| bad(&"no bytes_requested"))?,
            elided: number("bytes_elided").ok_or_else(|| bad(&"no bytes_elided"))?,
            copied_by_program: number("copied_by_program"),
            materialised: number("bytes_materialised").unwrap_or(0),
            faults: number("faults").unwrap_or(0),
            page_table_calls: number("page_table_calls").unwrap_or(0),
        })
    }

    /// Adds another process's counters; the mode stays this one's.
    pub fn add(&mut self, other: &Stats) {
        self.requested += other.requested;
        self.elided += other.elided;
        self.copied_by_program = self.copied_by_program.zip(other.copied_by_program).map(|(a, b)| a + b);
        self.materialised += other.materialised;
        self.faults += other.faults;
        self.page_table_calls += other.page_table_calls;
    }

    /// Checks what must hold of every run under zio.
    ///
    /// # Errors
    /// When the mode is not the one asked for, or the byte counts don't add up.
    pub fn check(&self, asked: FaultMode) -> Result<(), Failure> {
        if self.mode != asked.name() {
            return Err(Failure(format!("asked for mode {}, ran in {:?} ({})", asked.name(), self.mode, self.reason)));
        }
        match self.copied_by_program {
            Some(copied) if self.requested != self.elided + copied => Err(Failure(format!(
                "bytes_requested {} is not bytes_elided {} + copied_by_program {copied}",
                self.requested, self.elided
            ))),
            Some(_) => Ok(()),
            None => Err(Failure("no copied_by_program in the statistics".into())),
        }
    }
}

/// A running redis-server. Dropping it kills the process.
pub struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    stats: PathBuf,
    launch: Launch,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Starts a server on a free port with its files in `dir` and waits until it answers.
    /// `options` are further command-line words, such as `--appendonly yes`.
    ///
    /// # Errors
    /// When it can't be started or ends at once; the text has the end of its log.
    pub fn start(launch: &Launch, dir: &Path, options: &[&str]) -> Result<Server, Failure> {
        require_redis()?;
        for attempt in 0.. {
            let mut server = Server::spawn(launch, dir, options)?;
            match server.wait_ready() {
                Ok(()) => return Ok(server),
                // Someone took the port between our look and the server's bind.
                Err(_) if attempt < 5 && server.log_has("already in use") => {}
                Err(e) => return Err(server.explain(e)),
            }
        }
        Err(Failure("no free port".into()))
    }

    fn spawn(launch: &Launch, dir: &Path, options: &[&str]) -> Result<Server, Failure> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let log = dir.join(format!("log-{run}"));
        let stats = dir.join(format!("stats-{run}.json"));
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = match launch {
            Launch::Prefix(words) if !words.is_empty() => {
                let mut c = Command::new(&words[0]);
                c.args(&words[1..]).arg("redis-server");
                c
            }
            _ => Command::new("redis-server"),
        };
        for (name, _) in std::env::vars_os() {
            // A prefix such as `zio run` reads these itself.
            if matches!(launch, Launch::Prefix(_)) {
                break;
            }
            if name.to_string_lossy().starts_with("ZIO_") || name == "LD_PRELOAD" {
                command.env_remove(name);
            }
        }
        match launch {
            Launch::Plain => {}
            Launch::Zio { lib, mode } => {
                command.env("LD_PRELOAD", lib).env("ZIO_FAULT", mode.name());
                command.env("ZIO_STATS", &stats);
            }
            Launch::Shim { preload, env } => {
                command.env("LD_PRELOAD", preload).envs(env.iter().cloned());
            }
            Launch::Prefix(_) => {
                command.env("ZIO_STATS", &stats);
            }
        }
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.arg("--dir").arg(dir).args(options);
        // The log is the process's own output, not `--logfile`: what a preloaded library or the loader
        // says before main is wanted too.
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).current_dir(dir);
        sys::die_with_parent(&mut command);
        let child =
            command.spawn().map_err(|e| Failure(format!("{}: {e}", command.get_program().to_string_lossy())))?;
        Ok(Server { child, port, log, stats, launch: launch.clone(), ended: None })
    }

    fn wait_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = self.ended()? {
                return Err(Failure(format!("redis-server ended while starting: {status}")));
            }
            if let Ok(mut conn) = Conn::open(self.port)
                && let Ok(Reply::Status(_)) = conn.call(&["PING"])
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure(format!("redis-server not ready after {START_PATIENCE:?}")));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection to it.
    ///
    /// # Errors
    /// When it does not accept.
    pub fn connect(&self) -> Result<Conn, Failure> {
        Conn::open(self.port).map_err(|e| Failure(format!("no connection to redis-server: {e}")))
    }

    /// Its exit status, once it has ended.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    fn log_has(&self, text: &str) -> bool {
        fs::read(&self.log).is_ok_and(|b| String::from_utf8_lossy(&b).contains(text))
    }

    /// Adds what the server itself has to say: its exit status and the end of its log.
    pub fn explain(&mut self, failure: Failure) -> Failure {
        // A crash report takes Redis a moment to write.
        sleep(Duration::from_millis(300));
        let state = match self.ended() {
            Ok(Some(status)) => match status.signal() {
                Some(signal) => format!("was ended by signal {signal}"),
                None => format!("exited: {status}"),
            },
            _ => "is running".to_owned(),
        };
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(50)..].join("\n    ");
        Failure(format!("{}\n  the server {state}; end of its log:\n    {tail}", failure.0))
    }

    /// Ends it with SIGTERM and waits; gives the statistics where there are any.
    ///
    /// # Errors
    /// When it does not end, ends other than by `exit(0)`, logged a crash, or, under libzio.so, left
    /// no statistics.
    pub fn stop(mut self) -> Result<Option<Stats>, Failure> {
        let stopped = self.terminate().and_then(|()| match &self.launch {
            Launch::Zio { .. } => Stats::read(&self.stats).map(Some),
            Launch::Prefix(_) if self.stats.exists() => Stats::read(&self.stats).map(Some),
            _ => Ok(None),
        });
        stopped.map_err(|e| self.explain(e))
    }

    fn terminate(&mut self) -> Result<(), Failure> {
        if let Some(status) = self.ended()? {
            return Err(Failure(format!("redis-server had ended by itself: {status}")));
        }
        sys::kill(self.pid(), libc::SIGTERM)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        let status = loop {
            if let Some(status) = self.ended()? {
                break status;
            }
            if Instant::now() > deadline {
                return Err(Failure(format!("redis-server still there {STOP_PATIENCE:?} after SIGTERM")));
            }
            sleep(Duration::from_millis(5));
        };
        if !status.success() {
            return Err(Failure(format!("redis-server ended with {status}")));
        }
        match self.log_has("REDIS BUG REPORT START") {
            true => Err(Failure("redis-server logged a crash".into())),
            false => Ok(()),
        }
    }

    /// Kills it with SIGKILL, as a power cut would for all it knows.
    ///
    /// # Errors
    /// When it had already ended by itself.
    pub fn crash(mut self) -> Result<(), Failure> {
        if let Some(status) = self.ended()? {
            let gone = Failure(format!("redis-server had ended by itself: {status}"));
            return Err(self.explain(gone));
        }
        sys::kill(self.pid(), libc::SIGKILL)?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Both fail only when it is already gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
