//! The device side (EL2, the daemon, the disk), and the scheduler.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ringblk::{Disk, DiskConfig, DiskError};
use ringconsole::{Console, PortMemory};
use ringd::device::inflight::LOG_STRIDE;
use ringd::device::rng::config::RngConfig;
use ringd::device::{Config, Device};
use ringd::hv::Hypervisor;
use ringnet::config::MTU_MIN;
use ringnet::{MacAddress, Net, Port};
use ringvirtio::steps::{Killed, arm, disarm};
use ringvirtio::{GuestRam, InflightArea};
use ringvisor::abi::command::DeviceSpec;
use ringvisor::abi::shared;
use tempfile::NamedTempFile;
use vm_memory::MmapRegion;

use crate::daemon::Daemon;
use crate::disk::{SECTOR, SimDisk};
use crate::el2::{SimEl2, ZONE};
use crate::memory;
use crate::options::{MAX_QUEUES, Profile, Sabotage};
use crate::rng::Rng;
use crate::tap::SimTap;
use crate::trace::Trace;

/// Sectors of the image.
pub const SECTORS: usize = 48;
/// Serial of the disk.
pub const SERIAL: &str = "simulated-0";
/// Entries of each of the guest's queues.
pub const QUEUE_SIZE: usize = 16;

/// What is kept between runs, because making it costs more than a run: the file that daemons open and lock,
/// and the memory of the in-flight log.
struct Fixtures {
    file: NamedTempFile,
    ram: Arc<GuestRam>,
    log: Arc<MmapRegion>,
}

thread_local! {
    static FIXTURES: Fixtures = {
        let file = NamedTempFile::new().expect("a temporary file can be made");
        file.as_file().set_len((SECTORS * SECTOR) as u64).expect("it can be made larger");
        Fixtures {
            file,
            ram: memory::guest_ram(),
            log: Arc::new(MmapRegion::new(LOG_STRIDE * ringvisor::abi::MAX_QUEUES).expect("memory for a log")),
        }
    };
}

/// The kind of the simulated device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Kind {
    /// A disk.
    #[default]
    Disk,
    /// An entropy device.
    Entropy,
    /// A network device.
    Net,
    /// A console with one port.
    Console,
}

impl Kind {
    /// Opens the device, as a daemon does.
    pub(crate) fn open(
        self,
        config: &DiskConfig,
        tap: &Arc<SimTap>,
        kept: &Arc<MmapRegion>,
    ) -> Result<Device, DiskError> {
        match self {
            Self::Console => {
                let memory = PortMemory::in_mapping(kept, 0).expect("memory for a port");
                let console = Console::new("simulated".into(), vec![Arc::new(memory)]);
                Ok(Device::Console(console))
            }
            Self::Disk => Disk::open(config).map(Device::Disk),
            // Each request has bytes of its own, from 1 to 100.
            Self::Entropy => Ok(Device::Rng({
                let requests = AtomicU8::new(0);
                ringrng::Rng::with_source(Box::new(move |bytes| {
                    bytes.fill(requests.fetch_add(1, Ordering::Relaxed) % 100 + 1);
                    Ok(())
                }))
            })),
            Self::Net => {
                let config = ringnet::NetConfig {
                    name: "simulated".into(),
                    mac: MacAddress([2, 0, 0, 0, 0, 1]),
                    mtu: MTU_MIN,
                    pairs: 1,
                };
                let net = Net::new(config, tap.offloads(), None);
                net.attach(tap.clone()).expect("the tap has what the device has");
                Ok(Device::Net(net))
            }
        }
    }

    /// Returns the device as the daemon describes it to EL2.
    pub(crate) fn spec(self, device: &Device, queues: usize) -> DeviceSpec {
        let config = match self {
            Self::Disk => Config::Disk(None),
            Self::Entropy => Config::Rng(RngConfig::default()),
            // Not looked at: the device knows what it is.
            Self::Net | Self::Console => Config::Disk(None),
        };
        device.describe(&config, queues as u16)
    }
}

/// Statistics of a run.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Kills of the daemon.
    pub kills: u64,
    /// Kills inside of a step of `ringvirtio` or `ringblk`.
    pub kills_inside: u64,
    /// Resets of the device.
    pub resets: u64,
    /// Resets of a single queue.
    pub queue_resets: u64,
    /// Completed requests.
    pub answered: u64,
    /// Requests that completed with an error.
    pub errors: u64,
    /// Turns of the scheduler.
    pub turns: u64,
}

