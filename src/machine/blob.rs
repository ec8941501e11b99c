//! [`DeviceTree`]: a flattened device tree that has been checked once, so that reading it cannot panic.
//!
//! The `fdt` crate trusts its input: it panics on a truncated or corrupted blob, and it stops early at
//! `FDT_NOP` tokens, which QEMU leaves where it deletes nodes. So the blob is first checked token by token
//! and copied without the NOPs; the crate only ever sees that copy. Format: Devicetree Specification 0.4,
//! chapter 5.

use alloc::vec::Vec;

use fdt::Fdt;
use fdt::node::FdtNode;
use thiserror::Error;

use super::region::Region;
use crate::addr::Pa;

const MAGIC: u32 = 0xd00d_feed;
pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROP: u32 = 3;
const NOP: u32 = 4;
pub(super) const END: u32 = 9;
/// Bytes of the header.
const HEADER_SIZE: usize = 40;
/// The version of this header; later versions declare themselves compatible with it.
const VERSION: u32 = 17;

/// Largest tree accepted, in bytes: the limit of the arm64 boot protocol.
pub const MAX_SIZE: usize = 2 << 20;
/// Deepest nesting accepted: the `fdt` crate recurses and keeps 64 parents.
pub const MAX_DEPTH: usize = 32;

/// Why a blob is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BlobError {
    /// It does not begin with the magic number.
    #[error("no device tree: magic number missing")]
    Magic,
    /// A part is outside the blob, or the blob outside its buffer.
    #[error("truncated device tree")]
    Truncated,
    /// More than [`MAX_SIZE`] bytes.
    #[error("device tree of {0} bytes is larger than 2 MiB")]
    TooLarge(usize),
    /// The header's version is not supported.
    #[error("device tree version {0} is not supported, expected 17")]
    Version(u32),
    /// A token that is not allowed at this offset of the structure block.
    #[error("unexpected token {token:#x} at offset {offset:#x} of the structure block")]
    Token {
        /// The token.
        token: u32,
        /// Its offset in the structure block, in bytes.
        offset: usize,
    },
    /// Nodes are nested deeper than [`MAX_DEPTH`].
    #[error("device tree nested deeper than 32 levels")]
    TooDeep,
    /// A name is not terminated, not UTF-8, or (of the root node) not empty.
    #[error("bad name at offset {0:#x} of the structure block")]
    Name(usize),
    /// A memory reservation exceeds the address space.
    #[error("memory reservation at {0:#x} wraps")]
    Reservation(u64),
}

/// A checked device tree.
#[derive(Debug, Clone)]
pub struct DeviceTree {
    blob: Vec<u8>,
    size: usize,
    /// The regions of the memory reservation block, as written.
    pub reservations: Vec<Region>,
    /// `boot_cpuid_phys` of the header.
    pub boot_cpu: u32,
}

impl DeviceTree {
    /// Returns the size in bytes of the blob whose first bytes are `header`, so that the rest can be mapped
    /// before [`Self::parse`].
    ///
    /// # Errors
    /// [`BlobError::Magic`], [`BlobError::Truncated`] for less than 8 bytes, [`BlobError::TooLarge`].
    pub fn size_from_header(header: &[u8]) -> Result<usize, BlobError> {
        if word(header, 0)? != MAGIC {
            return Err(BlobError::Magic);
        }
        let size = word(header, 4)? as usize;
        if size > MAX_SIZE {
            Err(BlobError::TooLarge(size))
        } else {
            Ok(size)
        }
    }

    /// Checks `bytes` and copies them. Bytes after the blob's own size are ignored.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BlobError> {
        let size = Self::size_from_header(bytes)?;
        let bytes = bytes.get(..size).ok_or(BlobError::Truncated)?;
        let version = word(bytes, 20)?;
        if version < VERSION || word(bytes, 24)? > VERSION {
            return Err(BlobError::Version(version));
        }
        let part = |offset: u32, length: u32| {
            let start = offset as usize;
            let end = start.checked_add(length as usize).ok_or(BlobError::Truncated)?;
            bytes.get(start..end).ok_or(BlobError::Truncated)
        };
        let structure = part(word(bytes, 8)?, word(bytes, 36)?)?;
        let strings = part(word(bytes, 12)?, word(bytes, 32)?)?;
        let reservations = reservations(bytes, word(bytes, 16)? as usize)?;
        let boot_cpu = word(bytes, 28)?;

        let mut checked = Vec::new();
        copy_structure(structure, strings, &mut checked)?;
        let blob = assemble(&[], &checked, strings, boot_cpu);
        Ok(Self {
            blob,
            size,
            reservations,
            boot_cpu,
        })
    }

    /// Returns the size in bytes of the blob that was parsed, including unused space in it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the reader, which cannot panic on this blob.
    ///
    /// # Errors
    /// None for a tree that [`Self::parse`] has accepted.
    pub(super) fn fdt(&self) -> Result<Fdt<'_>, BlobError> {
        Fdt::new(&self.blob).map_err(|_| BlobError::Magic)
    }
}

