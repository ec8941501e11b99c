//! The device's side of [`Transport`], driven by the daemon: used buffers, configuration changes, the end of
//! resets, and the state that a daemon reads when it attaches. Nothing here trusts the daemon: a call that
//! does not fit the state does nothing.

use super::effect::{Effect, Rejected};
use super::queue::{Queue, RegisterPage};
use super::registers::{self as reg, DeviceStatus, Interrupt};
use super::transport::{Reset, Transport};
use crate::abi::MAX_QUEUES;
use crate::abi::command::{DeviceState, QueueState};

impl Transport {
    /// Resets the device at once: the zone is reset, and the daemon no longer uses its memory.
    pub fn power_cycle(&mut self, page: &impl RegisterPage) -> Effect {
        let line = self.line();
        self.generation = self.generation.wrapping_add(1);
        self.reset_registers(page);
        self.write_state(page);
        self.line_effect(line)
    }

    /// Raises the used buffer notification, InterruptStatus bit 0. Does nothing before DRIVER_OK
    /// (virtio-checklist 26).
    pub fn used_buffer(&mut self, page: &impl RegisterPage) -> Effect {
        if !self.daemon_may_access() {
            return Effect::NOTHING;
        }
        self.set_interrupt(self.interrupt | Interrupt::USED_BUFFER, page)
    }

    /// Changes `bytes` of configuration space and raises a configuration change notification; see the
    /// module's note on wide fields.
    ///
    /// # Errors
    /// [`Rejected::OutOfConfig`] if the range is not within configuration space.
    pub fn config_changed(
        &mut self,
        offset: u16,
        bytes: &[u8],
        page: &impl RegisterPage,
    ) -> Result<Effect, Rejected> {
        if !self.config.change(offset, bytes).ok_or(Rejected::OutOfConfig)? {
            return Ok(Effect::NOTHING);
        }
        page.set32(reg::CONFIG_GENERATION, self.config.generation);
        self.config.write_to(offset, bytes.len().min(256) as u16, page);
        if !self.daemon_may_access() {
            return Ok(Effect::NOTHING);
        }
        Ok(self.set_interrupt(self.interrupt | Interrupt::CONFIG_CHANGE, page))
    }

    /// Sets DEVICE_NEEDS_RESET. Does nothing unless the device is active.
    pub fn needs_reset(&mut self, page: &impl RegisterPage) -> Effect {
        if !self.daemon_may_access() {
            return Effect::NOTHING;
        }
        let line = self.line();
        // The daemon itself asked for it: it needs no event.
        let _ = self.set_needs_reset();
        self.write_state(page);
        self.line_effect(line)
    }

    /// Ends the daemon's use of everything it got before the reset `generation`. The guest's retried store
    /// then completes the reset.
    ///
    /// # Errors
    /// [`Rejected::Stale`] if that is not the pending reset.
    pub fn quiesced(&mut self, generation: u64, page: &impl RegisterPage) -> Result<(), Rejected> {
        if self.reset != Reset::Pending || generation != self.generation {
            return Err(Rejected::Stale);
        }
        self.reset = Reset::Quiesced;
        for queue in &mut self.queues {
            queue.quiesced();
        }
        self.write_state(page);
        Ok(())
    }

    /// Ends the daemon's use of one queue that is being stopped; `generation` as in [`Self::state`].
    ///
    /// # Errors
    /// [`Rejected::Stale`] if the queue is not being stopped, or the device was reset since.
    pub fn queue_quiesced(
        &mut self,
        queue: u32,
        generation: u64,
        page: &impl RegisterPage,
    ) -> Result<(), Rejected> {
        let stopped =
            generation == self.generation && self.queues.get_mut(queue as usize).is_some_and(Queue::quiesced);
        if !stopped {
            return Err(Rejected::Stale);
        }
        self.write_state(page);
        Ok(())
    }

    /// Returns the state for a daemon that attaches. Queues appear only while the daemon may use them.
    pub fn state(&self) -> DeviceState {
        let mut queue = [QueueState::default(); MAX_QUEUES];
        if self.daemon_may_access() {
            for (target, source) in queue.iter_mut().zip(&self.queues) {
                *target = source.state();
            }
        }
        let status = if self.reset == Reset::Quiesced {
            DeviceStatus::empty()
        } else {
            self.status
        };
        let features = if status.contains(DeviceStatus::FEATURES_OK) {
            self.driver_features
        } else {
            0
        };
        DeviceState {
            status: status.bits(),
            queues: self.queues.len() as u32,
            features,
            reset_generation: self.generation,
            reset_pending: u32::from(self.reset == Reset::Pending),
            reserved: 0,
            queue,
            config: *self.config.bytes(),
        }
    }
}
