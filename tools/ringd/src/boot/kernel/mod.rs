//! [`Kernel`]: what a zone runs first, taken apart into what is copied where. [`parse`] does so: arm64 Image
//! ([`image`]), ELF ([`elf`]), flat binaries, and the same compressed ([`unpack`]); [`foreign`] names what is
//! none of them.
//!
//! The places are those of QEMU 10's `-kernel` (`hw/arm/boot.c`) for the same file.

mod elf;
mod foreign;
mod image;
mod parse;
mod unpack;

use std::ops::Range;

use anyhow::anyhow;

use super::content::Content;
use crate::config::size::format_size;

/// Offset from RAM's base of a kernel without a header (QEMU: `KERNEL64_LOAD_ADDR`).
const FLAT_OFFSET: u64 = 0x8_0000;

/// A kernel ready to be copied into RAM.
#[derive(Debug)]
pub struct Kernel {
    /// The file's bytes, decompressed.
    pub content: Content,
    /// What is copied: in ascending order, apart from each other, within RAM, at least one.
    pub segments: Vec<Segment>,
    /// Guest-physical address of the first instruction, within RAM.
    pub entry: u64,
    /// Where it expects the device tree.
    pub protocol: BootProtocol,
}

/// A part of a kernel file, and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The part.
    pub file: Range<u64>,
    /// Its offset from RAM's base.
    pub offset: u64,
    /// Bytes that it occupies there: what the part does not fill is cleared ([`Self::zeroes`]), or is the
    /// kernel's own to clear.
    pub size: u64,
    /// Whether what the part does not fill is cleared.
    pub zeroes: bool,
}

/// How a kernel finds its device tree (QEMU's documentation of `virt`, "Hardware configuration information
/// for bare-metal programming").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// By x0, behind the kernel and the initial RAM disk: Image files and flat binaries.
    Linux,
    /// At the start of RAM: what is linked for its address.
    BareMetal,
}

impl Segment {
    /// Returns its end, from RAM's base.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

impl Kernel {
    /// Returns the offset of its first byte from RAM's base.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(0, |segment| segment.offset)
    }

    /// Returns the end of what it occupies, from RAM's base.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }
}

fn too_large(memory: u64) -> anyhow::Error {
    anyhow!("it needs more than the {} that the zone has", format_size(memory))
}

fn read(file: Content) -> anyhow::Result<Vec<u8>> {
    file.into_bytes()
        .map_err(|error| anyhow!("it cannot be read: {error}"))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let half = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(half.try_into().ok()?))
}

#[cfg(test)]
mod tests;
