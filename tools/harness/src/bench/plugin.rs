//! Instructions that QEMU executed, as `tools/qemu-count` counts them into a file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Words of one CPU, and CPUs (`CLASSES` and `CPUS` of the plugin).
const CLASSES: usize = 4;
const CPUS: usize = 64;
/// The word that is no counter: the longest exit.
const LONGEST: usize = 3;

/// The file that the plugin counts into.
#[derive(Debug)]
pub struct Counters {
    file: PathBuf,
}

/// The counters at some moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot([[u64; CLASSES]; CPUS]);

impl Counters {
    /// Makes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(file: PathBuf) -> Result<Self> {
        fs::write(&file, vec![0; CLASSES * CPUS * 8])
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file })
    }

    /// QEMU's arguments to load the plugin `library`; code from `low` to `high` is the hypervisor's.
    pub fn arguments(&self, library: &Path, low: u64, high: u64) -> [String; 2] {
        use crate::modules::value;
        [
            "-plugin".into(),
            format!(
                "file={},counters={},low={low:#x},high={high:#x}",
                value(&library.display().to_string()),
                value(&self.file.display().to_string())
            ),
        ]
    }

    /// Clears the longest exits.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin_stays(&self) -> Result<()> {
        let file = fs::File::options().write(true).open(&self.file)?;
        for cpu in 0..CPUS as u64 {
            file.write_all_at(&[0; 8], (cpu * CLASSES as u64 + LONGEST as u64) * 8)?;
        }
        Ok(())
    }

    /// Reads the counters; none if the file is gone.
    pub fn read(&self) -> Option<Snapshot> {
        let data = fs::read(&self.file).ok()?;
        let mut words = data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes));
        let mut snapshot = Snapshot([[0; CLASSES]; CPUS]);
        for counter in snapshot.0.iter_mut().flatten() {
            *counter = words.next()?;
        }
        Some(snapshot)
    }
}

impl Snapshot {
    /// Returns what was counted since `before`. Longest exits are not differences.
    pub fn since(mut self, before: &Self) -> Self {
        for (cpu, old) in self.0.iter_mut().zip(&before.0) {
            for (counter, old) in cpu.iter_mut().zip(old).take(LONGEST) {
                *counter = counter.saturating_sub(*old);
            }
        }
        self
    }

    /// Returns the time at EL2 of the longest exit of any CPU, in instructions.
    pub fn longest_exit(&self) -> u64 {
        self.0.iter().map(|cpu| cpu[LONGEST]).max().unwrap_or_default()
    }

    /// Returns the longest exit of root's CPU, the first, and of all others, in instructions.
    pub fn longest_exits(&self) -> [u64; 2] {
        let [root, others @ ..] = &self.0;
        let longest = others.iter().map(|cpu| cpu[LONGEST]).max();
        [root[LONGEST], longest.unwrap_or_default()]
    }

    /// Returns the instructions by what executed them: on a machine of ours CPU 0 is root's and all others
    /// are the guest's; elsewhere only user space and the rest can be told apart, because a guest of KVM
    /// shares its CPU with the host.
    pub fn parts(&self, ours: bool) -> BTreeMap<String, u64> {
        let mut parts: BTreeMap<String, u64> = BTreeMap::new();
        for (cpu, [user, kernel, el2, _]) in self.0.iter().enumerate() {
            let names = match (ours, cpu) {
                (true, 0) => ["root user space", "root kernel", "EL2 on root's CPU"],
                (true, _) => ["guest user space", "guest kernel", "EL2 on the guest's CPU"],
                (false, _) => ["lower half", "kernels", ""],
            };
            for (name, count) in names.into_iter().zip([user, kernel, el2]) {
                if !name.is_empty() {
                    *parts.entry(name.to_owned()).or_default() += count;
                }
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::{CLASSES, CPUS, Counters, Snapshot};

    #[test]
    fn reads_what_was_counted() {
        let dir = tempfile::tempdir().unwrap();
        let counters = Counters::create(dir.path().join("c")).unwrap();
        let before = counters.read().unwrap();
        let mut data = vec![0; CLASSES * CPUS * 8];
        data[..8].copy_from_slice(&5u64.to_le_bytes());
        data[16..24].copy_from_slice(&7u64.to_le_bytes());
        data[24..32].copy_from_slice(&11u64.to_le_bytes());
        data[CLASSES * 8 + 8..CLASSES * 8 + 16].copy_from_slice(&9u64.to_le_bytes());
        fs::write(&counters.file, data).unwrap();
        let snapshot = counters.read().unwrap();
        assert_eq!(snapshot.since(&snapshot).longest_exit(), 11);
        assert_eq!(snapshot.longest_exits(), [11, 0]);
        let parts = snapshot.since(&before).parts(true);
        assert_eq!(parts["root user space"], 5);
        assert_eq!(parts["EL2 on root's CPU"], 7);
        assert_eq!(parts["guest kernel"], 9);
        counters.begin_stays().unwrap();
        let snapshot = counters.read().unwrap();
        assert_eq!(snapshot.longest_exit(), 0);
        assert_eq!(
            snapshot.since(&before).parts(true),
            parts,
            "nothing else was touched"
        );
    }

    #[test]
    fn elsewhere_only_halves_are_told_apart() {
        let mut snapshot = Snapshot([[0; CLASSES]; CPUS]);
        snapshot.0[0] = [1, 2, 0, 0];
        assert_eq!(
            snapshot.parts(false),
            BTreeMap::from([("lower half".into(), 1), ("kernels".into(), 2)])
        );
    }
}
