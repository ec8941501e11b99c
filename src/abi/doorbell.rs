//! The doorbell page: page 1 of BAR 0. A store traps to EL2, which acts before the store completes; loads
//! return zero.
//!
//! A store of another width than documented, or at another offset, has no effect.

/// Offset of the doorbell page in BAR 0.
pub const PAGE_OFFSET: u64 = 0x1000;

/// 32-bit: execute the command in the shared page's command slot. The value is ignored.
pub const COMMAND: u16 = 0x000;
/// 64-bit: attach. The value is the physical address of the shared page (2 MiB huge page of root's RAM),
/// whose header must hold the magic and the ABI version. The status is in `InfoPage::attach_status`, the
/// value that it is refused for in `InfoPage::attach_detail`.
pub const ATTACH: u16 = 0x008;
/// 32-bit: detach. EL2 no longer uses the shared page once the store completes; refused while zones exist.
pub const DETACH: u16 = 0x010;
/// 32-bit, `zone << 16 | slot`: used buffers are in a queue of that device; interrupts the guest.
pub const USED_BUFFER: u16 = 0x014;
/// 32-bit, `zone`: there is input in the zone's console input ring.
pub const CONSOLE_INPUT: u16 = 0x018;
/// 32-bit: mode of the event interrupt. 1: every assertion is a pulse of INTx, regardless of INTx Disable,
/// and one follows at once. 0, or a write that enables INTx: as PCI specifies, which is the mode after a
/// reset.
pub const PULSES: u16 = 0x01c;

/// Returns the value for [`USED_BUFFER`].
pub const fn used_buffer(zone: u8, slot: u8) -> u32 {
    (zone as u32) << 16 | slot as u32
}

/// Returns zone and slot of a [`USED_BUFFER`] value, or `None` if other bits are set.
pub const fn parse_used_buffer(value: u32) -> Option<(u8, u8)> {
    if value & 0xff00_ff00 != 0 {
        return None;
    }
    Some(((value >> 16) as u8, value as u8))
}
