//! Opening the disk of a drive, and the settings that may be changed while it is in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringblk::remote::KnownGeometry;
use ringblk::{Disk, DiskError, OnError, OpenContext, OpenOptions};
use ringvirtio::{Rate, RateLimits};

use super::SECTOR;
use super::config::{DiskConfig, DiskLimits, Limit};
use crate::config::ZoneConfig;
use crate::device::context::TakeOver;
use crate::instance;

/// How long to wait for an image that is locked: its owner may be a zone that has just ended.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How long a take-over waits for I/O that a dead daemon left in the kernel before it reports that it waits.
const TAKEOVER_WAIT: Duration = Duration::from_millis(250);
/// Where `blk_size` is in the configuration space (virtio 1.2, 5.2.4).
const BLK_SIZE: std::ops::Range<usize> = 20..24;

/// Opens and locks what a zone's drive holds at its start, or as an earlier daemon left it.
///
/// # Errors
/// The image cannot be used.
pub fn drive(
    context: &OpenContext,
    config: &ZoneConfig,
    slot: u8,
    wanted: Option<&DiskConfig>,
    last: Option<&TakeOver<'_>>,
) -> anyhow::Result<Arc<Disk>> {
    let opened = match wanted {
        None => Ok(Disk::absent()),
        Some(wanted) => image(context, config, slot, wanted, last).map_err(|error| {
            let (key, path) = wanted.source();
            config.unusable(&format!("disk[{slot}].{key}"), path, error)
        }),
    };
    tracing::debug!(zone = config.name, slot, ok = opened.is_ok(), "image opened");
    opened
}

/// Opens and locks an image.
///
/// # Errors
/// It cannot be used.
pub fn image(
    context: &OpenContext,
    config: &ZoneConfig,
    slot: u8,
    wanted: &DiskConfig,
    last: Option<&TakeOver<'_>>,
) -> Result<Arc<Disk>, DiskError> {
    let image = ringblk::DiskConfig {
        path: wanted.path.clone(),
        readonly: wanted.readonly,
        serial: wanted.serial.clone().unwrap_or_default(),
        engine: wanted.engine,
        format: wanted.format.unwrap_or_default(),
        cache: wanted.cache,
    };
    let mut options = OpenOptions {
        owner: Some(owner(&config.name, slot)),
        wait: LOCK_WAIT,
        known: None,
        // A guest may have written a header onto its disk since it was opened first.
        format_unstated: wanted.format.is_none() && last.is_none(),
    };
    let disk = match last {
        None => Disk::open_with(&image, context, &options)?,
        Some(last) => {
            let known = (last.guest_config)(slot).map(|shown| remembered(&shown, &image));
            (options.wait, options.known) = (TAKEOVER_WAIT, known);
            match (
                drained(context, &config.name, &image, &options, last.report_progress),
                known,
            ) {
                (Err(error), Some(known)) if wanted.on_error == OnError::Stop => {
                    tracing::error!(zone = config.name, slot, %error, "the disk is closed until it is resumed");
                    // Nothing was shown of one that was just being attached.
                    Disk::closed(&image, known).map_err(|_| error)?
                }
                (opened, _) => opened?,
            }
        }
    };
    configure(&disk, wanted);
    Ok(disk)
}

/// Applies the settings that may be changed while a disk is in use.
pub fn configure(disk: &Disk, wanted: &DiskConfig) {
    disk.control().set_on_error(wanted.on_error);
    disk.control().throttle.set_limits(rate_limits(&wanted.limits));
}

/// Returns the rate limits as the block device has them.
pub fn rate_limits(limits: &DiskLimits) -> RateLimits {
    let rate = |limit: &Limit| Rate {
        rate: limit.rate.unwrap_or(0),
        burst: limit.burst(),
    };
    RateLimits {
        iops: rate(&limits.iops),
        bytes: rate(&limits.bps),
    }
}

/// Returns a disk as the guest was shown it in the configuration space (virtio 1.2, 5.2.4).
fn remembered(shown: &[u8; 256], image: &ringblk::DiskConfig) -> KnownGeometry {
    let [a, b, c, d, e, f, g, h, ..] = *shown;
    let sectors = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let block_size = shown.get(BLK_SIZE).and_then(|bytes| bytes.try_into().ok());
    KnownGeometry {
        size: sectors.saturating_mul(SECTOR),
        block_size: block_size.map_or(SECTOR as u32, u32::from_le_bytes),
        readonly: image.readonly,
    }
}

/// Opens an image that requests of a dead daemon may still hold, and waits for them without a limit: they may
/// still write into the guest's memory. A remote disk has no lock: its server answers when the dead daemon's
/// requests have completed, and if it does not, the disk waits for it, not the zone.
fn drained(
    context: &OpenContext,
    zone: &str,
    image: &ringblk::DiskConfig,
    options: &OpenOptions,
    report_progress: &dyn Fn(&str),
) -> Result<Arc<Disk>, DiskError> {
    let begin = Instant::now();
    let mut said = None::<Instant>;
    loop {
        let opened = Disk::open_with(image, context, options);
        let path = image.path.display();
        if !matches!(opened, Err(DiskError::Locked { .. })) {
            if said.is_some() {
                tracing::info!(zone, %path, waited = ?begin.elapsed(), "the image is unlocked");
                report_progress("taking over");
            }
            return opened;
        }
        if said.is_none_or(|said| said.elapsed() >= instance::REMINDER) {
            tracing::warn!(
                zone,
                %path,
                waited = ?begin.elapsed(),
                "the image is locked: I/O that the last daemon began has not completed, or another program uses it; waiting"
            );
            report_progress(&format!(
                "taking over: zone {zone} waits for I/O on {path} that the last daemon began"
            ));
            said = Some(Instant::now());
        }
    }
}

/// Returns a number for a disk's lock that is the same after a restart of the daemon (FNV-1a of zone and
/// slot).
fn owner(name: &str, slot: u8) -> u64 {
    let bytes = name.bytes().chain(usize::from(slot).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