/// EL2, the daemon, the disk.
pub struct World {
    /// The source of all decisions.
    pub rng: Rng,
    /// The events so far.
    pub trace: Trace,
    /// What is injected.
    pub profile: Profile,
    /// EL2.
    pub el2: Arc<SimEl2>,
    /// The image.
    pub disk: SimDisk,
    /// The network.
    pub tap: Arc<SimTap>,
    /// What consoles keep.
    pub kept: Arc<MmapRegion>,
    /// Statistics.
    pub counts: Counts,
    /// The steps at which daemons were killed.
    pub killed_at: BTreeSet<String>,
    /// Why the run has failed, if it has.
    pub failure: Option<String>,
    daemon: Option<Daemon>,
    kind: Kind,
    config: DiskConfig,
    ram: Arc<GuestRam>,
    log: Arc<MmapRegion>,
    /// An event interrupt was lost on purpose, and the timer has not woken the daemon since.
    event_interrupt_lost: bool,
    /// A kill is armed inside a later step.
    armed: bool,
}

/// The world, shared by guest and transport.
pub type SharedWorld = Rc<RefCell<World>>;

/// A guest in the world.
pub trait Party {
    /// Returns the world that it is in.
    fn world(&self) -> &SharedWorld;

    /// Returns what is injected in the run.
    fn profile(&self) -> Profile {
        self.world().borrow().profile
    }

    /// Draws whether something happens, with this probability in thousandths.
    fn chance(&self, per_mille: u64) -> bool {
        self.world().borrow_mut().rng.chance(per_mille)
    }

    /// Draws a number below `bound`.
    fn below(&self, bound: u64) -> u64 {
        self.world().borrow_mut().rng.below(bound)
    }

    /// Returns whether the run has failed.
    fn failed(&self) -> bool {
        self.world().borrow().failure.is_some()
    }

    /// Ends the run; the first reason counts.
    fn fail(&self, why: impl Into<String>) {
        self.world().borrow_mut().fail(why);
    }

    /// Runs a turn of the device side.
    fn turn(&self) {
        self.world().borrow_mut().turn();
    }

    /// Runs a turn of the device side while requests are outstanding, the heads `heads`.
    fn turn_until_used<H: std::fmt::Debug>(&self, heads: impl FnOnce() -> H) {
        let mut world = self.world().borrow_mut();
        if world.is_idle() && !world.el2.line() && !world.make_up_for_lost_event_interrupt() {
            let heads = heads();
            world.fail(format!(
                "all sleep with requests {heads:?} outstanding: a wake-up is lost"
            ));
        } else {
            world.turn();
        }
    }

    /// Checks that no byte of this memory changes for a while (torture a9).
    fn check_memory_unchanged(&self, memory: impl Fn() -> Vec<u8>) {
        let before = memory();
        for _ in 0..self.below(30) {
            self.turn();
        }
        if memory() != before {
            self.fail("guest memory changed after a reset had completed");
        }
    }
}

impl World {
    /// Returns the device side after power-on. `image` is the disk's; other devices do not use it.
    pub fn new(seed: u64, kind: Kind, sabotage: Sabotage, image: Vec<u8>, print: bool) -> SharedWorld {
        let mut rng = Rng::new(seed);
        let mut profile = Profile::draw(&mut rng, sabotage);
        match kind {
            Kind::Disk => {}
            Kind::Entropy => profile.queues = 1,
            // The control queue is not used.
            Kind::Net => profile.queues = 3,
            Kind::Console => profile.queues = 2,
        }
        let mut trace = Trace::new(print);
        trace.event(format_args!("{profile:?}"));
        memory::clear();
        let (config, ram, log) = FIXTURES.with(|fixtures| {
            let config = DiskConfig {
                path: fixtures.file.path().to_owned(),
                serial: SERIAL.into(),
                ..DiskConfig::default()
            };
            (config, fixtures.ram.clone(), fixtures.log.clone())
        });
        clear_log(&log);
        let disk = SimDisk::new(image, sabotage);
        let tap = SimTap::new(seed);
        let kept = Arc::new(MmapRegion::new(ringconsole::memory::BYTES).expect("memory for a port"));
        let opened = kind
            .open(&config, &tap, &kept)
            .expect("nothing else has the image open");
        // In some runs the ring's index is about to exceed 16 or 32 bits.
        let head = match rng.below(4) {
            0 => 0xffff - rng.below(20),
            1 => 0xffff_ffff - rng.below(20),
            _ => rng.below(1000),
        };
        let el2 = Arc::new(SimEl2::new(&kind.spec(&opened, profile.queues), head));
        drop(opened);
        Rc::new(RefCell::new(Self {
            rng,
            trace,
            profile,
            el2,
            disk,
            tap,
            kept,
            counts: Counts::default(),
            killed_at: BTreeSet::new(),
            failure: None,
            daemon: None,
            kind,
            config,
            ram,
            log,
            event_interrupt_lost: false,
            armed: false,
        }))
    }

