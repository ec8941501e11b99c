//! The daemon's side of [`Transport`]: completions, configuration changes, answers to resets, and what a daemon
//! that attaches reads. Nothing here trusts the daemon: a call that does not fit the state does nothing.

use super::effect::{Effect, Rejected};
use super::memory::RegisterPage;
use super::queue::Queue;
use super::registers::{self as reg, DeviceStatus, Interrupt};
use super::transport::{Reset, Transport};
use crate::abi::MAX_QUEUES;
use crate::abi::command::{DeviceState, QueueState};

impl Transport {
    /// Resets without asking: the zone is reset, and the daemon holds nothing of it any more.
    pub fn power_cycle(&mut self, page: &impl RegisterPage) -> Effect {
        let line = self.line();
        self.generation = self.generation.wrapping_add(1);
        self.reset_registers(page);
        self.write_state(page);
        Effect {
            line: self.line_change(line),
            ..Effect::NOTHING
        }
    }

    /// The daemon has used buffers: InterruptStatus bit 0. Nothing before DRIVER_OK (virtio-checklist 26).
    pub fn used_buffer(&mut self, page: &impl RegisterPage) -> Effect {
        if !self.daemon_may_access() {
            return Effect::NOTHING;
        }
        self.set_interrupt(self.interrupt | Interrupt::USED_BUFFER, page)
    }

    /// The device changes `bytes` of its configuration space; see the module's note on wide fields.
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

    /// The device cannot go on. Nothing unless it is active.
    pub fn needs_reset(&mut self, page: &impl RegisterPage) -> Effect {
        if !self.daemon_may_access() {
            return Effect::NOTHING;
        }
        let line = self.line();
        // The daemon is the one who says so: it needs no event.
        let _ = self.set_needs_reset();
        self.write_state(page);
        Effect {
            line: self.line_change(line),
            ..Effect::NOTHING
        }
    }

    /// The daemon touches nothing any more that it got before the reset `generation`. The guest's own store
    /// completes the reset.
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

    /// The daemon has let go of one queue that was being stopped; `generation` as in [`Self::state`].
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

    /// What a daemon that attaches reads. Queues appear only while the daemon may or did work on them.
    #[must_use]
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
