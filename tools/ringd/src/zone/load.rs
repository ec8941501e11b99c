//! Fills a zone's RAM: kernel, initial RAM disk, device tree, then the caches are cleaned. [`super::flash`]
//! has what goes to flash.

use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

use ringblk::Opener;
use ringvisor::abi::machine::{FLASH_BASE, RAM_BASE};

use super::flash;
use crate::boot::content::Content;
use crate::boot::fdt::{self, Machine, Seed};
use crate::boot::kernel::Kernel;
use crate::boot::layout::{FDT_MAX, Layout};
use crate::config::{ZoneConfig, quoted};
use crate::host::Ram;
use crate::host::ram::Share;

/// The entry point of vCPU 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical address of its first instruction.
    pub address: u64,
    /// Its first argument: guest-physical address of the device tree, or 0 for firmware.
    pub x0: u64,
}

/// The files to load, checked before anything is taken from root.
pub enum BootFiles {
    /// For RAM.
    Kernel(KernelFiles),
    /// For flash: the firmware.
    Firmware(Content),
}

/// A kernel and what goes with it.
pub struct KernelFiles {
    kernel: Kernel,
    initrd: Option<Content>,
    layout: Layout,
}

/// Opens firmware, or kernel and initial RAM disk, and reads as much of them as determines their format and
/// place.
///
/// # Errors
/// A file cannot be read, is no kernel, or does not fit.
pub fn open(opener: &dyn Opener, config: &ZoneConfig) -> anyhow::Result<BootFiles> {
    let start = Instant::now();
    let file = open_file(opener, config, config.kernel_key(), &config.kernel)?;
    let opened = if config.flash.is_some() {
        flash::check_firmware(&file).map_err(|cause| config.unusable("firmware", &config.kernel, cause))?;
        BootFiles::Firmware(file)
    } else {
        BootFiles::Kernel(open_kernel(opener, config, file)?)
    };
    tracing::debug!(zone = config.name, took = ?start.elapsed(), "boot files opened");
    Ok(opened)
}

fn open_kernel(opener: &dyn Opener, config: &ZoneConfig, kernel: Content) -> anyhow::Result<KernelFiles> {
    let kernel = Kernel::parse(kernel, config.load, config.memory)
        .map_err(|cause| config.unusable("kernel", &config.kernel, cause))?;
    let initrd = match &config.initrd {
        None => None,
        Some(path) => Some(open_file(opener, config, "initrd", path)?),
    };
    let len = initrd.as_ref().map_or(0, Content::len);
    let layout = Layout::new(&kernel, len, config.memory).map_err(|cause| match &config.initrd {
        Some(path) => config.unusable("initrd", path, cause),
        None => config.unusable("kernel", &config.kernel, cause),
    })?;
    Ok(KernelFiles {
        kernel,
        initrd,
        layout,
    })
}

fn open_file(opener: &dyn Opener, config: &ZoneConfig, key: &str, path: &Path) -> anyhow::Result<Content> {
    let opened = opener
        .open(path, false, libc::O_NONBLOCK | libc::O_NOCTTY)
        .and_then(Content::of);
    opened.map_err(|error| {
        config.bad(
            key,
            quoted(&path.display().to_string()),
            format!("a file that can be read: {error}"),
        )
    })
}

/// Puts a kernel into `ram`, with a device tree for the zone's virtio slots, and cleans the caches with a
/// share of root's CPUs. Of firmware, which is in flash, the device tree alone, at the start of RAM.
///
/// # Errors
/// A file cannot be read, the device tree cannot be made of the configuration, or RAM is not what it should
/// be.
pub fn fill(config: &ZoneConfig, files: &BootFiles, ram: &Ram, share: Share) -> anyhow::Result<Entry> {
    let start = Instant::now();
    let broken = |cause: &dyn Display| config.failed(cause);
    let (entry, tree) = match files {
        BootFiles::Kernel(files) => {
            fill_kernel(config, files, ram)?;
            let x0 = RAM_BASE.saturating_add(files.layout.tree);
            let address = files.kernel.entry;
            (Entry { address, x0 }, files.layout.tree)
        }
        // As after a reset under QEMU.
        BootFiles::Firmware(_) => {
            let address = FLASH_BASE;
            (Entry { address, x0: 0 }, 0)
        }
    };
    let described = device_tree(config, files)?;
    ram.write(tree, &described).map_err(|cause| broken(&cause))?;
    let copied = start.elapsed();
    ram.clean_caches(share).map_err(|cause| broken(&cause))?;
    tracing::debug!(zone = config.name, ?copied, total = ?start.elapsed(), "RAM filled, caches cleaned");
    Ok(entry)
}

fn fill_kernel(config: &ZoneConfig, files: &KernelFiles, ram: &Ram) -> anyhow::Result<()> {
    let KernelFiles {
        kernel,
        initrd,
        layout,
    } = files;
    let put = |key, path: &Path, offset, content, part| {
        ram.put(offset, content, part)
            .map_err(|cause| config.unusable(key, path, cause))
    };
    for segment in &kernel.segments {
        put(
            "kernel",
            &config.kernel,
            segment.offset,
            &kernel.content,
            &segment.file,
        )?;
        let copied = segment.file.end.saturating_sub(segment.file.start);
        if segment.zeroes {
            let rest = segment.size.saturating_sub(copied);
            ram.clear(segment.offset.saturating_add(copied), rest)
                .map_err(|cause| config.failed(cause))?;
        }
    }
    if let (Some(content), Some(path)) = (initrd, &config.initrd) {
        put("initrd", path, layout.initrd, content, &(0..content.len()))?;
    }
    Ok(())
}

fn device_tree(config: &ZoneConfig, files: &BootFiles) -> anyhow::Result<Vec<u8>> {
    let initrd = match files {
        BootFiles::Kernel(KernelFiles {
            initrd: Some(content),
            layout,
            ..
        }) => {
            let start = RAM_BASE.saturating_add(layout.initrd);
            Some((start, start.saturating_add(content.len())))
        }
        _ => None,
    };
    let seed = seed().map_err(|cause| config.failed(format!("random numbers for the guest: {cause}")))?;
    let tree = fdt::build(&Machine {
        vcpus: config.cpus.count(),
        memory: config.memory,
        cmdline: &config.cmdline,
        initrd,
        slots: config.devices.slots().len(),
        firmware: config.flash.is_some(),
        seed: &seed,
    });
    let tree = tree.map_err(|error| config.bad("cmdline", quoted(&config.cmdline), error))?;
    if tree.len() as u64 > FDT_MAX {
        let len = tree.len();
        return Err(config.failed(format!(
            "its device tree has {len} bytes, expected at most {FDT_MAX}"
        )));
    }
    Ok(tree)
}

fn seed() -> std::io::Result<Seed> {
    let mut bytes = [0; 72];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    let (rng, kaslr) = bytes.split_at(64);
    let mut seed = Seed {
        rng: [0; 64],
        kaslr: 0,
    };
    seed.rng.copy_from_slice(rng);
    seed.kaslr = kaslr.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Ok(seed)
}
