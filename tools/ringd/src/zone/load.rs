//! Fills a zone's RAM: kernel, initial RAM disk, device tree, then the caches are cleaned.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use ringvisor::abi::machine::RAM_BASE;

use super::ZoneError;
use crate::boot::fdt::{self, Machine, Seed};
use crate::boot::kernel::Kernel;
use crate::boot::layout;
use crate::config::{ConfigError, ZoneConfig, quoted};
use crate::host::Ram;

/// Where vCPU 0 begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical address of its first instruction.
    pub address: u64,
    /// Its first argument: guest-physical address of the device tree.
    pub x0: u64,
}

/// What is loaded, read and checked before anything is taken from root.
pub struct Images {
    kernel: Kernel,
    /// Offset from RAM's base, and bytes.
    initrd: Option<(u64, Vec<u8>)>,
}

/// Reads kernel and initial RAM disk.
///
/// # Errors
/// A file cannot be read, is no kernel, or does not fit.
pub fn read(config: &ZoneConfig) -> Result<Images, ConfigError> {
    let start = Instant::now();
    let kernel = Kernel::parse(read_file(config, "kernel", &config.kernel)?, config.memory);
    let kernel = kernel.map_err(|cause| config.unusable("kernel", &config.kernel, cause))?;
    let initrd = match &config.initrd {
        None => None,
        Some(path) => {
            let bytes = read_file(config, "initrd", path)?;
            let offset = layout::initrd_offset(&kernel, bytes.len() as u64, config.memory);
            Some((
                offset.map_err(|cause| config.unusable("initrd", path, cause))?,
                bytes,
            ))
        }
    };
    tracing::debug!(zone = config.name, took = ?start.elapsed(), "images read");
    Ok(Images { kernel, initrd })
}

fn read_file(config: &ZoneConfig, key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    let read = ringblk::opener::open(path, false, 0).and_then(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    read.map_err(|error| {
        config.bad(
            key,
            quoted(&path.display().to_string()),
            format!("a file that can be read: {error}"),
        )
    })
}

/// Puts the images into `ram`, with a device tree for the zone's disks and spare drives.
///
/// # Errors
/// The device tree cannot be made of the configuration, or RAM is not what it should be.
pub fn fill(config: &ZoneConfig, images: &Images, ram: &Ram) -> Result<Entry, ZoneError> {
    let start = Instant::now();
    let broken = |cause| ZoneError::Ram {
        name: config.name.clone(),
        cause,
    };
    let initrd = images.initrd.as_ref();
    let range = initrd.map(|(offset, bytes)| {
        let start = RAM_BASE.saturating_add(*offset);
        (start, start.saturating_add(bytes.len() as u64))
    });
    let seed = seed().map_err(|cause| ZoneError::Host {
        name: config.name.clone(),
        what: "random numbers for the guest".into(),
        cause,
    })?;
    let tree = fdt::build(&Machine {
        vcpus: config.cpus.count(),
        memory: config.memory,
        cmdline: &config.cmdline,
        initrd: range,
        slots: config.slots(),
        seed: &seed,
    });
    let tree = tree.map_err(|error| config.bad("cmdline", quoted(&config.cmdline), error))?;
    ram.write(images.kernel.offset, &images.kernel.bytes)
        .map_err(broken)?;
    if let Some((offset, bytes)) = initrd {
        ram.write(*offset, bytes).map_err(broken)?;
    }
    ram.write(0, &tree).map_err(broken)?;
    let copied = start.elapsed();
    ram.clean_caches().map_err(broken)?;
    tracing::debug!(zone = config.name, ?copied, total = ?start.elapsed(), "RAM filled, caches cleaned");
    Ok(Entry {
        address: images.kernel.entry(),
        x0: RAM_BASE,
    })
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
