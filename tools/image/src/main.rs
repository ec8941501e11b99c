//! Command line of the image tool: makes what a machine boots and prints where it is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use image::{BootFiles, Cache, Flavour, bootable, firmware, machine, programs, qemu};

/// Makes what a ringvisor machine boots, from Debian arm64 packages.
#[derive(Parser)]
struct Arguments {
    /// The project's directory.
    #[arg(long, default_value = ".")]
    project: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Root's kernel, initramfs and disk.
    Root {
        /// Which of Debian's kernels.
        #[arg(long, value_enum, default_value = "cloud")]
        kernel: Flavour,
    },
    /// A guest's kernel, initramfs and disk.
    Guest {
        /// Which of Debian's kernels.
        #[arg(long, value_enum, default_value = "cloud")]
        kernel: Flavour,
    },
    /// A disk with git, SQLite and tar, for a test's guest.
    Programs,
    /// A disk with qemu-storage-daemon, qemu-nbd, nbd-client and kexec, for tests in root.
    Storage,
    /// A disk that a guest's firmware boots from, by GRUB or by extlinux.conf.
    Bootable,
    /// U-Boot and EDK2 for a zone's flash, in a directory.
    Firmware,
    /// QEMU 10 from Debian's backports, for this machine.
    Qemu10,
    /// A disk with QEMU 10 for root, to run guests under KVM.
    QemuRoot,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let cache = Cache::open(&arguments.project)?;
    let all = |files: BootFiles| vec![files.kernel, files.initramfs, files.disk];
    let made = match arguments.what {
        What::Root { kernel } => all(machine::root_files(&cache, kernel)?),
        What::Guest { kernel } => all(machine::guest_files(&cache, kernel)?),
        What::Programs => vec![programs::disk(&cache)?],
        What::Storage => vec![programs::storage(&cache)?],
        What::Bootable => vec![bootable::disk(&cache)?],
        What::Firmware => vec![firmware::obtain(&cache)?],
        What::QemuRoot => vec![qemu::root_disk(&cache)?],
        What::Qemu10 => vec![qemu::obtain(&cache)?],
    };
    for path in made {
        println!("{}", path.display());
    }
    Ok(())
}
