//! Unpacks EFI-zboot kernels: a PE header whose payload is the compressed arm64 `Image`.
//!
//! Header (Linux, `drivers/firmware/efi/libstub/zboot-header.S`): `"MZ"` at 0, `"zimg"` at 4, offset and size
//! of the payload as little-endian 32-bit numbers at 8 and 12, name of the compression as a string at 24.

use std::io::Write as _;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::cmd;

/// Magic of a raw arm64 `Image`, at offset 56 (Linux, `Documentation/arch/arm64/booting.rst`).
const ARM64_MAGIC: &[u8] = b"ARM\x64";

/// Where a payload is and how it is compressed.
#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    data: &'a [u8],
    compression: &'a str,
}

/// Returns the raw arm64 `Image` in `file`, which is one already, or gzip-compressed, or an EFI-zboot kernel.
///
/// # Errors
/// The file is none of these, is truncated, or its compression is unknown.
pub fn raw_image(file: Vec<u8>) -> Result<Vec<u8>> {
    let image = if let Some(payload) = parse(&file)? {
        decompress(payload)?
    } else if file.starts_with(&[0x1f, 0x8b]) {
        decompress(Payload {
            data: &file,
            compression: "gzip",
        })?
    } else {
        file
    };
    if image.get(56..60) != Some(ARM64_MAGIC) {
        bail!("not an arm64 kernel: no \"ARM\\x64\" at offset 56");
    }
    Ok(image)
}

/// Finds the payload of an EFI-zboot kernel; `None` when `file` is not one.
fn parse(file: &[u8]) -> Result<Option<Payload<'_>>> {
    if file.get(0..2) != Some(b"MZ") || file.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let word = |at: usize| -> Result<usize> {
        let bytes = file.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        Ok(u32::from_le_bytes(bytes.context("EFI-zboot header is cut short")?) as usize)
    };
    let (offset, size) = (word(8)?, word(12)?);
    let data = offset
        .checked_add(size)
        .and_then(|end| file.get(offset..end))
        .with_context(|| {
            format!("EFI-zboot payload of {size} bytes at {offset} is past the end of the file")
        })?;
    let name = file.get(24..56).context("EFI-zboot header is cut short")?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    let compression = std::str::from_utf8(name).context("EFI-zboot compression is not a string")?;
    Ok(Some(Payload { data, compression }))
}

fn decompress(payload: Payload<'_>) -> Result<Vec<u8>> {
    let program = match payload.compression {
        "gzip" => "gzip",
        "zstd" | "zstd22" => "zstd",
        "xz" | "xzkern" => "xz",
        "lz4" => "lz4",
        other => bail!("EFI-zboot compression \"{other}\" is unknown; expected gzip, zstd, xz or lz4"),
    };
    let mut command = cmd::command(program);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the decompressor")?;
    let output = thread::scope(|scope| {
        // The payload may be followed by its size, which makes the program complain: only the data decides.
        scope.spawn(move || stdin.write_all(payload.data));
        child.wait_with_output()
    })?;
    if output.stdout.is_empty() {
        bail!("{program} could not decompress the kernel");
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use crate::cmd;

    use super::{ARM64_MAGIC, raw_image};

    fn image() -> Vec<u8> {
        let mut image = vec![0u8; 4096];
        image[56..60].copy_from_slice(ARM64_MAGIC);
        image
    }

    fn zboot(program: &str, compression: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Image"), image()).unwrap();
        let packed = cmd::output(cmd::command(program).arg("-c").arg(dir.path().join("Image"))).unwrap();
        let mut file = vec![0u8; 64];
        file[0..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&64u32.to_le_bytes());
        file[12..16].copy_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        file[24..24 + compression.len()].copy_from_slice(compression.as_bytes());
        file.extend_from_slice(&packed);
        file
    }

    #[test]
    fn unpacks_gzip_and_zstd() {
        assert_eq!(raw_image(zboot("gzip", "gzip")).unwrap(), image());
        assert_eq!(raw_image(zboot("zstd", "zstd22")).unwrap(), image());
    }

    #[test]
    fn a_raw_image_is_left_alone() {
        assert_eq!(raw_image(image()).unwrap(), image());
    }

    #[test]
    fn refuses_what_is_no_kernel() {
        assert!(raw_image(b"hello".to_vec()).is_err());
        assert!(
            raw_image(zboot("gzip", "brotli"))
                .unwrap_err()
                .to_string()
                .contains("brotli")
        );
        let mut cut = zboot("gzip", "gzip");
        cut.truncate(70);
        assert!(raw_image(cut).unwrap_err().to_string().contains("past the end"));
    }
}
