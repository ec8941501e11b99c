//! A directory for the files of one run of a machine, removed at its end. What a killed run left behind is
//! removed by the next one: each directory holds a file that is locked while its owner lives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The directory.
#[derive(Debug)]
pub struct RunDir {
    dir: TempDir,
    _lock: File,
}

impl RunDir {
    /// Makes a directory below `parent`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(parent: &Path) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        sweep(parent);
        let dir = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
        let lock = File::create(dir.path().join("lock"))?;
        lock.lock()?;
        Ok(Self { dir, _lock: lock })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Removes directories whose owner is gone. A directory that is just being made has no lock file yet and
/// stays.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            // Failure costs disk space only.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::RunDir;

    #[test]
    fn a_dead_run_is_swept_and_a_living_one_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let living = RunDir::create(parent.path()).unwrap();
        let dead = parent.path().join("run-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        let second = RunDir::create(parent.path()).unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists() && second.path().exists());
    }
}
