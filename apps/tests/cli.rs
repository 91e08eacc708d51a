//! `zio run` from outside: exit codes, what CMD inherits, and every line that zio prints about itself.

mod common;

use common::{Scratch, ZIO, output, trivial_library, zio};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

fn run(args: &[&str]) -> (i32, String, String) {
    output(zio().arg("run").args(args))
}

#[test]
fn exit_status_and_output_are_the_programs() {
    let (code, out, err) = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((code, out.as_str(), err.as_str()), (7, "out\n", "err\n"));
    let (code, _, err) = run(&["true"]);
    assert_eq!((code, err.as_str()), (0, ""));
    // CMD's own flags are CMD's, with or without the dashes.
    let (_, out, _) = run(&["echo", "--quiet", "--", "-x"]);
    assert_eq!(out, "--quiet -- -x\n");
    let (_, out, _) = run(&["--", "echo", "--fault", "nonsense"]);
    assert_eq!(out, "--fault nonsense\n");
}

#[test]
fn pid_and_signals_are_the_programs() {
    let mut child = zio()
        .args(["run", "--", "sh", "-c", "echo $$; kill -TERM $$"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("zio starts");
    let mut out = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    assert_eq!(out.trim(), child.id().to_string());
    assert_eq!(child.wait().expect("wait").signal(), Some(15));
}

#[test]
fn ignored_signals_and_closed_descriptors_are_inherited() {
    // Bit 12 of SigIgn is SIGPIPE: Rust's own start-up would have set it.
    let ignored = ["--", "grep", "SigIgn", "/proc/self/status"];
    let plain = Command::new("grep").args(&ignored[2..]).output().expect("grep").stdout;
    let (_, out, _) = run(&ignored);
    assert_eq!(out.as_bytes(), plain);
    let script = format!("exec '{ZIO}' run -- sh -c 'test -e /proc/self/fd/0; echo $?' <&-");
    let (_, out, _) = output(zio_in("sh").args(["-c", &script]));
    assert_eq!(out, "1\n");
}

/// Another program with the environment of [`zio`].
fn zio_in(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").env("ZIO_LIB", trivial_library());
    command
}

#[test]
fn not_found_and_not_executable() {
    let dir = Scratch::new("codes");
    let data = dir.file("data", "text", 0o644);
    let (code, _, err) = run(&["--", "no-such-program-anywhere"]);
    assert_eq!(code, 127);
    assert!(err.starts_with("zio: no-such-program-anywhere: No such file"), "{err}");
    for not_executable in [data.to_str().expect("text"), "/"] {
        let (code, _, err) = run(&["--", not_executable]);
        assert_eq!(code, 126, "{err}");
        assert!(err.contains("Permission denied"), "{err}");
    }
    let (code, _, _) = run(&["--", "/no/such/file"]);
    assert_eq!(code, 127);
    let (code, _, _) = run(&["--", ""]);
    assert_eq!(code, 127);
    let orphan = dir.file("orphan", "#!/no/such/interpreter\n", 0o755);
    let (code, _, err) = run(&["--", orphan.to_str().expect("text")]);
    assert_eq!(code, 127);
    assert!(err.contains("interpreter /no/such/interpreter"), "{err}");
    let broken = dir.file("broken", "\x7fELF, not really", 0o755);
    let (code, _, err) = run(&["--", broken.to_str().expect("text")]);
    assert_eq!(code, 126, "{err}");
}

#[test]
fn path_is_searched_as_execvp_does() {
    let dir = Scratch::new("path");
    fs::create_dir(dir.0.join("a")).expect("mkdir");
    fs::create_dir(dir.0.join("b")).expect("mkdir");
    dir.file("a/tool", "#!/bin/sh\necho a\n", 0o644);
    dir.file("b/tool", "echo b $0 $1\n", 0o755);
    let base = dir.0.display();
    let path = format!("/no/such:{base}/a:{base}/b:/usr/bin:/bin");
    // The unexecutable one is passed over; a script without `#!` goes to the shell.
    let (code, out, err) = output(zio().args(["run", "--", "tool", "x"]).env("PATH", &path));
    assert_eq!((code, out), (0, format!("b {base}/b/tool x\n")), "{err}");
    let (code, _, _) = output(zio().args(["run", "--", "tool"]).env("PATH", format!("{base}/a")));
    assert_eq!(code, 126);
}

#[test]
fn environment_that_the_library_sees() {
    let shown =
        "echo $LD_PRELOAD; echo $ZIO_FAULT $ZIO_THRESHOLD $ZIO_FOLLOW $ZIO_STATS; echo $ZIO_EXE; echo b=$ZIO_BANNER";
    let flags = ["run", "--fault", "guard", "--threshold", "32K", "--follow", "all", "--stats", "/tmp/%p.json"];
    let (code, out, err) = output(zio().args(flags).args(["--", "sh", "-c", shown]).env("ZIO_FAULT", "sigbus"));
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], trivial_library().to_str().expect("text"));
    assert_eq!(lines[1], "guard 32768 all /tmp/%p.json");
    use std::os::unix::fs::MetadataExt;
    let sh = fs::metadata("/bin/sh").expect("sh");
    assert_eq!(lines[2], format!("{:x}:{:x}", sh.dev(), sh.ino()));
    // No terminal, no banner, whatever was inherited.
    assert_eq!(lines[3], "b=");

    let mut nested = zio();
    nested.args(["run", "--", ZIO, "run", "--", "sh", "-c", "echo $LD_PRELOAD; echo t=$ZIO_THRESHOLD"]);
    nested.env("LD_PRELOAD", "").env("ZIO_THRESHOLD", "1MiB");
    let (_, out, _) = output(&mut nested);
    assert_eq!(out, format!("{}\nt=1048576\n", trivial_library().display()));
}

