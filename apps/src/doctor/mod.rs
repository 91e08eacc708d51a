//! `zio doctor`: what works on this machine for this user, tried rather than guessed.

mod facts;
mod verdict;

use crate::{emit, library, size};
use facts::Facts;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use verdict::{Probe, Verdict};

/// Version of the JSON.
const SCHEMA: u32 = 1;

const EXAMPLES: &str = "\
Examples:
  zio doctor
  zio doctor --json
  docker run --rm IMAGE zio doctor      what a container's limits leave

The exit code is 0 if at least one fault mode works, 1 if none does.";

/// Arguments of `zio doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct LibraryReport {
    path: Option<PathBuf>,
    why: Option<String>,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    zio_version: &'static str,
    works: bool,
    #[serde(flatten)]
    facts: Facts,
    #[serde(flatten)]
    verdict: Verdict,
    library: LibraryReport,
}

/// Prints the report; 0 if a fault mode works, 1 if none does or the report could not be written.
pub fn run(args: &Args) -> u8 {
    let facts = Facts::gather();
    let verdict = Verdict::reach(&facts);
    let library = match library::find() {
        Ok(path) => LibraryReport { path: Some(path), why: None },
        Err(why) => LibraryReport { path: None, why: Some(why.to_string()) },
    };
    let report = Report {
        schema: SCHEMA,
        zio_version: env!("CARGO_PKG_VERSION"),
        works: verdict.modes.iter().any(|m| m.works),
        facts,
        verdict,
        library,
    };
    let text = if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(e) => format!("{{\"error\": \"{e}\"}}\n"),
        }
    } else {
        table(&report)
    };
    u8::from(!(emit(&text) && report.works))
}

fn table(report: &Report) -> String {
    let Facts { kernel, privilege, limits, .. } = &report.facts;
    let v = &report.verdict;
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<28}{value}");
    };
    row("zio", report.zio_version.into());
    row(
        "libzio.so",
        match (&report.library.path, &report.library.why) {
            (Some(path), _) => path.display().to_string(),
            (None, why) => format!("missing: {}", why.as_deref().unwrap_or("not found")),
        },
    );
    row("kernel", format!("Linux {} {}", kernel.release, kernel.arch));
    row(
        "user",
        format!(
            "uid {}, CAP_SYS_PTRACE {}, seccomp {}{}",
            privilege.euid,
            if privilege.cap_sys_ptrace { "yes" } else { "no" },
            privilege.seccomp,
            if privilege.no_new_privs { ", no_new_privs" } else { "" },
        ),
    );
    row("address space limit", or_none(limits.address_space_bytes.map(size::human)));
    row("open files limit", or_none(limits.open_files));
    row("cgroup memory limit", or_none(limits.cgroup_memory_bytes.map(size::human)));
    row("vm.max_map_count", or_unknown(limits.max_map_count));
    row("vm.overcommit_memory", or_unknown(limits.overcommit_memory));
    let sysctl = or_unknown(report.facts.unprivileged_userfaultfd);
    row("vm.unprivileged_userfaultfd", format!("{sysctl}  (0 is enough for user-mode faults)"));
    row("transparent huge pages", or_unknown(report.facts.transparent_hugepages.as_deref()));
    row("", String::new());
    row("userfaultfd, user mode only", probe_text(&v.userfaultfd.system_call_user_mode));
    row("userfaultfd, kernel faults", probe_text(&v.userfaultfd.system_call_full));
    row("/dev/userfaultfd", probe_text(&v.userfaultfd.device));
    row("MADV_GUARD_INSTALL", probe_text(&v.guard_install));
    row("MADV_GUARD_REMOVE", probe_text(&v.guard_remove));
    row("PROCMAP_QUERY", probe_text(&v.procmap_query));
    row("", String::new());
    for mode in &v.modes {
        let word = if mode.works { "works" } else { "does not work" };
        row(&format!("fault mode {}", mode.name), format!("{word}: {}", mode.why));
        if let Some(remedy) = &mode.remedy {
            row("", format!("to do: {remedy}"));
        }
    }
    row(
        "--fault auto",
        match v.auto {
            "passthrough" => "nothing: programs run plainly under zio".into(),
            mode => format!("takes {mode}"),
        },
    );
    // The blank separator rows are padded.
    out.lines().map(|l| l.trim_end().to_owned() + "\n").collect()
}

fn probe_text(probe: &Probe) -> String {
    match &probe.why {
        None => "yes".into(),
        Some(why) => format!("no: {why}"),
    }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or("none".into(), |v| v.to_string())
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".into(), |v| v.to_string())
}
