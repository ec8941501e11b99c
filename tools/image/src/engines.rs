//! Takes libraries out of a program of Debian's that starts without them.
//!
//! fio is linked to the libraries of all its engines, among them Ceph's, GlusterFS's and RDMA's: some 50 with
//! what these need, 88 MB, all mapped and relocated at each start. Nothing here uses those engines.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, elf};

/// Sizes of the tables' entries (System V gABI, chapter 5; LSB 5.0 Core, 10.7 for versions).
const DYNAMIC: usize = 16;
const SYMBOL: usize = 24;

/// Removes those libraries of `program`, a little-endian ELF file of 64 bits, that `keep` does not want: from
/// its dynamic section and from its table of needed versions. Symbols that no library may define any more
/// become weak, that is, zero.
///
/// # Errors
/// `program` is no dynamically linked program of that kind.
pub fn keep_libraries(program: &mut [u8], keep: impl Fn(&str) -> bool) -> Result<()> {
    let tables = Tables::find(program)?;
    let dropped = tables.versions(program, &keep)?;
    let mut at = tables.dynamic.0;
    let mut entries = Vec::new();
    while at + DYNAMIC <= tables.dynamic.1 {
        let (tag, value) = (get::<8>(program, at)?, get::<8>(program, at + 8)?);
        let value = match u32::try_from(tag).unwrap_or_default() {
            elf::DT_NEEDED if !keep(&tables.string(program, value)?) => {
                at += DYNAMIC;
                continue;
            }
            elf::DT_VERNEED => value + dropped.first,
            elf::DT_VERNEEDNUM => dropped.kept,
            _ => value,
        };
        entries.push((tag, value));
        at += DYNAMIC;
    }
    let (mut at, end) = tables.dynamic;
    for (tag, value) in entries.into_iter().chain(std::iter::repeat((0, 0))) {
        if at + DYNAMIC > end {
            break;
        }
        put::<8>(program, at, tag)?;
        put::<8>(program, at + 8, value)?;
        at += DYNAMIC;
    }
    tables.weaken(program, &dropped.indices)
}

/// The versions of libraries that are taken out.
struct Dropped {
    /// The indices that symbols have of them.
    indices: BTreeSet<u64>,
    /// Where the first library that stays begins in the table.
    first: u64,
    /// How many stay.
    kept: u64,
}

/// Where a program's tables begin and end in its file.
struct Tables {
    dynamic: (usize, usize),
    symbols: (usize, usize),
    strings: (usize, usize),
    versions: (usize, usize),
    needed: (usize, usize),
}

impl Tables {
    fn find(program: &[u8]) -> Result<Self> {
        let file = ElfFile64::<Endianness>::parse(program).context("not an ELF file of 64 bits")?;
        let table = |name: &str| {
            let section = file.section_by_name(name);
            let range = section.and_then(|section| section.file_range());
            let (start, length) = range.with_context(|| format!("no section {name}"))?;
            let (start, length) = (usize::try_from(start)?, usize::try_from(length)?);
            anyhow::Ok((start, start.saturating_add(length)))
        };
        Ok(Self {
            dynamic: table(".dynamic")?,
            symbols: table(".dynsym")?,
            strings: table(".dynstr")?,
            versions: table(".gnu.version")?,
            needed: table(".gnu.version_r")?,
        })
    }

    fn string(&self, program: &[u8], offset: u64) -> Result<String> {
        let start = self.strings.0.saturating_add(usize::try_from(offset)?);
        let bytes = program
            .get(start..self.strings.1)
            .context("a string outside of its table")?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Takes libraries out of the table of needed versions.
    fn versions(&self, program: &mut [u8], keep: impl Fn(&str) -> bool) -> Result<Dropped> {
        let mut dropped = Dropped {
            indices: BTreeSet::new(),
            first: 0,
            kept: 0,
        };
        let (mut at, mut last) = (self.needed.0, None);
        loop {
            let (count, file) = (get::<2>(program, at + 2)?, get::<4>(program, at + 4)?);
            let (names, next) = (get::<4>(program, at + 8)?, get::<4>(program, at + 12)?);
            if keep(&self.string(program, file)?) {
                match last {
                    None => dropped.first = u64::try_from(at - self.needed.0)?,
                    Some(last) => put::<4>(program, last + 12, u64::try_from(at - last)?)?,
                }
                last = Some(at);
                dropped.kept += 1;
            } else {
                let mut name = at.saturating_add(usize::try_from(names)?);
                for _ in 0..count {
                    dropped.indices.insert(get::<2>(program, name + 6)?);
                    name = name.saturating_add(usize::try_from(get::<4>(program, name + 12)?)?);
                }
            }
            if next == 0 {
                break;
            }
            at = at.saturating_add(usize::try_from(next)?);
        }
        if let Some(last) = last {
            put::<4>(program, last + 12, 0)?;
        }
        Ok(dropped)
    }

    /// Makes undefined symbols weak that have one of `versions`, or none: those may be of a library that is
    /// gone.
    fn weaken(&self, program: &mut [u8], versions: &BTreeSet<u64>) -> Result<()> {
        const NO_VERSION: u64 = 1;
        let (symbols, end) = self.symbols;
        for index in 1..(end - symbols) / SYMBOL {
            let (symbol, version) = (symbols + index * SYMBOL, self.versions.0 + index * 2);
            let (info, section) = (get::<1>(program, symbol + 4)?, get::<2>(program, symbol + 6)?);
            let number = get::<2>(program, version)?;
            if section != u64::from(elf::SHN_UNDEF) || !(number == NO_VERSION || versions.contains(&number)) {
                continue;
            }
            put::<2>(program, version, NO_VERSION)?;
            if info >> 4 == u64::from(elf::STB_GLOBAL) {
                put::<1>(
                    program,
                    symbol + 4,
                    (u64::from(elf::STB_WEAK) << 4) | (info & 0xf),
                )?;
            }
        }
        Ok(())
    }
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
        assert_eq!(after.len(), before.len() - 1);
        assert!(!after.iter().any(|library| library == unneeded), "{after:?}");
        let output = Command::new(&path).arg("--list").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_program_starts_without_a_library"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(keep_libraries(&mut [0; 100], |_| true).is_err());
    }
}
