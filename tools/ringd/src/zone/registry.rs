//! All zones by name: starting one, finding one, taking over those of an earlier daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use parking_lot::Mutex;
use ringvisor::abi::{ROOT_ZONE, ZoneState};

use super::Context;
use super::actor::{self, Command, CommandResult, Message};
use super::ended::Ended;
use super::record::Record;
use super::shared::{Phase, Shared, Status};
use crate::config::ZoneConfig;
use crate::hv;

/// How many ended zones are still listed, with their consoles.
const REMEMBERED: usize = 16;

/// How long a take-over may keep the daemon from answering. Zones that take longer are taken over in the
/// background.
const TAKE_OVER_WAIT: Duration = Duration::from_secs(2);
/// How long a power key is pressed: as QEMU's `gpio-key` (`GPIO_KEY_LATENCY`). A guest looks at its level
/// some time after the interrupt.
const KEY_PRESS: Duration = Duration::from_millis(100);

/// Shows users what the daemon is doing while it does not answer yet.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// How the daemon lets another program take over.
pub trait Upgrade: Send + Sync {
    /// Asks whether `program`, or a new one of the same path, can take over; `abi` is EL2's version of the
    /// interface.
    ///
    /// # Errors
    /// It cannot; this daemon continues.
    fn ask(&self, program: Option<PathBuf>, abi: u32) -> std::io::Result<()>;

    /// Ends this daemon.
    fn leave(&self);
}

/// The daemon's zones.
pub struct Registry {
    context: Arc<Context>,
    upgrade: OnceLock<Box<dyn Upgrade>>,
    zones: Mutex<Zones>,
}

#[derive(Default)]
struct Zones {
    by_name: BTreeMap<String, Zone>,
    /// Counts starts, to tell which zone ended first.
    clock: u64,
}

#[derive(Clone)]
struct Zone {
    shared: Arc<Shared>,
    /// `None` while it is being started, and of one that could not be taken over.
    outbox: Option<Sender<Message>>,
    born: u64,
}

