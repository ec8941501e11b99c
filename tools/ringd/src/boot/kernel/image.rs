//! arm64 Image files: Linux `Documentation/arch/arm64/booting.rst`, placed as QEMU's `load_aarch64_image`
//! does.

use anyhow::anyhow;
use ringvisor::abi::machine::RAM_BASE;

use super::{BootProtocol, FLAT_OFFSET, Kernel, Segment, read_u64};
use crate::boot::content::Content;
use crate::config::zone::BLOCK;

/// Bytes of an Image header.
const HEADER: usize = 64;
/// Text offsets below this are from the second 2 MiB of RAM on: QEMU's own code is at the start of RAM
/// (`BOOTLOADER_MAX_SIZE`).
const LEAST_TEXT_OFFSET: u64 = 4096;

/// Returns whether a file that begins with `head` has an Image header.
pub fn is_image(head: &[u8]) -> bool {
    head.len() >= HEADER && head.get(56..60) == Some(b"ARM\x64")
}

/// Returns the kernel in a file that [`is_image`].
///
/// # Errors
/// Its header is not one of a kernel that can run here.
pub fn parse(content: Content) -> anyhow::Result<Kernel> {
    let word = |at| read_u64(content.head(), at).ok_or_else(|| bad("it is cut short"));
    let (text_offset, image_size, flags) = (word(8)?, word(16)?, word(24)?);
    if flags & 1 != 0 {
        return Err(bad("the kernel is big-endian"));
    }
    let offset = match (text_offset, image_size) {
        // It is too old to say.
        (_, 0) => FLAT_OFFSET,
        (offset, _) if offset < LEAST_TEXT_OFFSET => offset + BLOCK,
        (offset, _) => offset,
    };
    if offset >= 1 << 40 || image_size >= 1 << 40 {
        return Err(bad("text offset or size is absurd"));
    }
    Ok(Kernel {
        segments: vec![Segment {
            file: 0..content.len(),
            offset,
            size: image_size.max(content.len()),
            // Its .bss, which it clears itself.
            zeroes: false,
        }],
        entry: RAM_BASE + offset,
        content,
        protocol: BootProtocol::Linux,
    })
}

fn bad(cause: &str) -> anyhow::Error {
    anyhow!("its Image header is not usable: {cause}")
}
