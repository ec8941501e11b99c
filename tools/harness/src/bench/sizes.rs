//! Sizes that can be had without a machine: the hypervisor binary, by part, and its source.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use image::cmd;

use super::boot::EL2_BYTES;
use super::results::Results;
use crate::project::Project;

/// Parts of the binary below this many bytes are added up.
const SMALL: u64 = 2048;

/// Measures them.
pub fn measure(project: &Project, results: &mut Results) {
    match fs::metadata(project.hypervisor()) {
        Ok(meta) => results.size("hypervisor binary", meta.len(), "bytes"),
        Err(error) => results.fail("size of the hypervisor binary", error.to_string()),
    }
    match symbols(&project.hypervisor_elf()) {
        Ok(symbols) => {
            for (part, bytes) in parts(&symbols) {
                results.size(format!("  {part}"), bytes, "bytes");
            }
        }
        Err(error) => results.fail("parts of the hypervisor binary", format!("{error:#}")),
    }
    results.size("RAM kept by EL2, binary and all else", EL2_BYTES, "bytes");
    for (what, dir) in [
        ("source: what only EL2 has (src/el2)", "src/el2"),
        ("source: all of the binary (src)", "src"),
    ] {
        match lines(&project.dir.join(dir)) {
            Ok(count) => results.size(what, count, "lines"),
            Err(error) => results.fail(what, error.to_string()),
        }
    }
}

/// Returns the symbols of `elf` with their sizes, by the `llvm-nm` of Rust's own tools.
fn symbols(elf: &Path) -> Result<String> {
    let sysroot = cmd::text(cmd::command("rustc").args(["--print", "sysroot"]))?;
    let version = cmd::text(cmd::command("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let nm = format!("{}/lib/rustlib/{host}/bin/llvm-nm", sysroot.trim());
    cmd::text(
        cmd::command(nm)
            .args(["--print-size", "--demangle", "--defined-only"])
            .arg(elf),
    )
}

/// Adds up the sizes of symbols, largest part first. `bss` is not in the binary.
fn parts(symbols: &str) -> Vec<(String, u64)> {
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for line in symbols.lines() {
        let mut words = line.splitn(4, ' ');
        let (_, size, kind, name) = (words.next(), words.next(), words.next(), words.next());
        let (Some(size), Some(name)) = (size.and_then(|s| u64::from_str_radix(s, 16).ok()), name) else {
            continue;
        };
        if !matches!(kind, Some("b" | "B")) {
            *parts.entry(part(name)).or_default() += size;
        }
    }
    let (large, small): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, bytes)| *bytes >= SMALL);
    let mut list = large;
    list.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    if !small.is_empty() {
        let sum = small.iter().map(|(_, bytes)| bytes).sum();
        list.push((format!("{} others", small.len()), sum));
    }
    list
}

/// Returns the part that a symbol is of: a module of ours, two levels deep below `el2`; another crate; or
/// none, for what has no path.
fn part(symbol: &str) -> String {
    // `<ringvisor::a::B as core::c>::d` is of the type's module; `_$LT$ringvisor..a..B$u20$as...` says the
    // same.
    let plain = symbol
        .replace("$LT$", "<")
        .replace("$u20$", " ")
        .replace("..", "::");
    let path = plain.trim_start_matches(['_', '<', '&', '(', '*', '[']);
    let path = path.split([' ', '>', '<', '$']).next().unwrap_or_default();
    let mut modules: Vec<&str> = path.split("::").filter(|name| !name.is_empty()).collect();
    // The hash of a mangled name, then the item itself.
    if modules
        .last()
        .is_some_and(|last| last.len() == 17 && last.starts_with('h'))
    {
        modules.pop();
    }
    if modules.len() > 1 {
        modules.pop();
    } else if !path.contains("::") {
        return "symbols without a path".into();
    }
    match modules.as_slice() {
        ["ringvisor", "el2", module, ..] => format!("el2::{module}"),
        ["ringvisor", module, ..] => (*module).to_owned(),
        [name, ..] => format!("crate {name}"),
        [] => "symbols without a path".into(),
    }
}

/// Returns the lines of Rust below `dir` that are neither empty, nor comments, nor tests.
fn lines(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.contains("tests") || name == "fake.rs" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            sum += lines(&entry.path())?;
        } else if name.ends_with(".rs") {
            sum += code_lines(&fs::read_to_string(entry.path())?);
        }
    }
    Ok(sum)
}

/// Returns the lines of code of one file. Unit tests are at its end.
fn code_lines(text: &str) -> u64 {
    let mut lines = text.lines().peekable();
    let mut count = 0;
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.trim() == "mod tests {") {
            break;
        }
        count += u64::from(!line.is_empty() && !line.starts_with("//"));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::{code_lines, part, parts};

    #[test]
    fn only_code_counts() {
        let text = "//! Header.\n\nuse x; // why\n/// Doc.\nfn f() {\n}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        assert_eq!(code_lines(text), 3);
    }

    #[test]
    fn symbols_belong_to_parts() {
        for (symbol, expected) in [
            ("ringvisor::el2::traps::handle::hb6902191920fb818", "el2::traps"),
            ("ringvisor::el2::boot_main::hdadf1dcd2ba506dd", "el2"),
            (
                "ringvisor::vgic::flush::_$LT$impl$u20$ringvisor..vgic..gic..Vgic$GT$::service::hac15c20d7b5affcd",
                "vgic",
            ),
            (
                "_$LT$ringvisor..pci..Bar$u20$as$u20$core..fmt..Debug$GT$::fmt::hac15c20d7b5affcd",
                "pci",
            ),
            ("ringvisor::vgic::Dist::read", "vgic"),
            (
                "<ringvisor::virtio::Transport as core::fmt::Debug>::fmt",
                "virtio",
            ),
            ("core::fmt::write", "crate core"),
            ("<fdt::Fdt>::new", "crate fdt"),
            ("memcpy", "symbols without a path"),
        ] {
            assert_eq!(part(symbol), expected, "{symbol}");
        }
    }

    #[test]
    fn parts_are_added_up_and_bss_is_not() {
        let symbols = "0000000000000000 0000000000000800 t ringvisor::vgic::a\n\
                       0000000000000000 0000000000001000 r ringvisor::vgic::b\n\
                       0000000000000000 0000000000100000 b ringvisor::vgic::c\n\
                       0000000000000000 0000000000000010 T memcpy\n\
                       0000000000000000 T no_size\n";
        assert_eq!(
            parts(symbols),
            [("vgic".into(), 0x1800), ("1 others".into(), 0x10)]
        );
    }
}
