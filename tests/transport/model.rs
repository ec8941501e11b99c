//! The reference model: the register table of virtio 1.2, section 4.2.2, implemented line by line. It
//! computes what a register reads at the moment it is read, keeps written values in maps by offset, and
//! shares no code and no structure with the transport.

use std::collections::HashMap;

use ringvisor::abi::command::{DeviceSpec, DeviceState};

/// The effect of a store outside the registers. The same facts as `Effect`, as text.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Expected {
    pub retry: bool,
    pub event: Option<String>,
}

impl Expected {
    fn event(event: impl Into<String>) -> Self {
        Self {
            retry: false,
            event: Some(event.into()),
        }
    }
    fn retry(event: Option<String>) -> Self {
        Self { retry: true, event }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Off,
    On,
    /// The driver stops the queue. `bool`: by QueueReset.
    Stopping(bool),
    /// The device no longer uses the queue.
    Stopped,
}

#[derive(Clone, Debug)]
struct Virtqueue {
    max: u32,
    written: HashMap<u64, u32>,
    life: Life,
}

impl Virtqueue {
    fn get(&self, offset: u64) -> u64 {
        u64::from(*self.written.get(&offset).unwrap_or(&0))
    }
    fn address(&self, low: u64) -> u64 {
        self.get(low) + (self.get(low + 4) << 32)
    }
    fn default_state(&mut self) {
        self.written.clear();
        self.life = Life::Off;
    }
}

#[derive(PartialEq, Eq, Clone, Copy, Debug)]
enum DeviceReset {
    None,
    Pending,
    Quiesced,
}

#[derive(Clone, Debug)]
pub struct Model {
    offered: u64,
    identity: [u32; 2],
    status: u32,
    isr: u32,
    selectors: HashMap<u64, u32>,
    /// Words of driver features by selector, and whether a word past 1 was ever not zero.
    accepted: HashMap<u32, u32>,
    accepted_nonsense: bool,
    queues: Vec<Virtqueue>,
    config: Vec<u8>,
    config_len: usize,
    writeback_default: u8,
    generation: u32,
    resets: u64,
    reset: DeviceReset,
    /// RAM: first address and first address past it.
    ram: Vec<(u128, u128)>,
}

impl Model {
    pub fn new(spec: &DeviceSpec, ram: &[(u64, u64)]) -> Self {
        let mut config = spec.config.to_vec();
        config[spec.config_len as usize..].fill(0);
        Self {
            offered: spec.features,
            identity: [spec.device_id, spec.vendor_id],
            status: 0,
            isr: 0,
            selectors: HashMap::new(),
            accepted: HashMap::new(),
            accepted_nonsense: false,
            queues: spec.queue_max[..spec.queues as usize]
                .iter()
                .map(|&max| Virtqueue {
                    max: max.into(),
                    written: HashMap::new(),
                    life: Life::Off,
                })
                .collect(),
            writeback_default: config[32],
            config,
            config_len: spec.config_len as usize,
            generation: 0,
            resets: 0,
            reset: DeviceReset::None,
            ram: ram
                .iter()
                .map(|&(base, len)| (base.into(), u128::from(base) + u128::from(len)))
                .collect(),
        }
    }

    fn selector(&self, offset: u64) -> u32 {
        *self.selectors.get(&offset).unwrap_or(&0)
    }

    fn accepted64(&self) -> u64 {
        let word = |sel| u64::from(*self.accepted.get(&sel).unwrap_or(&0));
        word(0) + (word(1) << 32)
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn negotiated(&self, feature: u32) -> bool {
        self.has(8) && self.accepted64() >> feature & 1 == 1
    }

    /// Returns the 32-bit word at an offset as the guest reads it.
    pub fn read(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.selector(0x30) as usize);
        match offset {
            0x000 => u32::from_le_bytes(*b"virt"),
            0x004 => 2,
            0x008 => self.identity[0],
            0x00c => self.identity[1],
            0x010 => match self.selector(0x14) {
                sel @ 0..=1 => (self.offered >> (32 * sel)) as u32,
                _ => 0,
            },
            0x034 => queue.map_or(0, |queue| queue.max),
            0x044 => queue.map_or(0, |queue| u32::from(queue.life != Life::Off)),
            0x060 => self.isr,
            0x070 => self.status,
            0x0b0..=0x0bf => 0xffff_ffff,
            0x0c0 => queue.map_or(0, |queue| u32::from(queue.life == Life::Stopping(true))),
            0x0fc => self.generation,
            0x100..0x200 => {
                let at = offset as usize - 0x100;
                u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap())
            }
            _ => 0,
        }
    }

    pub fn line(&self) -> bool {
        self.isr != 0
    }

