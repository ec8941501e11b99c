//! The cache directory: content-addressed files and directories that appear whole or not at all.
//!
//! A thing is built under `tmp/` and renamed to `<name>-<key>` when complete, so an interrupted build leaves
//! nothing that a later one would trust. One process builds at a time ([`Cache::lock`]); finding what is
//! already there needs no lock.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// Names the cache directory when set; otherwise it is `.cache` at the top of the project.
pub const CACHE_VARIABLE: &str = "RINGVISOR_CACHE";

/// How long a thing that nothing asks for any more is kept.
const KEEP: Duration = Duration::from_secs(3 * 24 * 3600);

/// An open cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held by the process that builds; released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// Opens the project's cache, creating it when missing.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(project: &Path) -> Result<Self> {
        // Empty is as not set, as for all that make exports.
        let root = std::env::var_os(CACHE_VARIABLE)
            .filter(|root| !root.is_empty())
            .map_or_else(|| project.join(".cache"), PathBuf::from);
        Self::at(&root)
    }

    /// Opens the cache in `root`.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root.join("tmp")).with_context(|| format!("cannot create {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other process builds, then drops what an interrupted one left behind.
    ///
    /// # Errors
    /// The lock file cannot be created or locked.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        // Finding things takes a moment, making them takes longer: only a long wait is reported.
        for _ in 0..60 {
            if file.try_lock().is_ok() {
                return self.locked(file);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        crate::cmd::step("waiting for another process that is filling the cache");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        self.locked(file)
    }

    fn locked(&self, file: File) -> Result<Lock> {
        for entry in fs::read_dir(self.root.join("tmp"))?.flatten() {
            remove(&entry.path())?;
        }
        Ok(Lock { _file: file })
    }

    /// Returns where the thing `name` with inputs `key` is or would be.
    pub fn path(&self, name: &str, key: &Key) -> PathBuf {
        self.root.join(key.name(name))
    }

    /// Returns the thing `name` with inputs `key`; `build` makes it at the path given to it when it is not
    /// there.
    ///
    /// # Errors
    /// Those of `build`, and failures of the file system.
    pub fn publish(
        &self,
        _lock: &Lock,
        name: &str,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(name, key);
        if path.exists() {
            return Ok(path);
        }
        let temporary = self.root.join("tmp").join(name);
        remove(&temporary)?;
        build(&temporary).with_context(|| format!("cannot make {name}"))?;
        // What was unpacked may have the time of its archive, and would be taken for old.
        File::open(&temporary)?.set_modified(SystemTime::now())?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot put {} in place", path.display()))?;
        self.prune(name, &path);
        Ok(path)
    }

    /// Drops old versions of `name` other than `current`. Failure costs disk space only, so it is not
    /// reported.
    fn prune(&self, name: &str, current: &Path) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let Some(rest) = file_name.to_str().and_then(|f| f.strip_prefix(name)) else {
                continue;
            };
            let is_version = rest.len() == 17 && rest.starts_with('-');
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > KEEP));
            if is_version && old && entry.path() != current {
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Removes a file or a directory tree; it is no error when it does not exist.
fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}

/// A hash of all inputs of a thing. A new Rust release may change the function: then everything is made anew
/// once.
#[derive(Debug, Default, Clone)]
pub struct Key(DefaultHasher);

impl Key {
    /// Starts with the version of the recipe, to be raised when the code that builds the thing changes.
    pub fn new(recipe: u32) -> Self {
        let mut key = Self::default();
        recipe.hash(&mut key.0);
        key
    }

    /// Adds an input.
    #[must_use]
    pub fn with(mut self, input: impl Hash) -> Self {
        input.hash(&mut self.0);
        self
    }

    /// Adds the contents of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.with(data))
    }

    /// Adds size and time of change of a large file, which stand for its contents.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn with_stat(self, path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.with(path).with(meta.len()).with(meta.modified()?))
    }

    /// Returns the file name of the thing `name` with these inputs.
    pub fn name(&self, name: &str) -> String {
        format!("{name}-{:016x}", self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Cache, Key};

    #[test]
    fn publishes_once_and_again_for_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let lock = cache.lock().unwrap();
        let key = Key::new(1).with("a");
        let first = cache
            .publish(&lock, "thing", &key, |p| Ok(fs::write(p, "one")?))
            .unwrap();
        let again = cache
            .publish(&lock, "thing", &key, |_| panic!("built twice"))
            .unwrap();
        assert_eq!(first, again);
        let other = cache
            .publish(&lock, "thing", &Key::new(1).with("b"), |p| {
                Ok(fs::write(p, "two")?)
            })
            .unwrap();
        assert_ne!(first, other);
        assert_eq!(fs::read_to_string(&first).unwrap(), "one");
    }

    #[test]
    fn a_failed_build_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let lock = cache.lock().unwrap();
        let key = Key::new(1);
        let result = cache.publish(&lock, "thing", &key, |p| {
            fs::create_dir(p)?;
            fs::write(p.join("half"), "x")?;
            anyhow::bail!("power cut")
        });
        assert!(result.is_err());
        assert!(!cache.path("thing", &key).exists());
        drop(lock);
        let _lock = cache.lock().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }
}
