//! Kernels: arm64 `Image`, the same in gzip or in an EFI zboot container (gzip, zstd), and flat binaries.
//!
//! Layouts: Linux `Documentation/arch/arm64/booting.rst` (Image) and `include/linux/efi.h` (zboot). What has
//! no Image header is loaded and entered where QEMU's `-kernel` puts it, 512 KiB into RAM.

use std::io::Read;

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

/// Why a kernel cannot be loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// An ELF file: it must be converted to a flat binary first.
    #[error(
        "it is an ELF file, expected an arm64 Image (also gzip or EFI zboot) or a flat binary; `objcopy -O binary` makes one"
    )]
    Elf,
    /// A text file: a flat binary could be anything else.
    #[error("it is a text file, expected an arm64 Image (also gzip or EFI zboot) or a flat binary")]
    Text,
    /// The Image says that it runs big-endian or its sizes are impossible.
    #[error("its Image header is not usable: {0}")]
    BadImage(&'static str),
    /// A zboot container whose payload is not inside the file.
    #[error("its EFI zboot header names {size} bytes at {offset:#x}, but the file has {file} bytes")]
    BadZboot {
        /// Offset of the payload.
        offset: u32,
        /// Size of the payload.
        size: u32,
        /// Bytes of the file.
        file: usize,
    },
    /// A compression other than gzip and zstd.
    #[error("its EFI zboot payload is compressed with {0:?}, expected gzip or zstd")]
    UnknownCompression(String),
    /// The compressed data is damaged.
    #[error("it cannot be decompressed ({kind}): {cause}")]
    Damaged {
        /// gzip or zstd.
        kind: &'static str,
        /// The decompressor's error.
        cause: String,
    },
    /// Its file was opened and cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It needs more than the zone's memory.
    #[error("it needs more than the {} that the zone has", format_size(*.memory))]
    TooLarge {
        /// Bytes of the zone.
        memory: u64,
    },
}

impl Kernel {
    /// Returns the kernel in a file, for a zone of `memory` bytes. Of a file that is not compressed only the
    /// beginning is read.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn parse(file: Content, memory: u64) -> Result<Self, KernelError> {
        let mut content = if is_compressed(file.head()) {
            // Checked before it is read: a sparse file costs its user nothing, and reading it root's memory.
            if file.len() > memory {
                return Err(KernelError::TooLarge { memory });
            }
            Content::from(decompress(&read(file)?, memory)?)
        } else {
            file
        };
        if content.is_empty() {
            return Err(KernelError::Empty);
        }
        if content.head().starts_with(b"\x7fELF") {
            return Err(KernelError::Elf);
        }
        // A file that does not fit anyway is not read.
        if is_text(content.head()) && content.len() <= memory {
            let bytes = read(content)?;
            if is_text(&bytes) {
                return Err(KernelError::Text);
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
            _ => Err(KernelError::TooLarge { memory }),
        }
    }

    /// Returns the guest-physical address of its first byte.
    #[must_use]
    pub fn entry(&self) -> u64 {
        RAM_BASE.saturating_add(self.offset)
    }

    /// Returns the end of what it occupies, from RAM's base.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.needs)
    }
}

fn read(file: Content) -> Result<Vec<u8>, KernelError> {
    file.into_bytes()
        .map_err(|error| KernelError::Unreadable(error.to_string()))
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

fn image(content: Content) -> Result<Kernel, KernelError> {
    let word = |at| read_u64(content.head(), at).ok_or(KernelError::BadImage("it is cut short"));
    let (mut text_offset, mut image_size, flags) = (word(8)?, word(16)?, word(24)?);
    if flags & 1 != 0 {
        return Err(KernelError::BadImage("the kernel is big-endian"));
    }
    if image_size == 0 {
        text_offset = OLD_TEXT_OFFSET;
        image_size = content.len();
    }
    if text_offset >= 1 << 40 || image_size >= 1 << 40 {
        return Err(KernelError::BadImage("text offset or size is absurd"));
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
fn decompress(file: &[u8], memory: u64) -> Result<Vec<u8>, KernelError> {
    if is_gzip(file) {
        return gunzip(file, memory);
    }
    let (offset, size) = (read_u32(file, 8).unwrap_or(0), read_u32(file, 12).unwrap_or(0));
    let damaged = || KernelError::BadZboot {
        offset,
        size,
        file: file.len(),
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
        Err(KernelError::UnknownCompression(
            String::from_utf8_lossy(kind).into_owned(),
        ))
    }
}

fn gunzip(bytes: &[u8], memory: u64) -> Result<Vec<u8>, KernelError> {
    // One member only: a zboot payload is followed by padding, which is no second member.
    read_limited(flate2::bufread::GzDecoder::new(bytes), "gzip", memory)
}

fn unzstd(bytes: &[u8], memory: u64) -> Result<Vec<u8>, KernelError> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|error| KernelError::Damaged {
        kind: "zstd",
        cause: error.to_string(),
    })?;
    read_limited(decoder, "zstd", memory)
}

/// Reads everything, but no more than a zone's memory: a small file may decompress to any size.
fn read_limited(reader: impl Read, kind: &'static str, memory: u64) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    reader
        .take(memory.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| KernelError::Damaged {
            kind,
            cause: error.to_string(),
        })?;
    if bytes.len() as u64 > memory {
        return Err(KernelError::TooLarge { memory });
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