    pub fn store(&mut self, offset: u64, bytes: u64, value: u64) -> Expected {
        if offset >= 0x100 {
            return self.store_config(offset - 0x100, bytes, value);
        }
        if bytes != 4 || !offset.is_multiple_of(4) {
            return Expected::default();
        }
        let value = value as u32;
        match offset {
            0x014 | 0x024 | 0x030 => {
                self.selectors.insert(offset, value);
            }
            0x020 if !self.has(8) => {
                let sel = self.selector(0x24);
                if sel > 1 && value != 0 {
                    self.accepted_nonsense = true;
                }
                self.accepted.insert(sel, value);
            }
            0x038 | 0x080 | 0x084 | 0x090 | 0x094 | 0x0a0 | 0x0a4 => {
                let sel = self.selector(0x30) as usize;
                if let Some(queue) = self.queues.get_mut(sel)
                    && queue.life == Life::Off
                {
                    queue.written.insert(offset, value);
                }
            }
            0x044 => return self.store_ready(value),
            0x050 => {
                let ready = self
                    .queues
                    .get(value as usize)
                    .is_some_and(|queue| queue.life == Life::On);
                if ready && self.has(4) && !self.has(0x40) && self.reset == DeviceReset::None {
                    return Expected::event(format!("notify {value}"));
                }
            }
            0x064 => self.isr &= !value,
            0x070 if value == 0 => return self.store_status_0(),
            0x070 => return self.store_status(value),
            0x0c0 => return self.store_reset(value),
            _ => {}
        }
        Expected::default()
    }

    fn area_in_ram(&self, start: u64, len: u64) -> bool {
        let (start, end) = (u128::from(start), u128::from(start) + u128::from(len));
        end < 1 << 64
            && self
                .ram
                .iter()
                .any(|&(first, behind)| first <= start && end <= behind)
    }

    fn setup_is_good(&self, queue: &Virtqueue) -> bool {
        let size = queue.get(0x38);
        if !(0..=15).any(|power| size == 1 << power) || size > queue.max.into() {
            return false;
        }
        let (desc, avail, used) = (queue.address(0x80), queue.address(0x90), queue.address(0xa0));
        desc % 16 == 0
            && avail % 2 == 0
            && used % 4 == 0
            && self.area_in_ram(desc, size * 16)
            && self.area_in_ram(avail, 2 + 2 + size * 2 + 2)
            && self.area_in_ram(used, 2 + 2 + size * 8 + 2)
    }

    fn daemon_holds_buffers(&self) -> bool {
        self.has(4) && self.reset != DeviceReset::Quiesced
    }

    fn store_ready(&mut self, value: u32) -> Expected {
        let index = self.selector(0x30) as usize;
        let Some(queue) = self.queues.get(index).cloned() else {
            return Expected::default();
        };
        let holds = self.daemon_holds_buffers();
        let works = holds && !self.has(0x40) && self.reset == DeviceReset::None;
        if value == 1 && queue.life == Life::Off && !self.has(0x40) {
            if !self.setup_is_good(&queue) {
                self.status |= 0x40;
                if holds {
                    self.isr |= 2;
                    return Expected::event("needs reset");
                }
                return Expected::default();
            }
            self.queues[index].life = Life::On;
            if works {
                return Expected::event(format!("ready {index}"));
            }
        }
        if value == 0 {
            match queue.life {
                Life::Off => {}
                Life::On if holds => {
                    self.queues[index].life = Life::Stopping(false);
                    return Expected::retry(Some(format!("stop {index}")));
                }
                Life::Stopping(_) => return Expected::retry(None),
                Life::On | Life::Stopped => self.queues[index].life = Life::Off,
            }
        }
        Expected::default()
    }

    fn store_reset(&mut self, value: u32) -> Expected {
        let index = self.selector(0x30) as usize;
        if value != 1 || !self.negotiated(40) || index >= self.queues.len() {
            return Expected::default();
        }
        let holds = self.daemon_holds_buffers();
        let queue = &mut self.queues[index];
        match queue.life {
            Life::On if holds => {
                queue.life = Life::Stopping(true);
                return Expected::event(format!("stop {index}"));
            }
            Life::Stopping(_) => queue.life = Life::Stopping(true),
            _ => queue.default_state(),
        }
        Expected::default()
    }

    fn forget_everything(&mut self) {
        self.status = 0;
        self.isr = 0;
        self.selectors.clear();
        self.accepted.clear();
        self.accepted_nonsense = false;
        self.queues.iter_mut().for_each(Virtqueue::default_state);
        self.config[32] = self.writeback_default;
        self.reset = DeviceReset::None;
    }

    fn store_status_0(&mut self) -> Expected {
        if !self.has(4) {
            self.resets += 1;
            self.forget_everything();
            return Expected::default();
        }
        match self.reset {
            DeviceReset::None => {
                self.resets += 1;
                self.reset = DeviceReset::Pending;
                Expected::retry(Some(format!("reset {}", self.resets)))
            }
            DeviceReset::Pending => Expected::retry(None),
            DeviceReset::Quiesced => {
                self.forget_everything();
                Expected::default()
            }
        }
    }

