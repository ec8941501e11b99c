//! Takes libraries out of a program of Debian's that starts without them.
//!
//! fio is linked to the libraries of all its engines, among them Ceph's, GlusterFS's and RDMA's: with what
//! these need some 50, 88 MB, all mapped and relocated at each start. Nothing here uses those engines.

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, elf};

/// The C library, which every program needs.
const LIBC: &str = "libc.so.";

/// Removes those libraries of `program`, a little-endian ELF file of 64 bits, that `keep` does not want: the
/// C library, and one of its versions, is needed in their place. No symbol has to be found any more: those
/// that no library defines are zero.
///
/// # Errors
/// `program` is no dynamically linked program of that kind.
pub fn keep_libraries(program: &mut [u8], keep: impl Fn(&str) -> bool) -> Result<()> {
    let section = |name| section(program, name);
    let (dynamic, symbols) = (section(".dynamic")?, section(".dynsym")?);
    let (strings, versions) = (section(".dynstr")?, section(".gnu.version_r")?);
    // Tags and values of the dynamic section (System V gABI, chapter 5).
    let mut needed = Vec::new();
    for entry in (dynamic.0..dynamic.1).step_by(16) {
        if get::<8>(program, entry)? == u64::from(elf::DT_NEEDED) {
            needed.push((entry + 8, get::<8>(program, entry + 8)?));
        }
    }
    let mut libc = None;
    for &(_, name) in &needed {
        if string(program, strings, name)?.starts_with(LIBC) {
            libc = Some(name);
        }
    }
    let libc = libc.context("no C library")?;
    for (value, name) in needed {
        if !keep(&string(program, strings, name)?) {
            put::<8>(program, value, libc)?;
        }
    }
    // Libraries of which versions are needed, and those versions: hash, flags, index, name (LSB 5.0 Core,
    // 10.7.4).
    let mut libraries = vec![versions.0];
    while let Some(&library) = libraries.last() {
        match get::<4>(program, library + 12)? {
            0 => break,
            next => libraries.push(library.saturating_add(usize::try_from(next)?)),
        }
    }
    let mut version_of_libc = None;
    for &library in &libraries {
        let name = string(program, strings, get::<4>(program, library + 4)?)?;
        if name.starts_with(LIBC) {
            let version = library.saturating_add(usize::try_from(get::<4>(program, library + 8)?)?);
            version_of_libc = Some((get::<4>(program, version)?, get::<4>(program, version + 8)?));
        }
    }
    let (hash, name) = version_of_libc.context("no version of the C library")?;
    for library in libraries {
        if keep(&string(program, strings, get::<4>(program, library + 4)?)?) {
            continue;
        }
        put::<4>(program, library + 4, libc)?;
        let mut version = library.saturating_add(usize::try_from(get::<4>(program, library + 8)?)?);
        for _ in 0..get::<2>(program, library + 2)? {
            put::<4>(program, version, hash)?;
            put::<4>(program, version + 8, name)?;
            version = version.saturating_add(usize::try_from(get::<4>(program, version + 12)?)?);
        }
    }
    for symbol in (symbols.0..symbols.1).step_by(24).skip(1) {
        let (info, defined_in) = (get::<1>(program, symbol + 4)?, get::<2>(program, symbol + 6)?);
        if defined_in == u64::from(elf::SHN_UNDEF) && info >> 4 == u64::from(elf::STB_GLOBAL) {
            put::<1>(
                program,
                symbol + 4,
                (u64::from(elf::STB_WEAK) << 4) | (info & 0xf),
            )?;
        }
    }
    Ok(())
}

/// Returns where a section begins and ends in the file.
fn section(program: &[u8], name: &str) -> Result<(usize, usize)> {
    let file = ElfFile64::<Endianness>::parse(program).context("not an ELF file of 64 bits")?;
    let range = file
        .section_by_name(name)
        .and_then(|section| section.file_range());
    let (start, length) = range.with_context(|| format!("no section {name}"))?;
    let (start, length) = (usize::try_from(start)?, usize::try_from(length)?);
    Ok((start, start.saturating_add(length)))
}

/// Returns the string at `offset` of a table.
fn string(program: &[u8], table: (usize, usize), offset: u64) -> Result<String> {
    let start = table.0.saturating_add(usize::try_from(offset)?);
    let bytes = program
        .get(start..table.1)
        .context("a string outside of its table")?;
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Returns the number of `N` bytes at `at`.
fn get<const N: usize>(program: &[u8], at: usize) -> Result<u64> {
    let bytes = at.checked_add(N).and_then(|end| program.get(at..end));
    let bytes = bytes.context("a table outside of the file")?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| (number << 8) | u64::from(byte)))
}

/// Stores a number of `N` bytes at `at`.
fn put<const N: usize>(program: &mut [u8], at: usize, number: u64) -> Result<()> {
    let bytes = at.checked_add(N).and_then(|end| program.get_mut(at..end));
    let bytes = bytes.context("a table outside of the file")?;
    for (byte, value) in bytes.iter_mut().zip(number.to_le_bytes()) {
        *byte = value;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::keep_libraries;
    use crate::userland::needed_libraries;

    #[test]
    fn a_program_starts_without_a_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        // This one needs libgcc_s for backtraces only.
        let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let unneeded = "libgcc_s.so.1";
        fs::write(&path, &program).unwrap();
        let before = needed_libraries(&path).unwrap();
        assert!(before.iter().any(|library| library == unneeded), "{before:?}");
        keep_libraries(&mut program, |library| library != unneeded).unwrap();
        fs::write(&path, &program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let after = needed_libraries(&path).unwrap();
        assert!(!after.iter().any(|library| library == unneeded), "{after:?}");
        let output = Command::new(&path).arg("--list").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_program_starts_without_a_library"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(keep_libraries(&mut [0; 100], |_| true).is_err());
    }
}
