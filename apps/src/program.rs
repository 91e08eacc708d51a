//! Which file a command names, what the kernel will really run for it, and whether a library can be
//! preloaded into that.
//!
//! Unsafe code here is limited to calls that take C strings which live across the call, and to integers.

use crate::elf::{self, Image};
use std::env;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest chain of `#!` interpreters that is followed.
pub const INTERPRETERS_MAX: usize = 4;
/// What `execvp` hands a file to that is neither ELF nor `#!`.
pub const SHELL: &str = "/bin/sh";
/// What `execvp` searches when PATH is unset.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// The kernel looks at this much of a file to decide how to run it.
const HEAD_LEN: usize = 256;

/// Why a program is run without zio.
#[derive(Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// No dynamic loader runs in it.
    Static,
    /// Another machine or ABI; the words fit "it is {}".
    Foreign(String),
    /// Its dynamic loader is not glibc's; the path.
    OtherLoader(String),
    /// Running it changes the user or group, so the loader ignores LD_PRELOAD.
    SetId,
    /// It gains capabilities from its file, so the loader ignores LD_PRELOAD.
    FileCapabilities,
    /// More than [`INTERPRETERS_MAX`] `#!` lines on the way to a program.
    InterpreterChain,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Static => {
                write!(f, "it is statically linked, so no library can be preloaded")
            }
            Obstacle::Foreign(what) => write!(f, "it is {what}, and zio is for x86-64"),
            Obstacle::OtherLoader(loader) => {
                write!(f, "its dynamic loader is {loader}, and zio is for glibc programs")
            }
            Obstacle::SetId => write!(f, "it is setuid or setgid, so the loader ignores LD_PRELOAD"),
            Obstacle::FileCapabilities => {
                write!(f, "it has file capabilities, so the loader ignores LD_PRELOAD")
            }
            Obstacle::InterpreterChain => {
                write!(f, "it has more than {INTERPRETERS_MAX} script interpreters in a chain")
            }
        }
    }
}

/// What the kernel runs for a path.
#[derive(Debug)]
pub struct Resolved {
    /// The ELF image: the file itself, or the last interpreter of a script.
    pub image: PathBuf,
    /// Device and inode of the image, or of what `env` in a `#!` line will start.
    pub identity: (u64, u64),
    /// What stands in the way of preloading.
    pub obstacle: Option<Obstacle>,
    /// The image has ELF magic: it is no text that a shell could be tried on.
    pub is_elf: bool,
}

/// The files that `execvp` would try for `name`, in order.
pub fn candidates(name: &OsStr) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    // An empty element means the working directory; execvp then passes the bare name on.
    env::split_paths(&path).map(|dir| dir.join(name)).collect()
}

/// Whether this process may execute `path`: the metadata if so.
///
/// # Errors
/// What `execve` would answer: not there, not a regular file (`EACCES`), no permission.
pub fn executable(path: &Path) -> io::Result<Metadata> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    let name = c_path(path)?;
    // SAFETY: `name` is a C string that outlives the call.
    let denied = unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    if denied != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(meta)
}

/// Follows `#!` lines from `path` to the image that will run, and judges it.
///
/// # Errors
/// The path that is missing or not executable on the way, with the reason.
pub fn resolve(path: &Path) -> Result<Resolved, (PathBuf, io::Error)> {
    let mut image = path.to_path_buf();
    let mut through_env = None;
    for hops in 0.. {
        let meta = executable(&image).map_err(|e| (image.clone(), e))?;
        let identity = (meta.dev(), meta.ino());
        let resolved = |obstacle, is_elf| Resolved {
            image: image.clone(),
            identity: through_env.unwrap_or(identity),
            obstacle,
            is_elf,
        };
        // A program that may be run but not read: the loader can preload into it all the same.
        let Ok(mut file) = File::open(&image) else {
            return Ok(resolved(set_id_obstacle(&image, &meta), false));
        };
        let mut head = Vec::with_capacity(HEAD_LEN);
        // Taken by reference: classification reads the same file again.
        (&mut file).take(HEAD_LEN as u64).read_to_end(&mut head).map_err(|e| (image.clone(), e))?;
        if head.starts_with(&elf::ELF_MAGIC) {
            let obstacle = elf_obstacle(&mut file).map_err(|e| (image.clone(), e))?;
            return Ok(resolved(obstacle.or_else(|| set_id_obstacle(&image, &meta)), true));
        }
        if hops >= INTERPRETERS_MAX {
            return Ok(resolved(Some(Obstacle::InterpreterChain), false));
        }
        let (interpreter, argument) = shebang(&head).unwrap_or((SHELL.as_bytes(), b""));
        through_env = env_target(interpreter, argument);
        image = PathBuf::from(OsStr::from_bytes(interpreter));
    }
    unreachable!("the loop ends by returning")
}

