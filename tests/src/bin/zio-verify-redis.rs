//! Runs the Redis scenarios against a server that is started behind any prefix, such as
//! `zio run --fault guard --`.

use std::process::ExitCode;
use std::time::Duration;

use zio_tests::redis::scenario::{Plan, Scenario, run};
use zio_tests::redis::server::{FaultMode, Launch, zio_library};

const USAGE: &str = "\
usage: zio-verify-redis [--server-prefix \"WORDS\" | --mode plain|guard|sigbus]
                        [--scenario NAME|all] [--ops N] [--seconds S] [--seed S]

  --server-prefix  words before redis-server, e.g. \"zio run --fault guard --\"
  --mode           plain (default), or libzio.so preloaded in that fault mode (ZIO_LIB, or target/)
  --scenario       aof-everysec (default), all, or one of: aof-always snapshots eviction io-threads
                   activedefrag restart-rdb restart-aof replication client-kill errors
  --ops            commands in all (default: the scenario's own)
  --seconds        stop traffic after this time (default 120)
  --seed           seed of every choice (default 1)";

struct Options {
    launch: Launch,
    scenarios: Vec<Scenario>,
    ops: Option<u64>,
    limit: Duration,
    seed: u64,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        launch: Launch::Plain,
        scenarios: vec![Scenario::AofEverysec],
        ops: None,
        limit: Duration::from_secs(120),
        seed: 1,
    };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag}: a value is missing"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is not a number"));
        match flag.as_str() {
            "--server-prefix" => {
                let words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
                options.launch = if words.is_empty() { Launch::Plain } else { Launch::Prefix(words) };
            }
            "--mode" => {
                let zio = |mode| zio_library().map(|lib| Launch::Zio { lib, mode });
                options.launch = match value.as_str() {
                    "plain" => Launch::Plain,
                    "guard" => zio(FaultMode::Guard).map_err(|e| e.0)?,
                    "sigbus" => zio(FaultMode::Sigbus).map_err(|e| e.0)?,
                    _ => return Err(format!("--mode: {value:?} is not plain, guard or sigbus")),
                };
            }
            "--scenario" if value == "all" => options.scenarios = Scenario::ALL.to_vec(),
            "--scenario" => {
                let found = Scenario::ALL.into_iter().find(|s| s.name() == value);
                let all: Vec<&str> = Scenario::ALL.iter().map(|s| s.name()).collect();
                let unknown = || format!("--scenario: {value:?} is not all or one of {}", all.join(", "));
                options.scenarios = vec![found.ok_or_else(unknown)?];
            }
            "--ops" => options.ops = Some(number()?),
            "--seconds" => options.limit = Duration::from_secs(number()?),
            "--seed" => options.seed = number()?,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    if std::env::args().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("zio-verify-redis: {e}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    for scenario in options.scenarios {
        let plan = Plan { ops: options.ops.unwrap_or(scenario.ops()), limit: options.limit, seed: options.seed };
        match run(scenario, &options.launch, plan) {
            Ok(report) => println!("{report}"),
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
