//! `zio run`: sets the environment and becomes the program.

use crate::environment::Environment;
use crate::library::{self, plain_error};
use crate::program::{self, Resolved};
use crate::size;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Exit code of an error of zio's own, before CMD ran.
pub const EXIT_OWN_ERROR: u8 = 125;
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

const FAULT_MODES: [&str; 3] = ["auto", "guard", "sigbus"];
const FOLLOW_RULES: [&str; 3] = ["all", "same-exe", "none"];

const EXAMPLES: &str = "\
Examples:
  zio run -- redis-server --port 6379
  zio run --stats /tmp/redis-%p.json --threshold 32K -- redis-server
  zio run --fault sigbus --follow all -- ./start-everything.sh

The flags have environment variables of the same meaning: ZIO_FAULT, ZIO_STATS,
ZIO_THRESHOLD and ZIO_FOLLOW; a flag wins. ZIO_DISABLE=1 turns zio off; ZIO_LIB
names libzio.so.

CMD keeps this process's id, terminal, exit status and signals. Otherwise the
exit code is 125 for an error of zio's own, 126 if CMD cannot be executed, and
127 if it is not found.";

/// Arguments of `zio run`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, override_usage = "zio run [OPTIONS] -- CMD...")]
pub struct Args {
    /// How elided pages are armed: auto, guard or sigbus (see `zio doctor`)
    #[arg(long, value_name = "MODE", value_parser = parse_fault)]
    fault: Option<String>,
    /// Write counters as JSON to this file at exit (%p: process id, %e: program, %%: percent)
    #[arg(long, value_name = "FILE.json")]
    stats: Option<OsString>,
    /// Smallest receive or copy that is considered, such as 16384, 16K or 1MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse_threshold)]
    threshold: Option<u64>,
    /// Which programs started by CMD run under zio too: all, same-exe or none
    #[arg(long, value_name = "WHICH", value_parser = parse_follow)]
    follow: Option<String>,
    /// No banner on a terminal
    #[arg(long)]
    quiet: bool,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "", value_parser = refuse_profile)]
    profile: Option<String>,
    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

fn parse_fault(text: &str) -> Result<String, String> {
    if text == "thread" {
        return Err("not available in this version of zio; accepted: auto, guard, sigbus".into());
    }
    one_of(text, &FAULT_MODES)
}

fn parse_follow(text: &str) -> Result<String, String> {
    one_of(text, &FOLLOW_RULES)
}

fn one_of(text: &str, accepted: &[&str]) -> Result<String, String> {
    if accepted.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("accepted: {}", accepted.join(", ")))
}

fn refuse_profile(_: &str) -> Result<String, String> {
    Err("profiles are not available in this version of zio".into())
}

