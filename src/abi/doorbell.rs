//! The doorbell pages of BAR 0. A store traps to EL2, which acts before the store completes; loads return
//! zero.
//!
//! There are two, in different mappings of root's user space: the serving page, for the process that serves
//! zones, and the control page, for the process that makes and ends them. A store of another width than
//! documented, or at another offset, has no effect.

/// Offset of the serving page in BAR 0.
pub const PAGE_OFFSET: u64 = 0x1000;
/// Offset of the control page in BAR 0.
pub const CONTROL_OFFSET: u64 = super::SERVING_SIZE;
/// Offset in BAR 0 of the control page's command slot, a page that root reads and writes without an exit: a
/// [`super::command::Header`], and the payload behind it as in the shared page.
pub const CONTROL_SLOT: u64 = CONTROL_OFFSET + 0x1000;

/// Serving and control page, 32-bit: execute the command in that page's slot. The value is ignored. The
/// serving page's slot is in the shared page, and its commands are those that [`super::command::Op::serves`].
pub const COMMAND: u16 = 0x000;
/// Serving page, 32-bit, `zone << 16 | slot`: used buffers are in a queue of that device; interrupts the
/// guest.
pub const USED_BUFFER: u16 = 0x014;
/// Serving page, 32-bit, `zone`: there is input in the zone's console input ring.
pub const CONSOLE_INPUT: u16 = 0x018;

/// Control page, 64-bit: attach. The value is the physical address of the shared page (2 MiB huge page of
/// root's RAM), whose header must hold the magic and the ABI version. The status is in
/// `InfoPage::attach_status`, the value that it is refused for in `InfoPage::attach_detail`.
pub const ATTACH: u16 = 0x008;
/// Control page, 32-bit: detach. EL2 no longer uses the shared page once the store completes; refused while
/// zones exist.
pub const DETACH: u16 = 0x010;
/// Control page, 32-bit: mode of the event interrupt. 1: every assertion is a pulse of INTx, regardless of
/// INTx Disable, and one follows at once. 0, or a write that enables INTx: as PCI specifies, which is the
/// mode after a reset.
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
