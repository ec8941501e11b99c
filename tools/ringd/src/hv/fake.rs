//! An EL2 in this process: zones, their states, rings and consoles, without guests.
//!
//! Commands are decoded from the same bytes as EL2 gets, and checked by the same rules as far as they concern
//! the daemon. Tests play the guest by calling [`FakeEl2::guest_prints`] and its siblings.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use ringvisor::abi::command::{
    CommandStatus, DeviceSpec, DeviceState, FlashKind, FlashOperation, Header, Op, ZoneCreate, ZoneInfo,
};
use ringvisor::abi::info::{CpuInfo, InfoPage, OWNER_NONE, ZoneSummary};
use ringvisor::abi::machine::{FLASH_BASE, FLASH_BLOCKS};
use ringvisor::abi::{ABI_VERSION, MAGIC, MAX_ZONES, StopReason, ZoneState};
use ringvisor::flash::{BUFFER, Bank, Buffer, ERASE_BLOCK, Effect, Operation};
use ringvisor::ring::console::{InputConsumer, OutputProducer};
use ringvisor::ring::{Entry, Producer, Wakeup};
use ringvisor::syndrome::Width;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Control, Hypervisor, Refusal, SharedPage};
use crate::config::zone::BLOCK;

/// An EL2 in this process.
pub struct FakeEl2 {
    shared: SharedPage,
    state: Mutex<State>,
    event_interrupt: OwnedFd,
    /// Words of BAR 0 that are not zero.
    bar: Mutex<BTreeMap<usize, u64>>,
}

struct Zone {
    spec: ZoneCreate,
    state: ZoneState,
    reason: StopReason,
    blocks: Vec<u64>,
    devices: BTreeMap<u8, Device>,
    ring: Producer,
    console: OutputProducer,
    started: Vec<(u64, u64)>,
    /// Levels of the power key, in order.
    power_key: Vec<bool>,
    /// The flash bank of variables.
    flash: Option<(Bank, Buffer)>,
}

struct Device {
    state: DeviceState,
    used_buffers: u64,
    config_changes: u64,
}

struct State {
    cpus: usize,
    zones: BTreeMap<u8, Zone>,
    /// The next command with this operation is refused.
    refuse: Option<Op>,
    console_inputs: u64,
    log_level: u32,
    trace_mask: u32,
    /// Address of the shared page, 0 for none.
    attached: u64,
    /// How the last attach ended.
    attach: Outcome<()>,
}

type Outcome<T> = Result<T, (CommandStatus, u64)>;

impl FakeEl2 {
    /// Records of each CPU's trace buffer.
    pub const TRACE_RECORDS: u32 = 256;