/// Interpreter and argument of a `#!` line, cut as the kernel cuts them.
fn shebang(head: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = head.strip_prefix(b"#!")?;
    let end = line.iter().position(|&b| b == b'\n' || b == 0).unwrap_or(line.len());
    let line = trim(&line[..end]);
    let cut = line.iter().position(|&b| b == b' ' || b == b'\t').unwrap_or(line.len());
    let (interpreter, argument) = line.split_at(cut);
    (!interpreter.is_empty()).then(|| (interpreter, trim(argument)))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// `#!/usr/bin/env python3` runs env only to find python3: that is the program that `--follow same-exe`
/// should take as the same.
fn env_target(interpreter: &[u8], argument: &[u8]) -> Option<(u64, u64)> {
    if Path::new(OsStr::from_bytes(interpreter)).file_name() != Some(OsStr::new("env")) {
        return None;
    }
    let argument = argument.strip_prefix(b"-S").unwrap_or(argument);
    let name = argument.split(|&b| b == b' ' || b == b'\t').find(|word| !word.is_empty() && !word.contains(&b'='))?;
    if name.starts_with(b"-") {
        return None;
    }
    candidates(OsStr::from_bytes(name))
        .iter()
        .find(|c| executable(c).is_ok())
        .and_then(|c| resolve(c).ok())
        .map(|r| r.identity)
}

fn elf_obstacle(file: &mut File) -> io::Result<Option<Obstacle>> {
    Ok(match elf::classify(file)? {
        Image::Dynamic { loader } => {
            let name = loader.rsplit(|&b| b == b'/').next().unwrap_or(&loader);
            // musl's loader would end the program over a library that needs glibc.
            (!name.starts_with(b"ld-linux"))
                .then(|| Obstacle::OtherLoader(String::from_utf8_lossy(&loader).escape_debug().to_string()))
        }
        Image::NoLoader { .. } => Some(Obstacle::Static),
        Image::Foreign(what) => Some(Obstacle::Foreign(what)),
        // The kernel refuses it, and its own answer is the one to give.
        Image::Damaged => None,
    })
}

/// Whether the loader will be in secure-execution mode in this program.
fn set_id_obstacle(path: &Path, meta: &Metadata) -> Option<Obstacle> {
    if changes_ids(meta) && !set_id_ignored(path) {
        return Some(Obstacle::SetId);
    }
    let name = c_path(path).ok()?;
    // SAFETY: both names are C strings, and a null buffer of length 0 only asks for the size.
    let len = unsafe { libc::getxattr(name.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    (len > 0).then_some(Obstacle::FileCapabilities)
}

fn changes_ids(meta: &Metadata) -> bool {
    // SAFETY: these calls take nothing and cannot fail.
    let (uid, euid, gid, egid) = unsafe { (libc::getuid(), libc::geteuid(), libc::getgid(), libc::getegid()) };
    let mode = meta.mode();
    let to_uid = if mode & libc::S_ISUID != 0 { meta.uid() } else { euid };
    // Without group execute permission the bit marks mandatory locking, and the kernel ignores it.
    let set_gid = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0;
    let to_gid = if set_gid { meta.gid() } else { egid };
    to_uid != uid || to_gid != gid
}

/// A nosuid mount or no_new_privs make the kernel ignore the bits.
fn set_id_ignored(path: &Path) -> bool {
    // SAFETY: this prctl takes integers only.
    if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1 {
        return true;
    }
    let Ok(name) = c_path(path) else { return false };
    // SAFETY: statvfs is plain integers, for which zeros are a value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a C string, `stat` a statvfs to be written; both outlive the call.
    let failed = unsafe { libc::statvfs(name.as_ptr(), &mut stat) };
    failed == 0 && stat.f_flag & libc::ST_NOSUID != 0
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shebang_lines() {
        let parse = |s: &'static str| {
            shebang(s.as_bytes()).map(|(i, a)| (String::from_utf8_lossy(i), String::from_utf8_lossy(a)))
        };
        assert_eq!(parse("#!/bin/sh\n"), Some(("/bin/sh".into(), "".into())));
        assert_eq!(parse("#! \t/bin/sh -e x \nrest"), Some(("/bin/sh".into(), "-e x".into())));
        assert_eq!(parse("#!/bin/sh"), Some(("/bin/sh".into(), "".into())));
        assert_eq!(parse("#!/bin/a\0b"), Some(("/bin/a".into(), "".into())));
        assert_eq!(parse("#!\n"), None);
        assert_eq!(parse("#!   "), None);
        assert_eq!(parse("echo hi"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn path_lookup_follows_execvp() {
        assert!(candidates(OsStr::new("")).is_empty());
        assert_eq!(candidates(OsStr::new("./x")), [PathBuf::from("./x")]);
        assert!(candidates(OsStr::new("x")).iter().all(|c| c.ends_with("x")));
    }

    #[test]
    fn env_in_a_shebang_is_looked_through() {
        let target = env_target(b"/usr/bin/env", b"-S  A=1 sh -e").expect("sh is installed");
        assert_eq!(target, resolve(Path::new(SHELL)).expect("sh").identity);
        assert_eq!(env_target(b"/usr/bin/env", b"-i sh"), None);
        assert_eq!(env_target(b"/usr/bin/env", b""), None);
        assert_eq!(env_target(b"/bin/sh", b"sh"), None);
    }

    #[test]
    fn directories_and_missing_files() {
        let denied = executable(Path::new("/")).expect_err("a directory");
        assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
        let missing = executable(Path::new("/no/such")).expect_err("missing");
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    }
}