impl Registry {
    /// Returns a registry without zones.
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            upgrade: OnceLock::new(),
            zones: Mutex::default(),
        }
    }

    /// Lets the daemon be upgraded from now on.
    pub fn allow_upgrades(&self, upgrade: Box<dyn Upgrade>) {
        let _ = self.upgrade.set(upgrade);
    }

    /// Asks whether another program can take over; returns the way to let it.
    ///
    /// # Errors
    /// It cannot, or a zone is in a state that it should not have to take over.
    pub fn upgrade(&self, program: Option<PathBuf>) -> anyhow::Result<&dyn Upgrade> {
        let upgrade = self.upgrade.get().context("this daemon cannot be upgraded")?;
        let busy = |status: &&Status| matches!(status.state, Phase::Created | Phase::Recovering);
        if let Some(zone) = self.list().iter().find(busy) {
            let state = zone.state.name();
            bail!("zone {} is {state}: try again when it runs", zone.name);
        }
        upgrade.ask(program, self.context.hv.info().abi_version)?;
        Ok(&**upgrade)
    }

    /// Returns what all zones share.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Starts a zone and returns it once its guest runs.
    ///
    /// # Errors
    /// It cannot be started; nothing of it is left.
    pub fn start(&self, config: ZoneConfig) -> anyhow::Result<Arc<Shared>> {
        config.check()?;
        let name = config.name.clone();
        let shared = Shared::new(config);
        {
            let mut zones = self.zones.lock();
            let existing = zones.by_name.get(&name);
            if existing.is_some_and(|zone| zone.shared.status().state != Phase::Stopped) {
                bail!("zone {name} exists already; `ringctl zone stop {name}` ends it");
            }
            if self.zones_in_el2().contains_key(&name) {
                bail!(
                    "EL2 has a zone {name} that this ringd could not take over; its log says why. The ringd that \
                     started it can end it, or a restart of the machine"
                );
            }
            self.insert(&mut zones, &name, shared.clone());
            Ended::remove(&self.context.records, &name);
        }
        match self.start_aside(&shared) {
            Ok(outbox) => {
                self.zones.lock().set_outbox(&name, &shared, outbox);
                Ok(shared)
            }
            Err(error) => {
                let mut zones = self.zones.lock();
                if zones.find(&name, &shared).is_some() {
                    zones.by_name.remove(&name);
                    // It has not begun.
                    Ended::remove(&self.context.records, &name);
                }
                Err(error)
            }
        }
    }

    /// Starts a zone on a thread of its own, which is left alone if the zone is stopped while its files are
    /// being opened: an open may not return where a file system hangs.
    fn start_aside(&self, shared: &Arc<Shared>) -> anyhow::Result<Sender<Message>> {
        let (cancelled, sender) = (channel(), channel());
        let (wake, woken) = cancelled;
        let (done, result) = sender;
        shared.begin_opening(wake.clone());
        let (context, starting) = (self.context.clone(), shared.clone());
        let thread = std::thread::Builder::new().name(format!("start {}", shared.config.name));
        let spawned = thread.spawn(move || {
            // Where it was cancelled, nothing of the zone is left, and no thread waits for this.
            let _ = done.send(actor::start(&context, &starting));
            let _ = wake.send(());
        });
        spawned.map_err(|cause| shared.config.failed(format!("a thread for it: {cause}")))?;
        // Either the start has ended or it was cancelled.
        let _ = woken.recv();
        result.try_recv().unwrap_or_else(|_| {
            Err(shared
                .config
                .failed("it was stopped while its files were being opened"))
        })
    }

    /// Has a zone execute a command and returns when it has; with the slot if the command was about a device.
    ///
    /// # Errors
    /// There is no such zone, its phase does not allow the command, or the command failed.
    pub fn execute(&self, name: &str, command: Command) -> CommandResult {
        let zone = self.zone(name)?;
        if command == Command::Stop && zone.outbox.is_none() && zone.shared.cancel() {
            return Ok(None);
        }
        let status = zone.shared.status();
        let (reply, answer) = channel();
        let sent = match &zone.outbox {
            Some(outbox) if status.state != Phase::Stopped => {
                outbox.send(Message::Command(command.clone(), reply)).is_ok()
            }
            _ => false,
        };
        if !sent {
            return Err(status.wrong_phase("running, paused or crashed"));
        }
        match answer.recv() {
            Ok(result) => result,
            // The zone ended before it received the command.
            Err(_) if command == Command::Stop => Ok(None),
            Err(_) => Err(status.wrong_phase("running or paused")),
        }
    }

    /// Starts a zone that has ended once more, as it was described then.
    ///
    /// # Errors
    /// There is no such zone, it has not ended, or it cannot be started.
    pub fn start_again(&self, name: &str) -> anyhow::Result<Arc<Shared>> {
        self.start((*self.find(name)?.config).clone())
    }

    /// Presses a zone's power key for as long as QEMU's `system_powerdown` does, and returns then.
    ///
    /// # Errors
    /// There is no such zone, it does not run, or EL2 refused.
    pub fn press_power_key(&self, name: &str) -> anyhow::Result<()> {
        let set = |pressed| self.execute(name, Command::PowerKey { pressed });
        // A daemon that died meanwhile has left it pressed, and only an edge is seen.
        set(false)?;
        set(true)?;
        std::thread::sleep(KEY_PRESS);
        // The zone may have ended.
        let _ = set(false);
        Ok(())
    }

    /// Returns a zone by name, also one that has ended.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> anyhow::Result<Arc<Shared>> {
        Ok(self.zone(name)?.shared)
    }

    fn zone(&self, name: &str) -> anyhow::Result<Zone> {
        let zone = self.zones.lock().by_name.get(name).cloned();
        zone.ok_or_else(|| anyhow!("no zone {name}; `ringctl zone list` shows those there are"))
    }

    /// Returns all zones.
    pub fn list(&self) -> Vec<Status> {
        self.zones
            .lock()
            .by_name
            .values()
            .map(|zone| zone.shared.status())
            .collect()
    }

    /// Takes over what an earlier daemon left: zones that EL2 has continue, what was half started or has
    /// ended is cleaned up. What cannot be understood is logged and stays as it is.
    pub fn take_over(self: &Arc<Self>) {
        self.take_over_saying(&(Arc::new(|_: &str| {}) as Say));
    }

    /// As [`Self::take_over`], and shows what is waited for. A zone whose last I/O has not completed delays
    /// neither the others nor, for long, the daemon.
    pub fn take_over_saying(self: &Arc<Self>, say: &Say) {
        let records = match Record::load_all(&self.context.records) {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(%error, "cannot look for zones of an earlier daemon");
                return;
            }
        };
        let mut in_el2 = self.zones_in_el2();
        let ended = Ended::load_all(&self.context.records);
        let (working, all_done) = channel::<()>();
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%error, "cannot take a zone over");
                    continue;
                }
            };
            let name = record.config.name.clone();
            let found = in_el2.remove(&name);
            let shared = Shared::with_devices(record.config.clone(), record.devices.clone());
            match found {
                Some(number) if record.starts > 0 && !ended.contains_key(&name) => {
                    shared.recover(number);
                    self.insert(&mut self.zones.lock(), &name, shared.clone());
                    let (registry, say, working) = (self.clone(), say.clone(), working.clone());
                    let take = move || {
                        registry.take_over_one(&shared, record, number, &*say);
                        drop(working);
                    };
                    let thread = std::thread::Builder::new().name(format!("take {name}"));
                    if let Err(error) = thread.spawn(take) {
                        tracing::error!(zone = name, %error, "cannot take a zone over");
                    }
                }
                number => {
                    tracing::warn!(zone = name, "cleaning up what an earlier daemon left");
                    actor::clean_up(&self.context, &shared, Record { number, ..record });
                }
            }
        }
        for (name, ended) in ended {
            self.insert(&mut self.zones.lock(), &name, ended.into_shared());
        }
        drop(working);
        // An error either way: the time has expired, or all threads are done.
        let _ = all_done.recv_timeout(TAKE_OVER_WAIT);
        for (name, number) in in_el2 {
            tracing::error!(
                zone = name,
                number,
                "EL2 has a zone that nothing is known about: it stays as it is"
            );
        }
    }

    /// Adds a zone; of those that have ended the newest are remembered.
    fn insert(&self, zones: &mut Zones, name: &str, shared: Arc<Shared>) {
        for forgotten in zones.insert(name, shared) {
            Ended::remove(&self.context.records, &forgotten);
        }
    }

    fn take_over_one(&self, shared: &Arc<Shared>, record: Record, number: u8, say: &dyn Fn(&str)) {
        let name = &shared.config.name;
        match actor::take_over(&self.context, shared, record, number, say) {
            Ok(outbox) => {
                tracing::info!(zone = name, number, "taken over");
                self.zones.lock().set_outbox(name, shared, outbox);
            }
            Err(error) => tracing::error!(zone = name, %error, "cannot take a zone over: stopped"),
        }
    }

    /// Returns names and numbers of the zones that EL2 has.
    fn zones_in_el2(&self) -> BTreeMap<String, u8> {
        let info = self.context.hv.info();
        let mut found = BTreeMap::new();
        for (number, summary) in (0_u8..).zip(&info.zones) {
            if number == ROOT_ZONE || summary.state == ZoneState::None as u8 {
                continue;
            }
            match self.context.el2().zone_info(number) {
                Ok(info) => drop(found.insert(hv::text(&info.name), number)),
                Err(error) => tracing::warn!(number, %error, "cannot ask EL2 about a zone"),
            }
        }
        found
    }
}

