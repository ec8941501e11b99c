//! [`Kernel::parse`]: tells the formats apart, and checks what all have in common.

use anyhow::bail;
use ringvisor::abi::machine::RAM_BASE;

use super::{BootProtocol, FLAT_OFFSET, Kernel, Segment, elf, foreign, image, read, too_large, unpack};
use crate::boot::content::Content;

/// What a kernel file may be, for messages.
const EXPECTED: &str = "an arm64 Image (also gzip or EFI zboot), an arm64 ELF file or a flat binary";

impl Kernel {
    /// Returns the kernel in a file, for a zone of `memory` bytes; a flat binary is placed at the
    /// guest-physical address `load`, if one is given. Of a file that is not compressed only the beginning
    /// is read.
    ///
    /// # Errors
    /// It cannot be read or decompressed, is nothing that can be loaded, or does not fit.
    pub fn parse(file: Content, load: Option<u64>, memory: u64) -> anyhow::Result<Self> {
        let mut content = unpack::unpack(file, memory)?;
        if content.is_empty() {
            bail!("the file is empty");
        }
        let is_elf = elf::is_elf(content.head());
        if !is_elf && let Some(found) = foreign::name(content.head()) {
            bail!("it is {found}, expected {EXPECTED}");
        }
        // A file that does not fit anyway is not read.
        if is_text(content.head()) && content.len() <= memory {
            let bytes = read(content)?;
            if is_text(&bytes) {
                bail!("it is a text file, expected {EXPECTED}");
            }
            content = bytes.into();
        }
        let is_image = image::is_image(content.head());
        if (is_elf || is_image) && load.is_some() {
            let kind = if is_elf { "an ELF file" } else { "an arm64 Image" };
            bail!("it is {kind}, which says itself where it goes: expected no key load beside it");
        }
        let kernel = if is_elf {
            elf::parse(content, memory)?
        } else if is_image {
            image::parse(content)?
        } else {
            flat(content, load)
        };
        kernel.check(memory)
    }

    /// Checks what all formats have in common.
    fn check(self, memory: u64) -> anyhow::Result<Self> {
        if self.segments.is_empty() {
            bail!("there is nothing in it to load");
        }
        let mut end = 0;
        for segment in &self.segments {
            if segment.offset < end {
                bail!(
                    "its segments overlap at {:#x}",
                    RAM_BASE.saturating_add(segment.offset)
                );
            }
            end = segment
                .offset
                .checked_add(segment.size)
                .filter(|end| *end <= memory)
                .ok_or_else(|| too_large(memory))?;
        }
        let entry = self.entry.checked_sub(RAM_BASE);
        if entry.is_none_or(|entry| entry >= memory || !entry.is_multiple_of(4)) {
            let (entry, end) = (self.entry, RAM_BASE.saturating_add(memory));
            bail!(
                "its entry point is {entry:#x}, expected a multiple of 4 between {RAM_BASE:#x} and {end:#x}"
            );
        }
        Ok(self)
    }
}

fn flat(content: Content, load: Option<u64>) -> Kernel {
    let entry = load.unwrap_or(RAM_BASE + FLAT_OFFSET);
    Kernel {
        segments: vec![Segment {
            file: 0..content.len(),
            offset: entry.saturating_sub(RAM_BASE),
            size: content.len(),
            zeroes: false,
        }],
        entry,
        content,
        protocol: if load.is_some() {
            BootProtocol::BareMetal
        } else {
            BootProtocol::Linux
        },
    }
}

fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}
