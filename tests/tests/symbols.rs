//! What libzio.so exports, imports and calls, read from the artefact that ships.
//!
//! A preloaded library goes wrong in ways that only its linked form shows: a copy that the compiler emitted ends
//! in our own hook, a thread-local variable that is allocated lazily, a relocation that the program's own symbol
//! captures. `readelf` and `objdump` (binutils, which every C compiler brings) are the witnesses.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// The only shared objects that the library may need.
const NEEDED: &[&str] = &["libc.so.6", "ld-linux-x86-64.so.2"];

/// The only symbols that it may import. `strlen` reads what the kernel put on the stack, in the constructor; none
/// of these allocates or copies program memory. `dlsym` and `dladdr` are for the constructor.
const IMPORTS: &[&str] = &["__errno_location", "__register_atfork", "dladdr", "dlsym", "strlen"];

/// Copy functions of ours that the compiler also emits calls to.
const COPIES: &[&str] = &[
    "memcpy",
    "memmove",
    "mempcpy",
    "memset",
    "memcmp",
    "bcmp",
    "bcopy",
    "__mempcpy",
    "__memcpy_chk",
    "__memmove_chk",
    "__mempcpy_chk",
    "__memset_chk",
];

/// Bytes of static thread-local storage: with 2 KiB a later dlopen failed.
const TLS_MAX: u64 = 256;

fn library() -> PathBuf {
    let Some(lib) = zio_tests::programs::library() else {
        panic!("libzio.so not found: `cargo build --release --workspace` first, or set ZIO_LIB");
    };
    // The debug profile keeps calls that the optimiser removes; what ships is the release profile.
    assert!(!lib.components().any(|c| c.as_os_str() == "debug"), "{}: not the release profile", lib.display());
    lib
}

