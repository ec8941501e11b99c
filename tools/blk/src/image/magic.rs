//! What other formats' images begin with. A raw disk that does so is more likely one whose format was
//! forgotten.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Name, offset and bytes of each format's magic.
const MAGIC: [(&str, usize, &[u8]); 10] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
];

/// Returns the name of the format that the file looks like, if it is one with a header.
///
/// # Errors
/// The system's error.
pub fn detect(file: &File) -> io::Result<Option<&'static str>> {
    // A whole block, which O_DIRECT is not set for yet.
    let mut head = [0; 512];
    let count = file.read_at(&mut head, 0)?;
    let head = head.get(..count).unwrap_or_default();
    let found = MAGIC
        .iter()
        .find(|(_, at, magic)| head.get(*at..).is_some_and(|head| head.starts_with(magic)));
    Ok(found.map(|(name, ..)| *name))
}
