//! Sizes that can be had without a machine: the hypervisor's image and its source.

use std::fs;
use std::path::Path;

use super::boot::EL2_BYTES;
use super::results::Results;
use crate::machine::Project;

/// Measures them.
pub fn measure(project: &Project, results: &mut Results) {
    match fs::metadata(project.hypervisor()) {
        Ok(meta) => results.size("EL2 image", meta.len(), "bytes"),
        Err(error) => results.fail("size of the EL2 image", error.to_string()),
    }
    results.size("RAM kept by EL2, image and all else", EL2_BYTES, "bytes");
    for (what, dir) in [
        ("source: what only EL2 has (src/el2)", "src/el2"),
        ("source: all of the image (src)", "src"),
    ] {
        match lines(&project.dir.join(dir)) {
            Ok(count) => results.size(what, count, "lines"),
            Err(error) => results.fail(what, error.to_string()),
        }
    }
}

/// Lines of Rust below `dir` that are neither empty, nor comments, nor tests.
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

/// Those of one file. Unit tests are at its end.
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
    use super::*;

    #[test]
    fn only_code_counts() {
        let text = "//! Header.\n\nuse x; // why\n/// Doc.\nfn f() {\n}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        assert_eq!(code_lines(text), 3);
    }
}
