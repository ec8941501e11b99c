//! One function per operation of the contract, on top of [`Hypervisor::execute`].

use ringvisor::abi::command::{
    CommandStatus, DeviceSpec, DeviceState, FlashOperation, Header, MAX_DONATION, Op, ZoneCreate, ZoneInfo,
};
use ringvisor::abi::{MAX_VCPUS, NAME_LEN};
use zerocopy::{FromZeros, IntoBytes};

use super::{Hypervisor, Refusal};

fn header(op: Op, zone: u8, args: [u64; 4]) -> Header {
    on_slot(op, zone, 0, args)
}

fn on_slot(op: Op, zone: u8, slot: u8, args: [u64; 4]) -> Header {
    Header {
        op: op as u32,
        zone: zone.into(),
        slot: slot.into(),
        args,
        ..Header::default()
    }
}

impl dyn Hypervisor + '_ {
    /// Executes a command without payload and result.
    fn plain(&self, header: Header) -> Result<(), Refusal> {
        self.execute(header, &[], &mut []).map(drop)
    }

    /// Creates a zone with CPUs that root has taken offline; returns its number.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_create(&self, name: &str, mpidrs: &[u64], epoch_seconds: u64) -> Result<u8, Refusal> {
        let mut spec = ZoneCreate {
            name: [0; NAME_LEN],
            vcpus: 0,
            reserved: 0,
            epoch_seconds,
            cpus: [0; MAX_VCPUS],
        };
        for (to, from) in spec.name.iter_mut().zip(name.bytes().take(NAME_LEN - 1)) {
            *to = from;
        }
        let bad = |detail| Refusal {
            op: Some(Op::ZoneCreate),
            status: CommandStatus::BadArgument as u32,
            detail,
        };
        let count = mpidrs.len();
        spec.cpus
            .get_mut(..count)
            .ok_or(bad(count as u64))?
            .copy_from_slice(mpidrs);
        spec.vcpus = u32::try_from(count).map_err(|_| bad(count as u64))?;
        let done = self.execute(header(Op::ZoneCreate, 0, [0; 4]), spec.as_bytes(), &mut [])?;
        u8::try_from(done.zone).map_err(|_| bad(done.zone.into()))
    }

    /// Donates `blocks` to the zone, mapped one after the other from `ipa`, in as many commands as necessary.
    ///
    /// # Errors
    /// EL2 refused; blocks of earlier commands stay mapped until the zone is destroyed.
    pub fn zone_donate(&self, zone: u8, ipa: u64, blocks: &[u64]) -> Result<(), Refusal> {
        let mut ipa = ipa;
        for chunk in blocks.chunks(MAX_DONATION) {
            let count = chunk.len() as u64;
            let header = header(Op::ZoneDonate, zone, [ipa, count, 0, 0]);
            self.execute(header, chunk.as_bytes(), &mut [])?;
            ipa = ipa.saturating_add(count.saturating_mul(crate::config::zone::BLOCK));
        }
        Ok(())
    }

    /// Adds a device.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn device_add(&self, zone: u8, slot: u8, spec: &DeviceSpec) -> Result<(), Refusal> {
        let header = on_slot(Op::DeviceAdd, zone, slot, [0; 4]);
        self.execute(header, spec.as_bytes(), &mut []).map(drop)
    }

    /// Starts vCPU 0 at `entry` with `x0`.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_start(&self, zone: u8, entry: u64, x0: u64) -> Result<(), Refusal> {
        self.plain(header(Op::ZoneStart, zone, [entry, x0, 0, 0]))
    }

    /// Begins to stop the zone.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_stop(&self, zone: u8) -> Result<(), Refusal> {
        self.plain(header(Op::ZoneStop, zone, [0; 4]))
    }

    /// Destroys the zone: CPUs and memory are root's again.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_destroy(&self, zone: u8) -> Result<(), Refusal> {
        self.plain(header(Op::ZoneDestroy, zone, [0; 4]))
    }

    /// Begins to pause the zone.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_pause(&self, zone: u8) -> Result<(), Refusal> {
        self.plain(header(Op::ZonePause, zone, [0; 4]))
    }

    /// Resumes a paused zone.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_resume(&self, zone: u8) -> Result<(), Refusal> {
        self.plain(header(Op::ZoneResume, zone, [0; 4]))
    }

    /// Presses or releases the zone's power key.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn power_key(&self, zone: u8, pressed: bool) -> Result<(), Refusal> {
        self.plain(header(Op::PowerKey, zone, [pressed.into(), 0, 0, 0]))
    }

    /// Returns EL2's state of the zone.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn zone_info(&self, zone: u8) -> Result<ZoneInfo, Refusal> {
        let mut info = ZoneInfo::new_zeroed();
        self.execute(header(Op::ZoneInfo, zone, [0; 4]), &[], info.as_mut_bytes())?;
        Ok(info)
    }

    /// Returns the state of a device that EL2 has latched.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn device_state(&self, zone: u8, slot: u8) -> Result<DeviceState, Refusal> {
        let mut state = DeviceState::new_zeroed();
        let header = on_slot(Op::DeviceState, zone, slot, [0; 4]);
        self.execute(header, &[], state.as_mut_bytes())?;
        Ok(state)
    }

    /// Lets the guest's reset number `generation` complete.
    ///
    /// # Errors
    /// EL2 refused; [`CommandStatus::Stale`] if another reset has begun since.
    pub fn device_quiesced(&self, zone: u8, slot: u8, generation: u64) -> Result<(), Refusal> {
        self.plain(on_slot(Op::DeviceQuiesced, zone, slot, [generation, 0, 0, 0]))
    }

    /// Lets a queue's reset or disable complete.
    ///
    /// # Errors
    /// EL2 refused; [`CommandStatus::Stale`] if the device was reset since.
    pub fn queue_quiesced(&self, zone: u8, slot: u8, generation: u64, queue: u16) -> Result<(), Refusal> {
        let args = [generation, queue.into(), 0, 0];
        self.plain(on_slot(Op::QueueQuiesced, zone, slot, args))
    }

    /// Sets DEVICE_NEEDS_RESET.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn device_needs_reset(&self, zone: u8, slot: u8) -> Result<(), Refusal> {
        self.plain(on_slot(Op::DeviceNeedsReset, zone, slot, [0; 4]))
    }

    /// Changes bytes of a device's configuration space; the driver is notified if there is one.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn device_config(&self, zone: u8, slot: u8, offset: u16, bytes: &[u8]) -> Result<(), Refusal> {
        let args = [offset.into(), bytes.len() as u64, 0, 0];
        self.execute(on_slot(Op::DeviceConfig, zone, slot, args), bytes, &mut [])
            .map(drop)
    }

    /// Returns what the guest waits for of its flash.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn flash_operation(&self, zone: u8) -> Result<FlashOperation, Refusal> {
        let mut operation = FlashOperation::new_zeroed();
        let header = header(Op::FlashOperation, zone, [0; 4]);
        self.execute(header, &[], operation.as_mut_bytes())?;
        Ok(operation)
    }

    /// Lets the guest see that operation `sequence` is done, or has failed.
    ///
    /// # Errors
    /// EL2 refused; [`CommandStatus::Stale`] if the guest was reset since.
    pub fn flash_done(&self, zone: u8, sequence: u64, done: bool) -> Result<(), Refusal> {
        let args = [sequence, u64::from(!done), 0, 0];
        self.plain(header(Op::FlashDone, zone, args))
    }

    /// Returns the number of events ever written to the zone's ring.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn ring_head(&self, zone: u8) -> Result<u64, Refusal> {
        self.execute(header(Op::RingHead, zone, [0; 4]), &[], &mut [])
            .map(|done| done.args[0])
    }

    /// Sets what EL2's trace buffers record, bits of [`ringvisor::abi::trace`].
    ///
    /// # Errors
    /// EL2 refused.
    pub fn trace(&self, mask: u32) -> Result<(), Refusal> {
        self.plain(header(Op::Trace, 0, [mask.into(), 0, 0, 0]))
    }

    /// Sets EL2's log level, 1 (error) to 5 (trace).
    ///
    /// # Errors
    /// EL2 refused.
    pub fn log_level(&self, level: u32) -> Result<(), Refusal> {
        self.plain(header(Op::LogLevel, 0, [level.into(), 0, 0, 0]))
    }
}
