//! What a run is like: chosen by its seed, or by who looks for something special.

use crate::rng::Rng;

/// Most queues of the simulated device.
pub const MAX_QUEUES: usize = 2;

/// A mistake that is built in on purpose: the simulation must notice it, or it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// The new daemon finds an empty in-flight log.
    NoLog,
    /// The new daemon does not see what was started and not finished.
    ForgetStarted,
    /// `fdatasync` does nothing and says that it did.
    NoSync,
    /// A read is reported as done, and so published, before its data is in guest memory.
    EarlyPublish,
    /// EL2 loses a notification now and then.
    LostNotify,
    /// The daemon sleeps without a second look at the ring.
    NoSecondLook,
    /// An interrupt for used buffers is lost now and then.
    LostInterrupt,
    /// A new daemon does not wait for its predecessor's I/O.
    NoDrain,
    /// A reset is answered while requests run.
    EarlyQuiesce,
    /// WRITE_ZEROES does nothing and says that it did.
    NoZeroes,
    /// The daemon does not hear that the driver turns the write cache off.
    DeafToCache,
    /// The daemon stops looking at the available rings and does not ask for notifications.
    NoListen,
    /// The daemon sleeps without deciding about the interrupts that it left to later publications.
    NoSignal,
}

/// What is injected in a run. Chances are per mille and decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The built-in mistake.
    pub sabotage: Sabotage,
    /// Guest's actions before the end.
    pub actions: u64,
    /// The daemon is killed.
    pub kill: u64,
    /// An operation transfers a part.
    pub short: u64,
    /// An operation fails with EINTR or EAGAIN.
    pub transient: u64,
    /// An operation fails with EIO or ENOSPC.
    pub fail: u64,
    /// `fdatasync` fails. Not together with kills: a kill between the kernel's one report of the error and
    /// the daemon's answer hides it, whatever a daemon does.
    pub fail_sync: u64,
    /// Somebody wakes without a reason.
    pub spurious: u64,
    /// A discard, or zeroing, fails with EOPNOTSUPP.
    pub lacks: u64,
    /// EL2's interrupt to the daemon is lost; a timer of the daemon's supervisor wakes it later.
    pub lost_bell: u64,
    /// The device is reset.
    pub reset: u64,
    /// The queue alone is stopped and set up again.
    pub queue_reset: u64,
    /// Someone in root scribbles into the shared ring.
    pub scribble: u64,
    /// The driver switches the write cache, if it may.
    pub switch_cache: u64,
    /// A second vCPU scribbles into rings, descriptors and buffers.
    pub second_vcpu: u64,
    /// The driver negotiates FLUSH.
    pub flush: bool,
    /// ... CONFIG_WCE, if the device offers it.
    pub choose_cache: bool,
    /// ... DISCARD and WRITE_ZEROES.
    pub ranges: bool,
    /// Queues of the device, all of which the driver uses.
    pub queues: usize,
    /// ... EVENT_IDX.
    pub event_idx: bool,
    /// ... INDIRECT_DESC.
    pub indirect: bool,
    /// The end is a power cut.
    pub power_cut: bool,
    /// Of the guest's turns: how many are the others'.
    pub patience: u64,
    /// How often the daemon looks at the available rings, without being notified, before it goes to sleep.
    pub looks: u64,
}

impl Profile {
    /// What the seed says.
    pub fn draw(rng: &mut Rng, sabotage: Sabotage) -> Self {
        let some = |rng: &mut Rng, low, high| if rng.chance(500) { rng.range(low, high) } else { 0 };
        let sync_errors = rng.chance(80);
        let hostile = if sync_errors { u64::MAX } else { rng.below(12) };
        let mut profile = Self {
            sabotage,
            actions: rng.range(10, 90),
            kill: if sync_errors { 0 } else { some(rng, 1, 40) },
            short: some(rng, 10, 200),
            transient: some(rng, 10, 200),
            fail: if rng.chance(250) { rng.range(1, 40) } else { 0 },
            fail_sync: if sync_errors { rng.range(20, 400) } else { 0 },
            lacks: if rng.chance(150) { rng.range(50, 500) } else { 0 },
            spurious: some(rng, 1, 100),
            lost_bell: if rng.chance(150) { rng.range(10, 300) } else { 0 },
            reset: some(rng, 1, 60),
            queue_reset: some(rng, 1, 60),
            scribble: if hostile == 0 { rng.range(5, 100) } else { 0 },
            switch_cache: some(rng, 20, 150),
            second_vcpu: if hostile == 1 { rng.range(20, 400) } else { 0 },
            flush: rng.chance(750),
            choose_cache: rng.chance(400),
            ranges: rng.chance(600),
            queues: if rng.chance(400) { MAX_QUEUES } else { 1 },
            event_idx: rng.chance(500),
            indirect: rng.chance(500),
            power_cut: rng.chance(500),
            patience: rng.range(1, 12),
            looks: 0,
        };
        // Every other run, from what was drawn already.
        if profile.patience.is_multiple_of(2) {
            profile.looks = profile.patience / 2;
        }
        profile
    }
}