/// What the library is told, by name and value; only what was asked for.
struct Settings(Vec<(&'static str, OsString)>);

impl Settings {
    fn new(args: &Args) -> Result<Settings, String> {
        let mut set = Vec::new();
        if let Some(mode) = flag_or_env(args.fault.clone(), "ZIO_FAULT", parse_fault)? {
            set.push(("ZIO_FAULT", mode.into()));
        }
        if let Some(bytes) = flag_or_env(args.threshold, "ZIO_THRESHOLD", size::parse_threshold)? {
            set.push(("ZIO_THRESHOLD", bytes.to_string().into()));
        }
        if let Some(rule) = flag_or_env(args.follow.clone(), "ZIO_FOLLOW", parse_follow)? {
            set.push(("ZIO_FOLLOW", rule.into()));
        }
        if let Some(file) = &args.stats {
            set.push(("ZIO_STATS", stats_path(file)?));
        }
        Ok(Settings(set))
    }
}

/// The flag's value, or the variable's: an empty variable counts as unset.
fn flag_or_env<T>(flag: Option<T>, name: &str, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if flag.is_some() {
        return Ok(flag);
    }
    let Some(value) = env::var_os(name).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    let text = value.to_string_lossy();
    parse(&text).map(Some).map_err(|why| format!("invalid value '{}' in {name}: {why}", text.escape_debug()))
}

/// Absolute form of the `--stats` file: the program may change its directory before it exits.
fn stats_path(file: &OsStr) -> Result<OsString, String> {
    let name = Path::new(file);
    if file.is_empty() || file.as_bytes().ends_with(b"/") {
        return Err("--stats needs the name of a file".into());
    }
    let parent = name.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A directory with an expansion in it is known only at exit.
    if !parent.as_os_str().as_bytes().contains(&b'%') && !parent.is_dir() {
        return Err(format!("--stats {}: {} is not a directory", name.display(), parent.display()));
    }
    if name.is_absolute() {
        return Ok(file.to_owned());
    }
    let here = env::current_dir().map_err(|e| format!("--stats: working directory: {}", plain_error(&e)))?;
    let mut path = escape_percent(here.as_os_str().as_bytes());
    path.push(b'/');
    path.extend_from_slice(file.as_bytes());
    Ok(OsString::from_vec(path))
}

fn escape_percent(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for &b in bytes {
        out.push(b);
        if b == b'%' {
            out.push(b);
        }
    }
    out
}

/// Runs CMD; returns the exit code only if that failed.
pub fn run(args: &Args) -> u8 {
    let settings = match Settings::new(args) {
        Ok(s) => s,
        Err(why) => return fail(EXIT_OWN_ERROR, why),
    };
    let Some(argv) = c_strings(&args.command) else {
        return fail(EXIT_OWN_ERROR, "an argument contains a NUL byte");
    };
    let name = args.command[0].display();
    // As execvp: go on past what is not there, remember a refusal, stop at anything else.
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    for path in program::candidates(&args.command[0]) {
        let (at, e) = match program::executable(&path) {
            Ok(_) => attempt(&path, &argv, args.quiet, &settings),
            Err(e) => (None, e),
        };
        match e.raw_os_error() {
            _ if at.is_some() => return refused(&name, at.as_deref(), &e),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT) => {}
            Some(libc::EACCES) => error = e,
            _ => return refused(&name, None, &e),
        }
    }
    refused(&name, None, &error)
}

/// Tries one file; returns why it did not run, and the interpreter at fault if it is that.
fn attempt(path: &Path, argv: &[CString], quiet: bool, settings: &Settings) -> (Option<OsString>, io::Error) {
    let (resolved, environment) = match program::resolve(path) {
        Ok(resolved) => match environment(path, &resolved, quiet, settings) {
            Ok(environment) => (resolved, environment),
            Err(e) => return (None, e),
        },
        Err((at, e)) if at != path => return (Some(at.into_os_string()), e),
        Err((_, e)) => return (None, e),
    };
    let error = environment.exec(path, argv);
    let refused_by_kernel = resolved.is_elf && resolved.image == path;
    if error.raw_os_error() != Some(libc::ENOEXEC) || refused_by_kernel {
        return (None, error);
    }
    // A script without a `#!` line: execvp gives it to the shell, under the file's path.
    let Ok(script) = CString::new(path.as_os_str().as_bytes()) else {
        return (None, error);
    };
    let mut shell_argv = vec![CString::from(c"sh"), script];
    shell_argv.extend_from_slice(&argv[1..]);
    (None, environment.exec(Path::new(program::SHELL), &shell_argv))
}

/// The environment for what will run: with the library, or the inherited one and a line that says why.
fn environment(path: &Path, resolved: &Resolved, quiet: bool, settings: &Settings) -> io::Result<Environment> {
    let mut environment = Environment::inherited();
    if let Some(obstacle) = &resolved.obstacle {
        if resolved.image == path {
            say(format_args!("running {} without zio: {obstacle}", path.display()));
        } else {
            let image = resolved.image.display();
            say(format_args!("running {} without zio, by its interpreter {image}: {obstacle}", path.display()));
        }
        return Ok(environment);
    }
    let library = match library::find() {
        Ok(library) => library,
        Err(why) => {
            say(format_args!("running {} without zio: {why}", path.display()));
            return Ok(environment);
        }
    };
    let preload = preload(library.as_os_str(), environment.get("LD_PRELOAD").as_deref());
    environment.set("LD_PRELOAD", &preload)?;
    for (name, value) in &settings.0 {
        environment.set(name, value)?;
    }
    let (dev, ino) = resolved.identity;
    environment.set("ZIO_EXE", OsStr::new(&format!("{dev:x}:{ino:x}")))?;
    environment.remove("ZIO_BANNER");
    if !quiet && io::stderr().is_terminal() {
        environment.set("ZIO_BANNER", OsStr::new("1"))?;
    }
    Ok(environment)
}

/// `library` before what was there, and only once: `zio run` may be nested.
fn preload(library: &OsStr, existing: Option<&OsStr>) -> OsString {
    let mut list = library.to_owned();
    let existing = existing.unwrap_or_default().as_bytes();
    for entry in existing.split(|b| b" :".contains(b)) {
        if !entry.is_empty() && entry != library.as_bytes() {
            list.push(":");
            list.push(OsStr::from_bytes(entry));
        }
    }
    list
}

fn c_strings(words: &[OsString]) -> Option<Vec<CString>> {
    words.iter().map(|w| CString::new(w.as_bytes()).ok()).collect()
}

fn refused(name: &dyn Display, interpreter: Option<&OsStr>, error: &io::Error) -> u8 {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => EXIT_NOT_FOUND,
        _ => EXIT_NOT_EXECUTABLE,
    };
    let why = plain_error(error);
    match interpreter {
        Some(at) => fail(code, format_args!("{name}: interpreter {}: {why}", at.display())),
        None => fail(code, format_args!("{name}: {why}")),
    }
}

fn fail(code: u8, why: impl Display) -> u8 {
    say(why);
    code
}

/// One line on standard error. That stream may be closed or full: there is nobody to tell.
fn say(line: impl Display) {
    use io::Write;
    let _ = io::stderr().write_all(format!("zio: {line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_values_are_refused_as_such() {
        assert!(parse_fault("thread").expect_err("later").contains("not available in this version"));
        assert!(parse_fault("Guard").expect_err("case").contains("auto, guard, sigbus"));
        assert_eq!(parse_follow("same-exe").as_deref(), Ok("same-exe"));
    }

    #[test]
    fn preload_list_is_prepended_once() {
        let list = |old: Option<&str>| preload(OsStr::new("/z.so"), old.map(OsStr::new));
        assert_eq!(list(None), "/z.so");
        assert_eq!(list(Some("")), "/z.so");
        assert_eq!(list(Some("/a.so b.so")), "/z.so:/a.so:b.so");
        assert_eq!(list(Some("/a.so:/z.so::/z.so")), "/z.so:/a.so");
    }

    #[test]
    fn stats_paths_become_absolute() {
        let path = stats_path(OsStr::new("x-%p.json")).expect("here is a directory");
        assert!(Path::new(&path).is_absolute() && path.as_bytes().ends_with(b"/x-%p.json"));
        assert_eq!(stats_path(OsStr::new("/tmp/x")).as_deref(), Ok(OsStr::new("/tmp/x")));
        assert!(stats_path(OsStr::new("/no/such/x")).is_err());
        assert!(stats_path(OsStr::new("/no/%p/x")).is_ok());
        assert!(stats_path(OsStr::new("")).is_err());
        assert_eq!(escape_percent(b"/a%b"), b"/a%%b");
    }
}
