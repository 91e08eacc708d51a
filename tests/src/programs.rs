//! Runs the hazard programs of `tests/programs/` without and with the library and compares them.
//!
//! A program is one C file, or C++ with the extension `.cpp`. Leading `// word: value` comments tell the runner about it:
//!
//! | comment | meaning |
//! |---|---|
//! | `// hazard N: text` | which hazard of the design it covers |
//! | `// cflags: …` | appended to `cc -O1 -g -pthread` |
//! | `// expect: elided` | under the library something must have been elided, so that it cannot pass by eliding nothing |
//! | `// expect: healed` | in `guard` mode touched pages must have been healed, so that it cannot pass by healing nothing |
//! | `// expect: anymode` | it does what makes the library stop eliding, so the mode at exit is not judged |
//! | `// expect: nostats` | it does not end by `exit`, so there are no counters to judge |
//! | `// skip: mode …` | modes in which it is not run, each with a reason in the file |

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long one run may take before it counts as hung.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// User and group of [`Mode::Unprivileged`]: nobody.
pub const NOBODY: u32 = 65534;
/// How many differing transcript lines a report shows from each side.
const SHOWN_LINES: usize = 6;

/// How a program is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Without the library: the reference.
    Plain,
    /// `ZIO_FAULT=guard`.
    Guard,
    /// `ZIO_FAULT=sigbus`.
    Sigbus,
    /// `ZIO_FAULT=guard` as user and group [`NOBODY`]; only root can ask for it.
    Unprivileged,
}

impl Mode {
    /// The modes that load the library, in the order they are run.
    pub const PRELOADED: [Mode; 3] = [Mode::Guard, Mode::Sigbus, Mode::Unprivileged];

    /// The word in reports and in `// skip:` comments.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Plain => "plain",
            Mode::Guard => "guard",
            Mode::Sigbus => "sigbus",
            Mode::Unprivileged => "unprivileged",
        }
    }

    fn fault(self) -> Option<&'static str> {
        match self {
            Mode::Plain => None,
            Mode::Guard | Mode::Unprivileged => Some("guard"),
            Mode::Sigbus => Some("sigbus"),
        }
    }
}

/// A hazard program and what its header comments say.
#[derive(Clone, Debug)]
pub struct Program {
    /// File name without its extension.
    pub name: String,
    /// The C or C++ file.
    pub source: PathBuf,
    /// Extra compiler arguments.
    pub cflags: Vec<String>,
    /// Something must have been elided under the library.
    pub expect_elided: bool,
    /// Pages must have been healed in the modes that heal.
    pub expect_healed: bool,
    /// The mode at exit is not judged.
    pub any_mode: bool,
    /// No counters are expected.
    pub no_stats: bool,
    /// Names of modes in which it is not run.
    pub skip: Vec<String>,
}

impl Program {
    /// Reads the header comments of one C file.
    ///
    /// # Errors
    /// Whatever reading the file gives.
    pub fn load(source: &Path) -> io::Result<Program> {
        let text = fs::read_to_string(source)?;
        let mut p = Program {
            name: source.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            source: source.to_owned(),
            cflags: Vec::new(),
            expect_elided: false,
            expect_healed: false,
            any_mode: false,
            no_stats: false,
            skip: Vec::new(),
        };
        for line in text.lines() {
            let Some((word, value)) = line.strip_prefix("// ").and_then(|l| l.split_once(": ")) else {
                break;
            };
            let mut words = value.split_whitespace().map(str::to_owned);
            match word {
                "cflags" => p.cflags.extend(words),
                "skip" => p.skip.extend(words),
                "expect" => {
                    p.expect_elided |= words.clone().any(|w| w == "elided");
                    p.expect_healed |= words.clone().any(|w| w == "healed");
                    p.any_mode |= words.clone().any(|w| w == "anymode");
                    p.no_stats |= words.any(|w| w == "nostats");
                }
                _ => {}
            }
        }
        Ok(p)
    }

