//! The state machine of one virtio-mmio device: [`Transport`].
//!
//! All calls for one device come one at a time (EL2 holds the device's lock), so the history of a device's stores
//! is a sequence. A store whose [`Outcome::retry`] is set has not happened yet: EL2 leaves the program counter on
//! it and goes back to the guest, which stays interruptible, and tries again.
//!
//! # Reset
//! Status must not read 0 while the daemon may still touch the guest's buffers. So the reset of a device that was
//! activated asks the daemon once ([`Event::Reset`]) and is retried until [`Transport::quiesced`]. It takes effect
//! in the next store of 0 to Status, not before: so it happens exactly within the time of one store of one vCPU,
//! also if several vCPUs race. QueueReady = 0 on a live queue works in the same way. QueueReset does not hold the
//! store: the driver polls that register.

use arrayvec::ArrayVec;

use super::config::Config;
use super::features::{bit, missing_dependency};
use super::queue::{Phase, Queue};
use super::registers::{self as reg, Interrupt, Status};
use super::{Event, GuestRam, Outcome, RegisterPage, Spec};
use crate::abi::MAX_QUEUES;
use crate::syndrome::Width;

/// How far a reset of an activated device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reset {
    /// None under way.
    None,
    /// The daemon has been asked.
    Pending,
    /// It has let go; the driver's store has yet to come back.
    Quiesced,
}

/// One device's registers. Everything the daemon or EL2 believes about the device comes from here; the page only
/// shows it.
#[derive(Clone, Debug)]
pub struct Transport {
    device_id: u32,
    vendor_id: u32,
    device_features: u64,
    pub(super) driver_features: u64,
    /// The driver accepted a feature beyond bit 63: nobody offers such.
    beyond: bool,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    pub(super) queues: ArrayVec<Queue, MAX_QUEUES>,
    pub(super) status: Status,
    pub(super) interrupt: Interrupt,
    pub(super) config: Config,
    pub(super) reset: Reset,
    /// Resets begun so far.
    pub(super) generation: u64,
}

impl Transport {
    /// A device as it is after power-on. Show it with [`Self::publish`] before the guest sees the page.
    #[must_use]
    pub fn new(spec: &Spec) -> Self {
        Self {
            device_id: spec.device_id,
            vendor_id: spec.vendor_id,
            device_features: spec.features,
            driver_features: 0,
            beyond: false,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: spec.queue_max.iter().map(|&max| Queue::new(max)).collect(),
            status: Status::empty(),
            interrupt: Interrupt::empty(),
            config: Config::new(spec),
            reset: Reset::None,
            generation: 0,
        }
    }