    /// Returns a machine with `cpus` CPUs whose MPIDR is their number.
    ///
    /// # Errors
    /// The system has no memory or descriptors.
    pub fn new(cpus: usize) -> io::Result<Self> {
        let zones = BTreeMap::new();
        let state = State {
            cpus,
            zones,
            refuse: None,
            console_inputs: 0,
            log_level: 3,
            trace_mask: 0,
            attached: 0,
            attach: Ok(()),
        };
        let event_interrupt = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Self {
            shared: SharedPage::private()?,
            state: Mutex::new(state),
            event_interrupt,
            bar: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns a descriptor that becomes readable, 8 bytes at a time, at each interrupt of the control
    /// device.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn interrupt(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.event_interrupt, 0)?)
    }

    /// Writes a word of BAR 0, as EL2.
    pub fn set_bar_word(&self, offset: usize, value: u64) {
        let mut bar = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        bar.insert(offset, value);
    }

    /// Returns what is to be recorded.
    pub fn trace_mask(&self) -> u32 {
        self.state().trace_mask
    }

    /// Attaches the shared page at `address`, whose header has `version`.
    pub fn attach(&self, address: u64, version: u32) {
        let mut state = self.state();
        let other = state.attached != address;
        state.attach = match state.zones.len() {
            zones if other && zones > 0 => Err((CommandStatus::ZonesExist, zones as u64)),
            _ if !address.is_multiple_of(BLOCK) => Err((CommandStatus::Misaligned, address)),
            _ if version != ABI_VERSION => Err((CommandStatus::VersionMismatch, version.into())),
            _ => Ok(()),
        };
        if state.attach.is_ok() {
            state.attached = address;
        }
    }

    /// Makes the next command `op` fail.
    pub fn refuse(&self, op: Op) {
        self.state().refuse = Some(op);
    }

    /// Returns the numbers of the zones that exist.
    pub fn zones(&self) -> Vec<u8> {
        self.state().zones.keys().copied().collect()
    }

    /// Returns entry and x0 of each start of the zone.
    pub fn starts(&self, zone: u8) -> Vec<(u64, u64)> {
        self.state()
            .zones
            .get(&zone)
            .map(|zone| zone.started.clone())
            .unwrap_or_default()
    }

    /// Returns the levels that the zone's power key had, in order.
    pub fn power_key(&self, zone: u8) -> Vec<bool> {
        let state = self.state();
        let zone = state.zones.get(&zone);
        zone.map(|zone| zone.power_key.clone()).unwrap_or_default()
    }

    /// Returns how often input was announced.
    pub fn console_inputs(&self) -> u64 {
        self.state().console_inputs
    }

    /// Returns the input in the zone's console ring.
    pub fn typed(&self, zone: u8) -> Vec<u8> {
        let Some(window) = self.shared.window(zone) else {
            return Vec::new();
        };
        let mut reader = InputConsumer::new();
        std::iter::from_fn(|| reader.pop(&window.input())).collect()
    }

    /// Returns the number of used buffer notifications of a device.
    pub fn interrupts(&self, zone: u8, slot: u8) -> u64 {
        let state = self.state();
        let device = state.zones.get(&zone).and_then(|zone| zone.devices.get(&slot));
        device.map_or(0, |device| device.used_buffers)
    }

    /// Returns how often the daemon changed the device's configuration space.
    pub fn config_changes(&self, zone: u8, slot: u8) -> u64 {
        let state = self.state();
        let device = state.zones.get(&zone).and_then(|zone| zone.devices.get(&slot));
        device.map_or(0, |device| device.config_changes)
    }

    fn event(&self, number: u8, zone: &Zone, entry: Entry) {
        let Some(window) = self.shared.window(number) else {
            return;
        };
        if let Entry::Notify { slot, queue } = entry {
            window.stamp_notification(slot, queue, ringvirtio::trace::now());
        }
        if zone.ring.push(&window.ring(), entry) == Wakeup::Required {
            let _ = rustix::io::write(&self.event_interrupt, &1_u64.to_ne_bytes());
        }
    }

    /// The guest writes to its console.
    pub fn guest_prints(&self, zone: u8, text: &str) {
        let mut state = self.state();
        let (Some(found), Some(window)) = (state.zones.get_mut(&zone), self.shared.window(zone)) else {
            return;
        };
        found.console.write(&window.output(), text.as_bytes());
        self.event(zone, found, Entry::Console);
    }

    /// The guest ends: state and reason are as EL2 reports them.
    pub fn guest_ends(&self, zone: u8, state: ZoneState, reason: StopReason) {
        if let Some(found) = self.state().zones.get_mut(&zone) {
            (found.state, found.reason) = (state, reason);
            self.event(zone, found, Entry::Zone);
        }
    }

    /// The guest changes a device: `change` gets what EL2 has latched.
    pub fn guest_changes_device(&self, zone: u8, slot: u8, change: impl FnOnce(&mut DeviceState)) {
        let mut state = self.state();
        let Some(found) = state.zones.get_mut(&zone) else {
            return;
        };
        if let Some(device) = found.devices.get_mut(&slot) {
            change(&mut device.state);
        }
        self.event(zone, found, Entry::Device { slot });
    }

    /// The guest notifies a queue.
    pub fn guest_notifies(&self, zone: u8, slot: u8, queue: u8) {
        if let Some(found) = self.state().zones.get(&zone) {
            self.event(zone, found, Entry::Notify { slot, queue });
        }
    }

    /// The guest stores a word to its flash bank of variables.
    pub fn guest_stores_flash(&self, zone: u8, offset: u32, value: u64) {
        let mut state = self.state();
        let Some(found) = state.zones.get_mut(&zone) else {
            return;
        };
        if let Some((bank, buffer)) = &mut found.flash
            && bank.write(buffer, offset, Width::Word, value) == Effect::Operate
        {
            self.event(zone, found, Entry::Flash);
        }
    }

    /// Returns the status register of the flash bank of variables.
    pub fn flash_status(&self, zone: u8) -> u8 {
        let state = self.state();
        let flash = state.zones.get(&zone).and_then(|zone| zone.flash.as_ref());
        flash.map_or(0, |(bank, _)| bank.read(0, Width::Byte) as u8)
    }

    /// Returns the device's latched state.
    pub fn device(&self, zone: u8, slot: u8) -> Option<DeviceState> {
        self.state()
            .zones
            .get(&zone)?
            .devices
            .get(&slot)
            .map(|device| device.state)
    }

    fn create(&self, state: &mut State, payload: &[u8]) -> Outcome<u8> {
        let (spec, _) = ZoneCreate::read_from_prefix(payload)
            .map_err(|_| (CommandStatus::BadArgument, payload.len() as u64))?;
        let wanted = usize::try_from(spec.vcpus)
            .ok()
            .and_then(|count| spec.cpus.get(..count));
        let wanted = wanted.ok_or((CommandStatus::BadArgument, spec.vcpus.into()))?;
        for mpidr in wanted {
            if *mpidr >= state.cpus as u64 {
                return Err((CommandStatus::NoSuchCpu, *mpidr));
            }
            if state.zones.values().any(|zone| zone.cpus().contains(mpidr)) {
                return Err((CommandStatus::CpuBusy, *mpidr));
            }
        }
        let free = (1..MAX_ZONES as u8).find(|number| !state.zones.contains_key(number));
        let number = free.ok_or((CommandStatus::TooManyZones, 0))?;
        let window = self
            .shared
            .window(number)
            .ok_or((CommandStatus::TooManyZones, 0))?;
        window.clear();
        let zone = Zone {
            spec,
            state: ZoneState::Created,
            reason: StopReason::None,
            blocks: Vec::new(),
            devices: BTreeMap::new(),
            ring: Producer::new(),
            console: OutputProducer::new(),
            started: Vec::new(),
            power_key: Vec::new(),
            flash: None,
        };
        state.zones.insert(number, zone);
        Ok(number)
    }

    fn run(&self, state: &mut State, header: &mut Header, payload: &[u8], result: &mut [u8]) -> Outcome<()> {
        let op = Op::try_from(header.op).map_err(|op| (CommandStatus::UnknownOp, op.into()))?;
        if state.refuse == Some(op) {
            state.refuse = None;
            return Err((CommandStatus::OutOfMemory, 1));
        }
        if op == Op::ZoneCreate {
            header.zone = self.create(state, payload)?.into();
            return Ok(());
        }
        if op == Op::LogLevel {
            state.log_level = header.args[0] as u32;
            return Ok(());
        }
        if op == Op::Trace {
            state.trace_mask = header.args[0] as u32;
            return Ok(());
        }
        let number = header.zone as u8;
        let others: Vec<u64> = state
            .zones
            .iter()
            .filter(|(other, _)| **other != number)
            .flat_map(|(_, zone)| zone.blocks.clone())
            .collect();
        let zone = state
            .zones
            .get_mut(&number)
            .ok_or((CommandStatus::NoSuchZone, number.into()))?;
        let wrong = (CommandStatus::WrongState, zone.state as u64);
        let slot = header.slot as u8;
        match op {
            Op::ZoneDonate => {
                zone.donate(payload, &others)?;
                if header.args[..2] == [FLASH_BASE, FLASH_BLOCKS as u64] {
                    zone.flash = Some((Bank::new(BLOCK as u32), [0; BUFFER]));
                }
            }
            Op::ZoneStart => {
                if !zone.at_rest() {
                    return Err(wrong);
                }
                for device in zone.devices.values_mut() {
                    device.reset();
                }
                if let Some((bank, _)) = &mut zone.flash {
                    bank.reset();
                }
                zone.started.push((header.args[0], header.args[1]));
                zone.state = ZoneState::Running;
                zone.reason = StopReason::None;
            }
            Op::ZoneStop if zone.at_rest() => return Err(wrong),
            Op::ZoneStop | Op::ZonePause => {
                let (next, reason) = match op {
                    Op::ZoneStop => (ZoneState::Stopped, StopReason::Requested),
                    _ if zone.state != ZoneState::Running => return Err(wrong),
                    _ => (ZoneState::Paused, StopReason::None),
                };
                (zone.state, zone.reason) = (next, reason);
                self.event(number, zone, Entry::Zone);
            }
            Op::ZoneResume if zone.state == ZoneState::Paused => zone.state = ZoneState::Running,
            Op::ZoneResume => return Err(wrong),
            Op::ZoneDestroy => {
                if !zone.at_rest() {
                    return Err(wrong);
                }
                state.zones.remove(&number);
            }
            Op::PowerKey => zone.power_key.push(header.args[0] == 1),
            Op::ZoneInfo => reply(result, zone.info().as_bytes()),
            Op::DeviceAdd => zone.add_device(slot, payload)?,
            Op::FlashOperation => reply(result, zone.flash_operation().ok_or(wrong)?.as_bytes()),
            Op::FlashDone => {
                let stale = (CommandStatus::Stale, header.args[0]);
                let (bank, _) = zone.flash.as_mut().ok_or(wrong)?;
                bank.finish(header.args[0], header.args[1] == 0)
                    .map_err(|_| stale)?;
            }
            Op::RingHead => header.args[0] = zone.ring.head(),
            _ => {
                let device = zone
                    .devices
                    .get_mut(&slot)
                    .ok_or((CommandStatus::NoSuchDevice, slot.into()))?;
                match op {
                    Op::DeviceState => reply(result, device.state.as_bytes()),
                    Op::DeviceQuiesced if device.state.reset_generation != header.args[0] => {
                        return Err((CommandStatus::Stale, header.args[0]));
                    }
                    Op::DeviceQuiesced => device.reset(),
                    Op::DeviceNeedsReset => device.state.status |= 0x40,
                    Op::DeviceConfig => device.change_config(header.args, payload)?,
                    Op::DeviceRemove => {
                        zone.devices.remove(&slot);
                    }
                    Op::QueueQuiesced => {
                        let queue = usize::try_from(header.args[1]).unwrap_or(usize::MAX);
                        if let Some(queue) = device.state.queue.get_mut(queue) {
                            queue.ready = 0;
                        }
                    }
                    _ => return Err((CommandStatus::UnknownOp, header.op.into())),
                }
            }
        }
        Ok(())
    }
}

fn reply(result: &mut [u8], bytes: &[u8]) {
    for (to, from) in result.iter_mut().zip(bytes) {
        *to = *from;
    }
}

impl Device {
    fn change_config(&mut self, [offset, len, ..]: [u64; 4], payload: &[u8]) -> Outcome<()> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        let range = range.and_then(|(start, len)| Some((start, start.checked_add(len)?)));
        let (start, end) = range.ok_or((CommandStatus::BadArgument, offset))?;
        let target = self.state.config.get_mut(start..end);
        let target = target.ok_or((CommandStatus::BadArgument, offset))?;
        target.copy_from_slice(
            payload
                .get(..target.len())
                .ok_or((CommandStatus::BadArgument, len))?,
        );
        self.config_changes += 1;
        Ok(())
    }

