//! The doorbell page: page 1 of BAR 0. A store traps to EL2 and acts before it returns; reads give zero.
//!
//! A store of another width than documented, or at another offset, does nothing.

/// Offset of the doorbell page in BAR 0.
pub const PAGE_OFFSET: u64 = 0x1000;

/// 32-bit: execute the command in the shared page's command slot. The value is ignored.
pub const COMMAND: u16 = 0x000;
/// 64-bit: attach. The value is the physical address of the shared page (2 MiB huge page of root's RAM), whose
/// header must hold the magic and the ABI version. The outcome is in `InfoPage::attach_status`.
pub const ATTACH: u16 = 0x008;
/// 32-bit: detach. The shared page is no longer used by EL2 once the store is done; refused while zones exist.
pub const DETACH: u16 = 0x010;
/// 32-bit, `zone << 16 | slot`: used buffers are in a queue of that device; interrupts the guest.
pub const USED_BUFFER: u16 = 0x014;
/// 32-bit, `zone`: there is input in the zone's console input ring.
pub const CONSOLE_INPUT: u16 = 0x018;
/// 32-bit: how the bell rings. 1: every ring is a pulse of INTx, whatever INTx Disable says, and one comes at once. 0, or
/// a write that enables INTx: as PCI has it, which holds after a reset.
pub const PULSES: u16 = 0x01c;

/// Value for [`USED_BUFFER`].
#[must_use]
pub const fn used_buffer(zone: u8, slot: u8) -> u32 {
    (zone as u32) << 16 | slot as u32
}

/// Zone and slot of a [`USED_BUFFER`] value, or `None` if other bits are set.
#[must_use]
pub const fn parse_used_buffer(value: u32) -> Option<(u8, u8)> {
    if value & 0xff00_ff00 != 0 {
        return None;
    }
    Some(((value >> 16) as u8, value as u8))
}
