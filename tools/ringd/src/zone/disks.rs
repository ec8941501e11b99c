//! The disks of a zone: opening them, what EL2 shows of them, and what is done to them while the zone runs.
//!
//! A zone has as many virtio slots as it was started with, disks first, then spare ones. A slot without an image is a
//! drive without a medium: a block device of capacity 0. So a guest's driver is there before its disk is, and
//! attaching, detaching and resizing are all the same thing to it, a change of capacity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringblk::remote::KnownGeometry;
use ringblk::{Disk, DiskError, EngineKind, OpenContext, OpenOptions};
use ringvirtio::{Rate, RateLimits};
use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::DeviceSpec;
use serde::{Deserialize, Serialize};

use super::ZoneError;
use super::resources::Held;
use crate::config::{DiskConfig, DiskLimits, Engine, Limit, OnError, ZoneConfig, size::format_size};
use crate::instance;
use crate::io::Io;

/// Vendor id register of our devices: "RNGV".
const VENDOR_ID: u32 = u32::from_le_bytes(*b"RNGV");
/// How long an image is waited for that somebody else has just let go of.
pub const DISK_WAIT: Duration = Duration::from_secs(2);

/// How long a take-over waits for I/O that a dead daemon left in the kernel before it says so.
const TAKEOVER_GLANCE: Duration = Duration::from_millis(250);

/// How long to wait for an image that is locked.
pub enum Wait<'a> {
    /// So long: who holds it may be a zone that just ended.
    For(Duration),
    /// For ever, saying so: whoever holds it may still write into the guest's memory.
    UntilDrained(&'a TakeOver<'a>),
}

/// What is known of a zone's disks that an earlier daemon served.
pub struct TakeOver<'a> {
    /// Tells people what is waited for.
    pub say: &'a dyn Fn(&str),
    /// What the guest was shown of the disk in a slot.
    pub shown: &'a dyn Fn(usize) -> Option<[u8; 256]>,
}

/// What users may want of a zone's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskWish {
    /// Put a disk into a spare slot.
    Attach(Box<DiskConfig>),
    /// Take the disk out of a slot.
    Detach(u8),
    /// Change a disk's size, or look at its file's size again.
    Resize {
        /// The slot.
        slot: u8,
        /// Bytes; as the file is, if not given.
        size: Option<u64>,
        /// Even if that is less than it is.
        shrink: bool,
    },
    /// Change how fast it may be.
    Limit(u8, LimitChange),
    /// Try again what a disk has stopped at.
    Resume(u8),
    /// Move a disk to another image.
    Migrate {
        /// The slot.
        slot: u8,
        /// The image: what is not path, format, engine or cache is as if nothing were said.
        target: Box<DiskConfig>,
    },
    /// Leave a disk that is being moved where it is.
    EndMigration(u8),
}

/// Changes to a disk's limits: what is not given stays, 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitChange {
    /// Requests a second.
    pub iops: Option<u64>,
    /// Requests at once after a rest.
    pub iops_burst: Option<u64>,
    /// Bytes a second.
    pub bps: Option<u64>,
    /// Bytes at once after a rest.
    pub bps_burst: Option<u64>,
}

impl LimitChange {
    /// The limits of `disk` with these changes.
    fn apply(&self, disk: &mut DiskConfig) {
        change(&mut disk.limits.iops, self.iops, self.iops_burst);
        change(&mut disk.limits.bps, self.bps, self.bps_burst);
    }
}

/// A new rate has the burst that is given with it, or that of a zone file without one.
fn change(limit: &mut Limit, rate: Option<u64>, burst: Option<u64>) {
    if let Some(rate) = rate {
        *limit = Limit {
            rate: Some(rate).filter(|rate| *rate != 0),
            burst: None,
        };
    }
    if let Some(burst) = burst {
        limit.burst = Some(burst);
    }
}

/// What is in each slot of a zone as it begins.
#[must_use]
pub fn slots(config: &ZoneConfig) -> Vec<Option<DiskConfig>> {
    let disks = config.disk.iter().cloned().map(Some);
    disks
        .chain(std::iter::repeat(None))
        .take(config.slots())
        .collect()
}

/// Opens and locks the images of all slots.
///
/// # Errors
/// The first that cannot be used.
pub fn open_all(
    context: &OpenContext,
    config: &ZoneConfig,
    slots: &[Option<DiskConfig>],
    wait: &Wait<'_>,
) -> Result<Vec<Arc<Disk>>, ZoneError> {
    let mut disks = Vec::new();
    for (slot, wanted) in slots.iter().enumerate() {
        let opened = match wanted {
            Some(wanted) => open(context, config, slot, wanted, wait).map_err(|error| {
                let (key, path) = wanted.source();
                ZoneError::Config(config.unusable(&format!("disk[{slot}].{key}"), path, error))
            }),
            None => Ok(Disk::absent()),
        };
        tracing::debug!(zone = config.name, slot, ok = opened.is_ok(), "image opened");
        disks.push(opened?);
    }
    Ok(disks)
}

