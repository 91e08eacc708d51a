//! `zio doctor` and `zio stats` from outside.

mod common;

use common::{Scratch, output, trivial_library, zio};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

#[test]
fn doctor_reports_json_and_a_table() {
    let (code, out, err) = output(zio().args(["doctor", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["schema"], 1, "{err}");
    assert_eq!(report["library"]["path"], trivial_library().to_str().expect("text"));
    let works = report["works"].as_bool().expect("a boolean");
    assert_eq!(code, i32::from(!works));
    let modes = report["modes"].as_array().expect("modes");
    assert_eq!(modes.iter().any(|m| m["works"] == true), works);
    for mode in modes {
        assert!(mode["works"] == true || mode["remedy"].is_string(), "{mode}");
    }
    let auto = modes.iter().find(|m| m["works"] == true).map_or("passthrough".into(), |m| m["name"].clone());
    assert_eq!(report["auto"], auto);
    let (again, out, _) = output(zio().arg("doctor"));
    assert_eq!(again, code);
    assert!(out.contains("fault mode guard") && out.contains("--fault auto"), "{out}");
}

#[test]
fn doctor_without_root() {
    let mut zio = zio();
    zio.args(["doctor", "--json"]);
    // SAFETY: setgroups and setuid by system call only, in the forked child before exec.
    let dropped = unsafe {
        zio.pre_exec(|| {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(65534);
            libc::setuid(65534);
            Ok(())
        })
    };
    // The build may be in a directory that nobody else may enter.
    let Ok(Output { stdout, .. }) = dropped.output() else {
        return;
    };
    let report: serde_json::Value = serde_json::from_slice(&stdout).expect("JSON");
    assert_eq!(report["privilege"]["cap_sys_ptrace"], false);
}

/// Runs the rest of its arguments with userfaultfd(2) answered by a seccomp action.
const FILTER: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, strtoul(argv[1], 0, 0)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { 4, code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &filter)) return 99;
    execv(argv[2], argv + 2);
    return 98;
}
"#;

#[test]
fn doctor_behind_a_seccomp_filter() {
    let dir = Scratch::new("seccomp");
    let Some(filter) = dir.compile("filter", FILTER, &[]) else {
        eprintln!("skipped: no C compiler");
        return;
    };
    for (action, expected) in
        [("0x50001", "EPERM"), ("0x50026", "ENOSYS"), ("0x80000000", "killed by a seccomp filter")]
    {
        let mut command = Command::new(&filter);
        command.args([action, common::ZIO, "doctor", "--json"]);
        let (code, out, err) = output(&mut command);
        if code == 99 {
            eprintln!("skipped: no seccomp here");
            return;
        }
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let door = &report["userfaultfd"]["system_call_user_mode"];
        assert_eq!(door["works"], false, "{err}");
        assert!(door["why"].as_str().expect("why").contains(expected), "{door}");
        assert_eq!(report["privilege"]["seccomp"], "filter");
        // The device may still be open to this user; where it is not, the remedy is named.
        let device = report["userfaultfd"]["device"]["works"].as_bool().expect("a boolean");
        for mode in report["modes"].as_array().expect("modes") {
            let remedy = mode["remedy"].as_str().unwrap_or_default();
            assert!(device || remedy.contains("seccomp"), "{mode}");
        }
    }
}

#[test]
fn stats_says_why_there_are_none() {
    let own = std::process::id().to_string();
    let (code, _, err) = output(zio().args(["stats", &own]));
    assert_eq!(code, 1);
    assert!(err.contains("does not run under zio"), "{err}");
    let (code, _, err) = output(zio().args(["stats", "2147483647", "--json"]));
    assert_eq!(code, 1);
    assert!(err.contains("no process has id 2147483647"), "{err}");
    for bad in ["0", "-1", "x", "99999999999"] {
        assert_eq!(output(zio().args(["stats", bad])).0, 2, "{bad}");
    }
    let own = ["stats", &own, "--watch", "0"];
    assert_eq!(output(zio().args(own)).0, 2);
}

/// A program with a mapping like the library's: header words from its arguments, then it waits.
const PAGE_MAKER: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    size_t len = strtoul(argv[1], 0, 0), map = (len + 4095) & ~4095ul;
    int fd = memfd_create("zio-stats", 0);
    if (fd < 0 || ftruncate(fd, map)) return 1;
    char *p = mmap(0, map, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) return 1;
    close(fd);
    unsigned version = strtoul(argv[2], 0, 0), page_len = len;
    memcpy(p, argv[3], 8);
    memcpy(p + 8, &version, 4);
    memcpy(p + 12, &page_len, 4);
    for (size_t i = 16; i < len; i++) p[i] = argc > 4 ? rand() : 0;
    puts("ready");
    fflush(stdout);
    getchar();
    return 0;
}
"#;

#[test]
fn stats_of_pages_good_and_bad() {
    use zio_tracker::stats::{StatsPage, VERSION};
    let dir = Scratch::new("stats");
    let Some(maker) = dir.compile("maker", PAGE_MAKER, &[]) else {
        eprintln!("skipped: no C compiler");
        return;
    };
    let len = size_of::<StatsPage>().to_string();
    let version = VERSION.to_string();
    let next = (VERSION + 1).to_string();
    // The argument's terminating NUL is the magic's last byte.
    let show = |args: &[&str], flags: &[&str]| {
        let mut child = Command::new(&maker)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut ready = [0u8; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("ready");
        let shown = output(zio().arg("stats").arg(child.id().to_string()).args(flags));
        drop(child.stdin.take());
        child.wait().expect("wait");
        shown
    };
    let (code, out, err) = show(&[&len, &version, "ZIOSTAT"], &["--json"]);
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["mode"], &json["bytes_copied"]), (&"bootstrap".into(), &0.into()));
    let (code, out, err) = show(&[&len, &version, "ZIOSTAT", "random"], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("mode unknown") && !out.contains('\x1b'), "{out}");
    let (code, _, err) = show(&[&len, &next, "ZIOSTAT"], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("layout version"), "{err}");
    let (code, _, err) = show(&["4096", &version, "ZIOSTAT"], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("4096 bytes"), "{err}");
    let (code, _, err) = show(&[&len, &version, "NOTZIO!"], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("damaged"), "{err}");
}
