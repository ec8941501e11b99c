//! The parameters of a run: the faults drawn from its seed, and a mistake chosen by the user.

use crate::rng::Rng;

/// Maximum number of queues of the simulated device.
pub const MAX_QUEUES: usize = 2;

/// A mistake built in on purpose, as a negative control: the simulation must notice it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// The new daemon finds an empty in-flight log.
    NoLog,
    /// The new daemon does not see the requests that were in flight.
    ForgetStarted,
    /// `fdatasync` does nothing and reports success.
    NoSync,
    /// A read completes, and is published, before its data is in guest memory.
    EarlyPublish,
    /// EL2 loses an available buffer notification now and then.
    LostNotification,
    /// The daemon sleeps without checking the event ring after it armed it.
    NoRecheck,
    /// EL2 loses a used buffer notification now and then.
    LostInterrupt,
    /// A new daemon does not wait for its predecessor's I/O.
    NoDrain,
    /// A reset completes while requests are in flight.
    EarlyQuiesce,
    /// WRITE_ZEROES does nothing and reports success.
    NoZeroes,
    /// The daemon ignores that the driver turns the write cache off.
    IgnoreCacheSwitch,
    /// The daemon stops polling the available rings and does not enable notifications.
    NoEnableNotifications,
    /// The daemon sleeps without sending the used buffer notifications that it has deferred.
    NoDeferredInterrupt,
}

/// What is injected in a run. Probabilities are in thousandths, for each decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The built-in mistake.
    pub sabotage: Sabotage,
    /// Actions of the guest before it only waits.
    pub actions: u64,
    /// The daemon is killed.
    pub kill: u64,
    /// An operation transfers a part.
    pub short: u64,
    /// An operation fails with EINTR or EAGAIN.
    pub transient: u64,
    /// An operation fails with EIO or ENOSPC.
    pub fail: u64,
    /// `fdatasync` fails. Not together with kills: the kernel reports the error once, and a kill between that
    /// report and the completion hides it from any daemon.
    pub fail_sync: u64,
    /// A wake-up or a notification is spurious.
    pub spurious: u64,
    /// A discard or zeroing fails with EOPNOTSUPP.
    pub unsupported: u64,
    /// The event interrupt is lost; a timer wakes the daemon later.
    pub lost_event_interrupt: u64,
    /// The device is reset.
    pub reset: u64,
    /// One queue is reset and set up again.
    pub queue_reset: u64,
    /// A process in root overwrites words of the event ring.
    pub corrupt_ring: u64,
    /// The driver turns the write cache on or off, if it has negotiated CONFIG_WCE.
    pub switch_cache: u64,
    /// A second vCPU overwrites bytes of rings, descriptors and buffers.
    pub second_vcpu: u64,
    /// The driver negotiates FLUSH.
    pub flush: bool,
    /// The driver negotiates CONFIG_WCE.
    pub config_wce: bool,
    /// The driver negotiates DISCARD and WRITE_ZEROES.
    pub ranges: bool,
    /// Queues of the device; the driver uses all of them.
    pub queues: usize,
    /// The driver negotiates EVENT_IDX.
    pub event_idx: bool,
    /// The driver negotiates INDIRECT_DESC.
    pub indirect: bool,
    /// The run ends with a power cut.
    pub power_cut: bool,
    /// Turns of the device side between two actions of the guest, up to four times as many.
    pub device_turns: u64,
    /// Polls of the available rings before the daemon sleeps.
    pub busy_polls: u64,
}

impl Profile {
    /// Draws a profile.
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
            unsupported: if rng.chance(150) { rng.range(50, 500) } else { 0 },
            spurious: some(rng, 1, 100),
            lost_event_interrupt: if rng.chance(150) { rng.range(10, 300) } else { 0 },
            reset: some(rng, 1, 60),
            queue_reset: some(rng, 1, 60),
            corrupt_ring: if hostile == 0 { rng.range(5, 100) } else { 0 },
            switch_cache: some(rng, 20, 150),
            second_vcpu: if hostile == 1 { rng.range(20, 400) } else { 0 },
            flush: rng.chance(750),
            config_wce: rng.chance(400),
            ranges: rng.chance(600),
            queues: if rng.chance(400) { MAX_QUEUES } else { 1 },
            event_idx: rng.chance(500),
            indirect: rng.chance(500),
            power_cut: rng.chance(500),
            device_turns: rng.range(1, 12),
            busy_polls: 0,
        };
        // Every other run busy-polls. Derived from a number drawn above, so that no seed draws other numbers.
        if profile.device_turns.is_multiple_of(2) {
            profile.busy_polls = profile.device_turns / 2;
        }
        profile
    }
}