    /// Fails the run, unless it has failed already.
    pub fn fail(&mut self, why: impl Into<String>) {
        if self.failure.is_none() {
            let why = why.into();
            self.trace.event(format_args!("FAILED: {why}"));
            self.failure = Some(why);
        }
    }

    /// Returns whether the device side waits for the guest.
    #[must_use]
    pub fn is_idle(&mut self) -> bool {
        let asleep = self.daemon.as_mut().is_some_and(Daemon::is_sleeping);
        asleep && self.disk.waiting() == 0
    }

    /// Makes up for an event interrupt that was lost on purpose, as a timer in root does. Returns `false` if
    /// none was lost.
    pub fn make_up_for_lost_event_interrupt(&mut self) -> bool {
        if std::mem::take(&mut self.event_interrupt_lost) {
            self.trace.event(format_args!("a timer wakes the daemon"));
            self.daemon.iter_mut().for_each(Daemon::wake);
            return true;
        }
        false
    }

    /// Takes a turn while the guest only waits, for the `waited`-th time, and makes up for events that were
    /// lost on purpose.
    pub fn wait(&mut self, waited: u32) {
        if self.is_idle() {
            let _ = self.make_up_for_lost_event_interrupt();
        }
        if waited.is_multiple_of(2000) {
            self.make_up_for_ring_corruption();
        }
        self.turn();
    }

    /// Takes a turn: lets one party, drawn at random, take one step.
    pub fn turn(&mut self) {
        self.counts.turns += 1;
        if self.profile.corrupt_ring > 0 && self.rng.chance(self.profile.corrupt_ring) {
            self.corrupt_ring();
        }
        if self.profile.second_vcpu > 0 && self.rng.chance(self.profile.second_vcpu) {
            self.second_vcpu();
        }
        if self.profile.sabotage == Sabotage::LostInterrupt && self.rng.chance(3) {
            self.el2.lose_interrupt();
        }
        if self.rng.chance(self.profile.lost_event_interrupt) && self.el2.take_event_interrupt() {
            self.trace.event(format_args!("the event interrupt is lost"));
            self.event_interrupt_lost = true;
        }
        if self.rng.chance(30) {
            self.disk.write_back(&mut self.rng);
        }
        if self.disk.waiting() > 0 && self.rng.chance(400) {
            if let Some(what) = self.disk.run_one(&self.profile, &mut self.rng) {
                self.trace.event(format_args!("{what}"));
            }
            return;
        }
        if self.daemon.is_none() {
            if self.rng.chance(300) {
                self.start_daemon();
            }
            return;
        }
        if self.rng.chance(self.profile.kill) {
            if self.rng.chance(300) {
                self.kill("between two steps");
                return;
            }
            arm(self.rng.below(25));
            self.armed = true;
        }
        if self.rng.chance(self.profile.spurious) {
            self.trace.event(format_args!("the daemon wakes spuriously"));
            self.daemon.iter_mut().for_each(Daemon::wake);
        }
        self.step_daemon();
    }

    fn step_daemon(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        match catch_unwind(AssertUnwindSafe(|| daemon.step())) {
            Ok("asleep") => {}
            Ok(step) => self.trace.event(format_args!("daemon {step}")),
            Err(panic) => match panic.downcast_ref::<Killed>() {
                Some(Killed(step)) => {
                    self.counts.kills_inside += 1;
                    self.armed = false;
                    self.kill(step);
                }
                None => {
                    self.daemon = None;
                    self.fail("the daemon panicked");
                }
            },
        }
        if let Some(fault) = self.disk.fault() {
            self.fail(fault);
        }
    }

    /// Kills the daemon, as SIGKILL does.
    pub fn kill(&mut self, at: &str) {
        if std::mem::take(&mut self.armed) {
            disarm();
        }
        self.counts.kills += 1;
        if !self.killed_at.contains(at) {
            self.killed_at.insert(at.to_owned());
        }
        self.daemon = None;
        self.disk
            .orphan(self.profile.sabotage == Sabotage::NoDrain, &mut self.rng);
        match self.profile.sabotage {
            Sabotage::NoLog => clear_log(&self.log),
            Sabotage::ForgetStarted => forget_started(&self.log),
            _ => {}
        }
        self.trace.event(format_args!("the daemon is killed: {at}"));
    }

