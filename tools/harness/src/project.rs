//! Where the project and what is built of it are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The project as built on this host.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its top directory.
    pub dir: PathBuf,
}

impl Project {
    /// Finds the project that this program was built from.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn find() -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let dir = dir
            .canonicalize()
            .with_context(|| format!("the project is not at {} any more", dir.display()))?;
        Ok(Self { dir })
    }

    /// Returns cargo's target directory.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) if !dir.is_empty() => self.dir.join(dir),
            _ => self.dir.join("target"),
        }
    }

    /// Returns the path of the hypervisor binary.
    pub fn hypervisor(&self) -> PathBuf {
        self.dir.join("build/ringvisor.bin")
    }

    /// Returns the path of the hypervisor with its symbols.
    pub fn hypervisor_elf(&self) -> PathBuf {
        self.target()
            .join("aarch64-unknown-none-softfloat/release/ringvisor")
    }

    /// Returns the programs for root's path, as far as they are built.
    pub fn root_programs(&self) -> Vec<PathBuf> {
        let dir = self.target().join("aarch64-unknown-linux-musl/daemon");
        ["ringd", "ringctl"]
            .iter()
            .map(|name| dir.join(name))
            .filter(|p| p.is_file())
            .collect()
    }

    /// Returns the path of this program, for scripts that call it. Not the running file: a build meanwhile
    /// replaces it.
    pub fn harness(&self) -> PathBuf {
        self.target().join("debug/harness")
    }

    /// Returns the files for `/srv/zones` besides the zone files, as far as they are built.
    pub fn zone_payloads(&self) -> Vec<PathBuf> {
        let payload = self.dir.join("build/guest-test.bin");
        payload.is_file().then_some(payload).into_iter().collect()
    }

    /// Returns the programs that lie beside the system tests, as far as they are built.
    pub fn test_programs(&self) -> Vec<PathBuf> {
        let program = self
            .target()
            .join("aarch64-unknown-linux-musl/daemon/hostile-worker");
        program.is_file().then_some(program).into_iter().collect()
    }
}