    fn store_status(&mut self, value: u32) -> Expected {
        let over = self.has(0x40) || (self.status | value) & 0x80 != 0;
        if over {
            self.status |= value & 0x80;
            return Expected::default();
        }
        let active = self.has(4);
        // DRIVER_OK requires FEATURES_OK.
        for (step, before) in [(1, 0), (2, 0), (8, 0), (4, 8)] {
            if value & step == 0 || !self.has(before) || self.has(step) {
                continue;
            }
            if step == 8 {
                let accepted = self.accepted64();
                let subset = accepted & self.offered == accepted && !self.accepted_nonsense;
                if !subset || accepted >> 32 & 1 == 0 {
                    continue;
                }
                // A block device's writeback without FLUSH.
                if accepted >> 11 & 1 == 1 && accepted >> 9 & 1 == 0 {
                    self.config[32] = 0;
                }
            }
            self.status |= step;
        }
        if self.has(4) && !active {
            Expected::event("active")
        } else {
            Expected::default()
        }
    }

    fn store_config(&mut self, at: u64, bytes: u64, value: u64) -> Expected {
        let value = value & 0xff;
        let allowed = at == 32
            && bytes == 1
            && value <= 1
            && self.negotiated(9)
            && self.negotiated(11)
            && !self.has(0x40)
            && self.reset == DeviceReset::None;
        if !allowed {
            return Expected::default();
        }
        if self.config[32] == value as u8 {
            return Expected::default();
        }
        self.config[32] = value as u8;
        Expected::event(format!("config 32 {value}"))
    }

    pub fn used_buffer(&mut self) {
        if self.daemon_holds_buffers() {
            self.isr |= 1;
        }
    }

    /// Returns whether offset and length are within the space.
    pub fn config_changed(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at + bytes.len() > self.config_len {
            return false;
        }
        if self.config[at..at + bytes.len()] == *bytes {
            return true;
        }
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
        if (at..at + bytes.len()).contains(&32) {
            self.writeback_default = self.config[32];
        }
        self.generation += 1;
        if self.daemon_holds_buffers() {
            self.isr |= 2;
        }
        true
    }

    pub fn needs_reset(&mut self) {
        if self.daemon_holds_buffers() && !self.has(0x40) {
            self.status |= 0x40;
            self.isr |= 2;
        }
    }

    pub fn quiesced(&mut self, generation: u64) -> bool {
        let asked = self.reset == DeviceReset::Pending && generation == self.resets;
        if asked {
            self.reset = DeviceReset::Quiesced;
            self.queues.iter_mut().for_each(|queue| {
                Self::give_back(queue);
            });
        }
        asked
    }

    fn give_back(queue: &mut Virtqueue) -> bool {
        match queue.life {
            Life::Stopping(true) => queue.default_state(),
            Life::Stopping(false) => queue.life = Life::Stopped,
            _ => return false,
        }
        true
    }

    pub fn queue_quiesced(&mut self, index: usize, generation: u64) -> bool {
        generation == self.resets && self.queues.get_mut(index).is_some_and(Self::give_back)
    }

    pub fn power_cycle(&mut self) {
        self.resets += 1;
        self.forget_everything();
    }

    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Returns whether the daemon's view is valid: no unchecked address, no queue that is stopped.
    pub fn check_daemon_view(&self, state: &DeviceState) {
        let gone = self.reset == DeviceReset::Quiesced;
        assert_eq!(state.status, if gone { 0 } else { self.status });
        assert_eq!(state.queues as usize, self.queues.len());
        assert_eq!(
            state.features,
            if self.has(8) && !gone {
                self.accepted64()
            } else {
                0
            }
        );
        assert_eq!(state.reset_generation, self.resets);
        assert_eq!(state.reset_pending, u32::from(self.reset == DeviceReset::Pending));
        assert_eq!(state.config[..], self.config[..]);
        for (index, shown) in state.queue.iter().enumerate() {
            let real = self.queues.get(index).filter(|_| self.daemon_holds_buffers());
            let ready = match real.map_or(Life::Off, |queue| queue.life) {
                Life::Off | Life::Stopped => 0,
                Life::On => 1,
                Life::Stopping(_) => 2,
            };
            assert_eq!(shown.ready, ready);
            if ready == 0 {
                assert_eq!(
                    [shown.size.into(), shown.desc, shown.driver, shown.device],
                    [0; 4]
                );
            } else {
                let real = real.unwrap();
                assert!(self.setup_is_good(real), "the daemon never sees a bad queue");
                assert_eq!(
                    [shown.size.into(), shown.desc, shown.driver, shown.device],
                    [
                        real.get(0x38),
                        real.address(0x80),
                        real.address(0x90),
                        real.address(0xa0)
                    ]
                );
            }
        }
    }
}
