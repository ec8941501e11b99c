//! Tests of [`super`], with kernels made here.

use std::io::Write;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_AARCH64, EM_X86_64, ET_EXEC, ET_REL, FileHeader64, Ident, PF_R, PF_X,
    PT_LOAD, PT_NOTE, ProgramHeader64,
};
use object::{LittleEndian, U16, U32, U64, pod};

use super::{BootProtocol, FLAT_OFFSET, Kernel, Segment};
use crate::boot::content::Content;
use crate::config::size::format_size;

const MEMORY: u64 = 64 << 20;

/// In a file, as a zone's kernel is.
fn content(bytes: impl AsRef<[u8]>) -> Content {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes.as_ref()).unwrap();
    Content::of(file.reopen().unwrap()).unwrap()
}

fn parse(bytes: impl AsRef<[u8]>) -> anyhow::Result<Kernel> {
    Kernel::parse(content(bytes), None, MEMORY)
}

fn refusal(bytes: impl AsRef<[u8]>) -> String {
    parse(bytes).unwrap_err().to_string()
}

fn image_file(text_offset: u64, image_size: u64, flags: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    bytes[0..2].copy_from_slice(b"MZ");
    bytes[4..8].copy_from_slice(&[0; 4]);
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&flags.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// As `lz4 -l` does.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let frame = lz4_flex::frame::FrameInfo::new().legacy_frame(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(frame, Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// As the kernel's build does for arm64.
fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjArm64, 0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Makes an xz file ask for a dictionary of `2 << shift` bytes (The .xz File Format, 3.1 and 5.3.1).
fn with_dictionary(mut file: Vec<u8>, shift: u8) -> Vec<u8> {
    const HEADER: usize = 12;
    const LZMA2: [u8; 2] = [0x21, 1];
    let end = HEADER + usize::from(file[HEADER]) * 4;
    let at = file[HEADER..end]
        .windows(2)
        .position(|pair| pair == LZMA2)
        .unwrap();
    file[HEADER + at + 2] = (shift - 11) * 2;
    let mut crc = flate2::Crc::new();
    crc.update(&file[HEADER..end]);
    file[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
    file
}

fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0_u8; 0x100];
    file[0..2].copy_from_slice(b"MZ");
    file[4..8].copy_from_slice(b"zimg");
    file[8..12].copy_from_slice(&0x100_u32.to_le_bytes());
    file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    file.extend_from_slice(payload);
    file.extend_from_slice(&[0xee; 17]);
    file
}