    /// All programs of a directory, by name.
    ///
    /// # Errors
    /// Whatever reading the directory or a file gives.
    pub fn load_all(dir: &Path) -> io::Result<Vec<Program>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "c" || e == "cpp") {
                all.push(Program::load(&path)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Compiles into `dir` and returns the binary's path.
    ///
    /// # Errors
    /// The compiler's output, or why it could not be started.
    pub fn compile(&self, dir: &Path) -> Result<PathBuf, String> {
        let bin = dir.join(&self.name);
        let cpp = self.source.extension().is_some_and(|e| e == "cpp");
        let compiler = if cpp { "c++" } else { "cc" };
        let out = Command::new(compiler)
            .args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"])
            .args(&self.cflags)
            .arg("-o")
            .arg(&bin)
            .arg(&self.source)
            .output()
            .map_err(|e| format!("cannot run {compiler} (install gcc, g++): {e}"))?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        Ok(bin)
    }
}

/// What one run left behind.
#[derive(Debug)]
pub struct Run {
    /// `exit N` or `signal N`, or why the run was ended from outside.
    pub status: String,
    /// The transcript.
    pub stdout: Vec<u8>,
    /// Diagnostics; not compared.
    pub stderr: Vec<u8>,
    /// Files in its working directory: name to content.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The counters, when the library wrote them.
    pub stats: Option<Stats>,
    /// Wall time.
    pub took: Duration,
}

/// The counters' JSON of one process.
#[derive(Debug)]
pub struct Stats(pub String);

impl Stats {
    fn raw(&self, key: &str) -> Option<&str> {
        let quoted = format!("\"{key}\"");
        let after = &self.0[self.0.find(&quoted)? + quoted.len()..];
        Some(after.trim_start().strip_prefix(':')?.trim_start())
    }

    /// A number by its key; 0 when it is missing.
    pub fn number(&self, key: &str) -> u64 {
        let Some(raw) = self.raw(key) else { return 0 };
        let end = raw.find(|c: char| !c.is_ascii_digit()).unwrap_or(raw.len());
        raw[..end].parse().unwrap_or(0)
    }

    /// A string by its key; empty when it is missing.
    pub fn text(&self, key: &str) -> &str {
        self.raw(key).and_then(|r| r.strip_prefix('"')).and_then(|r| r.split('"').next()).unwrap_or("")
    }
}

/// Where the library is: `ZIO_LIB`, else `libzio.so` of the build directory, release before debug.
pub fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ZIO_LIB") {
        return Some(PathBuf::from(path)).filter(|p| p.is_file());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    own.into_iter()
        .chain([workspace])
        .flat_map(|t| ["release", "debug"].map(|p| t.join(p).join("libzio.so")))
        .find(|p| p.is_file())
}

/// Makes a directory that any user may use.
///
/// # Errors
/// Whatever the file system says.
pub fn open_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// Runs `bin` in a fresh directory `dir` and collects what it leaves.
///
/// # Errors
/// Trouble with files or with starting the process; what the program does is never an error here.
pub fn execute(bin: &Path, mode: Mode, lib: Option<&Path>, dir: &Path) -> io::Result<Run> {
    let work = dir.join("work");
    open_dir(dir)?;
    open_dir(&work)?;
    let (out, err) = (dir.join("stdout"), dir.join("stderr"));
    let mut cmd = Command::new(bin);
    cmd.current_dir(&work)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .process_group(0);
    if let (Some(fault), Some(lib)) = (mode.fault(), lib) {
        cmd.env("LD_PRELOAD", lib).env("ZIO_FAULT", fault).env("ZIO_STATS", dir.join("stats-%p.json"));
        for (key, value) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("ZIO_") && !["ZIO_LIB", "ZIO_FAULT", "ZIO_STATS"].contains(&&*name) {
                cmd.env(key, value);
            }
        }
    }
    if mode == Mode::Unprivileged {
        cmd.uid(NOBODY).gid(NOBODY);
    }
    let start = Instant::now();
    let mut child = cmd.spawn()?;
    let pid = child.id();
    let status = wait(&mut child)?;
    Ok(Run {
        status,
        stdout: fs::read(out)?,
        stderr: fs::read(err)?,
        files: collect(&work)?,
        stats: fs::read_to_string(dir.join(format!("stats-{pid}.json"))).ok().map(Stats),
        took: start.elapsed(),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

fn wait(child: &mut Child) -> io::Result<String> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(describe(status));
        }
        if start.elapsed() >= TIMEOUT {
            let stuck = where_stuck(child.id());
            kill_group(child.id());
            // Without a `kill` command at least the process itself goes.
            child.kill()?;
            child.wait()?;
            return Ok(format!("hung for {} s: {stuck}", TIMEOUT.as_secs()));
        }
        sleep(Duration::from_millis(5));
    }
}

/// Each thread's state and system call number, for the report of a run that hangs.
fn where_stuck(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return "no such process".to_owned();
    };
    let threads: Vec<String> = tasks
        .flatten()
        .map(|t| {
            let read = |f: &str| fs::read_to_string(t.path().join(f)).unwrap_or_default();
            let stat = read("stat");
            let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
            let call = read("syscall");
            format!("state {} in system call {}", state.unwrap_or('?'), call.split_whitespace().next().unwrap_or("?"))
        })
        .collect();
    threads.join(", ")
}