/// What a binutils tool prints about the library.
fn ask(tool: &str, args: &[&str]) -> String {
    let out = match Command::new(tool).env("LC_ALL", "C").args(args).arg(library()).output() {
        Ok(out) => out,
        Err(e) => panic!("{tool}: {e}; install binutils"),
    };
    assert!(out.status.success(), "{tool}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The name in a column of `readelf`, without its version.
fn unversioned(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// Dynamic symbols: those defined here, or those that are not.
fn dynamic_symbols(defined: bool) -> BTreeSet<String> {
    ask("readelf", &["--wide", "--dyn-syms"])
        .lines()
        .filter_map(|l| {
            // Num: Value Size Type Bind Vis Ndx Name
            let c: Vec<&str> = l.split_whitespace().collect();
            let (index, name) = (c.get(6)?, c.get(7)?);
            let numbered = c.first()?.strip_suffix(':')?.parse::<u32>().is_ok();
            (numbered && (*index != "UND") == defined).then(|| unversioned(name).to_owned())
        })
        .collect()
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn needs_only_libc() {
    let dynamic = ask("readelf", &["--wide", "--dynamic"]);
    let needed = |l: &str| {
        let name = l.split_once('[')?.1.split_once(']')?.0;
        l.contains("(NEEDED)").then(|| name.to_owned())
    };
    let others: Vec<String> = dynamic.lines().filter_map(needed).filter(|n| !NEEDED.contains(&n.as_str())).collect();
    none("libzio.so needs more than libc", &others);
}

#[test]
fn imports_only_what_is_listed() {
    let others: Vec<String> =
        dynamic_symbols(false).into_iter().filter(|n| !n.is_empty() && !IMPORTS.contains(&n.as_str())).collect();
    none("imports that are not on the list", &others);
}

#[test]
fn exports_no_symbol_of_rusts() {
    let exports = dynamic_symbols(true);
    for f in ["memcpy", "read", "malloc", "free", "mmap", "sigaction"] {
        assert!(exports.contains(f), "{f} is not exported");
    }
    let own = |n: &String| {
        let n = n.as_str();
        ["_Unwind_", "__rust", "rust_", "_ZN", "_R", "__wrap_", "__real_", "zio_"].iter().any(|p| n.starts_with(p))
            || ["memcmp", "bcmp", "strlen"].contains(&n)
    };
    none("exports that are nobody's business", &exports.into_iter().filter(own).collect::<Vec<_>>());
}

#[test]
fn is_loaded_first_bound_at_once_and_never_unloaded() {
    let dynamic = ask("readelf", &["--wide", "--dynamic"]);
    let flags = dynamic.lines().find(|l| l.contains("(FLAGS_1)")).unwrap_or("");
    for f in ["NOW", "NODELETE", "INITFIRST"] {
        assert!(flags.split_whitespace().any(|w| w == f), "flag {f} is missing: {flags:?}");
    }
    assert!(!dynamic.contains("TEXTREL"), "relocations in the text");
    let headers = ask("readelf", &["--wide", "--program-headers"]);
    assert!(headers.lines().any(|l| l.trim_start().starts_with("GNU_RELRO")), "no RELRO");
    let stack = headers.lines().find(|l| l.trim_start().starts_with("GNU_STACK")).unwrap_or("");
    assert!(!stack.is_empty() && !stack.contains('E'), "an executable stack would become the program's: {stack:?}");
}

#[test]
fn thread_local_storage_is_static_and_small() {
    let headers = ask("readelf", &["--wide", "--program-headers"]);
    // Type Offset VirtAddr PhysAddr FileSiz MemSiz ...
    let size = |l: &str| {
        let c: Vec<&str> = l.split_whitespace().collect();
        (c.first() == Some(&"TLS")).then(|| u64::from_str_radix(c.get(5)?.trim_start_matches("0x"), 16).ok()).flatten()
    };
    let total: u64 = headers.lines().filter_map(size).sum();
    assert!(total <= TLS_MAX, "{total} bytes of thread-local storage");
    assert!(!dynamic_symbols(false).contains("__tls_get_addr"), "thread-local storage that is allocated lazily");
    let relocations = ask("readelf", &["--wide", "--relocs"]);
    assert!(!relocations.contains("DTPMOD"), "thread-local storage that is allocated lazily");
}

/// Another definition earlier in the search order (the program's own `free`, say) would capture such a reference.
#[test]
fn no_relocation_names_an_export() {
    let exports = dynamic_symbols(true);
    let relocations = ask("readelf", &["--wide", "--relocs"]);
    let named: Vec<String> = relocations
        .lines()
        .filter_map(|l| {
            // Offset Info Type Value Name + Addend
            let c: Vec<&str> = l.split_whitespace().collect();
            let name = unversioned(c.get(4)?);
            (c.get(2)?.starts_with("R_X86_64_") && exports.contains(name)).then(|| name.to_owned())
        })
        .collect();
    none("relocations that name our own exports (link with -Bsymbolic)", &named);
}

/// A direct branch of the disassembly: the function that it is in, the mnemonic, and the symbol that it goes to.
struct Branch<'a> {
    within: &'a str,
    how: &'a str,
    to: &'a str,
}

fn branches(disassembly: &str) -> Vec<Branch<'_>> {
    let mut within = "";
    let mut all = Vec::new();
    for l in disassembly.lines() {
        if let Some(name) = l.strip_suffix(">:").and_then(|l| l.split_once('<')) {
            within = unversioned(name.1);
            continue;
        }
        // "  733d:\tjmp    72ed <__wrap_memcpy>": a target inside a function has "+0x" in its name.
        let Some((_, code)) = l.split_once(":\t") else { continue };
        let mut words = code.split_whitespace();
        let (Some(how), Some(target), Some(symbol)) = (words.next(), words.next(), words.next()) else { continue };
        let direct = u64::from_str_radix(target, 16).is_ok() && (how.starts_with('j') || how.starts_with("call"));
        let to = symbol.trim_start_matches('<').trim_end_matches('>');
        if direct && !to.contains('+') {
            all.push(Branch { within, how, to: unversioned(to) });
        }
    }
    all
}

/// The library's own copies must not come back to its hooks: `--wrap` sends them past.
#[test]
fn own_copies_bypass_the_hooks() {
    let exports = dynamic_symbols(true);
    let disassembly = ask("objdump", &["--disassemble", "--no-show-raw-insn"]);
    let found = branches(&disassembly);
    assert!(found.len() > 100, "objdump's output is not understood: {} branches", found.len());
    let wrong: Vec<String> = found
        .iter()
        // Hooks may jump to one another (bcopy to memmove): they are entered by the program.
        .filter(|b| {
            (COPIES.contains(&b.to) && !(exports.contains(b.within) && b.how == "jmp")) || b.to.ends_with("@plt")
        })
        .map(|b| format!("{}: {} {}", b.within, b.how, b.to))
        .collect();
    none("branches to our own exports", &wrong);
}

/// `--wrap` also catches a hook that names another hook: it would never be looked at.
#[test]
fn no_hook_is_bypassed() {
    let exports = dynamic_symbols(true);
    let disassembly = ask("objdump", &["--disassemble", "--no-show-raw-insn"]);
    let wrong: Vec<String> = branches(&disassembly)
        .iter()
        .filter(|b| b.to.starts_with("__wrap_") && b.how == "jmp" && COPIES.contains(&b.within))
        .map(|b| format!("{}: {} {}", b.within, b.how, b.to))
        .collect();
    assert!(COPIES.iter().any(|c| exports.contains(*c)), "no copy function is exported");
    none("hooks that go straight to libc's function at every size", &wrong);
}
