//! Just enough ELF to tell whether the dynamic loader would preload a library into a program.
//!
//! The limits are the kernel's own (`fs/binfmt_elf.c`), so a file that is damaged in a way the kernel
//! would refuse is [`Image::Damaged`] here, whatever its headers claim.

use std::io::{self, Read, Seek, SeekFrom};

/// First four bytes of every ELF file.
pub const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// The kernel refuses larger program header tables.
const PROGRAM_HEADERS_LEN_MAX: usize = 65536;
/// `PATH_MAX`: the kernel refuses longer interpreter names.
const INTERPRETER_LEN_MAX: u64 = 4096;

const ELFCLASS32: u8 = 1;
const ELFDATA2LSB: u8 = 1;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_ARM: u16 = 40;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const EM_RISCV: u16 = 243;
const PT_INTERP: u32 = 3;

/// What an ELF file is, as far as preloading is concerned.
#[derive(Debug, PartialEq, Eq)]
pub enum Image {
    /// An x86-64 program (or library) with a program interpreter: the path of its dynamic loader.
    Dynamic {
        /// Path in `PT_INTERP`, without the terminating NUL.
        loader: Vec<u8>,
    },
    /// An x86-64 file without a program interpreter: a static program, or a plain shared library.
    NoLoader {
        /// Position-independent (`ET_DYN`), as every shared library is.
        shared: bool,
    },
    /// For another machine or ABI; the words fit "it is {}".
    Foreign(String),
    /// ELF magic, but headers that the kernel would not accept.
    Damaged,
}

/// Classifies an ELF image read from `file`.
///
/// # Errors
/// Reading failed; a file that ends early is not an error but [`Image::Damaged`].
pub fn classify<F: Read + Seek>(file: &mut F) -> io::Result<Image> {
    let mut header = [0u8; HEADER_LEN];
    if !read_at(file, 0, &mut header)? || header[..4] != ELF_MAGIC {
        return Ok(Image::Damaged);
    }
    let (class, data) = (header[4], header[5]);
    let machine = if data == ELFDATA2LSB { u16_at(&header, 18) } else { u16::from_be_bytes([header[18], header[19]]) };
    if class == ELFCLASS32 || data != ELFDATA2LSB || machine != EM_X86_64 {
        return Ok(Image::Foreign(describe(class, machine)));
    }
    let shared = u16_at(&header, 16) == ET_DYN;
    let offset = u64_at(&header, 32);
    let entry_len = usize::from(u16_at(&header, 54));
    let count = usize::from(u16_at(&header, 56));
    let table_len = count * PROGRAM_HEADER_LEN;
    if entry_len != PROGRAM_HEADER_LEN || count == 0 || table_len > PROGRAM_HEADERS_LEN_MAX {
        return Ok(Image::Damaged);
    }
    let mut table = vec![0u8; table_len];
    if !read_at(file, offset, &mut table)? {
        return Ok(Image::Damaged);
    }
    for entry in table.chunks_exact(PROGRAM_HEADER_LEN) {
        if u32_at(entry, 0) == PT_INTERP {
            return loader(file, u64_at(entry, 8), u64_at(entry, 32));
        }
    }
    Ok(Image::NoLoader { shared })
}

fn loader<F: Read + Seek>(file: &mut F, offset: u64, len: u64) -> io::Result<Image> {
    if !(2..=INTERPRETER_LEN_MAX).contains(&len) {
        return Ok(Image::Damaged);
    }
    let mut path = vec![0u8; len as usize];
    if !read_at(file, offset, &mut path)? || path.last() != Some(&0) {
        return Ok(Image::Damaged);
    }
    let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
    path.truncate(end);
    Ok(Image::Dynamic { loader: path })
}

