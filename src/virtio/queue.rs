//! One virtqueue as the transport sees it: what the driver has set up, and its [`Phase`]; what the transport
//! needs of guest memory: RAM, to check queue addresses, and the page that shows the registers.

use crate::abi::command::QueueState;
use crate::addr::Ipa;

/// State of a queue. QueueReady reads 1 in all but [`Phase::Idle`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Phase {
    /// QueueReady is 0: size and addresses can be written.
    #[default]
    Idle,
    /// Size and addresses are checked and fixed.
    Ready,
    /// The driver stops the queue; the daemon has to stop using it first. `reset`: by QueueReset.
    Stopping {
        /// By QueueReset: returns to its defaults afterwards, and QueueReset reads 1 until then.
        reset: bool,
    },
    /// The daemon no longer uses the queue; the driver's retried store to QueueReady completes the stop.
    Stopped,
}

/// Size and addresses as the driver wrote them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Setup {
    /// QueueNum.
    pub size: u32,
    /// Descriptor area.
    pub desc: u64,
    /// Driver area ("available").
    pub driver: u64,
    /// Device area ("used").
    pub device: u64,
}

impl Setup {
    /// Returns whether the device can use the queue: a power of two up to `max` entries, and three aligned
    /// areas in RAM (section 2.7; the areas include the event fields). Areas that overlap harm only the
    /// guest.
    pub fn is_valid(&self, max: u16, ram: &impl GuestRam) -> bool {
        if !self.size.is_power_of_two() || self.size > u32::from(max) {
            return false;
        }
        let entries = u64::from(self.size);
        let areas = [
            (self.desc, 16, 16 * entries),
            (self.driver, 2, 6 + 2 * entries),
            (self.device, 4, 6 + 8 * entries),
        ];
        areas.into_iter().all(|(address, alignment, len)| {
            Ipa(address).is_aligned(alignment) && ram.contains(Ipa(address), len)
        })
    }
}

/// One queue.
#[derive(Clone, Copy, Default, Debug)]
pub struct Queue {
    /// QueueNumMax.
    pub max: u16,
    /// What the driver wrote; fixed unless [`Phase::Idle`].
    pub setup: Setup,
    /// Its state.
    pub phase: Phase,
}

impl Queue {
    /// Returns a queue as it is after reset.
    pub fn new(max: u16) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// Returns what QueueReady reads.
    pub fn ready(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Returns what QueueReset reads.
    pub fn resetting(&self) -> bool {
        self.phase == Phase::Stopping { reset: true }
    }

    /// Resets the queue.
    pub fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// Ends the daemon's use of the queue. Returns whether it was being stopped.
    pub fn quiesced(&mut self) -> bool {
        match self.phase {
            Phase::Stopping { reset: true } => self.reset(),
            Phase::Stopping { reset: false } => self.phase = Phase::Stopped,
            Phase::Idle | Phase::Ready | Phase::Stopped => return false,
        }
        true
    }

    /// Returns what the daemon gets to see: only checked addresses.
    pub fn state(&self) -> QueueState {
        let ready = match self.phase {
            Phase::Idle | Phase::Stopped => return QueueState::default(),
            Phase::Ready => 1,
            Phase::Stopping { .. } => 2,
        };
        let Setup {
            size,
            desc,
            driver,
            device,
        } = self.setup;
        QueueState {
            size,
            ready,
            desc,
            driver,
            device,
        }
    }
}

/// The guest's RAM.
pub trait GuestRam {
    /// Returns whether the `len` bytes from `start` are all RAM. False if the range wraps.
    fn contains(&self, start: Ipa, len: u64) -> bool;
}

/// The page of registers that the guest loads from.
pub trait RegisterPage {
    /// Stores `value` (little-endian) at `offset`, a multiple of 4 below 0x200. The store must be complete
    /// before the vCPU that trapped continues.
    fn set32(&self, offset: u16, value: u32);
}