fn kill_group(pid: u32) {
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{pid}")]).status();
}

fn collect(dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// Everything in which `run` differs from `plain`, or breaks what the program's header promises.
pub fn problems(program: &Program, mode: Mode, plain: &Run, run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    if run.status != plain.status {
        found.push(format!("status: expected {}, got {}", plain.status, run.status));
    }
    found.extend(transcript_difference(&plain.stdout, &run.stdout));
    found.extend(file_differences(&plain.files, &run.files));
    if !found.is_empty() && !run.stderr.is_empty() {
        let text = String::from_utf8_lossy(&run.stderr);
        let tail: Vec<&str> = text.lines().rev().take(SHOWN_LINES).collect();
        found.extend(tail.iter().rev().map(|l| format!("stderr: {l}")));
    }
    if mode != Mode::Plain && run.status.starts_with("exit") && !program.no_stats {
        found.extend(stats_problems(program, mode, run.stats.as_ref()));
    }
    found
}

fn stats_problems(program: &Program, mode: Mode, stats: Option<&Stats>) -> Vec<String> {
    let Some(s) = stats else {
        return vec!["no statistics file was written".to_owned()];
    };
    let mut found = Vec::new();
    if !program.any_mode && Some(s.text("mode")) != mode.fault() {
        found.push(format!("mode is {:?}: {}", s.text("mode"), s.text("reason")));
    }
    let (asked, elided) = (s.number("bytes_requested"), s.number("bytes_elided"));
    let moved = s.number("copied_by_program");
    if asked != elided + moved {
        found.push(format!("counters: bytes_requested {asked} is not elided {elided} + copied {moved}"));
    }
    if program.expect_elided && elided == 0 && s.number("core_receives") == 0 {
        found.push("nothing was elided".to_owned());
    }
    if program.expect_healed && mode.fault() == Some("guard") && s.number("pages_healed") == 0 {
        found.push("no page was healed".to_owned());
    }
    found
}

fn transcript_difference(plain: &[u8], got: &[u8]) -> Vec<String> {
    if plain == got {
        return Vec::new();
    }
    let (plain, got) = (String::from_utf8_lossy(plain), String::from_utf8_lossy(got));
    let (p, g): (Vec<&str>, Vec<&str>) = (plain.lines().collect(), got.lines().collect());
    let first = p.iter().zip(&g).take_while(|(a, b)| a == b).count();
    let mut found =
        vec![format!("transcript differs at line {} (of {} expected, {} got)", first + 1, p.len(), g.len())];
    let before = first.saturating_sub(2);
    found.extend(p[before..first].iter().map(|l| format!("    {l}")));
    found.extend(p[first..].iter().take(SHOWN_LINES).map(|l| format!("  - {l}")));
    found.extend(g[first..].iter().take(SHOWN_LINES).map(|l| format!("  + {l}")));
    found
}

fn file_differences(plain: &BTreeMap<String, Vec<u8>>, got: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, want) in plain {
        match got.get(name) {
            None => found.push(format!("file {name} is missing")),
            Some(is) if is != want => {
                let at = want.iter().zip(is).take_while(|(a, b)| a == b).count();
                found.push(format!(
                    "file {name}: {} bytes expected, {} got, first difference at {at}",
                    want.len(),
                    is.len()
                ));
            }
            Some(_) => {}
        }
    }
    for name in got.keys().filter(|n| !plain.contains_key(*n)) {
        found.push(format!("file {name} should not exist"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_found_by_whole_keys() {
        let s = Stats(r#"{"mode":"guard", "bytes_elided": 12,"faults":3}"#.to_owned());
        assert_eq!(s.text("mode"), "guard");
        assert_eq!(s.number("bytes_elided"), 12);
        assert_eq!(s.number("faults"), 3);
        assert_eq!(s.number("elided"), 0);
    }

    #[test]
    fn a_difference_names_its_line() {
        let d = transcript_difference(b"a\nb\nc\n", b"a\nb\nx\n");
        assert_eq!(d[0], "transcript differs at line 3 (of 3 expected, 3 got)");
        assert!(d.contains(&"  - c".to_owned()) && d.contains(&"  + x".to_owned()));
        assert!(transcript_difference(b"a\n", b"a\n").is_empty());
    }
}
