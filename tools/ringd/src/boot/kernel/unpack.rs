//! Decompression: gzip files, and EFI zboot containers (Linux
//! `drivers/firmware/efi/libstub/zboot-header.S`) with gzip, zstd, lz4 or xz.
//!
//! A file may claim any size: neither the file nor what it decompresses to may be larger than the zone's
//! memory, and a decompressor's own memory is bounded.

use std::fmt::Display;
use std::io::Read;

use anyhow::{anyhow, bail};

use super::{read, read_u32, too_large};
use crate::boot::content::Content;

/// Most KiB that decoding xz may take: the kernel's build asks for a dictionary of 128 MiB
/// (`scripts/xz_wrap.sh`).
const XZ_KIB: u32 = 160 << 10;

/// Returns what a file has, decompressed if it is compressed.
///
/// # Errors
/// It cannot be read or decompressed, or is too large for a zone of `memory` bytes.
pub fn unpack(file: Content, memory: u64) -> anyhow::Result<Content> {
    let is_zboot = is_zboot(file.head());
    if !is_zboot && !is_gzip(file.head()) {
        return Ok(file);
    }
    // Checked before it is read: a sparse file costs its user nothing, and reading it root's memory.
    if file.len() > memory {
        return Err(too_large(memory));
    }
    let file = read(file)?;
    let unpacked = if is_zboot {
        zboot(&file, memory)
    } else {
        gunzip(&file, memory)
    };
    Ok(unpacked?.into())
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

fn is_zboot(head: &[u8]) -> bool {
    head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg")
}

fn zboot(file: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    let (offset, size) = (read_u32(file, 8).unwrap_or(0), read_u32(file, 12).unwrap_or(0));
    let damaged = || {
        let file = file.len();
        anyhow!("its EFI zboot header names {size} bytes at {offset:#x}, but the file has {file} bytes")
    };
    let start = usize::try_from(offset).map_err(|_| damaged())?;
    let end = usize::try_from(size)
        .ok()
        .and_then(|size| start.checked_add(size))
        .ok_or_else(damaged)?;
    let payload = file
        .get(start..end)
        .filter(|payload| !payload.is_empty())
        .ok_or_else(damaged)?;
    let kind = file.get(24..56).unwrap_or_default();
    let kind = kind.split(|byte| *byte == 0).next().unwrap_or_default();
    match kind {
        b"gzip" => gunzip(payload, memory),
        // The kernel's build names the compressor and its level.
        b"zstd" | b"zstd22" => unzstd(payload, memory),
        b"lz4" => unlz4(payload, memory),
        b"xz" | b"xzkern" => unxz(payload, memory),
        _ => {
            let kind = String::from_utf8_lossy(kind);
            bail!("its EFI zboot payload is compressed with {kind:?}, expected gzip, zstd, lz4 or xz")
        }
    }
}

fn gunzip(bytes: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    // One member only: a zboot payload is followed by padding, which is no second member.
    read_limited(flate2::bufread::GzDecoder::new(bytes), "gzip", memory)
}

fn unzstd(bytes: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(bytes);
    let decoder = decoder.map_err(|error| damaged("zstd", error))?;
    read_limited(decoder, "zstd", memory)
}

fn unlz4(bytes: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    read_limited(lz4_flex::frame::FrameDecoder::new(bytes), "lz4", memory)
}

fn unxz(bytes: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    let decoder = lzma_rust2::XzReader::new_mem_limit(bytes, false, XZ_KIB);
    read_limited(decoder, "xz", memory)
}

/// Reads everything, but no more than a zone's memory: a small file may decompress to any size.
fn read_limited(reader: impl Read, kind: &'static str, memory: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(memory.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| damaged(kind, error))?;
    if bytes.len() as u64 > memory {
        return Err(too_large(memory));
    }
    Ok(bytes)
}

fn damaged(kind: &str, cause: impl Display) -> anyhow::Error {
    anyhow!("it cannot be decompressed ({kind}): {cause}")
}
