//! Moving a zone's disk to another image while its guest uses it: [`ringblk::migrate`] does the work, this says when.
//!
//! `ringctl disk migrate` has the disk exchanged for a mirror, which is an exchange as others are, and a thread copies and
//! compares. When both are equal the zone's own thread lets the disk come to rest, makes the target durable and *writes the
//! zone's record: that is the moment of the switch*. It is atomic, since a record is renamed into place, and nothing is in
//! flight: a daemon that is killed before it is followed by one that serves the source by way of a mirror and goes on copying,
//! one that is killed afterwards by one that serves the target. How much was copied is a word behind the in-flight logs.
//! A target that may have lost something between the comparison and the switch, with its server, is compared again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ringblk::Disk;
use ringblk::migrate::{Migration, Progress, Step};
use ringvirtio::memory::Slots;
use ringvisor::abi::MAX_SLOTS;
use serde::{Deserialize, Serialize};

use super::ZoneError;
use super::disks::{self, DISK_WAIT, Wait};
use super::record::{self, Move};
use super::resources::{Held, record_failed};
use crate::config::DiskConfig;

/// Tells the zone's thread that there is something to look at.
pub type Poke = Arc<dyn Fn() + Send + Sync>;

/// How far a move is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Chunk by chunk.
    Copying,
    /// All is copied; source and target are compared.
    Comparing,
    /// They are equal: what is left is the switch.
    Ready,
    /// It has come to nothing.
    Failed(String),
}

/// A move as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReport {
    /// Where to.
    pub target: PathBuf,
    /// Bytes that are there.
    pub copied: u64,
    /// Bytes in all; 0 while the zone is being taken over.
    pub size: u64,
    /// How far it is.
    pub stage: Stage,
}

impl MoveReport {
    /// Of a move of which no more is known than that there is one.
    pub(super) const fn begun(target: PathBuf) -> Self {
        Self {
            target,
            copied: 0,
            size: 0,
            stage: Stage::Copying,
        }
    }
}