/// Opens and locks one.
///
/// # Errors
/// It cannot be used.
pub(super) fn open(
    context: &OpenContext,
    config: &ZoneConfig,
    slot: usize,
    wanted: &DiskConfig,
    wait: &Wait<'_>,
) -> Result<Arc<Disk>, DiskError> {
    let image = ringblk::DiskConfig {
        path: wanted.path.clone(),
        readonly: wanted.readonly,
        serial: wanted.serial.clone().unwrap_or_default(),
        engine: match wanted.engine {
            Engine::IoUring => EngineKind::IoUring,
            Engine::Threads => EngineKind::Threads,
        },
        format: wanted.format,
        cache: wanted.cache,
    };
    let owner = Some(owner(&config.name, slot));
    let disk = match wait {
        Wait::For(wait) => {
            let options = OpenOptions {
                owner,
                wait: *wait,
                known: None,
            };
            Disk::open_with(&image, context, &options)
        }
        Wait::UntilDrained(last) => {
            let known = (last.shown)(slot).map(|shown| remembered(&shown, &image));
            let options = OpenOptions {
                owner,
                wait: TAKEOVER_GLANCE,
                known,
            };
            let opened = open_drained(context, &config.name, &image, &options, last.say);
            match (opened, known) {
                (Err(error), Some(known)) if wanted.on_error == OnError::Stop => {
                    tracing::error!(zone = config.name, slot, %error, "the disk is released until it is resumed");
                    // Nothing was shown of one that was just being attached.
                    Disk::closed(&image, known).map_err(|_| error)
                }
                (opened, _) => opened,
            }
        }
    }?;
    configure(&disk, wanted);
    Ok(disk)
}

/// What may be changed while a disk is in use.
pub(super) fn configure(disk: &Disk, wanted: &DiskConfig) {
    disk.control().set_on_error(match wanted.on_error {
        OnError::Report => ringblk::OnError::Report,
        OnError::Stop => ringblk::OnError::Stop,
    });
    disk.control().throttle.set_limits(rates(&wanted.limits));
}

/// A disk as the guest sees it in its configuration space (virtio 1.2, 5.2.4).
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

/// Opens an image that requests of a dead daemon may still hold. Of a disk that a server has there is no lock: the server
/// answers when it has let go of the dead daemon's requests, and if it does not, the disk waits for it, not the zone.
fn open_drained(
    context: &OpenContext,
    zone: &str,
    image: &ringblk::DiskConfig,
    options: &OpenOptions,
    say: &dyn Fn(&str),
) -> Result<Arc<Disk>, DiskError> {
    let begin = Instant::now();
    let mut said = None::<Instant>;
    loop {
        let opened = Disk::open_with(image, context, options);
        let path = image.path.display();
        if !matches!(opened, Err(DiskError::Locked { .. })) {
            if said.is_some() {
                tracing::info!(zone, %path, waited = ?begin.elapsed(), "the image is free");
                say("taking over");
            }
            return opened;
        }
        if said.is_none_or(|said| said.elapsed() >= instance::REMINDER) {
            tracing::warn!(
                zone,
                %path,
                waited = ?begin.elapsed(),
                "the image is locked: I/O that the last daemon began has not ended, or another program uses it; waiting"
            );
            say(&format!(
                "taking over: zone {zone} waits for I/O on {path} that the last daemon began"
            ));
            said = Some(Instant::now());
        }
    }
}

/// Has the guest hear of it when a server's disk in this slot gets another size.
pub(super) fn watch_size(io: &Arc<Io>, zone: u8, slot: u8, disk: &Arc<Disk>) {
    let Some(remote) = disk.remote() else {
        return;
    };
    let (io, disk) = (Arc::downgrade(io), Arc::downgrade(disk));
    remote.on_resize(Box::new(move || {
        let (Some(io), Some(disk)) = (io.upgrade(), disk.upgrade()) else {
            return;
        };
        // It may have been exchanged.
        if !io.disk(zone, slot).is_some_and(|now| Arc::ptr_eq(&now, &disk)) {
            return;
        }
        if let Err(error) = disk.reread_capacity() {
            tracing::error!(zone, slot, %error, "a served disk's new size cannot be used");
        } else if let Err(error) = io.announce_capacity(zone, slot) {
            tracing::error!(zone, slot, %error, "cannot show a served disk's new size");
        }
    }));
}

