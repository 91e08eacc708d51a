//! Where libzio.so is.

use crate::elf::{self, Image};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// File name of the library that is preloaded.
pub const LIBRARY_NAME: &str = "libzio.so";
/// Names the library outright; nothing else is searched when it is set.
pub const LIBRARY_ENV: &str = "ZIO_LIB";

/// Why there is no library to preload; displays as a clause with what to do about it.
#[derive(Debug)]
pub enum Unavailable {
    /// `ZIO_LIB` names a file that cannot be used; the words say why.
    Named(PathBuf, String),
    /// Not in any of these directories.
    NotFound(Vec<PathBuf>),
    /// Found, but unusable; the words say why.
    Unusable(PathBuf, String),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::Named(path, why) => {
                let path = path.display();
                write!(f, "{LIBRARY_ENV}={path}: {why}; point {LIBRARY_ENV} at a {LIBRARY_NAME}, or unset it")
            }
            Unavailable::NotFound(dirs) => {
                let dirs: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
                write!(
                    f,
                    "{LIBRARY_NAME} not found in {}; install it there, or set {LIBRARY_ENV} to its path",
                    dirs.join(", ")
                )
            }
            Unavailable::Unusable(path, why) => {
                write!(f, "{}: {why}; reinstall it, or set {LIBRARY_ENV} to a good one", path.display())
            }
        }
    }
}

/// Finds libzio.so: `ZIO_LIB`, next to this command, `../lib/zio`, `../lib`, then the system's directories.
/// The path is absolute.
///
/// # Errors
/// Nothing there that the dynamic loader could preload.
pub fn find() -> Result<PathBuf, Unavailable> {
    if let Some(named) = env::var_os(LIBRARY_ENV).filter(|v| !v.is_empty()) {
        return find_named(named);
    }
    let dirs = directories();
    let Some(path) = dirs.iter().map(|d| d.join(LIBRARY_NAME)).find(|p| p.is_file()) else {
        return Err(Unavailable::NotFound(dirs));
    };
    match check(&path) {
        Ok(()) => Ok(path),
        Err(why) => Err(Unavailable::Unusable(path, why)),
    }
}

fn find_named(named: OsString) -> Result<PathBuf, Unavailable> {
    let named = PathBuf::from(named);
    let path = fs::canonicalize(&named).map_err(|e| Unavailable::Named(named.clone(), plain_error(&e)))?;
    match check(&path) {
        Ok(()) => Ok(path),
        Err(why) => Err(Unavailable::Named(named, why)),
    }
}

fn directories() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if let Some(here) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        dirs.push(here.to_path_buf());
        if let Some(prefix) = here.parent() {
            dirs.push(prefix.join("lib/zio"));
            dirs.push(prefix.join("lib"));
        }
    }
    for system in ["/usr/lib/zio", "/usr/lib", "/usr/lib/x86_64-linux-gnu"] {
        let system = PathBuf::from(system);
        if !dirs.contains(&system) {
            dirs.push(system);
        }
    }
    dirs
}

/// The loader only complains about a bad LD_PRELOAD entry and goes on; better to say why beforehand.
fn check(path: &Path) -> Result<(), String> {
    // The loader splits LD_PRELOAD at blanks and colons, and expands $ORIGIN and its like.
    let name = path.as_os_str().as_bytes();
    if name.iter().any(|b| b" \t\n:$".contains(b)) {
        return Err("LD_PRELOAD cannot carry a path with a blank, a colon or a dollar sign".into());
    }
    let mut file = File::open(path).map_err(|e| plain_error(&e))?;
    match elf::classify(&mut file) {
        Ok(Image::NoLoader { shared: true } | Image::Dynamic { .. }) => Ok(()),
        Ok(_) => Err("not an x86-64 shared library".into()),
        Err(e) => Err(plain_error(&e)),
    }
}

/// An error's text without Rust's "(os error N)".
pub fn plain_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