/// A PE file with these sections and zeroes where an Image header is.
fn pe(machine: u16, sections: &[&str]) -> Vec<u8> {
    let mut file = vec![0_u8; 4096];
    file[0..2].copy_from_slice(b"MZ");
    file[0x3c..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    file[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
    file[0x86..0x88].copy_from_slice(&(sections.len() as u16).to_le_bytes());
    file[0x94..0x96].copy_from_slice(&0xf0_u16.to_le_bytes());
    for (index, name) in sections.iter().enumerate() {
        let at = 0x98 + 0xf0 + 40 * index;
        file[at..at + name.len()].copy_from_slice(name.as_bytes());
    }
    file
}

/// A program header: type, flags, offset and bytes in the file, virtual and physical address, bytes there.
#[derive(Clone, Copy)]
struct Program(u32, u32, (u64, u64), u64, u64, u64);

const CODE: u32 = PF_R | PF_X;

fn elf(machine: u16, kind: u16, entry: u64, programs: &[Program]) -> Vec<u8> {
    let e = LittleEndian;
    let header = FileHeader64 {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: 1,
            os_abi: 0,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(e, kind),
        e_machine: U16::new(e, machine),
        e_version: U32::new(e, 1),
        e_entry: U64::new(e, entry),
        e_phoff: U64::new(e, 64),
        e_shoff: U64::new(e, 0),
        e_flags: U32::new(e, 0),
        e_ehsize: U16::new(e, 64),
        e_phentsize: U16::new(e, 56),
        e_phnum: U16::new(e, programs.len() as u16),
        e_shentsize: U16::new(e, 0),
        e_shnum: U16::new(e, 0),
        e_shstrndx: U16::new(e, 0),
    };
    let mut file = pod::bytes_of(&header).to_vec();
    for &Program(kind, flags, (offset, filesz), vaddr, paddr, memsz) in programs {
        let program = ProgramHeader64 {
            p_type: U32::new(e, kind),
            p_flags: U32::new(e, flags),
            p_offset: U64::new(e, offset),
            p_vaddr: U64::new(e, vaddr),
            p_paddr: U64::new(e, paddr),
            p_filesz: U64::new(e, filesz),
            p_memsz: U64::new(e, memsz),
            p_align: U64::new(e, 0x1000),
        };
        file.extend_from_slice(pod::bytes_of(&program));
    }
    file.resize(0x3000, 0xaa);
    file
}

#[test]
fn an_image_goes_where_its_header_says() {
    let file = image_file(0, 0x30_0000, 0b1010, 5000);
    let kernel = parse(&file).unwrap();
    let segment = Segment {
        file: 0..5000,
        offset: 0x20_0000,
        size: 0x30_0000,
        zeroes: false,
    };
    assert_eq!(kernel.segments, [segment]);
    assert_eq!((kernel.entry, kernel.end()), (0x4020_0000, 0x50_0000));
    assert_eq!(kernel.protocol, BootProtocol::Linux);
    assert_eq!(kernel.content.into_bytes().unwrap(), file);
    // QEMU's own code is in the first page only.
    for (text_offset, offset) in [
        (4092, 0x20_0ffc),
        (4096, 4096),
        (0x8_0000, 0x8_0000),
        (0x48_0000, 0x48_0000),
    ] {
        let kernel = parse(image_file(text_offset, 100, 0, 5000)).unwrap();
        assert_eq!((kernel.start(), kernel.end()), (offset, offset + 5000));
    }
}

#[test]
fn an_image_without_size_is_an_old_one() {
    let kernel = parse(image_file(0x1234_5678_9abc, 0, 0, 4096)).unwrap();
    assert_eq!((kernel.start(), kernel.end()), (FLAT_OFFSET, FLAT_OFFSET + 4096));
}

#[test]
fn a_file_without_header_is_flat() {
    let flat = [0x1f, 0x20, 0x03, 0xd5];
    let kernel = parse(flat).unwrap();
    assert_eq!((kernel.start(), kernel.end()), (FLAT_OFFSET, FLAT_OFFSET + 4));
    assert_eq!(
        (kernel.entry, kernel.protocol),
        (0x4008_0000, BootProtocol::Linux)
    );
    let kernel = Kernel::parse(content(flat), Some(0x4028_0000), MEMORY).unwrap();
    assert_eq!((kernel.start(), kernel.entry), (0x28_0000, 0x4028_0000));
    assert_eq!(kernel.protocol, BootProtocol::BareMetal);
    let message = Kernel::parse(content(flat), Some(0x4400_0000 - 2), MEMORY).unwrap_err();
    assert!(message.to_string().contains("needs more than the 64M"));
}

#[test]
fn an_address_is_for_flat_binaries() {
    for (file, expected) in [
        (
            image_file(0, 100, 0, 100),
            "it is an arm64 Image, which says itself where it goes",
        ),
        (
            elf(EM_AARCH64, ET_EXEC, 0, &[]),
            "it is an ELF file, which says itself",
        ),
    ] {
        let message = Kernel::parse(content(file), Some(0x4028_0000), MEMORY)
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn text_followed_by_code_is_flat() {
    let mut file = vec![b'x'; 10_000];
    file.push(0xd5);
    let kernel = parse(&file).unwrap();
    assert_eq!(kernel.end() - kernel.start(), 10_001);
    assert_eq!(kernel.content.into_bytes().unwrap(), file);
}

#[test]
fn segments_of_an_elf_file_go_to_their_physical_addresses() {
    let data = Program(
        PT_LOAD,
        PF_R,
        (0x2000, 0x300),
        0xffff_0000_0020_0000,
        0x4020_0000,
        0x9000,
    );
    let code = Program(
        PT_LOAD,
        CODE,
        (0x1000, 0x500),
        0xffff_0000_0010_0000,
        0x4010_0000,
        0x500,
    );
    let empty = Program(PT_LOAD, PF_R, (0, 0), 0, 0, 0);
    let note = Program(PT_NOTE, PF_R, (0x1000, 4), 0, 0, 4);
    for is_file in [true, false] {
        let file = elf(
            EM_AARCH64,
            ET_EXEC,
            0xffff_0000_0010_0040,
            &[data, note, empty, code],
        );
        let file = if is_file { file } else { gzip(&file) };
        let kernel = parse(file).unwrap();
        let segment = |file, offset, size| Segment {
            file,
            offset,
            size,
            zeroes: true,
        };
        let expected = [
            segment(0x1000..0x1500, 0x10_0000, 0x500),
            segment(0x2000..0x2300, 0x20_0000, 0x9000),
        ];
        assert_eq!(kernel.segments, expected);
        // A virtual address of the code.
        assert_eq!(
            (kernel.entry, kernel.protocol),
            (0x4010_0040, BootProtocol::BareMetal)
        );
    }
    // A physical one.
    let kernel = parse(elf(EM_AARCH64, ET_EXEC, 0x4010_0004, &[code])).unwrap();
    assert_eq!(kernel.entry, 0x4010_0004);
}

#[test]
fn each_bad_elf_file_says_why() {
    let at = |paddr: u64, memsz: u64| Program(PT_LOAD, CODE, (0x1000, 0x100), paddr, paddr, memsz);
    let good = at(0x4000_0000, 0x1000);
    let long = Program(PT_LOAD, CODE, (0x2fff, 2), 0x4000_0000, 0x4000_0000, 0x1000);
    let end = Program(PT_LOAD, CODE, (u64::MAX, 2), 0x4000_0000, 0x4000_0000, 0x1000);
    let (exec, arm) = (ET_EXEC, EM_AARCH64);
    let mut big = elf(arm, exec, 0x4000_0000, &[good]);
    big[5] = 2;
    big.copy_within(18..19, 19);
    big[18] = 0;
    let mut narrow = elf(40, exec, 0x4000_0000, &[good]);
    narrow[4] = 1;
    let mut far = elf(arm, exec, 0x4000_0000, &[good]);
    far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut many = elf(arm, exec, 0x4000_0000, &[good]);
    many[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
    let mut odd = elf(arm, exec, 0x4000_0000, &[good]);
    odd[54] = 32;
    for (file, expected) in [
        (b"\x7fELF\x02\x01".to_vec(), "ELF header is cut short"),
        (
            elf(EM_X86_64, exec, 0, &[good]),
            "64 bits, little-endian, for x86-64, expected 64 bits",
        ),
        (big, "64 bits, big-endian, for arm64"),
        (narrow, "32 bits, little-endian, for 32-bit Arm"),
        (elf(arm, ET_REL, 0, &[good]), "of type 1, expected an executable"),
        (elf(arm, exec, 0, &[]), "without program headers"),
        (far, "program headers are damaged"),
        (many, "program headers are damaged"),
        (odd, "program headers are damaged"),
        (
            elf(arm, exec, 0x4000_0000, &[at(0, 0x1000)]),
            "0x1000 bytes at 0x0 does not lie within RAM, 0x40000000",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[at(0x4000_0000, MEMORY + 1)]),
            "does not lie within RAM",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[at(u64::MAX, 0x1000)]),
            "does not lie within RAM",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[at(0x4000_0000, 0xff)]),
            "names 256 bytes at 0x1000 of the file",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[long]),
            "names 2 bytes at 0x2fff of the file, which has 12288",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[end]),
            "names 2 bytes at 0xffffffffffffffff",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[good, at(0x4000_0fff, 0x1000)]),
            "segments overlap at 0x40000fff",
        ),
        (
            elf(arm, exec, 0x4000_0000, &[Program(PT_NOTE, 0, (0, 0), 0, 0, 0)]),
            "nothing in it to load",
        ),
        (
            elf(arm, exec, 0, &[good]),
            "entry point is 0x0, expected a multiple of 4 between 0x40000000 and 0x44000000",
        ),
        (elf(arm, exec, 0x4000_0002, &[good]), "entry point is 0x40000002"),
    ] {
        let message = refusal(file);
        assert!(message.contains(expected), "{message} should say {expected}");
    }
}

