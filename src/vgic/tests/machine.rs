//! A physical GIC with 64 interrupts and its interrupt state machine, under [`crate::vgic::RootGic`]: lines,
//! enables, pending and active states, routes; acknowledged by EL2.

extern crate std;
use crate::vgic::PhysicalGic;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

/// 32 interrupts.
#[derive(Clone, Default, Debug)]
pub struct Bank {
    pub enabled: u32,
    pub latch: u32,
    pub line: u32,
    pub active: u32,
    pub edge: u32,
}

impl Bank {
    fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// Pending state of EL2's PPI 25, which nothing raises here.
    pub fn pending_only_of_el2(&self) -> u32 {
        self.latch & 1 << 25
    }

    fn read(&self, offset: u32) -> Option<u32> {
        Some(match offset & !7 {
            0x100 | 0x180 => self.enabled,
            0x200 | 0x280 => self.pending(),
            0x300 | 0x380 => self.active,
            _ => return None,
        })
    }

    fn write(&mut self, offset: u32, value: u32) -> bool {
        match offset & !7 {
            0x100 => self.enabled |= value,
            0x180 => self.enabled &= !value,
            0x200 => self.latch |= value,
            0x280 => self.latch &= !value,
            0x300 => self.active |= value,
            0x380 => self.active &= !value,
            _ => return false,
        }
        true
    }
}

/// The GIC.
pub struct Machine {
    /// One for each CPU's private interrupts, then the SPIs.
    pub banks: Vec<Bank>,
    /// Affinity by SPI.
    pub routes: BTreeMap<u32, u64>,
    /// Everything else, by bank and offset.
    pub other: BTreeMap<(usize, u32), u32>,
}

impl Machine {
    pub fn new(cpus: usize) -> Self {
        let mut banks = vec![
            Bank {
                edge: 0xffff,
                ..Bank::default()
            };
            cpus
        ];
        banks.push(Bank::default());
        Self {
            banks,
            routes: BTreeMap::new(),
            other: BTreeMap::new(),
        }
    }

    pub fn bank_of(&mut self, cpu: usize, intid: u32) -> &mut Bank {
        let spis = self.banks.len() - 1;
        &mut self.banks[if intid < 32 { cpu } else { spis }]
    }

    /// The input line of an interrupt.
    pub fn set_line(&mut self, cpu: usize, intid: u32, high: bool) {
        let bit = 1 << (intid % 32);
        let bank = self.bank_of(cpu, intid);
        if high {
            bank.latch |= bit & bank.edge & !bank.line;
            bank.line |= bit;
        } else {
            bank.line &= !bit;
        }
    }

    /// EL2 on `cpu` acknowledges the interrupts that are signalled.
    pub fn ack(&mut self, cpu: usize) -> Option<u32> {
        let spis = self.banks.len() - 1;
        for (index, base) in [(cpu, 0), (spis, 32)] {
            for bit in 0..32 {
                let bank = &self.banks[index];
                let ready = bank.pending() & bank.enabled & !bank.active;
                let here = base == 0 || self.routes.get(&(base + bit)) == Some(&(cpu as u64));
                if ready >> bit & 1 != 0 && here {
                    self.banks[index].active |= 1 << bit;
                    self.banks[index].latch &= !(1 << bit);
                    return Some(base + bit);
                }
            }
        }
        None
    }

    pub fn is_active(&mut self, cpu: usize, intid: u32) -> bool {
        self.bank_of(cpu, intid).active >> (intid % 32) & 1 != 0
    }

    /// Deactivates an interrupt, by the `HW` bit of a list register or by EL2.
    pub fn deactivate(&mut self, cpu: usize, intid: u32) {
        assert!(self.is_active(cpu, intid), "{intid} deactivated and not active");
        self.bank_of(cpu, intid).active &= !(1 << (intid % 32));
    }

    fn read(&mut self, index: usize, offset: u32) -> u32 {
        let spis = self.banks.len() - 1;
        let (first, second) = if index == spis {
            (0xc08, 0xc0c)
        } else {
            (0xc00, 0xc04)
        };
        let config = |edge: u32| (0..16).fold(0, |word, bit| word | (edge >> bit & 1) << (2 * bit + 1));
        let bank = &self.banks[index];
        match offset {
            _ if offset == first => config(bank.edge),
            _ if offset == second => config(bank.edge >> 16),
            _ => match bank.read(offset) {
                Some(value) => value,
                None => self.other.get(&(index, offset)).copied().unwrap_or(0),
            },
        }
    }

    fn write(&mut self, index: usize, offset: u32, value: u32) {
        let spis = self.banks.len() - 1;
        let (first, second) = if index == spis {
            (0xc08, 0xc0c)
        } else {
            (0xc00, 0xc04)
        };
        let edges = (0..16).fold(0, |edges, bit| edges | (value >> (2 * bit + 1) & 1) << bit);
        let bank = &mut self.banks[index];
        match offset {
            _ if offset == first => bank.edge = bank.edge & !0xffff | edges,
            _ if offset == second => bank.edge = bank.edge & 0xffff | edges << 16,
            _ => {
                if !bank.write(offset, value) {
                    self.other.insert((index, offset), value);
                }
            }
        }
    }
}

impl PhysicalGic for Machine {
    fn dist_read32(&mut self, offset: u32) -> u32 {
        let spis = self.banks.len() - 1;
        if offset == 4 { 1 } else { self.read(spis, offset) }
    }

    fn dist_write32(&mut self, offset: u32, value: u32) {
        let spis = self.banks.len() - 1;
        self.write(spis, offset, value);
    }

    fn dist_write64(&mut self, offset: u32, value: u64) {
        self.routes.insert((offset - 0x6000) / 8, value);
    }

    fn redist_read32(&mut self, cpu: usize, offset: u32) -> u32 {
        self.read(cpu, offset.wrapping_sub(0x1_0000))
    }

    fn redist_write32(&mut self, cpu: usize, offset: u32, value: u32) {
        self.write(cpu, offset.wrapping_sub(0x1_0000), value);
    }
}
