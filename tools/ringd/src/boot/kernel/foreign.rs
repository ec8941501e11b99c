//! What is given as a kernel by mistake, by its name: kernels of other machines, archives, and formats that
//! only firmware or a bootloader unpacks. A flat binary has no mark of its own, so all else would be run.

use super::image::is_image;
use super::{read_u16, read_u32};

/// Formats by their first bytes.
const MAGIC: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "compressed with gzip more than once"),
    (b"\xfd7zXZ\0", "compressed with xz (`xz -d` unpacks it)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4 (`lz4 -d` unpacks it)"),
    (b"\x02\x21\x4c\x18", "compressed with lz4 (`lz4 -d` unpacks it)"),
    (b"BZh", "compressed with bzip2 (`bzip2 -d` unpacks it)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd (`zstd -d` unpacks it)"),
    (
        b"\x5d\0\0",
        "compressed with lzma (`xz -d --format=lzma` unpacks it)",
    ),
    (
        b"\x89LZO\0\r\n\x1a\n",
        "compressed with lzop (`lzop -d` unpacks it)",
    ),
    (b"PK\x03\x04", "a zip archive"),
    (b"070701", "a cpio archive, as an initial RAM disk is"),
    (b"!<arch>\n", "an archive of object files or a Debian package"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"hsqs", "a squashfs file system"),
    (b"\x27\x05\x19\x56", "a U-Boot legacy image (uImage)"),
    (
        b"\xd0\x0d\xfe\xed",
        "a device tree or a FIT image, which U-Boot starts",
    ),
    (b"ANDROID!", "an Android boot image"),
];

/// Offset of the 32-bit offset of the PE header in a file that begins with `MZ`.
const PE_POINTER: usize = 0x3c;
/// IMAGE_FILE_MACHINE_ARM64.
const PE_ARM64: u16 = 0xaa64;

/// Returns what a file that begins with `head` is, if it is known not to be an arm64 kernel.
pub fn name(head: &[u8]) -> Option<String> {
    if let Some((_, name)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some((*name).into());
    }
    // Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Some("a Linux kernel for x86 (bzImage)".into());
    }
    // Linux arch/arm/boot/compressed/head.S.
    if read_u32(head, 0x24) == Some(0x016f_2818) {
        return Some("a Linux kernel for 32-bit Arm (zImage)".into());
    }
    // Linux Documentation/arch/riscv/boot-image-header.rst.
    if head.get(56..60) == Some(b"RSC\x05") {
        return Some("a Linux kernel for RISC-V".into());
    }
    pe(head)
}

/// Names a PE file that is not an Image as well.
fn pe(head: &[u8]) -> Option<String> {
    if !head.starts_with(b"MZ") {
        return None;
    }
    if head.get(4..8) == Some(b"zimg") {
        return Some("an EFI zboot image inside of a compressed file".into());
    }
    let pe = usize::try_from(read_u32(head, PE_POINTER)?).ok()?;
    let at = |offset: usize| pe.checked_add(offset);
    if head.get(pe..at(4)?)? != b"PE\0\0" {
        return None;
    }
    let machine = read_u16(head, at(4)?)?;
    if machine != PE_ARM64 {
        return Some(format!("a program for EFI on {}", machine_name(machine)));
    }
    if is_image(head) {
        return None;
    }
    // The section table follows the optional header.
    let sections = usize::from(read_u16(head, at(6)?)?);
    let table = at(24)?.checked_add(usize::from(read_u16(head, at(20)?)?))?;
    let names = head.get(table..)?.chunks_exact(40).take(sections);
    if names.into_iter().any(|section| section.starts_with(b".linux\0")) {
        return Some(
            "a unified kernel image (`objcopy -O binary --only-section=.linux` extracts its kernel)".into(),
        );
    }
    Some("a program for EFI".into())
}

/// Names a machine of PE's (Microsoft PE Format, "Machine Types").
fn machine_name(machine: u16) -> String {
    let name = match machine {
        0x014c => "x86 (32 bits)",
        0x8664 => "x86-64",
        0x01c0 | 0x01c2 | 0x01c4 => "32-bit Arm",
        0x5032 | 0x5064 => "RISC-V",
        0x6232 | 0x6264 => "LoongArch",
        other => return format!("machine {other:#x}"),
    };
    name.into()
}
