//! Turns the offsets of the hypervisor's backtraces (`src/el2/panic.rs`: lines like `  #3  0x1234`) into
//! functions and lines, by asking gdb.

use std::path::Path;

use anyhow::Result;
use image::cmd;

/// Returns the offsets in `text`, in order.
pub fn offsets(text: &str) -> Vec<u64> {
    text.lines()
        .filter_map(|line| {
            let (number, offset) = line.trim().strip_prefix('#')?.split_once("  0x")?;
            number.parse::<u32>().ok()?;
            u64::from_str_radix(offset.trim(), 16).ok()
        })
        .collect()
}

/// Returns one line for each offset: `#0  0x1234  function  file:line`.
///
/// # Errors
/// gdb is missing or cannot read `elf`.
pub fn resolve(elf: &Path, offsets: &[u64]) -> Result<Vec<String>> {
    let mut gdb = cmd::command("gdb-multiarch");
    gdb.args(["-q", "-nx", "-batch"]);
    for offset in offsets {
        gdb.args(["-ex", "echo @@\\n", "-ex", &format!("info symbol {offset:#x}")]);
        gdb.args(["-ex", &format!("info line *{offset:#x}")]);
    }
    let answers = cmd::text(gdb.arg(elf))?;
    let answers = answers.split("@@\n").skip(1).chain(std::iter::repeat(""));
    Ok(offsets
        .iter()
        .zip(answers)
        .enumerate()
        .map(|(number, (offset, answer))| format!("  #{number:<2} {offset:#x}  {}", place(answer)))
        .collect())
}

/// Returns `FUNCTION  FILE:LINE` from gdb's answers to `info symbol` and `info line`.
fn place(answer: &str) -> String {
    let function = answer.lines().next().unwrap_or_default();
    let function = function.split(" in section").next().unwrap_or_default();
    // Without the hash at the end of a Rust symbol.
    let function = match function.split_once("::h") {
        Some((name, _)) => name,
        None => function,
    };
    let line = answer.lines().find_map(|line| {
        let (number, rest) = line.strip_prefix("Line ")?.split_once(" of \"")?;
        let (file, _) = rest.split_once('"')?;
        Some(format!("  {file}:{number}"))
    });
    format!("{function}{}", line.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{offsets, place};

    #[test]
    fn finds_the_offsets() {
        let text = "EL2 PANIC: cpu0: x\nbacktrace (offsets into the image):\n  #0  0x15590\r\n  #1  0xabc\n  #x  0x1\n";
        assert_eq!(offsets(text), [0x15590, 0xabc]);
    }

    #[test]
    fn reads_gdbs_answers() {
        let answer = "ringvisor::el2::traps::stage2_fault::h8204ade7444747b3 + 32 in section .text\n\
                      Line 132 of \"src/el2/traps.rs\" starts at address 0x1 <x> and ends at 0x2 <y>.\n";
        assert_eq!(
            place(answer),
            "ringvisor::el2::traps::stage2_fault  src/el2/traps.rs:132"
        );
        assert_eq!(place("No symbol matches 0x1.\n"), "No symbol matches 0x1.");
    }
}
