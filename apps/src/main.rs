//! The `zio` command.
//!
//! There is no Rust runtime start-up: it would ignore SIGPIPE and open `/dev/null` for closed standard
//! descriptors, and the program that `zio run` becomes would inherit both.
//!
//! Unsafe code here is the C `main` symbol, whose arguments are not touched, and one `signal` call.
#![cfg_attr(not(test), no_main)]

mod bench;
mod doctor;
mod elf;
mod environment;
mod library;
mod probe;
mod program;
mod run;
mod size;
mod stats;
mod uffd;

use clap::{CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  zio doctor                            what works on this machine, and what to do if not
  zio run -- redis-server --port 6379   run a program without its large copies
  zio stats $(pidof redis-server)       what it has saved so far";

/// Removes memory copies from unmodified, IO-heavy programs.
#[derive(Parser)]
#[command(name = "zio", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run a program under zio
    Run(run::Args),
    /// Show what this machine supports, and the remedy for what it does not
    Doctor(doctor::Args),
    /// Show the live counters of a process under zio
    Stats(stats::Args),
    /// Measure: plain, with zio, and what skipping copies outright would give
    Bench(bench::Args),
}

/// Entry from the C runtime.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(test, allow(dead_code, reason = "the test harness brings its own main"))]
extern "C" fn entry(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let code = dispatch(std::env::args_os().collect());
    // Not a plain return: this flushes Rust's standard output.
    std::process::exit(code.into())
}

fn dispatch(args: Vec<OsString>) -> u8 {
    // A usage error of `zio run` must not look like an exit code of CMD.
    let is_run = args.get(1).is_some_and(|a| a == "run");
    let parsed = Cli::command().try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return match e.exit_code() {
                0 => 0,
                _ if is_run => run::EXIT_OWN_ERROR,
                n => n as u8,
            };
        }
    };
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Bench(args) => {
            // SAFETY: SIG_IGN is a valid disposition, and no other thread exists yet. The benchmark is
            // ordinary Rust, which expects a closed pipe to be an error and not a signal.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
            number(bench::run(args))
        }
    }
}

/// The number in an exit code, which has no accessor.
fn number(code: ExitCode) -> u8 {
    (0..=u8::MAX).find(|&n| ExitCode::from(n) == code).unwrap_or(1)
}

/// Writes a report to standard output; `false` when it could not be written in full.
pub fn emit(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(e) = &done {
        let why = library::plain_error(e);
        let _ = writeln!(std::io::stderr(), "zio: standard output: {why}");
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes_have_numbers() {
        assert_eq!(number(ExitCode::SUCCESS), 0);
        assert_eq!(number(ExitCode::from(7)), 7);
    }
}
