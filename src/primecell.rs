//! The identification registers that all PrimeCells have at the end of their page.

/// Offset of PeriphID0, the first one.
pub const PERIPH_ID0: u16 = 0xfe0;
/// PCellID0-3.
const PCELL_ID: [u8; 4] = [0x0d, 0xf0, 0x05, 0xb1];

/// Returns the identification register at `offset`, or zero.
pub fn identification(periph_id: [u8; 4], offset: u16) -> u32 {
    let at = offset.checked_sub(PERIPH_ID0).filter(|at| at.is_multiple_of(4));
    let index = at.map_or(usize::MAX, |at| usize::from(at / 4));
    let byte = periph_id.iter().chain(&PCELL_ID).nth(index);
    byte.map_or(0, |&byte| byte.into())
}