    fn start_daemon(&mut self) {
        match self.kind.open(&self.config, &self.tap, &self.kept) {
            Ok(device) => {
                self.disk.reopened();
                let daemon = Daemon::new(
                    self.el2.clone(),
                    device,
                    self.ram.clone(),
                    self.log.clone(),
                    self.disk.clone(),
                    &self.profile,
                );
                self.daemon = Some(daemon);
                self.trace.event(format_args!("a daemon attaches"));
                if self.profile.kill > 0 && self.rng.chance(200) {
                    // Within its first steps, during the take-over.
                    arm(self.rng.below(6));
                    self.armed = true;
                }
            }
            Err(error) => self.fail(format!("a new daemon cannot open the image: {error}")),
        }
    }

    /// Stops all attacks and replaces the daemon.
    pub fn stop_attacks(&mut self) {
        self.profile.corrupt_ring = 0;
        self.profile.second_vcpu = 0;
        self.replace_daemon();
    }

    /// Makes up for a corrupted event ring, in which events may be lost: root's administrator clears it and
    /// replaces the daemon.
    fn make_up_for_ring_corruption(&mut self) {
        if self.profile.corrupt_ring > 0 {
            self.replace_daemon();
        }
    }

    fn replace_daemon(&mut self) {
        self.kill("by its supervisor");
        self.el2.window().ring().clear();
        self.start_daemon();
    }

    /// Overwrites a word of the event ring, as a process in root can.
    fn corrupt_ring(&mut self) {
        let Some(window) = shared::zone_window(ZONE) else {
            return;
        };
        let head = self.el2.ring_head();
        let random = self.rng.draw();
        let (offset, value) = match self.rng.below(4) {
            // A slot near the head, with a number that the consumer expects.
            0 => {
                let index = head.wrapping_add(self.rng.below(4));
                let slot = index as usize % shared::RING_SLOTS;
                let value = (index.wrapping_add(1) & 0xffff_ffff) << 32 | random & 0x0302_0003;
                (shared::RING + slot * 8, value)
            }
            1 => (shared::RING + self.rng.index(shared::RING_SLOTS) * 8, random),
            2 => (
                shared::PENDING + self.rng.index(shared::PENDING_WORDS) * 8,
                random,
            ),
            _ => (shared::ARMED, random & 3),
        };
        // The simulation has one thread, which sees all eight bytes or none.
        self.el2.shared().write(window + offset, &value.to_le_bytes());
        self.trace
            .event(format_args!("root stores {value:#x} at {offset:#x}"));
    }

    /// Stores a byte in the guest's allocated memory, as a second vCPU can.
    fn second_vcpu(&mut self) {
        let offset = if self.rng.chance(500) {
            self.rng.index(3 * 4096 * self.profile.queues)
        } else {
            self.rng.index(memory::SIZE)
        };
        if memory::in_use(offset) {
            let byte = if self.rng.chance(500) {
                self.rng.below(4) as u8
            } else {
                self.rng.draw() as u8
            };
            memory::poke(offset, byte);
            self.trace
                .event(format_args!("vCPU 1 stores {byte:#x} at {offset:#x}"));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        disarm();
    }
}

/// Returns the words of the queues' logs, each with its index in its log.
fn log_words(log: &MmapRegion) -> impl Iterator<Item = (usize, *mut u64)> {
    let first = log.as_ptr().cast::<u64>();
    (0..MAX_QUEUES).flat_map(move |queue| {
        let words = 0..InflightArea::bytes(QUEUE_SIZE as u16) / 8;
        words.map(move |word| (word, first.wrapping_add(queue * LOG_STRIDE / 8 + word)))
    })
}

/// Zeroes the in-flight logs.
pub(crate) fn clear_log(log: &MmapRegion) {
    for (_, word) in log_words(log) {
        // SAFETY: inside the mapping, which is larger; no daemon is alive.
        unsafe { word.write_volatile(0) };
    }
}

/// Frees the log entries in the state "started".
fn forget_started(log: &MmapRegion) {
    let is_state = |place: &usize| {
        let header = ringvirtio::inflight::HEADER_WORDS;
        *place >= header && (place - header).is_multiple_of(2)
    };
    for (_, word) in log_words(log).filter(|(place, _)| is_state(place)) {
        // SAFETY: as above.
        unsafe {
            if word.read_volatile() == 1 {
                word.write_volatile(0);
            }
        }
    }
}