    fn reset(&mut self) {
        let kept = (self.state.queues, self.state.reset_generation, self.state.config);
        self.state.zero();
        (self.state.queues, self.state.reset_generation, self.state.config) = kept;
    }
}

impl Zone {
    fn at_rest(&self) -> bool {
        matches!(
            self.state,
            ZoneState::Created | ZoneState::Stopped | ZoneState::Crashed
        )
    }

    fn cpus(&self) -> &[u64] {
        let count = usize::try_from(self.spec.vcpus).unwrap_or(0);
        self.spec.cpus.get(..count).unwrap_or_default()
    }

    fn donate(&mut self, payload: &[u8], others: &[u64]) -> Outcome<()> {
        let blocks: Vec<u64> = payload
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        for block in &blocks {
            if !block.is_multiple_of(BLOCK) {
                return Err((CommandStatus::Misaligned, *block));
            }
            // The fake host makes the same addresses up for each zone, so only a zone's own are compared.
            let _ = others;
            if self.blocks.contains(block) {
                return Err((CommandStatus::BlockInUse, *block));
            }
        }
        self.blocks.extend(blocks);
        Ok(())
    }

    fn flash_operation(&self) -> Option<FlashOperation> {
        let (bank, buffer) = self.flash.as_ref()?;
        let mut shown = FlashOperation::new_zeroed();
        shown.data = *buffer;
        if let Some((operation, sequence)) = bank.operation() {
            let (kind, offset, len) = match operation {
                Operation::Program { offset, len } => (FlashKind::Program, offset, len),
                Operation::Erase { offset } => (FlashKind::Erase, offset, ERASE_BLOCK),
            };
            (shown.kind, shown.offset, shown.len, shown.sequence) = (kind as u32, offset, len, sequence);
        }
        Some(shown)
    }

