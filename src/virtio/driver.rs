//! The driver's side of [`Transport`]: stores to its registers (virtio 1.2, 4.2.2).

use super::effect::{Effect, Event};
use super::features::{bit, device, missing_dependency};
use super::queue::{GuestRam, Phase, Queue, RegisterPage};
use super::registers::{self as reg, DeviceStatus, Interrupt};
use super::transport::{Reset, Transport};
use crate::syndrome::Width;

/// Offset of `emerg_wr` in a console's configuration space (section 5.3.4).
const CONSOLE_EMERG_WR: u16 = 8;

impl Transport {
    /// Executes a guest's store of `value` at `offset` in the page.
    pub fn write(
        &mut self,
        offset: u16,
        width: Width,
        value: u64,
        ram: &impl GuestRam,
        page: &impl RegisterPage,
    ) -> Effect {
        if self.is_empty() {
            return Effect::NOTHING;
        }
        if offset >= reg::CONFIG {
            return self.write_config(offset, width, value & width.mask(), page);
        }
        // Other widths and misaligned stores address no register: virtio-checklist 21.
        if width != Width::Word {
            return Effect::NOTHING;
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
        let effect = match offset {
            reg::STATUS if value == 0 => self.driver_reset(page),
            reg::STATUS => self.write_status(DeviceStatus::from_bits_truncate(value), page),
            reg::QUEUE_READY => self.write_queue_ready(value, ram),
            reg::QUEUE_RESET => self.write_queue_reset(value),
            _ => {
                self.write_plain(offset, value);
                Effect::NOTHING
            }
        };
        self.write_state(page);
        let line = self.line_effect(line).line;
        Effect { line, ..effect }
    }

    /// Stores to registers that only hold a value.
    fn write_plain(&mut self, offset: u16, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            _ => self.write_queue_setup(offset, value),
        }
    }