impl Zones {
    /// Returns the names of zones that it forgets.
    fn insert(&mut self, name: &str, shared: Arc<Shared>) -> Vec<String> {
        self.clock += 1;
        self.by_name.insert(
            name.to_owned(),
            Zone {
                shared,
                outbox: None,
                born: self.clock,
            },
        );
        let mut ended: Vec<(u64, String)> = self
            .by_name
            .iter()
            .filter(|(_, zone)| zone.shared.status().state == Phase::Stopped)
            .map(|(name, zone)| (zone.born, name.clone()))
            .collect();
        ended.sort();
        let forgotten: Vec<String> = ended
            .into_iter()
            .rev()
            .skip(REMEMBERED)
            .map(|(_, name)| name)
            .collect();
        for name in &forgotten {
            self.by_name.remove(name);
        }
        forgotten
    }

    fn set_outbox(&mut self, name: &str, shared: &Arc<Shared>, outbox: Sender<Message>) {
        if let Some(zone) = self.find(name, shared) {
            zone.outbox = Some(outbox);
        }
    }

    /// Returns a zone unless another one has its name by now.
    fn find(&mut self, name: &str, shared: &Arc<Shared>) -> Option<&mut Zone> {
        let zone = self.by_name.get_mut(name);
        zone.filter(|zone| Arc::ptr_eq(&zone.shared, shared))
    }
}
