//! Reads and writes of the registers that hold a field per interrupt, on a bank (see `access` for their
//! decoding).

use super::access::{Access, Frame, Reg, config_from_edges, edges_from_config};
use super::bank::PRIORITY_MASK;
use super::gic::Vgic;
use super::intid::{SGIS, bits};
use super::kicks::Kicks;

impl Vgic {
    /// Executes a load, or a store of `stored`, of `width` bytes at `offset` of a frame by `vcpu`. Returns
    /// the value of the load; `None` if it has to be executed again, after the vCPUs returned have synced:
    /// see [`Vgic::await_dist_read`].
    pub fn access(
        &mut self,
        vcpu: usize,
        frame: Frame,
        offset: u32,
        width: u32,
        stored: Option<u64>,
    ) -> (Kicks, Option<u64>) {
        if let Some(value) = stored {
            let kicks = match frame {
                Frame::Distributor => self.dist_write(offset, width, value),
                Frame::Redistributor(of) => self.redist_write(of, offset, width, value),
            };
            return (kicks, Some(0));
        }
        let others = self.await_frame_read(vcpu, frame, offset, width);
        let value = others.is_empty().then(|| match frame {
            Frame::Distributor => self.dist_read(offset, width),
            Frame::Redistributor(of) => self.redist_read(of, offset, width),
        });
        (others, value)
    }

    /// Returns the vCPUs that must sync before `reader` can read, see [`Vgic::await_dist_read`].
    pub(super) fn await_frame_read(&mut self, reader: usize, frame: Frame, offset: u32, width: u32) -> Kicks {
        match frame {
            Frame::Distributor => self.await_dist_read(reader, offset, width),
            Frame::Redistributor(of) => self.await_redist_read(reader, of, offset, width),
        }
    }

    /// Reads `access` of the private interrupts of `vcpu`, or of SPIs. Unimplemented interrupts read as zero.
    pub(super) fn read_bank(&mut self, vcpu: usize, access: &Access) -> u32 {
        let Some(bank) = self.bank(vcpu, access.index) else {
            return 0;
        };
        let value = match access.reg {
            Reg::Group => bank.group,
            Reg::SetEnable | Reg::ClearEnable => bank.enabled,
            Reg::SetActive | Reg::ClearActive => bank.active,
            Reg::SetPending | Reg::ClearPending => {
                let (resident, outside) = (bank.resident, bank.pending());
                return outside | self.latched_in_slots(vcpu, access.index, resident);
            }
            Reg::Priority => {
                return (0..access.count).rev().fold(0, |word, i| {
                    let bit = access.first + i;
                    let known = bank.implemented >> (bit % 32) & 1 != 0;
                    word << 8 | if known { u32::from(bank.priority(bit)) } else { 0 }
                });
            }
            Reg::Config => return config_from_edges(bank.edge >> access.first),
        };
        value & bank.implemented
    }

    /// Returns the vCPUs that must sync before `reader` can read the register of `access`; empty when all
    /// have. The states of resident interrupts are in the list registers of those vCPUs; each call marks them
    /// for a flush.
    pub(super) fn await_read(&mut self, reader: usize, vcpu: usize, access: &Access) -> Kicks {
        let states = [
            Reg::SetPending,
            Reg::ClearPending,
            Reg::SetActive,
            Reg::ClearActive,
        ];
        let Some(cpu) = self.vcpus.get_mut(reader) else {
            return Kicks::NONE;
        };
        if !states.contains(&access.reg) {
            return Kicks::NONE;
        }
        if cpu.reading == Some(*access) {
            if cpu.awaits.is_empty() {
                cpu.reading = None;
            }
            return cpu.awaits;
        }
        let resident = self.bank(vcpu, access.index).map_or(0, |bank| bank.resident);
        let others = bits(resident).fold(Kicks::NONE, |others, bit| {
            others | Kicks::of(self.home(vcpu, access.index as u32 * 32 + bit))
        });
        let others = others.without(reader);
        for other in others.iter() {
            let _ = self.mark_dirty(other);
        }
        if let Some(cpu) = self.vcpus.get_mut(reader)
            && !others.is_empty()
        {
            (cpu.reading, cpu.awaits) = (Some(*access), others);
        }
        others
    }

    fn latched_in_slots(&mut self, vcpu: usize, index: usize, resident: u32) -> u32 {
        bits(resident).fold(0, |found, bit| {
            let latched = self
                .resident_state(vcpu, index as u32 * 32 + bit)
                .is_some_and(|state| state.latched);
            found | u32::from(latched) << bit
        })
    }

    /// Writes `access`. Unimplemented interrupts, and the configuration of SGIs, ignore writes.
    pub(super) fn write_bank(&mut self, vcpu: usize, access: &Access, value: u32) -> Kicks {
        let index = access.index;
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        let mask = value & bank.implemented;
        let changed = match access.reg {
            Reg::Group => {
                let changed = (bank.group ^ value) & bank.implemented;
                bank.group ^= changed;
                changed
            }
            Reg::SetEnable => {
                let changed = mask & !bank.enabled;
                bank.enabled |= mask;
                changed
            }
            Reg::ClearEnable => {
                let changed = mask & bank.enabled;
                bank.enabled &= !mask;
                changed
            }
            Reg::SetPending => {
                bank.latch |= mask;
                mask
            }
            Reg::ClearPending => {
                bank.latch &= !mask;
                bank.phys_pending &= !mask;
                let resident = bank.resident & mask;
                for bit in bits(resident) {
                    if let Some(state) = self.resident_state(vcpu, index as u32 * 32 + bit) {
                        state.drop_pending = true;
                        state.latched = false;
                    }
                }
                mask
            }
            Reg::SetActive => {
                for bit in bits(mask & !bank.active) {
                    bank.activate(bit, bank.priority(bit), bank.group & 1 << bit != 0);
                }
                let resident = bank.resident & mask;
                for bit in bits(resident) {
                    if let Some(state) = self.resident_state(vcpu, index as u32 * 32 + bit) {
                        state.set_active = true;
                        state.drop_active = false;
                    }
                }
                mask
            }
            Reg::ClearActive => return self.clear_active(vcpu, index, mask),
            Reg::Priority => {
                let mut changed = 0;
                for i in 0..access.count {
                    let bit = access.first + i;
                    let priority = (value >> (8 * i)) as u8 & PRIORITY_MASK;
                    if bank.implemented >> (bit % 32) & 1 != 0
                        && let Some(place) = bank.priority.get_mut(bit as usize)
                        && *place != priority
                    {
                        *place = priority;
                        changed |= 1 << bit;
                    }
                }
                changed
            }
            Reg::Config => {
                let fixed = if index == 0 { SGIS } else { 0 };
                let wanted = edges_from_config(value) << access.first;
                let changed = (bank.edge ^ wanted) & access.covered() & bank.implemented & !fixed;
                bank.edge ^= changed;
                changed
            }
        };
        self.refresh_bank(vcpu, index, changed)
    }
}