/// Fills `into` from `offset`; `false` when the file ends before that.
fn read_at<F: Read + Seek>(file: &mut F, offset: u64, into: &mut [u8]) -> io::Result<bool> {
    // Offsets over i64::MAX are refused by lseek with EINVAL: past any end all the same.
    if offset > i64::MAX as u64 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(into) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn describe(class: u8, machine: u16) -> String {
    let bits = if class == ELFCLASS32 { "32-bit" } else { "64-bit" };
    match machine {
        EM_386 => "a 32-bit x86 program".into(),
        EM_X86_64 if class == ELFCLASS32 => "an x32 program".into(),
        EM_ARM => "a 32-bit Arm program".into(),
        EM_AARCH64 => "an AArch64 program".into(),
        EM_RISCV => format!("a {bits} RISC-V program"),
        _ => format!("a {bits} program for ELF machine {machine}"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// An x86-64 image with one `PT_LOAD` and, if given, one `PT_INTERP`.
    fn image(loader: Option<&[u8]>) -> Vec<u8> {
        let mut b = vec![0u8; HEADER_LEN + 2 * PROGRAM_HEADER_LEN];
        b[..4].copy_from_slice(&ELF_MAGIC);
        b[4] = 2;
        b[5] = ELFDATA2LSB;
        b[16] = ET_DYN as u8;
        b[18] = EM_X86_64 as u8;
        b[32] = HEADER_LEN as u8;
        b[54] = PROGRAM_HEADER_LEN as u8;
        b[56] = 2;
        b[HEADER_LEN] = 1;
        if let Some(path) = loader {
            let at = HEADER_LEN + PROGRAM_HEADER_LEN;
            let offset = b.len() as u64;
            b[at] = PT_INTERP as u8;
            b[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            b[at + 32..at + 40].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
            b.extend_from_slice(path);
            b.push(0);
        }
        b
    }

    fn class_of(bytes: &[u8]) -> Image {
        classify(&mut Cursor::new(bytes)).expect("a cursor reads")
    }

    #[test]
    fn dynamic_static_and_shared() {
        let path = b"/lib64/ld-linux-x86-64.so.2";
        assert_eq!(class_of(&image(Some(path))), Image::Dynamic { loader: path.to_vec() });
        assert_eq!(class_of(&image(None)), Image::NoLoader { shared: true });
        let mut fixed = image(None);
        fixed[16] = 2;
        assert_eq!(class_of(&fixed), Image::NoLoader { shared: false });
    }

    #[test]
    fn foreign_machines() {
        let mut b = image(None);
        b[18] = EM_AARCH64 as u8;
        assert_eq!(class_of(&b), Image::Foreign("an AArch64 program".into()));
        let mut b = image(None);
        b[4] = ELFCLASS32;
        assert_eq!(class_of(&b), Image::Foreign("an x32 program".into()));
        b[18] = EM_386 as u8;
        assert_eq!(class_of(&b), Image::Foreign("a 32-bit x86 program".into()));
        let mut b = image(None);
        b[5] = 2;
        assert!(matches!(class_of(&b), Image::Foreign(_)));
    }

    #[test]
    fn this_very_program_is_dynamic() {
        let mut me = std::fs::File::open("/proc/self/exe").expect("open self");
        assert!(matches!(classify(&mut me), Ok(Image::Dynamic { .. })));
    }

    #[test]
    fn damage_never_panics() {
        let good = image(Some(b"/lib64/ld-linux-x86-64.so.2"));
        for len in 0..good.len() {
            let got = class_of(&good[..len]);
            assert_eq!(got, Image::Damaged, "truncated to {len}");
        }
        // Every header byte set to its extremes, one at a time.
        for at in 0..HEADER_LEN + 2 * PROGRAM_HEADER_LEN {
            for value in [0, 1, 0x7f, 0xff] {
                let mut b = good.clone();
                b[at] = value;
                let _ = class_of(&b);
            }
        }
        let mut far = good.clone();
        far[32..40].fill(0xff);
        assert_eq!(class_of(&far), Image::Damaged);
        let mut long = good;
        let at = HEADER_LEN + PROGRAM_HEADER_LEN + 32;
        long[at..at + 8].fill(0xff);
        assert_eq!(class_of(&long), Image::Damaged);
    }
}
