//! `zio stats`: the live counters of a process, read from outside without its help.

mod maps;
mod page;
mod report;

use crate::emit;
use page::ReadError;
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  zio stats 4711                    a table
  zio stats 4711 --json             one JSON object
  zio stats 4711 --json --watch 1   one JSON object a line, each second, until the process ends";

/// Arguments of `zio stats`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Process id
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print again every SECS seconds until the process ends
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    watch: Option<Duration>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=86400.0).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err("accepted: a number of seconds from 0.1 to 86400".into()),
    }
}

/// Prints the statistics; 0 on success, 1 otherwise.
pub fn run(args: &Args) -> u8 {
    let mut shown = false;
    loop {
        let page = match page::read(args.pid) {
            Ok(page) => page,
            // It ended while being watched, which is how watching ends; a zombie has no mappings any more.
            Err(ReadError::NoProcess(_) | ReadError::NotUnderZio(_)) if shown => return 0,
            Err(e) => {
                let _ = writeln!(std::io::stderr(), "zio: {e}");
                return 1;
            }
        };
        let mut text = match (args.json, args.watch) {
            (true, Some(_)) => report::json(args.pid, &page).to_string(),
            (true, None) => format!("{:#}", report::json(args.pid, &page)),
            (false, _) => report::table(args.pid, &page),
        };
        if args.json {
            text.push('\n');
        } else if args.watch.is_some() {
            text.insert_str(0, separator(shown));
        }
        if !emit(&text) {
            return 1;
        }
        shown = true;
        let Some(pause) = args.watch else { return 0 };
        thread::sleep(pause);
    }
}

/// Between two tables: a cleared screen on a terminal, an empty line elsewhere.
fn separator(shown: bool) -> &'static str {
    if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else if shown {
        "\n"
    } else {
        ""
    }
}
