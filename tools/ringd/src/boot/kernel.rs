//! Kernels: arm64 `Image`, the same in gzip or in an EFI zboot container (gzip, zstd), and flat binaries.
//!
//! Layouts: Linux `Documentation/arch/arm64/booting.rst` (Image) and `include/linux/efi.h` (zboot). What has
//! no Image header is loaded and entered where QEMU's `-kernel` puts it, 512 KiB into RAM.

use std::fmt::Display;
use std::io::Read;

use anyhow::{anyhow, bail};
use ringvisor::abi::machine::RAM_BASE;

use super::content::Content;
use crate::config::size::format_size;
use crate::config::zone::BLOCK;

/// Offset from RAM's base of a kernel without Image header (QEMU: `KERNEL64_LOAD_ADDR`).
pub const FLAT_OFFSET: u64 = 0x8_0000;
/// Offset from RAM's base of the 2 MiB block to which an Image's text offset is added: the first block holds
/// the device tree.
pub const IMAGE_BASE: u64 = BLOCK;
/// Text offset of an Image that is too old to say (image size 0).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Bytes of an Image header.
const IMAGE_HEADER: usize = 64;

/// A kernel ready to be copied into RAM.
#[derive(Debug)]
pub struct Kernel {
    /// Its bytes, decompressed.
    pub content: Content,
    /// Its offset from RAM's base; also its entry point.
    pub offset: u64,
    /// Bytes that it occupies there, including BSS.
    pub needs: u64,
    /// The file's format, for messages.
    pub format: Format,
}

/// The format of a kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// arm64 Image.
    Image,
    /// Anything without an Image header.
    Flat,
}

impl Kernel {
    /// Returns the kernel in a file, for a zone of `memory` bytes. Of a file that is not compressed only the
    /// beginning is read.
    ///
    /// # Errors
    /// It cannot be read or decompressed, is nothing that can be loaded, or does not fit.
    pub fn parse(file: Content, memory: u64) -> anyhow::Result<Self> {
        let mut content = if is_compressed(file.head()) {
            // Checked before it is read: a sparse file costs its user nothing, and reading it root's memory.
            if file.len() > memory {
                return Err(too_large(memory));
            }
            Content::from(decompress(&read(file)?, memory)?)
        } else {
            file
        };
        if content.is_empty() {
            bail!("the file is empty");
        }
        if content.head().starts_with(b"\x7fELF") {
            bail!(
                "it is an ELF file, expected an arm64 Image (also gzip or EFI zboot) or a flat binary; `objcopy -O \
                 binary` makes one"
            );
        }
        // A file that does not fit anyway is not read.
        if is_text(content.head()) && content.len() <= memory {
            let bytes = read(content)?;
            if is_text(&bytes) {
                bail!("it is a text file, expected an arm64 Image (also gzip or EFI zboot) or a flat binary");
            }
            content = bytes.into();
        }
        let kernel = if is_image(content.head()) {
            image(content)?
        } else {
            flat(content)
        };
        match kernel.offset.checked_add(kernel.needs) {
            Some(end) if end <= memory => Ok(kernel),
            _ => Err(too_large(memory)),
        }
    }

    /// Returns the guest-physical address of its first byte.
    pub fn entry(&self) -> u64 {
        RAM_BASE.saturating_add(self.offset)
    }

    /// Returns the end of what it occupies, from RAM's base.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.needs)
    }
}

fn too_large(memory: u64) -> anyhow::Error {
    anyhow!("it needs more than the {} that the zone has", format_size(memory))
}

fn bad_image(cause: &str) -> anyhow::Error {
    anyhow!("its Image header is not usable: {cause}")
}

fn damaged(kind: &str, cause: impl Display) -> anyhow::Error {
    anyhow!("it cannot be decompressed ({kind}): {cause}")
}

fn read(file: Content) -> anyhow::Result<Vec<u8>> {
    file.into_bytes()
        .map_err(|error| anyhow!("it cannot be read: {error}"))
}

fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

fn is_image(bytes: &[u8]) -> bool {
    bytes.len() >= IMAGE_HEADER && bytes.get(56..60) == Some(b"ARM\x64")
}

fn flat(content: Content) -> Kernel {
    Kernel {
        offset: FLAT_OFFSET,
        needs: content.len(),
        content,
        format: Format::Flat,
    }
}

fn image(content: Content) -> anyhow::Result<Kernel> {
    let word = |at| read_u64(content.head(), at).ok_or_else(|| bad_image("it is cut short"));
    let (mut text_offset, mut image_size, flags) = (word(8)?, word(16)?, word(24)?);
    if flags & 1 != 0 {
        return Err(bad_image("the kernel is big-endian"));
    }
    if image_size == 0 {
        text_offset = OLD_TEXT_OFFSET;
        image_size = content.len();
    }
    if text_offset >= 1 << 40 || image_size >= 1 << 40 {
        return Err(bad_image("text offset or size is absurd"));
    }
    let needs = image_size.max(content.len());
    Ok(Kernel {
        offset: IMAGE_BASE + text_offset,
        needs,
        content,
        format: Format::Image,
    })
}

fn is_compressed(head: &[u8]) -> bool {
    is_gzip(head) || head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg")
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

/// Decompresses a file that [`is_compressed`].
fn decompress(file: &[u8], memory: u64) -> anyhow::Result<Vec<u8>> {
    if is_gzip(file) {
        return gunzip(file, memory);
    }
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
    if kind.starts_with(b"gzip") {
        gunzip(payload, memory)
    } else if kind.starts_with(b"zstd") {
        unzstd(payload, memory)
    } else {
        let kind = String::from_utf8_lossy(kind);
        bail!("its EFI zboot payload is compressed with {kind:?}, expected gzip or zstd")
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

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
