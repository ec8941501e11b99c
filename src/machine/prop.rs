//! Reads properties: cells, strings, `reg` lists. Nothing here panics, whatever a property's length.

use alloc::vec::Vec;

use fdt::node::FdtNode;

use super::region::Region;
use crate::addr::Pa;

/// A cursor over a property's 32-bit cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells<'a>(&'a [u8]);

impl<'a> Cells<'a> {
    /// Returns a cursor over a property's value; bytes after the last whole cell are ignored.
    pub fn new(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// Returns whether no whole cell is left.
    pub fn is_empty(&self) -> bool {
        self.0.len() < 4
    }

    /// Returns the next cell.
    pub fn next_u32(&mut self) -> Option<u32> {
        let (cell, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*cell))
    }

    /// Returns the next `count` cells as one number; `None` if they are missing or the number has more than
    /// 64 bits.
    pub fn next_number(&mut self, count: u32) -> Option<u64> {
        (0..count).try_fold(0_u64, |number, _| {
            let cell = self.next_u32()?;
            (number >> 32 == 0).then_some(number << 32 | u64::from(cell))
        })
    }

    /// Skips `count` cells.
    pub fn skip(&mut self, count: u32) -> Option<()> {
        let bytes = usize::try_from(count).ok()?.checked_mul(4)?;
        self.0 = self.0.get(bytes..)?;
        Some(())
    }
}

/// `#address-cells` and `#size-cells` that a node sets for its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CellCounts {
    pub address: u32,
    pub size: u32,
}

impl CellCounts {
    /// Returns the counts of `node`, with the specification's defaults (2.3.5).
    pub fn of(node: FdtNode<'_, '_>) -> Self {
        Self {
            address: u32_property(node, "#address-cells").unwrap_or(2),
            size: u32_property(node, "#size-cells").unwrap_or(1),
        }
    }
}

/// Returns the value of a property.
pub(super) fn value<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    node.property(name).map(|property| property.value)
}

/// Returns the value of a property of one cell.
pub(super) fn u32_property(node: FdtNode<'_, '_>, name: &str) -> Option<u32> {
    Cells::new(value(node, name)?).next_u32()
}

/// Returns the value of a string property, up to its first NUL.
pub(super) fn string<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a str> {
    strings(value(node, name)?).next()
}

/// Returns the strings of a string list, up to the first that is not UTF-8.
pub(super) fn strings(value: &[u8]) -> impl Iterator<Item = &str> {
    value
        .strip_suffix(b"\0")
        .unwrap_or(value)
        .split(|byte| *byte == 0)
        .map_while(|part| core::str::from_utf8(part).ok())
}

/// Returns whether `compatible` lists `wanted`.
pub(super) fn is_compatible(node: FdtNode<'_, '_>, wanted: &str) -> bool {
    value(node, "compatible").is_some_and(|list| strings(list).any(|entry| entry == wanted))
}

/// Returns whether `status` allows the node to be used (2.3.4).
pub(super) fn is_enabled(node: FdtNode<'_, '_>) -> bool {
    string(node, "status").is_none_or(|status| matches!(status, "okay" | "ok"))
}

/// Returns the entries of a `reg` whose addresses fit 64 bits, without empty ones.
///
/// `None` if an entry is incomplete, wider than 64 bits, or wraps.
pub(super) fn reg(value: &[u8], cells: CellCounts) -> Option<Vec<Region>> {
    let mut list = Vec::new();
    let mut rest = Cells::new(value);
    // Without any cells nothing would be consumed.
    if cells.address == 0 {
        return rest.is_empty().then_some(list);
    }
    while !rest.is_empty() {
        let base = rest.next_number(cells.address)?;
        let size = rest.next_number(cells.size)?;
        if size != 0 {
            list.push(Region::new(Pa(base), size)?);
        }
    }
    Some(list)
}
