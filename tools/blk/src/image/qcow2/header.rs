//! The header of a qcow2 image, read before the crate opens the image for writing: what cannot be served is
//! refused while the file is still unchanged, with a message that says what to do.
//!
//! Layout: `docs/interop/qcow2.txt` of QEMU. All numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 2, which header extensions follow.
const V2_BYTES: u64 = 72;
/// Least bytes of a header of version 3.
const V3_BYTES: u64 = 104;
/// Longest name of a backing file.
const NAME_MAX: u64 = 1023;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const MAX_REFCOUNT_ORDER: u32 = 6;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What of a header decides how the image is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Size of a cluster as a power of two.
    pub cluster_bits: u32,
    /// Width of a refcount in bits, as a power of two.
    pub refcount_order: u32,
    /// Entries of the L1 table.
    pub l1_entries: u32,
    /// Offset of the L1 table.
    pub l1_offset: u64,
    /// Offset of the refcount table.
    pub reftable_offset: u64,
    /// Clusters of the refcount table.
    pub reftable_clusters: u32,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// The backing file.
    pub backing: Option<Backing>,
    crypt_method: u32,
    incompatible: u64,
    autoclear: u64,
}

/// A backing file as the header names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// Its name.
    pub name: String,
    /// Its format, if that is named.
    pub format: Option<String>,
}

impl Header {
    /// Reads the header.
    ///
    /// # Errors
    /// What is wrong with it, or the system's error.
    pub fn read(file: &File) -> Result<Self, String> {
        let bytes = read_at(file, 0, V3_BYTES)?;
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(
                "no qcow2 header, expected format = \"raw\" in the zone file or a qcow2 image".into(),
            );
        }
        let version = u32_at(&bytes, 4);
        let (incompatible, autoclear, refcount_order, length) = match version {
            2 => (0, 0, 4, V2_BYTES),
            3 => (
                u64_at(&bytes, 72),
                u64_at(&bytes, 88),
                u32_at(&bytes, 96),
                u32_at(&bytes, 100).into(),
            ),
            _ => return Err(format!("version {version}, expected 2 or 3")),
        };
        let cluster_bits = u32_at(&bytes, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(format!(
                "clusters of 2^{cluster_bits} bytes, expected 2^9 to 2^21"
            ));
        }
        if refcount_order > MAX_REFCOUNT_ORDER {
            return Err(format!(
                "refcounts of 2^{refcount_order} bits, expected up to 64 bits"
            ));
        }
        let cluster = 1_u64 << cluster_bits;
        if version == 3 && !(V3_BYTES..=cluster).contains(&length) {
            return Err(format!(
                "a header of {length} bytes, expected {V3_BYTES} to {cluster}"
            ));
        }
        let (offset, len) = (u64_at(&bytes, 8), u64::from(u32_at(&bytes, 16)));
        let backing = match offset {
            0 => None,
            // An empty name is none.
            _ if len == 0 => None,
            _ if len > NAME_MAX || offset.saturating_add(len) > cluster => {
                return Err("the name of its backing file is outside of the header".into());
            }
            _ => Some(Backing {
                name: text(read_at(file, offset, len)?, "the name of its backing file")?,
                format: backing_format(file, length, offset.min(cluster))?,
            }),
        };
        Ok(Self {
            version,
            cluster_bits,
            refcount_order,
            l1_entries: u32_at(&bytes, 36),
            l1_offset: u64_at(&bytes, 40),
            reftable_offset: u64_at(&bytes, 48),
            reftable_clusters: u32_at(&bytes, 56),
            snapshots: u32_at(&bytes, 60),
            backing,
            crypt_method: u32_at(&bytes, 32),
            incompatible,
            autoclear,
        })
    }

    /// Checks that the image can be served.
    ///
    /// # Errors
    /// What it has that is not supported, and what to do.
    pub fn check(&self, writable: bool) -> Result<(), String> {
        let found = match self.crypt_method {
            0 => None,
            1 => Some("is encrypted (aes)"),
            2 => Some("is encrypted (LUKS)"),
            _ => Some("is encrypted"),
        };
        if let Some(found) = found {
            return Err(format!(
                "it {found}, expected plain: `qemu-img convert` makes a plain copy"
            ));
        }
        const REPAIR: &str = "`qemu-img check -r all` repairs it";
        const CONVERT: &str = "`qemu-img convert -O qcow2` makes a copy without";
        let features = [
            "it was not closed cleanly (dirty): `qemu-img check -r all` makes its refcounts right".to_owned(),
            format!("it is marked corrupt: {REPAIR}"),
            format!("its data are in an external file, expected in the image: {CONVERT}"),
            format!("its clusters are compressed with zstd, expected deflate: {CONVERT}"),
            format!("it has extended L2 entries (subclusters): {CONVERT}"),
        ];
        for (bit, message) in features.into_iter().enumerate() {
            if self.incompatible & (1 << bit) != 0 {
                return Err(message);
            }
        }
        if self.incompatible != 0 {
            let bits = self.incompatible;
            return Err(format!(
                "incompatible features {bits:#x}, expected none that is unknown: {CONVERT}"
            ));
        }
        if writable && self.autoclear & 1 != 0 {
            return Err(
                "it has persistent bitmaps, which writes would make invalid: `qemu-img bitmap --remove` \
                 removes one, readonly = true leaves them valid"
                    .into(),
            );
        }
        if writable && self.autoclear != 0 {
            let bits = self.autoclear;
            return Err(format!(
                "autoclear features {bits:#x}, expected none that is unknown: {CONVERT}"
            ));
        }
        Ok(())
    }
}

/// Returns the format of the backing file that a header extension names. Extensions end where the name of the
/// backing file begins.
fn backing_format(file: &File, mut offset: u64, end: u64) -> Result<Option<String>, String> {
    let mut format = None;
    while offset + 8 <= end {
        let head = read_at(file, offset, 8)?;
        let (kind, len) = (u32_at(&head, 0), u64::from(u32_at(&head, 4)));
        offset += 8;
        if kind == EXTENSION_END {
            break;
        }
        if len > end.saturating_sub(offset) {
            return Err(format!(
                "a header extension of {len} bytes at {offset}, expected to end at {end}"
            ));
        }
        if kind == EXTENSION_BACKING_FORMAT {
            format = Some(text(
                read_at(file, offset, len)?,
                "the format of its backing file",
            )?);
        }
        offset += len.next_multiple_of(8);
    }
    Ok(format)
}

fn text(bytes: Vec<u8>, what: &str) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
}

/// Reads as many bytes; those behind the end of the file are zero.
fn read_at(file: &File, mut offset: u64, len: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        match file.read_at(rest, offset) {
            Ok(0) => break,
            Ok(count) => {
                offset += count as u64;
                rest = rest.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("its header cannot be read: {error}")),
        }
    }
    Ok(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Returns the big-endian number at `at`; 0 behind the end.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