#[test]
fn compressed_kernels_are_unpacked() {
    let image = image_file(0, 0x10_0000, 0, 100_000);
    for file in [
        gzip(&image),
        zboot("gzip", &gzip(&image)),
        zboot("zstd22", &zstd(&image)),
        zboot("zstd", &zstd(&image)),
        zboot("lz4", &lz4(&image)),
        zboot("xzkern", &xz(&image)),
        zboot("xz", &with_dictionary(xz(&image), 26)),
    ] {
        let kernel = parse(file).unwrap();
        assert_eq!(kernel.entry, 0x4020_0000);
        assert_eq!(kernel.content.into_bytes().unwrap(), image);
    }
}

#[test]
fn each_bad_kernel_says_why() {
    let image = image_file(0, 0x10_0000, 0, 1000);
    let zipped = gzip(&image);
    let cut = zipped[..zipped.len() / 2].to_vec();
    let mut outside = zboot("gzip", &zipped);
    outside[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases: [(Vec<u8>, &str); 14] = [
        (vec![], "the file is empty"),
        (b"name = \"guest1\"\n".to_vec(), "it is a text file"),
        ("name = \"guest1\"\n".repeat(1000).into(), "it is a text file"),
        (vec![b'x'; MEMORY as usize + 1], "needs more than the 64M"),
        (image_file(0, 100, 1, 100), "big-endian"),
        (image_file(u64::MAX, 100, 0, 100), "absurd"),
        (image_file(0, MEMORY, 0, 100), "needs more than the 64M"),
        (cut, "cannot be decompressed (gzip)"),
        (
            zboot("xz", &with_dictionary(xz(&image), 27)),
            "cannot be decompressed (xz): needed memory too big",
        ),
        (outside, "names 4294967295 bytes at 0x100, but the file has"),
        (
            zboot("lzo", &zipped),
            "compressed with \"lzo\", expected gzip, zstd, lz4 or xz",
        ),
        (zboot("zstd", &zipped), "cannot be decompressed (zstd)"),
        (zboot("lz4", &zipped), "cannot be decompressed (lz4)"),
        (zboot("xz", &zipped), "cannot be decompressed (xz)"),
    ];
    for (file, expected) in cases {
        let message = refusal(file);
        assert!(message.contains(expected), "{message} should say {expected}");
    }
}

#[test]
fn no_file_is_decompressed_to_more_than_the_zone_has() {
    const SMALL: u64 = 1 << 20;
    for more in [0, 1] {
        let zeroes = vec![0; SMALL as usize - FLAT_OFFSET as usize + more];
        for file in [
            gzip(&zeroes),
            zboot("zstd", &zstd(&zeroes)),
            zboot("lz4", &lz4(&zeroes)),
            zboot("xz", &xz(&zeroes)),
        ] {
            let kernel = Kernel::parse(content(file), None, SMALL);
            assert_eq!(kernel.is_ok(), more == 0);
        }
    }
    let zeroes = vec![0; SMALL as usize + 1];
    let error = Kernel::parse(content(gzip(&zeroes)), None, SMALL).unwrap_err();
    assert_eq!(error.to_string(), "it needs more than the 1M that the zone has");
}

#[test]
fn what_is_no_arm64_kernel_is_refused_by_its_name() {
    let image = image_file(0, 0x10_0000, 0, 1000);
    let with = |at: usize, magic: &[u8]| {
        let mut file = vec![0; 4096];
        file[at..at + magic.len()].copy_from_slice(magic);
        file
    };
    let mut x86_image = image.clone();
    x86_image[0x3c..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    x86_image[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
    for (file, expected) in [
        (xz(&image), "compressed with xz"),
        (lz4(&image), "compressed with lz4"),
        (b"BZh91AY&SY\0\0".to_vec(), "compressed with bzip2"),
        (zstd(&image), "compressed with zstd"),
        (gzip(&gzip(&image)), "compressed with gzip more than once"),
        (
            gzip(&zboot("gzip", &gzip(&image))),
            "an EFI zboot image inside of a compressed file",
        ),
        (gzip(&xz(&image)), "compressed with xz"),
        (
            zboot("gzip", &gzip(&pe(0x6264, &[".text"]))),
            "a program for EFI on LoongArch",
        ),
        (with(0x202, b"HdrS"), "a Linux kernel for x86"),
        (
            with(0x24, &0x016f_2818_u32.to_le_bytes()),
            "a Linux kernel for 32-bit Arm",
        ),
        (with(56, b"RSC\x05"), "a Linux kernel for RISC-V"),
        (with(0, b"070701"), "a cpio archive"),
        (with(0, b"\xd0\x0d\xfe\xed"), "a device tree or a FIT image"),
        (pe(0x8664, &[".text", ".linux"]), "a program for EFI on x86-64"),
        (pe(0x1234, &[]), "a program for EFI on machine 0x1234"),
        (
            pe(0xaa64, &[".text", ".linux", ".initrd"]),
            "a unified kernel image",
        ),
        (pe(0xaa64, &[".text", ".data"]), "a program for EFI, expected"),
        (x86_image, "a program for EFI on x86-64"),
    ] {
        let message = refusal(file);
        assert!(
            message.starts_with(&format!("it is {expected}")),
            "{message} should say {expected}"
        );
        assert!(message.contains("expected an arm64 Image"), "{message}");
    }
    // Debian's kernels are programs for EFI as well.
    let mut both = pe(0xaa64, &[".text"]);
    both[56..60].copy_from_slice(b"ARM\x64");
    assert_eq!(parse(both).unwrap().entry, 0x4008_0000);
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(
        start in proptest::sample::select(vec![
            gzip(b"x"), zboot("gzip", b"y"), zboot("zstd", b"z"), zboot("lz4", &lz4(b"y")),
            zboot("xz", &xz(b"y")), image_file(0, 0, 0, 64), vec![], pe(0xaa64, &[".linux"]),
            elf(EM_AARCH64, ET_EXEC, 0x4000_0000, &[Program(PT_LOAD, CODE, (0, 1), 0x4000_0000, 0x4000_0000, 4)]),
        ]),
        mut tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        changes in proptest::collection::vec((0_usize..0x1c0, proptest::num::u8::ANY), 0..4),
        load in proptest::option::of(proptest::num::u64::ANY),
    ) {
        let mut file = start;
        for (at, byte) in changes {
            if let Some(slot) = file.get_mut(at) {
                *slot = byte;
            }
        }
        file.append(&mut tail);
        if let Ok(kernel) = Kernel::parse(content(file), load, MEMORY) {
            proptest::prop_assert!(kernel.end() <= MEMORY);
            for segment in &kernel.segments {
                proptest::prop_assert!(segment.file.end <= kernel.content.len());
                proptest::prop_assert!(segment.file.end - segment.file.start <= segment.size);
            }
        }
    }
}

// torture i3
#[test]
fn a_packed_file_larger_than_the_zone_is_refused_unread() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&gzip(&image_file(0, 0x30_0000, 0b1010, 5000)))
        .unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let content = Content::of(file.reopen().unwrap()).unwrap();
    let error = Kernel::parse(content, None, MEMORY).unwrap_err();
    let expected = format!("it needs more than the {} that the zone has", format_size(MEMORY));
    assert_eq!(error.to_string(), expected);
}
