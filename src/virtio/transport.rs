//! The state of one virtio-mmio device: [`Transport`].
//!
//! Calls for one device are serialized (EL2 holds the device's lock). A store whose [`Effect`] has `retry`
//! set has not completed: EL2 leaves the program counter on it and returns to the guest, which can take
//! interrupts, and tries again.
//!
//! # Reset
//! Status must not read 0 while the daemon may still access the guest's buffers. So the reset of an active
//! device sends the daemon one [`Event::Reset`], and the store is retried until [`Transport::quiesced`]. The
//! reset takes effect in the next store of 0 to Status and not before: it happens within one store of one
//! vCPU, even if several vCPUs race. QueueReady = 0 on an active queue works in the same way. QueueReset does
//! not hold the store: the driver polls that register.

use arrayvec::ArrayVec;

use super::config::Config;
use super::effect::{Effect, Event};
use super::queue::{Queue, RegisterPage};
use super::registers::{self as reg, DeviceStatus, Interrupt};
use super::spec::Spec;
use crate::abi::MAX_QUEUES;

/// Progress of the reset of an active device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reset {
    /// No reset is pending.
    None,
    /// The daemon has been sent [`Event::Reset`].
    Pending,
    /// The daemon no longer uses the device; the driver's retried store completes the reset.
    Quiesced,
}

/// One device's registers. EL2 and the daemon take the device's state from here; the page only shows it.
#[derive(Clone, Debug)]
pub struct Transport {
    pub(super) device_id: u32,
    vendor_id: u32,
    pub(super) device_features: u64,
    pub(super) driver_features: u64,
    /// The driver acknowledged a feature bit above 63, none of which is offered.
    pub(super) reserved_feature_acked: bool,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u32,
    pub(super) queues: ArrayVec<Queue, MAX_QUEUES>,
    pub(super) status: DeviceStatus,
    pub(super) interrupt: Interrupt,
    pub(super) config: Config,
    pub(super) reset: Reset,
    /// Resets begun so far.
    pub(super) generation: u64,
}

impl Transport {
    /// Returns a device as it is after power-on. [`Self::write_page`] must run before the guest sees the
    /// page.
    pub fn new(spec: &Spec) -> Self {
        Self {
            device_id: spec.device_id,
            vendor_id: spec.vendor_id,
            device_features: spec.features,
            driver_features: 0,
            reserved_feature_acked: false,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: spec.queue_max.iter().map(|&max| Queue::new(max)).collect(),
            status: DeviceStatus::empty(),
            interrupt: Interrupt::empty(),
            config: Config::new(spec),
            reset: Reset::None,
            generation: 0,
        }
    }

    /// Returns a slot without a device: DeviceID reads 0, stores have no effect.
    pub fn empty() -> Self {
        Self::new(&Spec::empty())
    }

    /// Returns whether the slot has no device.
    pub const fn is_empty(&self) -> bool {
        self.device_id == 0
    }

    /// Returns the level of the interrupt line: virtio-checklist 17.
    pub const fn line(&self) -> bool {
        !self.interrupt.is_empty()
    }

    /// Returns the Status register.
    pub const fn status(&self) -> DeviceStatus {
        self.status
    }

    /// Returns whether queues are processed.
    pub(super) fn is_live(&self) -> bool {
        self.status.contains(DeviceStatus::DRIVER_OK)
            && !self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
            && self.reset == Reset::None
    }

    /// Returns whether the daemon may hold buffers, so that a reset or stop has to wait for it.
    pub(super) fn daemon_may_access(&self) -> bool {
        self.status.contains(DeviceStatus::DRIVER_OK) && self.reset != Reset::Quiesced
    }

    pub(super) fn set_interrupt(&mut self, interrupt: Interrupt, page: &impl RegisterPage) -> Effect {
        let line = self.line();
        if interrupt != self.interrupt {
            self.interrupt = interrupt;
            page.set32(reg::INTERRUPT_STATUS, interrupt.bits());
        }
        self.line_effect(line)
    }

    /// Returns the effect of a change of the interrupt status: the line's level was `before`.
    pub(super) fn line_effect(&self, before: bool) -> Effect {
        Effect {
            line: (self.line() != before).then_some(self.line()),
            ..Effect::NOTHING
        }
    }

    /// Sets DEVICE_NEEDS_RESET and, after DRIVER_OK, raises a configuration change notification:
    /// virtio-checklist 27, 28. The caller writes the registers to the page.
    pub(super) fn set_needs_reset(&mut self) -> Effect {
        if self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Effect::NOTHING;
        }
        self.status |= DeviceStatus::DEVICE_NEEDS_RESET;
        if !self.daemon_may_access() {
            return Effect::NOTHING;
        }
        self.interrupt |= Interrupt::CONFIG_CHANGE;
        Effect::event(Event::NeedsReset)
    }

    /// Resets all registers: virtio-checklist 11, 12, 23, 24, 32. The caller writes the changed ones to the
    /// page.
    pub(super) fn reset_registers(&mut self, page: &impl RegisterPage) {
        self.driver_features = 0;
        self.reserved_feature_acked = false;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = DeviceStatus::empty();
        self.interrupt = Interrupt::empty();
        self.config.reset();
        self.config.write_to(0, 256, page);
        self.reset = Reset::None;
    }

    /// Writes every register to the page.
    pub fn write_page(&self, page: &impl RegisterPage) {
        for offset in (0..reg::CONFIG).step_by(4) {
            page.set32(offset, 0);
        }
        page.set32(reg::MAGIC_VALUE, reg::MAGIC);
        page.set32(reg::VERSION_OFFSET, reg::VERSION);
        page.set32(reg::DEVICE_ID, self.device_id);
        page.set32(reg::VENDOR_ID, self.vendor_id);
        // There is no shared memory region: virtio-checklist 18.
        for offset in [
            reg::SHM_LEN_LOW,
            reg::SHM_LEN_HIGH,
            reg::SHM_BASE_LOW,
            reg::SHM_BASE_HIGH,
        ] {
            page.set32(offset, u32::MAX);
        }
        self.write_state(page);
        page.set32(reg::CONFIG_GENERATION, self.config.generation);
        self.config.write_to(0, 256, page);
    }

    /// Writes the registers that depend on selectors and state.
    pub(super) fn write_state(&self, page: &impl RegisterPage) {
        let features = match self.device_features_sel {
            0 => self.device_features as u32,
            1 => (self.device_features >> 32) as u32,
            _ => 0,
        };
        page.set32(reg::DEVICE_FEATURES, features);
        let queue = self.queues.get(self.queue_sel as usize);
        page.set32(reg::QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max.into()));
        page.set32(reg::QUEUE_READY, queue.map_or(0, |queue| queue.ready().into()));
        page.set32(
            reg::QUEUE_RESET,
            queue.map_or(0, |queue| queue.resetting().into()),
        );
        page.set32(reg::INTERRUPT_STATUS, self.interrupt.bits());
        page.set32(reg::STATUS, self.status.bits());
    }
}
