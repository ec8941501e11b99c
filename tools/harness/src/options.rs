//! What the user may choose about a machine. Every option is also a variable of the Makefile, of the same
//! name in capitals; an empty variable counts as none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use image::Flavour;

use crate::board::Board;

/// The machine to boot.
#[derive(Debug, Clone, Default, Args)]
pub struct MachineOptions {
    /// The board: a folder below `platform/`.
    #[arg(long, env = "BOARD")]
    pub board: Option<String>,
    /// The QEMU program, or `10` for QEMU 10 from Debian's backports, kept in the cache.
    #[arg(long, env = "QEMU")]
    pub qemu: Option<String>,
    /// More arguments for QEMU, split as a shell would.
    #[arg(long, env = "QEMU_ARGS", allow_hyphen_values = true)]
    pub qemu_args: Option<String>,
    /// CPU model.
    #[arg(long, env = "CPU")]
    pub cpu: Option<String>,
    /// Number of CPUs.
    #[arg(long, env = "SMP")]
    pub smp: Option<String>,
    /// Memory, such as 2G.
    #[arg(long, env = "MEM")]
    pub mem: Option<String>,
    /// Root's kernel: `cloud` (6.12), `generic` (6.1), or the path of an arm64 Image.
    #[arg(long, env = "ROOT_KERNEL")]
    pub root_kernel: Option<String>,
    /// More words for root's kernel command line; with `bench` for every guest's, too.
    #[arg(long, env = "BOOTARGS", allow_hyphen_values = true)]
    pub bootargs: Option<String>,
    /// The hypervisor binary, or `none` to boot root's Linux directly on QEMU.
    #[arg(long, env = "HYPERVISOR")]
    pub hypervisor: Option<String>,
    /// Words for the hypervisor's command line, such as `loglevel=debug`.
    #[arg(long, env = "EL2_ARGS", allow_hyphen_values = true)]
    pub el2_args: Option<String>,
    /// Starts root's Linux in EL2 though there is no hypervisor, so that it can use KVM. For the harness
    /// itself.
    #[arg(skip)]
    pub nested: bool,
    /// More disks: an id and a disk image each. For the harness itself.
    #[arg(skip)]
    pub disks: Vec<(String, PathBuf)>,
}

/// Root's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKernel {
    /// One of Debian's, with its modules.
    Debian(Flavour),
    /// Any arm64 Image file, with the modules of Debian's cloud kernel, if they fit.
    File(PathBuf),
}

/// The hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hypervisor {
    /// The one that was built.
    Built,
    /// Another binary.
    Binary(PathBuf),
    /// None: root's Linux runs directly on QEMU, the baseline for comparisons.
    None,
}

/// Returns `None` for an empty variable.
pub fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).map(str::trim).filter(|v| !v.is_empty())
}

impl MachineOptions {
    /// Reads the board's description.
    ///
    /// # Errors
    /// There is no such board, or its description is wrong.
    pub fn board(&self, project: &Path) -> Result<Board> {
        Board::read(project, given(self.board.as_ref()))
    }

    /// Returns the number of CPUs, or `default`.
    ///
    /// # Errors
    /// It is not a number from 1 to 512.
    pub fn smp(&self, default: u32) -> Result<u32> {
        let Some(text) = given(self.smp.as_ref()) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(n @ 1..=512) => Ok(n),
            _ => bail!("SMP={text}: expected a number of CPUs from 1 to 512"),
        }
    }

    /// Returns the memory as QEMU takes it, or `default`.
    ///
    /// # Errors
    /// It is not a size.
    pub fn mem(&self, default: &str) -> Result<String> {
        let text = given(self.mem.as_ref()).unwrap_or(default);
        let number = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text);
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            bail!("MEM={text}: expected a size such as 512M or 2G");
        }
        Ok(text.to_owned())
    }

    /// Root's kernel.
    ///
    /// # Errors
    /// It is neither a known name nor a file.
    pub fn root_kernel(&self) -> Result<RootKernel> {
        let Some(text) = given(self.root_kernel.as_ref()) else {
            return Ok(RootKernel::Debian(Flavour::Cloud));
        };
        if let Ok(flavour) = Flavour::from_str(text, false) {
            return Ok(RootKernel::Debian(flavour));
        }
        let path = PathBuf::from(text);
        if !path.is_file() {
            bail!("ROOT_KERNEL={text}: expected cloud, generic, or the path of an arm64 Image");
        }
        Ok(RootKernel::File(path))
    }

    /// The hypervisor.
    ///
    /// # Errors
    /// It is neither `none` nor a file.
    pub fn hypervisor(&self) -> Result<Hypervisor> {
        match given(self.hypervisor.as_ref()) {
            None => Ok(Hypervisor::Built),
            Some("none") => Ok(Hypervisor::None),
            Some(path) if PathBuf::from(path).is_file() => Ok(Hypervisor::Binary(path.into())),
            Some(path) => bail!("HYPERVISOR={path}: expected none or the path of a binary"),
        }
    }

    /// QEMU's additional arguments.
    ///
    /// # Errors
    /// A quote is not closed.
    pub fn qemu_args(&self) -> Result<Vec<String>> {
        let Some(text) = given(self.qemu_args.as_ref()) else {
            return Ok(Vec::new());
        };
        shell_words::split(text).with_context(|| format!("QEMU_ARGS={text}"))
    }
}

#[cfg(test)]
mod tests {
    use image::Flavour;

    use super::{Hypervisor, MachineOptions, RootKernel};

    fn with(edit: impl FnOnce(&mut MachineOptions)) -> MachineOptions {
        let mut options = MachineOptions::default();
        edit(&mut options);
        options
    }

    #[test]
    fn empty_variables_are_defaults() {
        let options = with(|o| {
            o.smp = Some(String::new());
            o.mem = Some(" ".into());
            o.hypervisor = Some(String::new());
        });
        assert_eq!(options.smp(4).unwrap(), 4);
        assert_eq!(options.mem("2G").unwrap(), "2G");
        assert_eq!(options.hypervisor().unwrap(), Hypervisor::Built);
        assert_eq!(options.root_kernel().unwrap(), RootKernel::Debian(Flavour::Cloud));
    }

    #[test]
    fn wrong_values_are_named() {
        for (options, word) in [
            (
                with(|o| o.smp = Some("many".into())).smp(4).map(|_| ()),
                "SMP=many",
            ),
            (with(|o| o.smp = Some("0".into())).smp(4).map(|_| ()), "SMP=0"),
            (
                with(|o| o.mem = Some("2Q".into())).mem("2G").map(|_| ()),
                "MEM=2Q",
            ),
            (
                with(|o| o.root_kernel = Some("bsd".into()))
                    .root_kernel()
                    .map(|_| ()),
                "ROOT_KERNEL=bsd",
            ),
            (
                with(|o| o.hypervisor = Some("/no".into()))
                    .hypervisor()
                    .map(|_| ()),
                "HYPERVISOR=/no",
            ),
            (
                with(|o| o.qemu_args = Some("-x 'y".into()))
                    .qemu_args()
                    .map(|_| ()),
                "QEMU_ARGS",
            ),
        ] {
            let error = format!("{:#}", options.unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn qemu_args_are_split_as_a_shell_would() {
        let options = with(|o| o.qemu_args = Some("-drive 'file=a b,if=none' -S".into()));
        assert_eq!(options.qemu_args().unwrap(), ["-drive", "file=a b,if=none", "-S"]);
    }
}
