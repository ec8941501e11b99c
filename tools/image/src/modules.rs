//! Picks kernel modules with everything they depend on, as their own `.modinfo` says. `depmod` would
//! need all modules, unpacked; cyclic dependencies do not exist among modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::cmd;

/// The modules below one `lib/modules/<version>`.
#[derive(Debug)]
pub struct Modules {
    /// From the module's name (with underscores) to its file.
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Lists the modules below `dir`.
    ///
    /// # Errors
    /// `dir` or its `modules.builtin` cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let builtin = fs::read_to_string(dir.join("modules.builtin"))
            .with_context(|| format!("cannot read {}/modules.builtin", dir.display()))?;
        let builtin = builtin
            .lines()
            .filter_map(|line| name_of(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        collect(&dir.join("kernel"), &mut files)?;
        Ok(Self { files, builtin })
    }

    /// Returns `wanted` and all they depend on. What is built in needs no file. A name followed by `?` may be
    /// missing.
    ///
    /// # Errors
    /// A module is neither a file nor built in, or cannot be read.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut found = BTreeMap::new();
        for name in wanted {
            self.visit(
                &name.trim_end_matches('?').replace('-', "_"),
                name.ends_with('?'),
                &mut found,
            )?;
        }
        Ok(found.into_values().collect())
    }

    /// Adds `name` and what it needs to `found`; returns the files it needs loaded, in order, itself last.
    fn visit(
        &self,
        name: &str,
        optional: bool,
        found: &mut BTreeMap<String, Module>,
    ) -> Result<Vec<PathBuf>> {
        if let Some(known) = found.get(name) {
            return Ok(known.with_needs());
        }
        let Some(file) = self.files.get(name) else {
            if optional || self.builtin.contains(name) {
                return Ok(Vec::new());
            }
            bail!("the kernel has no module {name}");
        };
        let elf = read(file)?;
        let mut needs = Vec::new();
        for (other, soft) in dependencies(&elf).with_context(|| format!("cannot read {}", file.display()))? {
            for path in self.visit(&other, soft, found)? {
                if !needs.contains(&path) {
                    needs.push(path);
                }
            }
        }
        let module = Module {
            file: file.clone(),
            needs,
        };
        let files = module.with_needs();
        found.insert(name.to_owned(), module);
        Ok(files)
    }
}

/// A module and what must be loaded before it.
#[derive(Debug)]
pub struct Module {
    /// The module's file.
    pub file: PathBuf,
    /// Other modules' files in the order they are to be loaded.
    pub needs: Vec<PathBuf>,
}

impl Module {
    fn with_needs(&self) -> Vec<PathBuf> {
        self.needs.iter().chain([&self.file]).cloned().collect()
    }
}

/// Returns the contents of a module, decompressed.
///
/// # Errors
/// The file cannot be read or its decompressor is missing.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
    };
    cmd::output(cmd::command(program).arg("-dc").arg(file))
}

/// Returns `virtio_blk` for `.../virtio-blk.ko.xz`; `None` for what is no module.
fn name_of(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = name_of(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// Names from `depends=`, and as optional ones from `softdep=pre:`.
fn dependencies(elf: &[u8]) -> Result<Vec<(String, bool)>> {
    let file = object::File::parse(elf)?;
    let section = file.section_by_name(".modinfo").context("no .modinfo section")?;
    let mut result = Vec::new();
    for entry in section.data()?.split(|&b| b == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        if let Some(names) = entry.strip_prefix("depends=") {
            result.extend(
                names
                    .split(',')
                    .filter(|n| !n.is_empty())
                    .map(|n| (n.replace('-', "_"), false)),
            );
        } else if let Some(soft) = entry.strip_prefix("softdep=") {
            result.extend(
                soft.split_whitespace()
                    .filter(|n| !n.ends_with(':'))
                    .map(|n| (n.replace('-', "_"), true)),
            );
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{Modules, name_of};

    #[test]
    fn names_of_module_files() {
        assert_eq!(
            name_of(Path::new("kernel/drivers/block/virtio-blk.ko.xz")).as_deref(),
            Some("virtio_blk")
        );
        assert_eq!(
            name_of(Path::new("kernel/fs/ext4/ext4.ko")).as_deref(),
            Some("ext4")
        );
        assert_eq!(name_of(Path::new("modules.order")), None);
    }

    #[test]
    fn built_in_and_optional_modules_need_no_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let modules = Modules::open(dir.path()).unwrap();
        assert!(modules.closure(&["ext4", "nosuch?"]).unwrap().is_empty());
        assert!(
            modules
                .closure(&["nosuch"])
                .unwrap_err()
                .to_string()
                .contains("nosuch")
        );
    }
}
