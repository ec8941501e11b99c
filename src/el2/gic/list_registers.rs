//! This CPU's list registers, and the rest of the virtual CPU interface's hypervisor control registers.

use core::sync::atomic::Ordering;

use ringvisor::abi::counters::CpuEvent;
use ringvisor::abi::trace::Kind;
use ringvisor::vgic::{ListRegisters, LrShadow};

use super::cpu_interface::deactivate;
use super::frames::is_private_pending;
use crate::el2::arch::{self, sysreg};
use crate::el2::{cpu, stats};

/// ICH_LR_EL2.State, pending; its low half is the INTID.
const LR_PENDING: u64 = 1 << 62;

/// Empties the list registers and resets the virtual CPU interface.
pub fn clear_list_registers() {
    let vtr = sysreg::read!("S3_4_C12_C11_1"); // ICH_VTR_EL2
    let state = &cpu::this().list;
    let mut list = LocalListRegisters((vtr & 0x1f) as usize + 1);
    for index in 0..list.count() {
        list.write(index, 0);
    }
    state.count.store(list.count(), Ordering::Relaxed);
    state.used.store(0, Ordering::Relaxed);
    sysreg::write!("S3_4_C12_C9_0", 0); // ICH_AP1R0_EL2
    sysreg::write!("S3_4_C12_C8_0", 0); // ICH_AP0R0_EL2
    if vtr >> 26 & 7 >= 5 {
        sysreg::write!("S3_4_C12_C9_1", 0);
        sysreg::write!("S3_4_C12_C8_1", 0);
    }
    if vtr >> 26 & 7 >= 6 {
        sysreg::write!("S3_4_C12_C9_2", 0);
        sysreg::write!("S3_4_C12_C9_3", 0);
        sysreg::write!("S3_4_C12_C8_2", 0);
        sysreg::write!("S3_4_C12_C8_3", 0);
    }
    sysreg::write!("S3_4_C12_C11_7", 0); // ICH_VMCR_EL2
    sysreg::write!("S3_4_C12_C11_0", 1); // ICH_HCR_EL2.En
    arch::isb();
}

/// Calls `pass` with a shadow of this CPU's list registers, and writes what it changed. `pass` takes and
/// releases the lock of a vGIC. Must not be nested.
pub fn with_list_registers<T>(pass: impl FnOnce(&mut LocalShadow<'_>) -> T) -> T {
    let state = &cpu::this().list;
    let mut real = LocalListRegisters(state.count.load(Ordering::Relaxed));
    let mut shadow = LrShadow::load(&mut real, state.used.load(Ordering::Relaxed));
    let result = pass(&mut shadow);
    state.used.store(shadow.write_back(), Ordering::Relaxed);
    result
}

/// The list register shadow that [`with_list_registers`] passes.
pub type LocalShadow<'a> = LrShadow<'a, LocalListRegisters>;

/// This CPU's list registers; the field is how many there are.
#[derive(Debug)]
pub struct LocalListRegisters(usize);

macro_rules! list_registers {
    ($($index:literal => $name:literal),* $(,)?) => {
        impl ListRegisters for LocalListRegisters {
            fn count(&self) -> usize {
                self.0.min(16)
            }

            fn read(&self, index: usize) -> u64 {
                match index {
                    $($index => sysreg::read!($name),)*
                    _ => 0,
                }
            }

            fn write(&mut self, index: usize, value: u64) {
                if value & LR_PENDING != 0 {
                    stats::count(CpuEvent::Injected);
                    stats::record(Kind::Inject, cpu::this().owner(), 0, 0, value as u32);
                }
                match index {
                    $($index => sysreg::write!($name, value),)*
                    _ => {}
                }
            }

            fn hcr(&self) -> u64 {
                sysreg::read!("S3_4_C12_C11_0")
            }

            fn set_hcr(&mut self, value: u64) {
                sysreg::write!("S3_4_C12_C11_0", value);
                arch::isb();
            }

            fn vmcr(&self) -> u64 {
                sysreg::read!("S3_4_C12_C11_7")
            }

            fn deactivate(&mut self, intid: u32) {
                deactivate(intid);
            }

            fn line(&self, intid: u32) -> bool {
                is_private_pending(cpu::this(), intid)
            }
        }
    };
}

list_registers! {
    0 => "S3_4_C12_C12_0", 1 => "S3_4_C12_C12_1", 2 => "S3_4_C12_C12_2", 3 => "S3_4_C12_C12_3",
    4 => "S3_4_C12_C12_4", 5 => "S3_4_C12_C12_5", 6 => "S3_4_C12_C12_6", 7 => "S3_4_C12_C12_7",
    8 => "S3_4_C12_C13_0", 9 => "S3_4_C12_C13_1", 10 => "S3_4_C12_C13_2", 11 => "S3_4_C12_C13_3",
    12 => "S3_4_C12_C13_4", 13 => "S3_4_C12_C13_5", 14 => "S3_4_C12_C13_6", 15 => "S3_4_C12_C13_7",
}
