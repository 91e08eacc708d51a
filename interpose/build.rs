//! Link flags of libzio.so.

/// Copy functions that rustc itself emits calls to: inside the library they must not reach our exports.
const WRAPPED: &[&str] = &["memcpy", "memmove", "mempcpy", "memset", "memcmp", "bcmp"];

fn main() {
    for f in WRAPPED {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--wrap={f}");
    }
    // initfirst: our constructor runs before those of the program's allocator and libraries.
    for z in ["now", "relro", "nodelete", "initfirst"] {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,{z}");
    }
    // GNU ld with one codegen unit left calls to our own exports; rust-lld honours --wrap for all of them.
    println!("cargo::rustc-cdylib-link-arg=-fuse-ld=lld");
    // A hook that uses another one means ours, not a definition that comes earlier in the search order.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    println!("cargo::rustc-cdylib-link-arg=-nostartfiles");
    println!("cargo::rerun-if-changed=build.rs");
}