    fn add_device(&mut self, slot: u8, payload: &[u8]) -> Outcome<()> {
        let (spec, _) = DeviceSpec::read_from_prefix(payload)
            .map_err(|_| (CommandStatus::BadArgument, payload.len() as u64))?;
        if self.devices.contains_key(&slot) {
            return Err((CommandStatus::SlotInUse, slot.into()));
        }
        if spec.queues == 0 || spec.config_len > 256 {
            return Err((CommandStatus::BadDevice, slot.into()));
        }
        let mut state = DeviceState::new_zeroed();
        (state.queues, state.config) = (spec.queues, spec.config);
        self.devices.insert(
            slot,
            Device {
                state,
                used_buffers: 0,
                config_changes: 0,
            },
        );
        Ok(())
    }

    fn info(&self) -> ZoneInfo {
        ZoneInfo {
            name: self.spec.name,
            state: self.state as u32,
            reason: self.reason as u32,
            vcpus: self.spec.vcpus,
            vcpus_on: 1,
            blocks: self.blocks.len() as u64,
            fault: [0x9200_0046, 0x4020_1234, 0xdead_0000],
            cpus: self.spec.cpus,
        }
    }
}

impl Hypervisor for FakeEl2 {
    fn info(&self) -> InfoPage {
        let state = self.state();
        let mut info = InfoPage::new_zeroed();
        (info.magic, info.abi_version, info.log_level) = (MAGIC, ABI_VERSION, state.log_level);
        (info.trace_records, info.trace_mask) = (Self::TRACE_RECORDS, state.trace_mask);
        info.shared_pa = state.attached;
        let (status, detail) = state.attach.err().unwrap_or((CommandStatus::Ok, 0));
        (info.attach_status, info.attach_detail) = (status as u32, detail);
        info.counter_frequency = 1_000_000_000;
        (info.pages_total, info.heap_total) = (1024, 1 << 20);
        reply(&mut info.version, b"fake");
        info.zone_count = MAX_ZONES as u32;
        info.cpu_count = state.cpus as u32;
        for (number, cpu) in info.cpus.iter_mut().enumerate().take(state.cpus) {
            let owner = state
                .zones
                .iter()
                .find(|(_, zone)| zone.cpus().contains(&(number as u64)));
            let owner = owner.map_or(OWNER_NONE, |(owner, _)| *owner);
            *cpu = CpuInfo {
                mpidr: number as u64,
                owner,
                ..CpuInfo::default()
            };
        }
        for (number, zone) in &state.zones {
            if let Some(summary) = info.zones.get_mut(usize::from(*number)) {
                let (state, reason) = (zone.state as u8, zone.reason as u8);
                *summary = ZoneSummary {
                    state,
                    reason,
                    vcpus: zone.spec.vcpus as u8,
                    ..ZoneSummary::default()
                };
            }
        }
        info
    }

    fn execute(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        let mut header = header;
        let outcome = self.run(&mut self.state(), &mut header, payload, result);
        let op = Op::try_from(header.op).ok();
        outcome.map(|()| header).map_err(|(status, detail)| Refusal {
            op,
            status: status as u32,
            detail,
        })
    }

    fn used_buffer(&self, zone: u8, slot: u8) {
        let mut state = self.state();
        if let Some(device) = state
            .zones
            .get_mut(&zone)
            .and_then(|zone| zone.devices.get_mut(&slot))
        {
            device.used_buffers += 1;
        }
    }

    fn console_input(&self, _zone: u8) {
        self.state().console_inputs += 1;
    }

    fn bar_word(&self, offset: usize) -> u64 {
        let bar = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        bar.get(&offset).copied().unwrap_or(0)
    }

    fn shared(&self) -> &SharedPage {
        &self.shared
    }
}

impl Control for FakeEl2 {
    fn command(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        self.execute(header, payload, result)
    }
}
