//! Whether this program can take over from another version of it: asked before the other one ends.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use ringvisor::abi::ABI_VERSION;

use crate::device::inflight;
use crate::zone::record::Record;

/// The output of a program that can take over.
pub const CAN: &str = "ringd: can take over";

/// Checks versions of the interface to EL2, of all records and of all in-flight logs in a run directory.
///
/// # Errors
/// The first thing that this program does not understand: what it is, its version, the one expected.
pub fn check(run_dir: &Path, abi: u32) -> anyhow::Result<()> {
    if abi != ABI_VERSION {
        bail!("EL2 speaks version {abi} of the interface, this ringd version {ABI_VERSION}");
    }
    let records = run_dir.join("zones");
    for record in Record::load_all(&records)? {
        record?;
    }
    for entry in fs::read_dir(&records).with_context(|| format!("cannot read {}", records.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "inflight") {
            inflight::check(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    use ringvisor::abi::ABI_VERSION;

    use super::check;
    use crate::device::inflight::{self, LOG_STRIDE};
    use crate::zone::record;

    #[test]
    fn unknown_versions_are_reported_with_both_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let zones = directory.path().join("zones");
        fs::create_dir(&zones).unwrap();
        check(directory.path(), ABI_VERSION).unwrap();

        let message = check(directory.path(), ABI_VERSION + 1).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "EL2 speaks version {} of the interface, this ringd version {ABI_VERSION}",
                ABI_VERSION + 1
            )
        );

        fs::write(zones.join("a.json"), "{\"version\": 99, \"new\": true}").unwrap();
        let message = format!("{:#}", check(directory.path(), ABI_VERSION).unwrap_err());
        assert!(
            message.contains(&format!("layout 99, this one has {}", record::VERSION)),
            "{message}"
        );
        fs::remove_file(zones.join("a.json")).unwrap();

        inflight::map(&zones, "a").unwrap();
        check(directory.path(), ABI_VERSION).unwrap();
        let file = File::options()
            .write(true)
            .open(zones.join("a.inflight"))
            .unwrap();
        let word = 0x4642_4952_u64 | 9 << 32 | 256 << 48;
        file.write_all_at(&word.to_le_bytes(), LOG_STRIDE as u64).unwrap();
        let message = format!("{:#}", check(directory.path(), ABI_VERSION).unwrap_err());
        assert!(
            message.contains("a.inflight: in-flight log: layout version 9, expected"),
            "{message}"
        );
    }
}
