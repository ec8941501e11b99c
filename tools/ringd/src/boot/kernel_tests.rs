//! Tests of [`super`], with kernels made here.

use std::io::Write;

use super::{FLAT_OFFSET, Format, Kernel};
use crate::boot::content::Content;
use crate::config::size::format_size;

const MEMORY: u64 = 64 << 20;

/// In a file, as a zone's kernel is.
fn parse(bytes: impl AsRef<[u8]>) -> anyhow::Result<Kernel> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes.as_ref()).unwrap();
    let content = Content::of(file.reopen().unwrap()).unwrap();
    Kernel::parse(content, MEMORY)
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

#[test]
fn an_image_goes_where_its_header_says() {
    let file = image_file(0, 0x30_0000, 0b1010, 5000);
    let kernel = parse(&file).unwrap();
    assert_eq!(
        (kernel.offset, kernel.needs, kernel.format),
        (0x20_0000, 0x30_0000, Format::Image)
    );
    assert_eq!((kernel.entry(), kernel.end()), (0x4020_0000, 0x50_0000));
    assert_eq!(kernel.content.into_bytes().unwrap(), file);
    let kernel = parse(image_file(0x8_0000, 100, 0, 5000)).unwrap();
    assert_eq!((kernel.offset, kernel.needs), (0x28_0000, 5000));
}

#[test]
fn an_image_without_size_is_an_old_one() {
    let kernel = parse(image_file(0x1234_5678_9abc, 0, 0, 4096)).unwrap();
    assert_eq!((kernel.offset, kernel.needs), (0x28_0000, 4096));
}

#[test]
fn a_file_without_header_is_flat() {
    let kernel = parse(vec![0x1f, 0x20, 0x03, 0xd5]).unwrap();
    assert_eq!(
        (kernel.offset, kernel.needs, kernel.format),
        (FLAT_OFFSET, 4, Format::Flat)
    );
    assert_eq!(kernel.entry(), 0x4008_0000);
}

#[test]
fn text_followed_by_code_is_flat() {
    let mut file = vec![b'x'; 10_000];
    file.push(0xd5);
    let kernel = parse(&file).unwrap();
    assert_eq!((kernel.needs, kernel.format), (10_001, Format::Flat));
    assert_eq!(kernel.content.into_bytes().unwrap(), file);
}

#[test]
fn compressed_kernels_are_unpacked() {
    let image = image_file(0, 0x10_0000, 0, 100_000);
    for file in [
        gzip(&image),
        zboot("gzip", &gzip(&image)),
        zboot("zstd22", &zstd(&image)),
        zboot("zstd", &zstd(&image)),
    ] {
        let kernel = parse(file).unwrap();
        assert_eq!(kernel.format, Format::Image);
        assert_eq!(kernel.content.into_bytes().unwrap(), image);
    }
}

#[test]
fn each_bad_kernel_says_why() {
    let image = image_file(0, 0x10_0000, 0, 1000);
    let zipped = gzip(&image);
    let cut = zipped[..zipped.len() / 2].to_vec();
    let bomb = gzip(&vec![0; MEMORY as usize + 1]);
    let mut outside = zboot("gzip", &zipped);
    outside[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases: [(Vec<u8>, &str); 13] = [
        (vec![], "the file is empty"),
        (b"name = \"guest1\"\n".to_vec(), "it is a text file"),
        ("name = \"guest1\"\n".repeat(1000).into(), "it is a text file"),
        (b"\x7fELF\x02\x01".to_vec(), "ELF file"),
        (vec![b'x'; MEMORY as usize + 1], "needs more than the 64M"),
        (image_file(0, 100, 1, 100), "big-endian"),
        (image_file(u64::MAX, 100, 0, 100), "absurd"),
        (image_file(0, MEMORY, 0, 100), "needs more than the 64M"),
        (cut, "cannot be decompressed (gzip)"),
        (bomb, "needs more than the 64M"),
        (outside, "names 4294967295 bytes at 0x100, but the file has"),
        (
            zboot("lz4", &zipped),
            "compressed with \"lz4\", expected gzip or zstd",
        ),
        (zboot("zstd", &zipped), "cannot be decompressed (zstd)"),
    ];
    for (file, expected) in cases {
        let message = parse(file).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should say {expected}");
    }
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(
        start in proptest::sample::select(vec![
            gzip(b"x"), zboot("gzip", b"y"), zboot("zstd", b"z"), image_file(0, 0, 0, 64), vec![],
        ]),
        mut tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        at in 0_usize..64,
        byte in proptest::num::u8::ANY,
    ) {
        let mut file = start;
        if let Some(slot) = file.get_mut(at) {
            *slot = byte;
        }
        file.append(&mut tail);
        if let Ok(kernel) = parse(file) {
            proptest::prop_assert!(kernel.end() <= MEMORY);
            proptest::prop_assert!(kernel.content.len() <= kernel.needs);
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
    let error = Kernel::parse(content, MEMORY).unwrap_err();
    let expected = format!("it needs more than the {} that the zone has", format_size(MEMORY));
    assert_eq!(error.to_string(), expected);
}