    /// Writes DriverFeatures. After FEATURES_OK the driver cannot change them (section 3.1.1).
    fn write_driver_features(&mut self, value: u32) {
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        let value64 = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value64,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value64 << 32,
            _ => self.reserved_feature_acked |= value != 0,
        }
    }

    /// Writes size and addresses of the selected queue; ignored while it is ready: virtio-checklist 22,
    /// torture a7, a8.
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

    /// As [`Self::selected`], with its number.
    fn selected_by_number(&mut self) -> Option<(u8, &mut Queue)> {
        Some((u8::try_from(self.queue_sel).ok()?, self.selected()?))
    }

    /// Handles an available buffer notification: the queue must exist and be ready, and the device active
    /// (virtio-checklist 13, 24, 25; torture a10). The event ring keeps at most one pending per queue.
    fn notify(&self, value: u32) -> Effect {
        match (self.queues.get(value as usize), u8::try_from(value)) {
            (
                Some(Queue {
                    phase: Phase::Ready, ..
                }),
                Ok(queue),
            ) if self.is_live() => Effect::event(Event::Notify { queue }),
            _ => Effect::NOTHING,
        }
    }

    /// Writes Status. Bits are cleared only by a reset. FEATURES_OK is ignored if the features are not
    /// acceptable, and DRIVER_OK without it; U-Boot before 2023.07 sets DRIVER without ACKNOWLEDGE. After
    /// DEVICE_NEEDS_RESET or FAILED only FAILED can still be set.
    fn write_status(&mut self, wanted: DeviceStatus, page: &impl RegisterPage) -> Effect {
        if (self.status | wanted).contains(DeviceStatus::FAILED)
            || self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            self.status |= wanted & DeviceStatus::FAILED;
            return Effect::NOTHING;
        }
        self.status |= wanted & (DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        if wanted.contains(DeviceStatus::FEATURES_OK)
            && !self.status.contains(DeviceStatus::FEATURES_OK)
            && self.features_acceptable()
        {
            self.status |= DeviceStatus::FEATURES_OK;
            self.config.negotiated(self.driver_features);
            self.config.write_to(0, 256, page);
        }
        if wanted.contains(DeviceStatus::DRIVER_OK)
            && self.status.contains(DeviceStatus::FEATURES_OK)
            && !self.status.contains(DeviceStatus::DRIVER_OK)
        {
            self.status |= DeviceStatus::DRIVER_OK;
            return Effect::event(Event::Activated);
        }
        Effect::NOTHING
    }

    /// Returns whether the driver's features are acceptable (virtio-checklist 30): a subset of those offered,
    /// with VERSION_1, and with all dependencies.
    fn features_acceptable(&self) -> bool {
        !self.reserved_feature_acked
            && self.driver_features & !self.device_features == 0
            && self.driver_features & bit::VERSION_1 != 0
            && missing_dependency(self.device_id, self.driver_features).is_none()
    }

    fn write_queue_ready(&mut self, value: u32, ram: &impl GuestRam) -> Effect {
        let (live, held) = (self.is_live(), self.daemon_may_access());
        let broken = self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        let Some((queue_number, queue)) = self.selected_by_number() else {
            return Effect::NOTHING;
        };
        match (value, queue.phase) {
            (1, Phase::Idle) if broken => Effect::NOTHING,
            (1, Phase::Idle) => {
                if !queue.setup.is_valid(queue.max, ram) {
                    return self.set_needs_reset();
                }
                queue.phase = Phase::Ready;
                Effect {
                    event: live.then_some(Event::QueueReady { queue: queue_number }),
                    ..Effect::NOTHING
                }
            }
            (0, Phase::Ready) if held => {
                queue.phase = Phase::Stopping { reset: false };
                Effect::retry(Some(Event::QueueStop { queue: queue_number }))
            }
            (0, Phase::Stopping { .. }) => Effect::retry(None),
            (0, Phase::Ready | Phase::Stopped) => {
                queue.phase = Phase::Idle;
                Effect::NOTHING
            }
            _ => Effect::NOTHING,
        }
    }

    /// Writes QueueReset: virtio-checklist 19, 36.
    fn write_queue_reset(&mut self, value: u32) -> Effect {
        let held = self.daemon_may_access();
        let negotiated =
            self.status.contains(DeviceStatus::FEATURES_OK) && self.driver_features & bit::RING_RESET != 0;
        let Some((queue_number, queue)) = self.selected_by_number() else {
            return Effect::NOTHING;
        };
        if value != 1 || !negotiated {
            return Effect::NOTHING;
        }
        match queue.phase {
            Phase::Ready if held => {
                queue.phase = Phase::Stopping { reset: true };
                Effect::event(Event::QueueStop { queue: queue_number })
            }
            Phase::Stopping { .. } => {
                queue.phase = Phase::Stopping { reset: true };
                Effect::NOTHING
            }
            Phase::Idle | Phase::Ready | Phase::Stopped => {
                queue.reset();
                Effect::NOTHING
            }
        }
    }

    fn write_config(&mut self, offset: u16, width: Width, value: u64, page: &impl RegisterPage) -> Effect {
        let at = offset - reg::CONFIG;
        // At any time, whatever was negotiated (section 5.3.4.1).
        if at == CONSOLE_EMERG_WR
            && self.device_id == device::CONSOLE
            && self.device_features & bit::CONSOLE_EMERG_WRITE != 0
        {
            return Effect::event(Event::EmergencyWrite { byte: value as u8 });
        }
        // Before FEATURES_OK the driver must not write here (section 3.1.1).
        let usable = self.status.contains(DeviceStatus::FEATURES_OK)
            && !self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
            && self.reset == Reset::None;
        if !usable || !self.config.write(at, width, value, self.driver_features) {
            return Effect::NOTHING;
        }
        self.config.write_to(at, 1, page);
        Effect::event(Event::ConfigWrite {
            offset: at,
            value: value as u8,
        })
    }

    /// Handles a store of 0 to Status.
    fn driver_reset(&mut self, page: &impl RegisterPage) -> Effect {
        if !self.status.contains(DeviceStatus::DRIVER_OK) {
            self.generation = self.generation.wrapping_add(1);
            self.reset_registers(page);
            return Effect::NOTHING;
        }
        match self.reset {
            Reset::None => {
                self.generation = self.generation.wrapping_add(1);
                self.reset = Reset::Pending;
                Effect::retry(Some(Event::Reset {
                    generation: self.generation,
                }))
            }
            Reset::Pending => Effect::retry(None),
            Reset::Quiesced => {
                self.reset_registers(page);
                Effect::NOTHING
            }
        }
    }
}