fn rates(limits: &DiskLimits) -> RateLimits {
    let rate = |limit: &Limit| Rate {
        rate: limit.rate.unwrap_or(0),
        burst: limit.burst(),
    };
    RateLimits {
        iops: rate(&limits.iops),
        bytes: rate(&limits.bps),
    }
}

pub(super) fn refused(config: &ZoneConfig, slot: usize, cause: impl ToString) -> ZoneError {
    ZoneError::Disk {
        name: config.name.clone(),
        slot,
        cause: cause.to_string(),
    }
}

/// A number for a disk's lock that is the same after a restart of the daemon (FNV-1a of zone and slot).
fn owner(name: &str, slot: usize) -> u64 {
    let bytes = name.bytes().chain(slot.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Queues of a slot's device: as the zone file says, or one for each vCPU.
#[must_use]
pub fn queues(config: &ZoneConfig, disk: Option<&DiskConfig>) -> usize {
    let wanted = disk.and_then(|disk| disk.queues);
    let wanted = wanted.map_or(config.cpus.count(), |queues| {
        usize::try_from(queues).unwrap_or(MAX_QUEUES)
    });
    wanted.clamp(1, MAX_QUEUES)
}

/// What EL2 shows of a disk.
#[must_use]
pub fn specification(disk: &Disk, wanted: Option<&DiskConfig>, queues: usize) -> DeviceSpec {
    let count = u16::try_from(queues).unwrap_or(u16::MAX);
    let mut spec = DeviceSpec {
        device_id: ringblk::DEVICE_ID,
        vendor_id: VENDOR_ID,
        features: ringblk::features(disk, count),
        queues: queues as u32,
        config_len: ringblk::CONFIG_LEN as u32,
        queue_max: [0; MAX_QUEUES],
        config: [0; 256],
    };
    let config = ringblk::config(disk, ringblk::QUEUE_SIZE_MAX, count);
    for (to, from) in spec.config.iter_mut().zip(config) {
        *to = from;
    }
    if wanted.is_some_and(|disk| !disk.discard) {
        withhold_discard(&mut spec);
    }
    spec.queue_max
        .iter_mut()
        .take(queues)
        .for_each(|max| *max = ringblk::QUEUE_SIZE_MAX);
    spec
}

/// The guest is not offered to give blocks back: neither by DISCARD nor by WRITE_ZEROES with unmap (5.2.4).
fn withhold_discard(spec: &mut DeviceSpec) {
    const LIMITS: std::ops::Range<usize> = 36..48;
    const MAY_UNMAP: usize = 56;
    spec.features &= !(1 << ringblk::virtio::VIRTIO_BLK_F_DISCARD);
    let fields = LIMITS.chain([MAY_UNMAP]);
    for at in fields {
        if let Some(byte) = spec.config.get_mut(at) {
            *byte = 0;
        }
    }
}

impl Held {
    /// Does what is wanted; gives the slot that it was about.
    ///
    /// # Errors
    /// It cannot be done; nothing has changed.
    pub fn change_disk(&mut self, wish: &DiskWish) -> Result<u8, ZoneError> {
        match wish {
            DiskWish::Attach(disk) => self.attach(disk),
            DiskWish::Detach(slot) => self.detach(*slot),
            DiskWish::Resize { slot, size, shrink } => self.resize(*slot, *size, *shrink),
            DiskWish::Limit(slot, change) => self.limit(*slot, change),
            DiskWish::Resume(slot) => self.resume_disk(*slot),
            DiskWish::Migrate { slot, target } => self.migrate(*slot, target),
            DiskWish::EndMigration(slot) => self.end_move(*slot),
        }
    }

    fn attach(&mut self, disk: &DiskConfig) -> Result<u8, ZoneError> {
        let shared = self.shared.clone();
        let config = &shared.config;
        disk.check("command line", "disk.")?;
        // The driver has negotiated what the drive offers long ago.
        for (key, given) in [
            ("disk.queues", disk.queues.map(|queues| queues.to_string())),
            ("disk.discard", (!disk.discard).then(|| "false".into())),
        ] {
            if let Some(value) = given {
                let expected = "a key of disks that their zone starts with: the drive has what it has";
                return Err(config.bad(key, value, expected).into());
            }
        }
        self.is_free(disk)?;
        let free = shared.disks().iter().position(Option::is_none);
        let slot = free.ok_or_else(|| ZoneError::NoSpareDisk(config.name.clone()))?;
        let image = open(&self.context.images, config, slot, disk, &Wait::For(DISK_WAIT))
            .map_err(|error| refused(config, slot, error))?;
        self.insert(slot, Some(disk.clone()), image)
    }

    fn detach(&mut self, slot: u8) -> Result<u8, ZoneError> {
        self.disk_in(slot)?;
        self.is_not_moving(slot)?;
        let absent = Disk::absent();
        self.insert(slot.into(), None, absent)
    }

    /// Another disk in a slot. The record runs ahead: a daemon that dies in between is followed by one that shows the
    /// guest what the record says.
    fn insert(&mut self, slot: usize, disk: Option<DiskConfig>, image: Arc<Disk>) -> Result<u8, ZoneError> {
        let number = u8::try_from(slot).unwrap_or(u8::MAX);
        self.note_disk(slot, disk)?;
        self.exchange(number, image)?;
        Ok(number)
    }

    /// Another image for the queues of a slot, if the zone is served.
    pub(super) fn exchange(&self, slot: u8, image: Arc<Disk>) -> Result<(), ZoneError> {
        let Some(zone) = self.number() else {
            return Ok(());
        };
        let shown = self.context.io.exchange_disk(zone, slot, image.clone());
        self.watch(zone, slot, &image);
        shown.map_err(|cause| self.refusal(cause))
    }

    fn resize(&mut self, slot: u8, size: Option<u64>, shrink: bool) -> Result<u8, ZoneError> {
        let disk = self.disk_in(slot)?;
        self.is_not_moving(slot)?;
        let shared = self.shared.clone();
        let no = |cause: String| refused(&shared.config, slot.into(), cause);
        let zone = self.number().unwrap_or_default();
        let image = self.context.io.disk(zone, slot);
        let image = image.ok_or_else(|| no("it is not served".into()))?;
        let now = image.capacity().saturating_mul(SECTOR);
        let Some(size) = size else {
            image.reread_capacity().map_err(|error| no(error.to_string()))?;
            return self.announce(zone, slot);
        };
        if disk.readonly {
            return Err(no(
                "it is read-only, so its size stays; without a size, its file is looked at again".into(),
            ));
        }
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(no(format!(
                "size {size}: expected a multiple of 512, at least 512"
            )));
        }
        if size < now && !shrink {
            let (size, now) = (format_size(size), format_size(now));
            return Err(no(format!(
                "{size} is less than its {now}, and what lies behind would be lost; --shrink does it all the same"
            )));
        }
        let failed = |error: DiskError| no(error.to_string());
        if size >= now {
            image.set_size(size).map_err(failed)?;
            return self.announce(zone, slot);
        }
        // Nothing is in flight while the end is cut off.
        let (context, name) = (self.context.clone(), shared.config.name.clone());
        let done = context.io.while_held(zone, slot, |image| image.set_size(size));
        match done {
            Some((cut, shown)) => {
                cut.map_err(failed)?;
                shown.map_err(|cause| ZoneError::Refused { name, cause })?;
                Ok(slot)
            }
            None => Err(no("it is not served".into())),
        }
    }

    fn announce(&self, zone: u8, slot: u8) -> Result<u8, ZoneError> {
        let shown = self.context.io.announce_capacity(zone, slot);
        shown.map(|()| slot).map_err(|cause| self.refusal(cause))
    }

    fn limit(&mut self, slot: u8, change: &LimitChange) -> Result<u8, ZoneError> {
        let mut disk = self.disk_in(slot)?;
        change.apply(&mut disk);
        disk.check("command line", "")?;
        let limits = rates(&disk.limits);
        self.note_disk(slot.into(), Some(disk))?;
        if let Some(zone) = self.number() {
            self.context.io.set_limits(zone, slot, limits);
        }
        Ok(slot)
    }

    /// The disk in a slot.
    pub(super) fn disk_in(&self, slot: u8) -> Result<DiskConfig, ZoneError> {
        let disk = self.shared.disks().into_iter().nth(slot.into()).flatten();
        disk.ok_or_else(|| ZoneError::NoDisk {
            name: self.shared.config.name.clone(),
            slot,
        })
    }

    pub(super) fn refusal(&self, cause: crate::hv::Refusal) -> ZoneError {
        ZoneError::Refused {
            name: self.shared.config.name.clone(),
            cause,
        }
    }
}

/// Bytes in a sector.
pub(super) const SECTOR: u64 = ringblk::virtio::SECTOR_SIZE;
/// Where `blk_size` is in the configuration space (virtio 1.2, 5.2.4).
const BLK_SIZE: std::ops::Range<usize> = 20..24;
