//! Registers of devices, by plain 32-bit loads and stores that may fault.

use crate::attempt;

/// Reads the register at `address`.
pub fn read(address: u64) -> u32 {
    attempt!(address, 0, "ldr {x:w}, [{a}]").value as u32
}

/// Writes the register at `address`.
pub fn write(address: u64, value: u32) {
    let _ = attempt!(address, value.into(), "str {x:w}, [{a}]");
}