    /// A slot without a device: DeviceID reads 0, stores do nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(&Spec::empty())
    }

    /// Whether the slot has no device.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.device_id == 0
    }

    /// Level of the interrupt line: virtio-checklist 17.
    #[must_use]
    pub const fn line(&self) -> bool {
        !self.interrupt.is_empty()
    }

    /// Status register.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// A guest's store of `value` at `offset` in the page.
    pub fn write(
        &mut self,
        offset: u16,
        width: Width,
        value: u64,
        ram: &impl GuestRam,
        page: &impl RegisterPage,
    ) -> Outcome {
        if self.is_empty() {
            return Outcome::NOTHING;
        }
        if offset >= reg::CONFIG {
            return self.write_config(offset, width, value & width.mask(), page);
        }
        // Other widths and misaligned stores hit no register: virtio-checklist 21.
        if width != Width::Word {
            return Outcome::NOTHING;
        }
        let value = value as u32;
        match offset {
            reg::QUEUE_NOTIFY => return self.notify(value),
            reg::INTERRUPT_ACK => {
                return self.set_interrupt(self.interrupt - Interrupt::from_bits_truncate(value), page);
            }
            _ => {}
        }
        let line = self.line();
        let outcome = match offset {
            reg::STATUS if value == 0 => self.driver_reset(page),
            reg::STATUS => self.write_status(Status::from_bits_truncate(value), page),
            reg::QUEUE_READY => self.write_queue_ready(value, ram),
            reg::QUEUE_RESET => self.write_queue_reset(value),
            _ => {
                self.write_plain(offset, value);
                Outcome::NOTHING
            }
        };
        self.show_changing(page);
        Outcome {
            line: self.line_change(line),
            ..outcome
        }
    }

    /// Registers that only take a value.
    fn write_plain(&mut self, offset: u16, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            _ => self.write_queue_setup(offset, value),
        }
    }

    /// Once FEATURES_OK is set, the driver cannot change its mind (section 3.1.1).
    fn write_driver_features(&mut self, value: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        let value64 = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value64,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value64 << 32,
            _ => self.beyond |= value != 0,
        }
    }

    /// Size and addresses of the selected queue, inert while it is ready: virtio-checklist 22, torture a7, a8.
    fn write_queue_setup(&mut self, offset: u16, value: u32) {
        let Some(Queue {
            setup,
            phase: Phase::Idle,
            ..
        }) = self.selected()
        else {
            return;
        };
        let low = |address: &mut u64| *address = *address & !0xffff_ffff | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            reg::QUEUE_NUM => setup.size = value,
            reg::QUEUE_DESC_LOW => low(&mut setup.desc),
            reg::QUEUE_DESC_HIGH => high(&mut setup.desc),
            reg::QUEUE_DRIVER_LOW => low(&mut setup.driver),
            reg::QUEUE_DRIVER_HIGH => high(&mut setup.driver),
            reg::QUEUE_DEVICE_LOW => low(&mut setup.device),
            reg::QUEUE_DEVICE_HIGH => high(&mut setup.device),
            _ => {}
        }
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_sel as usize)
    }

    /// Whether queues are worked on.
    fn live(&self) -> bool {
        self.status.contains(Status::DRIVER_OK)
            && !self.status.contains(Status::DEVICE_NEEDS_RESET)
            && self.reset == Reset::None
    }

    /// Whether the daemon may hold buffers, so that taking something back has to wait for it.
    pub(super) fn held(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && self.reset != Reset::Quiesced
    }

    /// A guest can only ever cause one pending notification per queue: the ring sees to that. Here: the queue
    /// exists, is ready, and the device is live (virtio-checklist 13, 24, 25; torture a10).
    fn notify(&self, value: u32) -> Outcome {
        match (self.queues.get(value as usize), u8::try_from(value)) {
            (
                Some(Queue {
                    phase: Phase::Ready, ..
                }),
                Ok(queue),
            ) if self.live() => Outcome::event(Event::Notify { queue }),
            _ => Outcome::NOTHING,
        }
    }

    pub(super) fn set_interrupt(&mut self, interrupt: Interrupt, page: &impl RegisterPage) -> Outcome {
        let line = self.line();
        if interrupt != self.interrupt {
            self.interrupt = interrupt;
            page.set32(reg::INTERRUPT_STATUS, interrupt.bits());
        }
        Outcome {
            line: self.line_change(line),
            ..Outcome::NOTHING
        }
    }

    pub(super) fn line_change(&self, before: bool) -> Option<bool> {
        (self.line() != before).then_some(self.line())
    }

    /// Status bits are set in their order and never cleared but by reset; a bit whose predecessor is missing is
    /// not taken. After DEVICE_NEEDS_RESET or FAILED only FAILED can still be set.
    fn write_status(&mut self, wanted: Status, page: &impl RegisterPage) -> Outcome {
        if (self.status | wanted).contains(Status::FAILED) || self.status.contains(Status::DEVICE_NEEDS_RESET)
        {
            self.status |= wanted & Status::FAILED;
            return Outcome::NOTHING;
        }
        self.status |= wanted & Status::ACKNOWLEDGE;
        if self.status.contains(Status::ACKNOWLEDGE) {
            self.status |= wanted & Status::DRIVER;
        }
        if wanted.contains(Status::FEATURES_OK)
            && self.status.contains(Status::DRIVER)
            && !self.status.contains(Status::FEATURES_OK)
            && self.features_acceptable()
        {
            self.status |= Status::FEATURES_OK;
            self.config.negotiated(self.driver_features);
            self.config.show(0, 256, page);
        }
        if wanted.contains(Status::DRIVER_OK)
            && self.status.contains(Status::FEATURES_OK)
            && !self.status.contains(Status::DRIVER_OK)
        {
            self.status |= Status::DRIVER_OK;
            return Outcome::event(Event::Activated);
        }
        Outcome::NOTHING
    }

    /// virtio-checklist 30: a subset of what is offered, with VERSION_1, and nothing without what it needs.
    fn features_acceptable(&self) -> bool {
        !self.beyond
            && self.driver_features & !self.device_features == 0
            && self.driver_features & bit::VERSION_1 != 0
            && missing_dependency(self.device_id, self.driver_features).is_none()
    }

    fn write_queue_ready(&mut self, value: u32, ram: &impl GuestRam) -> Outcome {
        let (live, held) = (self.live(), self.held());
        let broken = self.status.contains(Status::DEVICE_NEEDS_RESET);
        let Ok(queue_number) = u8::try_from(self.queue_sel) else {
            return Outcome::NOTHING;
        };
        let Some(queue) = self.selected() else {
            return Outcome::NOTHING;
        };
        match (value, queue.phase) {
            (1, Phase::Idle) if broken => Outcome::NOTHING,
            (1, Phase::Idle) => {
                if !queue.setup.is_valid(queue.max, ram) {
                    return self.fail();
                }
                queue.phase = Phase::Ready;
                Outcome {
                    event: live.then_some(Event::QueueReady { queue: queue_number }),
                    ..Outcome::NOTHING
                }
            }
            (0, Phase::Ready) if held => {
                queue.phase = Phase::Stopping { reset: false };
                Outcome::retry(Some(Event::QueueStop { queue: queue_number }))
            }
            (0, Phase::Stopping { .. }) => Outcome::retry(None),
            (0, Phase::Ready | Phase::Stopped) => {
                queue.phase = Phase::Idle;
                Outcome::NOTHING
            }
            _ => Outcome::NOTHING,
        }
    }

    /// virtio-checklist 19, 36.
    fn write_queue_reset(&mut self, value: u32) -> Outcome {
        let held = self.held();
        let negotiated =
            self.status.contains(Status::FEATURES_OK) && self.driver_features & bit::RING_RESET != 0;
        let Ok(queue_number) = u8::try_from(self.queue_sel) else {
            return Outcome::NOTHING;
        };
        let Some(queue) = self.selected() else {
            return Outcome::NOTHING;
        };
        if value != 1 || !negotiated {
            return Outcome::NOTHING;
        }
        match queue.phase {
            Phase::Ready if held => {
                queue.phase = Phase::Stopping { reset: true };
                Outcome::event(Event::QueueStop { queue: queue_number })
            }
            Phase::Stopping { .. } => {
                queue.phase = Phase::Stopping { reset: true };
                Outcome::NOTHING
            }
            Phase::Idle | Phase::Ready | Phase::Stopped => {
                queue.reset();
                Outcome::NOTHING
            }
        }
    }

    /// DEVICE_NEEDS_RESET, and a configuration interrupt if the driver is there to take it: virtio-checklist 27,
    /// 28. The caller shows the registers.
    pub(super) fn fail(&mut self) -> Outcome {
        if self.status.contains(Status::DEVICE_NEEDS_RESET) {
            return Outcome::NOTHING;
        }
        self.status |= Status::DEVICE_NEEDS_RESET;
        if !self.held() {
            return Outcome::NOTHING;
        }
        self.interrupt |= Interrupt::CONFIG_CHANGE;
        Outcome::event(Event::NeedsReset)
    }

    fn write_config(&mut self, offset: u16, width: Width, value: u64, page: &impl RegisterPage) -> Outcome {
        let at = offset - reg::CONFIG;
        // Before FEATURES_OK the driver must not write here (section 3.1.1).
        let usable = self.status.contains(Status::FEATURES_OK)
            && !self.status.contains(Status::DEVICE_NEEDS_RESET)
            && self.reset == Reset::None;
        if !usable || !self.config.write(at, width, value, self.driver_features) {
            return Outcome::NOTHING;
        }
        self.config.show(at, 1, page);
        Outcome::event(Event::ConfigWrite {
            offset: at,
            value: value as u8,
        })
    }

    /// Status = 0.
    fn driver_reset(&mut self, page: &impl RegisterPage) -> Outcome {
        if !self.status.contains(Status::DRIVER_OK) {
            self.generation = self.generation.wrapping_add(1);
            self.reset_registers(page);
            return Outcome::NOTHING;
        }
        match self.reset {
            Reset::None => {
                self.generation = self.generation.wrapping_add(1);
                self.reset = Reset::Pending;
                Outcome::retry(Some(Event::Reset {
                    generation: self.generation,
                }))
            }
            Reset::Pending => Outcome::retry(None),
            Reset::Quiesced => {
                self.reset_registers(page);
                Outcome::NOTHING
            }
        }
    }

    /// virtio-checklist 11, 12, 23, 24, 32. The caller shows the registers that change.
    pub(super) fn reset_registers(&mut self, page: &impl RegisterPage) {
        self.driver_features = 0;
        self.beyond = false;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = Status::empty();
        self.interrupt = Interrupt::empty();
        self.config.reset();
        self.config.show(0, 256, page);
        self.reset = Reset::None;
    }

    /// Shows every register.
    pub fn publish(&self, page: &impl RegisterPage) {
        for offset in (0..reg::CONFIG).step_by(4) {
            page.set32(offset, 0);
        }
        page.set32(reg::MAGIC_VALUE, reg::MAGIC);
        page.set32(reg::VERSION_OFFSET, reg::VERSION);
        page.set32(reg::DEVICE_ID, self.device_id);
        page.set32(reg::VENDOR_ID, self.vendor_id);
        // No shared memory region exists: virtio-checklist 18.
        for offset in [
            reg::SHM_LEN_LOW,
            reg::SHM_LEN_HIGH,
            reg::SHM_BASE_LOW,
            reg::SHM_BASE_HIGH,
        ] {
            page.set32(offset, u32::MAX);
        }
        self.show_changing(page);
        page.set32(reg::CONFIG_GENERATION, self.config.generation);
        self.config.show(0, 256, page);
    }

    /// Shows the registers that depend on selectors and state.
    pub(super) fn show_changing(&self, page: &impl RegisterPage) {
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