/// Returns the blob of these blocks, all below 4 GiB: header, memory reservations, structure, strings (5.1).
pub(super) fn assemble(reserved: &[Region], structure: &[u8], strings: &[u8], boot_cpu: u32) -> Vec<u8> {
    let structure_offset = HEADER_SIZE + (reserved.len() + 1) * 16;
    let strings_offset = structure_offset + structure.len();
    let header = [
        MAGIC,
        (strings_offset + strings.len()) as u32,
        structure_offset as u32,
        strings_offset as u32,
        HEADER_SIZE as u32,
        VERSION,
        16, // last compatible version
        boot_cpu,
        strings.len() as u32,
        structure.len() as u32,
    ];
    let mut blob = Vec::with_capacity(strings_offset + strings.len());
    blob.extend(header.iter().flat_map(|word| word.to_be_bytes()));
    let ends = reserved.iter().map(|region| [region.base().0, region.size()]);
    blob.extend(ends.chain([[0, 0]]).flatten().flat_map(u64::to_be_bytes));
    blob.extend_from_slice(structure);
    blob.extend_from_slice(strings);
    blob
}

/// Returns the root node.
///
/// # Errors
/// None for a checked tree.
pub(super) fn root<'b, 'a>(fdt: &'b Fdt<'a>) -> Result<FdtNode<'b, 'a>, BlobError> {
    fdt.find_node("/").ok_or(BlobError::Truncated)
}

/// Returns the big-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Result<u32, BlobError> {
    let end = offset.checked_add(4).ok_or(BlobError::Truncated)?;
    let bytes = bytes
        .get(offset..end)
        .and_then(|slice| slice.try_into().ok())
        .ok_or(BlobError::Truncated)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Returns the memory reservation block from `offset`, without empty entries (5.3).
fn reservations(bytes: &[u8], offset: usize) -> Result<Vec<Region>, BlobError> {
    let mut list = Vec::new();
    for entry in bytes.get(offset..).ok_or(BlobError::Truncated)?.chunks_exact(16) {
        let double = |at| Ok(u64::from(word(entry, at)?) << 32 | u64::from(word(entry, at + 4)?));
        match (double(0)?, double(8)?) {
            (0, 0) => return Ok(list),
            (_, 0) => {}
            (base, size) => list.push(Region::new(Pa(base), size).ok_or(BlobError::Reservation(base))?),
        }
    }
    Err(BlobError::Truncated)
}

/// Checks the structure block and appends it to `out` without its NOPs (5.4).
fn copy_structure(structure: &[u8], strings: &[u8], out: &mut Vec<u8>) -> Result<(), BlobError> {
    let mut offset = 0_usize;
    let mut depth = 0_usize;
    // Properties come before subnodes (5.4.2): this is false from a node's first subnode to its end.
    let mut properties_allowed = false;
    let mut root_seen = false;
    loop {
        let token = word(structure, offset)?;
        let start = offset;
        let unexpected = BlobError::Token { token, offset };
        let length = match token {
            NOP => {
                offset += 4;
                continue;
            }
            BEGIN_NODE => {
                if depth == 0 && root_seen {
                    return Err(unexpected);
                }
                let name = structure
                    .get(offset + 4..)
                    .and_then(c_string)
                    .ok_or(BlobError::Name(offset))?;
                if (depth == 0) != name.is_empty() {
                    return Err(BlobError::Name(offset));
                }
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(BlobError::TooDeep);
                }
                root_seen = true;
                properties_allowed = true;
                4 + name.len() + 1
            }
            END_NODE => {
                depth = depth.checked_sub(1).ok_or(unexpected)?;
                properties_allowed = false;
                4
            }
            PROP if properties_allowed => {
                let length = word(structure, offset + 4)? as usize;
                let name = word(structure, offset + 8)? as usize;
                strings
                    .get(name..)
                    .and_then(c_string)
                    .filter(|name| !name.is_empty())
                    .ok_or(BlobError::Name(offset))?;
                length.checked_add(12).ok_or(BlobError::Truncated)?
            }
            END if depth == 0 && root_seen => {
                out.extend_from_slice(&END.to_be_bytes());
                return Ok(());
            }
            _ => return Err(unexpected),
        };
        offset = length
            .checked_next_multiple_of(4)
            .and_then(|length| offset.checked_add(length))
            .ok_or(BlobError::Truncated)?;
        out.extend_from_slice(structure.get(start..offset).ok_or(BlobError::Truncated)?);
    }
}

/// Returns the NUL-terminated string that `bytes` begins with, without its NUL.
fn c_string(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(bytes.get(..end)?).ok()
}