#[test]
fn scripts_follow_their_interpreters() {
    let dir = Scratch::new("scripts");
    let one = dir.file("one", "#!/bin/sh\necho one \"$@\"; echo p=$LD_PRELOAD\n", 0o755);
    let mut last = one.clone();
    // The kernel passes each script to the next; sh sees the first one's path at the end.
    for n in 2..=4 {
        last = dir.file(&format!("s{n}"), &format!("#!{}\n", last.display()), 0o755);
    }
    let (code, out, err) = run(&["--", one.to_str().expect("text"), "x"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, format!("one x\np={}\n", trivial_library().display()));
    let (code, out, err) = run(&["--", last.to_str().expect("text")]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("one ") && out.contains("libzio.so"), "{out}");
    let fifth = dir.file("s5", &format!("#!{}\n", last.display()), 0o755);
    let (code, out, err) = run(&["--", fifth.to_str().expect("text")]);
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("without zio") && err.contains("interpreters"), "{err}");
    assert!(code != 0 || out.ends_with("p=\n"), "{out}");
}

#[test]
fn static_programs_run_plainly_with_one_line() {
    let dir = Scratch::new("static");
    let source = "#include <stdlib.h>\n#include <stdio.h>\nint main() { char *p = getenv(\"LD_PRELOAD\"); \
                  puts(p ? p : \"plain\"); return 3; }\n";
    let Some(program) = dir.compile("static", source, &["-static"]) else {
        eprintln!("skipped: no static libc here");
        return;
    };
    let name = program.to_str().expect("text");
    let (code, out, err) = run(&["--", name]);
    assert_eq!((code, out.as_str()), (3, "plain\n"));
    assert_eq!(
        err,
        format!("zio: running {name} without zio: it is statically linked, so no library can be preloaded\n")
    );
    let script = dir.file("script", &format!("#!{name}\n"), 0o755);
    let (code, _, err) = run(&["--", script.to_str().expect("text")]);
    assert_eq!((code, err.lines().count()), (3, 1), "{err}");
    assert!(err.contains("by its interpreter") && err.contains("statically linked"), "{err}");
}

#[test]
fn set_id_programs_run_plainly_with_one_line() {
    let dir = Scratch::new("setid");
    let program = dir.0.join("id");
    fs::copy("/usr/bin/id", &program).expect("copy id");
    // chown needs root, without which a program that would change ids cannot be made here.
    if std::os::unix::fs::chown(&program, Some(12345), None).is_err() {
        eprintln!("skipped: needs root");
        return;
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("chmod");
    let (code, _, err) = run(&["--", program.to_str().expect("text")]);
    assert_eq!(code, 0, "{err}");
    assert!(err.is_empty() || (err.contains("setuid") && err.lines().count() == 1), "{err}");
    // Without execute permission for the group the setgid bit means nothing.
    std::os::unix::fs::chown(&program, Some(0), Some(12345)).expect("root");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o2745)).expect("chmod");
    assert_eq!(run(&["--", program.to_str().expect("text")]).2, "");
}

#[test]
fn a_missing_library_is_one_line() {
    let (code, out, err) = output(zio().args(["run", "--", "echo", "hi"]).env("ZIO_LIB", "/no/such/libzio.so"));
    assert_eq!((code, out.as_str()), (0, "hi\n"));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("ZIO_LIB=/no/such/libzio.so: No such file") && err.contains("unset it"), "{err}");
    let dir = Scratch::new("badlib");
    let text = dir.file("libzio.so", "not a library", 0o755);
    let (code, _, err) = output(zio().args(["run", "true"]).env("ZIO_LIB", text));
    assert_eq!((code, err.lines().count()), (0, 1), "{err}");
    assert!(err.contains("not an x86-64 shared library"), "{err}");
}

#[test]
fn bad_arguments_exit_125_and_say_what_is_accepted() {
    let cases: [(&[&str], &str); 12] = [
        (&["--bogus", "--", "true"], "--bogus"),
        (&[], "CMD"),
        (&["--fault", "uffd", "--", "true"], "auto, guard, sigbus"),
        (&["--fault", "thread", "--", "true"], "not available in this version"),
        (&["--profile", "--", "true"], "not available in this version"),
        (&["--profile=x", "--", "true"], "not available in this version"),
        (&["--threshold", "16KB", "--", "true"], "16K"),
        (&["--threshold", "", "--", "true"], "16384"),
        (&["--threshold", "99999999999999999999", "--", "true"], "too large"),
        (&["--follow", "some", "--", "true"], "all, same-exe, none"),
        (&["--stats", "/no/such/dir/x.json", "--", "true"], "/no/such/dir"),
        (&["--fault"], "--fault"),
    ];
    for (args, expected) in cases {
        let (code, _, err) = run(args);
        assert_eq!(code, 125, "{args:?}: {err}");
        assert!(err.contains(expected), "{args:?}: {err}");
    }
    let (code, _, err) = output(zio().args(["run", "true"]).env("ZIO_FOLLOW", "some"));
    assert_eq!(code, 125);
    assert!(err.contains("ZIO_FOLLOW") && err.contains("all, same-exe, none"), "{err}");
    assert_eq!(output(zio().args(["doctor", "--bogus"])).0, 2);
}

#[test]
fn help_has_examples_everywhere() {
    for command in [&["run"][..], &["doctor"], &["stats"], &["bench", "tracked"]] {
        let (code, out, _) = output(zio().args(command).arg("--help"));
        assert_eq!(code, 0);
        assert!(out.contains("Examples:") && !out.contains("--profile"), "{out}");
    }
}