/// A disk on its way.
pub struct Moving {
    slot: u8,
    /// What the disk is to be.
    target: DiskConfig,
    mirror: Arc<Migration>,
    stage: Mutex<Stage>,
    cancelled: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Moving {
    fn new(slot: u8, target: DiskConfig, mirror: Arc<Migration>) -> Arc<Self> {
        Arc::new(Self {
            slot,
            target,
            mirror,
            stage: Mutex::new(Stage::Copying),
            cancelled: AtomicBool::new(false),
            thread: Mutex::default(),
        })
    }

    /// Its slot.
    #[must_use]
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> MoveReport {
        MoveReport {
            target: self.target.path.clone(),
            copied: self.mirror.copied(),
            size: self.mirror.size(),
            stage: self.stage(),
        }
    }

    fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// Copies and compares, on a thread of its own.
    fn spawn(self: &Arc<Self>, poke: Poke) -> std::io::Result<()> {
        let moving = self.clone();
        let thread = std::thread::Builder::new()
            .name("migrate".into())
            .spawn(move || {
                moving.set(moving.run());
                poke();
            })?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn run(&self) -> Stage {
        let work = || {
            while self.goes_on() && self.mirror.copy()? == Step::More {}
            self.set(Stage::Comparing);
            self.mirror.sync()?;
            let mut at = 0;
            while self.goes_on() && self.mirror.verify(&mut at)? == Step::More {}
            Ok(())
        };
        match work() {
            Ok(()) if self.goes_on() => Stage::Ready,
            Ok(()) => Stage::Failed("it was ended".into()),
            Err(error) => {
                let error: ringblk::migrate::MigrationError = error;
                Stage::Failed(error.to_string())
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.cancelled.load(Ordering::Relaxed)
    }

    /// Nothing touches source or target on account of the move afterwards, but for the guest's requests.
    fn end(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// What of a target is its own; all else stays as the disk has it.
fn changed(disk: &DiskConfig, target: &DiskConfig) -> DiskConfig {
    DiskConfig {
        path: target.path.clone(),
        format: target.format,
        engine: target.engine,
        cache: target.cache,
        ..disk.clone()
    }
}

impl Held {
    /// Begins to move the disk in a slot.
    ///
    /// # Errors
    /// The target cannot be used; nothing has changed.
    pub(super) fn migrate(&mut self, slot: u8, target: &DiskConfig) -> Result<u8, ZoneError> {
        let disk = self.disk_in(slot)?;
        let shared = self.shared.clone();
        let config = &shared.config;
        let no = |cause: String| disks::refused(config, slot.into(), cause);
        self.is_not_moving(slot)?;
        target.check("command line", "target.")?;
        let wanted = changed(&disk, target);
        if changed(&DiskConfig::new(target.path.clone()), target) != *target {
            return Err(no(
                "expected of a target only its path, format, engine and cache: all else stays".into(),
            ));
        }
        if disk.readonly {
            return Err(no(
                "it is read-only, expected a disk that can be written: of another, copy the image and attach that".into(),
            ));
        }
        self.is_free(&wanted)?;
        let zone = self.number().unwrap_or_default();
        let source = self.context.io.disk(zone, slot);
        let source = source.ok_or_else(|| no("it is not served".into()))?;
        if source.is_closed() {
            return Err(no(
                "its device is closed, expected one that works: `ringctl disk resume` opens it".into(),
            ));
        }
        let opened = disks::open(
            &self.context.images,
            config,
            slot.into(),
            &wanted,
            &Wait::For(DISK_WAIT),
        );
        let image = opened.map_err(|error| no(error.to_string()))?;
        let progress = self.progress(slot)?;
        progress.set(0);
        let mirror = Migration::new(source, image, progress).map_err(|error| no(error.to_string()))?;
        if !disk.discard {
            mirror.keep_blocks();
        }
        let moving = Moving::new(slot, wanted.clone(), mirror);
        self.note_move(slot, Some(wanted))?;
        shared.set_move_failure(slot, None);
        shared.moves().push(moving.clone());
        let mirrored = self.mirrored(&moving, &disk);
        // The mirror is there either way, and its capacity is the disk's.
        if let Err(error) = self.context.io.exchange_disk(zone, slot, mirrored) {
            tracing::error!(zone = config.name, slot, %error, "cannot show the capacity of a disk that is being moved");
        }
        tracing::info!(zone = config.name, slot, target = %moving.target.path.display(), "moving a disk");
        self.start_moves();
        Ok(slot)
    }

    /// Ends a move; the disk stays where it is.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn end_move(&mut self, slot: u8) -> Result<u8, ZoneError> {
        let moving = self
            .shared
            .moves()
            .iter()
            .find(|moving| moving.slot == slot)
            .cloned();
        let Some(moving) = moving else {
            let config = &self.shared.config;
            return Err(disks::refused(config, slot.into(), "it is not being moved"));
        };
        self.give_up(&moving, "it was ended")?;
        Ok(slot)
    }

    /// # Errors
    /// The disk in this slot is on its way.
    pub(super) fn is_not_moving(&self, slot: u8) -> Result<(), ZoneError> {
        let moves = self.shared.moves();
        match moves.iter().find(|moving| moving.slot == slot) {
            None => Ok(()),
            Some(moving) => {
                let target = moving.target.path.display();
                let cause =
                    format!("it is being moved to {target}; `ringctl disk migrate --cancel` ends that");
                Err(disks::refused(&self.shared.config, slot.into(), cause))
            }
        }
    }

    /// # Errors
    /// The zone has that image already, or moves a disk there.
    pub(super) fn is_free(&self, wanted: &DiskConfig) -> Result<(), ZoneError> {
        let config = &self.shared.config;
        let path = wanted.path.display();
        let disks = self.shared.disks();
        let conflicts = |disk: &Option<DiskConfig>| disk.as_ref().is_some_and(|disk| disk.conflicts(wanted));
        if let Some(slot) = disks.iter().position(conflicts) {
            let cause = format!("{path} is attached already, here");
            return Err(disks::refused(config, slot, cause));
        }
        let moves = self.shared.moves();
        match moves.iter().find(|moving| moving.target.conflicts(wanted)) {
            None => Ok(()),
            Some(moving) => {
                let cause = format!("it is being moved to {path}");
                Err(disks::refused(config, moving.slot.into(), cause))
            }
        }
    }

    /// In the place of disks that an earlier daemon was moving, their mirrors.
    pub(super) fn mirror_again(
        &mut self,
        images: &mut [Arc<Disk>],
        wait: &Wait<'_>,
    ) -> Result<(), ZoneError> {
        let shared = self.shared.clone();
        let config = &shared.config;
        for Move { slot, target } in self.moves_on_record() {
            let Some(disk) = images.get_mut(usize::from(slot)) else {
                continue;
            };
            // Its limits may have changed since the move began.
            let now = self.disk_in(slot)?;
            let opened = disks::open(&self.context.images, config, slot.into(), &target, wait)
                .map_err(|error| error.to_string());
            let progress = self.progress(slot)?;
            let mirror = opened.and_then(|image| {
                if disk.is_closed() || image.is_closed() {
                    let target = target.path.display();
                    return Err(format!("it, or its target {target}, cannot be opened"));
                }
                Migration::new(disk.clone(), image, progress).map_err(|error| error.to_string())
            });
            match mirror {
                Ok(mirror) => {
                    if !now.discard {
                        mirror.keep_blocks();
                    }
                    let copied = mirror.copied();
                    tracing::info!(zone = config.name, slot, copied, "going on moving a disk");
                    let moving = Moving::new(slot, target.clone(), mirror);
                    *disk = self.mirrored(&moving, &now);
                    shared.moves().push(moving);
                }
                Err(reason) => {
                    tracing::error!(zone = config.name, slot, reason, "cannot go on moving a disk");
                    // Before a request is served that the target would miss.
                    self.note_move(slot, None)?;
                    shared.set_move_failure(slot, Some(reason));
                }
            }
        }
        Ok(())
    }

    /// Starts the threads of moves that have none.
    pub(super) fn start_moves(&mut self) {
        let Some(poke) = self.poke.clone() else {
            return;
        };
        let moves = self.shared.moves().clone();
        for moving in moves {
            let idle = moving
                .thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_none();
            if idle && let Err(error) = moving.spawn(poke.clone()) {
                moving.set(Stage::Failed(format!("no thread for it: {error}")));
                poke();
            }
        }
    }

    /// Ends the moves that are ready, or have come to nothing.
    pub(super) fn settle_moves(&mut self) {
        let moves = self.shared.moves().clone();
        for moving in moves {
            let outcome = match moving.stage() {
                Stage::Copying | Stage::Comparing => continue,
                Stage::Failed(reason) => self.give_up(&moving, &reason),
                Stage::Ready => self.switch(&moving),
            };
            if let Err(error) = outcome {
                tracing::error!(zone = self.shared.config.name, slot = moving.slot, %error, "a disk's move");
            }
        }
    }

    /// The zone ends: nothing of its images is used any more.
    pub(super) fn abort_moves(&mut self) {
        let moves = std::mem::take(&mut *self.shared.moves());
        moves.iter().for_each(|moving| moving.end());
    }

    /// The target takes the disk's place.
    fn switch(&mut self, moving: &Arc<Moving>) -> Result<(), ZoneError> {
        moving.end();
        let slot = moving.slot;
        // Limits may have changed meanwhile.
        let config = changed(&self.disk_in(slot)?, &moving.target);
        let image = moving.mirror.target().clone();
        disks::configure(&image, &config);
        let zone = self.number().unwrap_or_default();
        let io = self.context.io.clone();
        let mut reason = None;
        let outcome = io.exchange_disk_if(zone, slot, image.clone(), || {
            // Nothing is in flight: what failed has failed, what was written is there.
            match moving.mirror.seal() {
                Ok(Step::End) => {}
                Ok(Step::More) => return Err(()),
                Err(error) => {
                    reason = Some(error.to_string());
                    return Err(());
                }
            }
            self.note_moved(slot, config).map_err(|error| {
                reason = Some(error.to_string());
            })
        });
        match outcome {
            Ok(shown) => {
                self.forget(moving);
                self.watch(zone, slot, &image);
                tracing::info!(zone = self.shared.config.name, slot, path = %moving.target.path.display(), "the disk has moved");
                shown.map_err(|cause| self.refusal(cause))
            }
            Err(()) => match reason {
                Some(reason) => self.give_up(moving, &reason),
                None => {
                    self.compare_again(moving);
                    Ok(())
                }
            },
        }
    }

    /// Something may have been lost since it was compared.
    fn compare_again(&mut self, moving: &Moving) {
        let target = moving.target.path.display();
        tracing::warn!(zone = self.shared.config.name, slot = moving.slot, %target, "a server has gone: compared again");
        moving.cancelled.store(false, Ordering::Relaxed);
        moving.set(Stage::Comparing);
        self.start_moves();
    }

    /// The disk stays where it is.
    fn give_up(&mut self, moving: &Arc<Moving>, reason: &str) -> Result<(), ZoneError> {
        moving.end();
        let slot = moving.slot;
        tracing::warn!(
            zone = self.shared.config.name,
            slot,
            reason,
            "the disk stays where it is"
        );
        self.shared.set_move_failure(slot, Some(reason.to_owned()));
        // Before a request is served that the target misses.
        self.note_move(slot, None)?;
        self.forget(moving);
        let source = moving.mirror.source().clone();
        disks::configure(&source, &self.disk_in(slot)?);
        self.exchange(slot, source)
    }

    fn forget(&self, moving: &Moving) {
        self.shared.moves().retain(|other| other.slot != moving.slot);
    }

    fn mirrored(&self, moving: &Moving, disk: &DiskConfig) -> Arc<Disk> {
        let mirrored = moving.mirror.disk();
        disks::configure(&mirrored, disk);
        mirrored
    }

    fn progress(&self, slot: u8) -> Result<Progress, ZoneError> {
        let config = &self.shared.config;
        let failed = |error| record_failed(config, error);
        let log = record::inflight(&self.context.records, &config.name).map_err(failed)?;
        let words: Result<Slots<AtomicU64>, _> = Slots::in_mapping(&log, record::PROGRESS, MAX_SLOTS);
        let words = words.map_err(|error| disks::refused(config, slot.into(), error))?;
        Ok(Progress::new(Arc::new(words), slot.into()))
    }
}
