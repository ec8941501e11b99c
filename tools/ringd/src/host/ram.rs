//! Guest RAM: a file of huge pages, mapped here and donated to EL2. Behind RAM, the file of a zone with
//! firmware has the memory of its flash ([`Flash`]).
//!
//! Reached through `vm-memory`, and by two walks over all of it that have no safe form: having the kernel
//! clear it, and cleaning the caches before a guest starts with its caches off. A zone's start waits for
//! both, so they are done in [`parts`] by all CPUs.

use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ringvisor::abi::machine::RAM_BASE;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, ReadVolatile, VolatileMemory, VolatileSlice,
};

use super::{RamError, pin};
use crate::boot::content::{Content, Source, slice};
use crate::config::zone::BLOCK;

const PAGE: u64 = 4096;
/// Mode of files that hold guest memory or console output: for root alone.
const PRIVATE: u32 = 0o600;
/// Bytes of a part in [`parts`]; whole blocks.
const PART: usize = 16 << 20;

/// A zone's RAM.
pub struct Ram {
    /// One region at [`RAM_BASE`].
    pub memory: GuestMemoryMmap,
    /// Its size in bytes.
    pub bytes: u64,
    /// Physical addresses of its 2 MiB blocks in order; empty if it was opened, not made.
    pub blocks: Vec<u64>,
    /// Huge pages that were added to root's pool for it.
    pub added: u64,
}

/// The memory of a zone's flash.
pub struct Flash {
    region: MmapRegion,
    /// Physical addresses of its blocks; empty if it was opened, not made.
    pub blocks: Vec<u64>,
}

/// Opens a file of huge pages, or makes it and allocates its pages.
///
/// # Errors
/// The system refused; a file that was made is removed.
pub fn open_file(path: &Path, bytes: u64, create: bool) -> Result<File, RamError> {
    let failed = |cause| RamError::file(path, cause);
    let file = File::options()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(PRIVATE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    // A file of an earlier version may be readable by every user of root, and so would the guest's memory be.
    file.set_permissions(Permissions::from_mode(PRIVATE))
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let length = found.len();
    // A page that is missing would be allocated, empty, when it is touched: not the one that EL2 maps.
    let whole = found.blocks().saturating_mul(512) >= bytes;
    if length == bytes && (whole || create) {
        return Ok(file);
    }
    if length == bytes {
        return Err(failed(io::Error::other("pages are missing in it")));
    }
    if !create {
        let cause = io::Error::other(format!("it has {length} bytes, expected {bytes}"));
        return Err(failed(cause));
    }
    // Allocates all pages now: a page that is missing later would be a SIGBUS. `fallocate` alone would do,
    // but clears one after the other; so it finds most of them there already.
    let flags = rustix::fs::FallocateFlags::empty();
    let allocated = file.set_len(bytes).and_then(|()| {
        clear(&file, bytes);
        rustix::fs::fallocate(&file, flags, 0, bytes).map_err(io::Error::from)
    });
    if let Err(cause) = allocated {
        let _ = std::fs::remove_file(path);
        if cause.kind() == io::ErrorKind::StorageFull {
            return Err(RamError::NoHugePages {
                wanted: bytes.div_ceil(BLOCK),
                free: 0,
                added: 0,
            });
        }
        return Err(failed(cause));
    }
    Ok(file)
}

/// Allocates the pages of a file that has none, as far as possible; `fallocate` finds what is missing, and
/// why. A kernel before 5.14 has no `MADV_POPULATE_WRITE`, and a small file is not worth threads.
fn clear(file: &File, bytes: u64) {
    if bytes <= PART as u64 {
        return;
    }
    let Ok(file) = file.try_clone() else {
        return;
    };
    // Reserves pages for all of it: if there are too few, it fails here, and none is taken.
    let Ok(region) = region(file, 0, bytes, MapFlags::empty()) else {
        return;
    };
    parts(region.size(), Share::All.threads(), |part| {
        let address = region.as_ptr().wrapping_add(part.start);
        // SAFETY: the range is mapped for as long as `region` is; nothing reads or writes through it, and
        // what this does to the file's pages a write of what they hold would do.
        let done = unsafe { rustix::mm::madvise(address.cast(), part.len(), Advice::LinuxPopulateWrite) };
        done.is_ok()
    });
}

/// How many of root's CPUs work on a zone's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All that this process may use: a user starts the zone.
    All,
    /// A quarter of them, at least one: the guest restarts, as often as it likes.
    Quarter,
}

impl Share {
    fn threads(self) -> usize {
        let all = thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::All => all,
            Self::Quarter => (all / 4).max(1),
        }
    }
}

/// Calls `work` with all parts of `0..size`, in at most `threads` threads, or in as many as can be started.
/// Stops early when `work` returns `false`.
fn parts(size: usize, threads: usize, work: impl Fn(Range<usize>) -> bool + Sync) {
    let next = AtomicUsize::new(0);
    let all = || {
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed).saturating_mul(PART);
            if start >= size || !work(start..size.min(start.saturating_add(PART))) {
                break;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(size.div_ceil(PART)) {
            // If no more can be started, those that run do it.
            if thread::Builder::new().spawn_scoped(scope, all).is_err() {
                break;
            }
        }
        all();
    });
}

/// Maps a part of a file, shared and writable.
fn region(file: File, start: u64, bytes: u64, flags: MapFlags) -> Result<MmapRegion, RamError> {
    let size = usize::try_from(bytes).map_err(RamError::map)?;
    let bits = |bits: u32| i32::try_from(bits).unwrap_or(0);
    let protection = bits((ProtFlags::READ | ProtFlags::WRITE).bits());
    let flags = bits((MapFlags::SHARED | flags).bits());
    MmapRegion::build(Some(FileOffset::new(file, start)), size, protection, flags).map_err(RamError::map)
}

/// Maps a file as guest RAM.
///
/// # Errors
/// The system refused.
pub fn map(file: File, bytes: u64) -> Result<Ram, RamError> {
    let region = region(file, 0, bytes, MapFlags::POPULATE | MapFlags::NORESERVE)?;
    let region = GuestRegionMmap::new(region, GuestAddress(RAM_BASE))
        .ok_or_else(|| RamError::map("it does not fit into the address space"))?;
    let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(RamError::map)?;
    Ok(Ram {
        memory,
        bytes,
        blocks: Vec::new(),
        added: 0,
    })
}

/// Returns the physical address of a mapped virtual address of this process.
///
/// # Errors
/// It is not mapped, or the kernel hides addresses from this process.
pub fn physical(root: &Path, address: usize) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let pagemap = File::open(root.join("proc/self/pagemap"))?;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, address as u64 / PAGE * 8)?;
    let entry = u64::from_ne_bytes(entry);
    if entry & PRESENT == 0 {
        return Err(io::Error::other(format!("no page at {address:#x}")));
    }
    match entry & FRAME {
        0 => Err(io::ErrorKind::PermissionDenied.into()),
        frame => Ok(frame * PAGE),
    }
}

impl Ram {
    /// Fills in the physical addresses of the blocks.
    ///
    /// # Errors
    /// The kernel hides them.
    pub fn with_blocks(mut self, physical: impl Fn(usize) -> io::Result<u64>) -> Result<Self, RamError> {
        let base = self.base()? as usize;
        for offset in (0..self.bytes).step_by(2 << 20) {
            let address = base.saturating_add(usize::try_from(offset).unwrap_or(usize::MAX));
            let block = physical(address).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => RamError::HiddenAddresses,
                _ => RamError::map(error),
            })?;
            self.blocks.push(block);
        }
        Ok(self)
    }

    /// Takes the last `bytes` away, as the memory of flash.
    ///
    /// # Errors
    /// There are not so many, or they cannot be mapped.
    pub fn split_flash(self, bytes: u64) -> Result<(Self, Flash), RamError> {
        let too_small = || RamError::map("it is smaller than the flash");
        let left = self.bytes.checked_sub(bytes).ok_or_else(too_small)?;
        let file = self.memory.iter().next().and_then(|region| region.file_offset());
        let file = file.ok_or_else(too_small)?.file().try_clone()?;
        let flags = MapFlags::POPULATE | MapFlags::NORESERVE;
        let mut blocks = self.blocks;
        let flash = Flash {
            region: region(file.try_clone()?, left, bytes, flags)?,
            blocks: blocks.split_off(
                blocks
                    .len()
                    .min(usize::try_from(left / BLOCK).map_err(RamError::map)?),
            ),
        };
        let ram = Self {
            blocks,
            added: self.added,
            ..map(file, left)?
        };
        Ok((ram, flash))
    }

    /// Pins its blocks ([`pin::pin`]).
    ///
    /// # Errors
    /// The system refused.
    pub fn pin(&self) -> Result<Vec<File>, RamError> {
        let base = self.base()? as usize;
        let size = usize::try_from(self.bytes).map_err(RamError::map)?;
        let blocks = (0..size).step_by(2 << 20);
        let addresses: Vec<usize> = blocks.map(|offset| base.saturating_add(offset)).collect();
        pin::pin(&addresses).map_err(|error| RamError::Other(format!("cannot pin the guest's RAM: {error}")))
    }

    /// Returns where it is mapped.
    fn base(&self) -> Result<*mut u8, RamError> {
        let region = self.memory.iter().next();
        let region = region.ok_or_else(|| RamError::map("it has no region"))?;
        region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(RamError::map)
    }

    /// Copies `bytes` to `offset` from RAM's base.
    ///
    /// # Errors
    /// They do not fit.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), RamError> {
        let address = GuestAddress(RAM_BASE.saturating_add(offset));
        self.memory.write_slice(bytes, address).map_err(RamError::map)
    }

    /// Copies a part of `content` to `offset` from RAM's base.
    ///
    /// # Errors
    /// It does not fit, or its file cannot be read or has changed since it was opened.
    pub fn put(&self, offset: u64, content: &Content, part: &Range<u64>) -> io::Result<()> {
        match content.source() {
            Source::Bytes(bytes) => self.write(offset, slice(bytes, part)?).map_err(io::Error::other),
            Source::File(unread) => {
                let mut file = unread.at(part.start)?;
                let mut place = self.place(offset, part.end.saturating_sub(part.start))?;
                // A read may return less than it was asked for.
                let read = file.read_exact_volatile(&mut place);
                // A change is the better reason than a short read.
                unread.check()?;
                read.map_err(io::Error::other)
            }
        }
    }

    /// Clears `bytes` from `offset` on.
    ///
    /// # Errors
    /// Not all of it is RAM.
    pub fn clear(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let zeroes = [0; 4096];
        let mut rest = self.place(offset, bytes)?;
        while !rest.is_empty() {
            let len = rest.len().min(zeroes.len());
            rest.copy_from(zeroes.get(..len).unwrap_or_default());
            rest = rest.offset(len).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn place(&self, offset: u64, bytes: u64) -> io::Result<VolatileSlice<'_>> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let address = GuestAddress(RAM_BASE.saturating_add(offset));
        self.memory.get_slice(address, len).map_err(io::Error::other)
    }

    /// Copies from `offset` into `bytes`.
    ///
    /// # Errors
    /// Not all of it is RAM.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), RamError> {
        let address = GuestAddress(RAM_BASE.saturating_add(offset));
        self.memory.read_slice(bytes, address).map_err(RamError::map)
    }

    /// Cleans and invalidates the data caches over all of it, so that a guest that starts with its caches off
    /// sees what was loaded, and no dirty line is written over what it writes.
    ///
    /// # Errors
    /// It is not mapped.
    pub fn clean_caches(&self, share: Share) -> Result<(), RamError> {
        let len = usize::try_from(self.bytes).map_err(RamError::map)?;
        let base = self.base()? as usize;
        parts(len, share.threads(), |part| {
            clean_range(base.saturating_add(part.start), part.len());
            true
        });
        Ok(())
    }
}

impl Flash {
    /// Returns `len` bytes at `offset`.
    ///
    /// # Errors
    /// They are not all within.
    pub fn place(&self, offset: u64, len: u64) -> io::Result<VolatileSlice<'_>> {
        let index = |value: u64| usize::try_from(value).map_err(io::Error::other);
        self.region
            .get_slice(index(offset)?, index(len)?)
            .map_err(io::Error::other)
    }

    /// Cleans and invalidates the data caches over `len` bytes at `offset`, so that the guest sees them
    /// however it maps its flash.
    ///
    /// # Errors
    /// They are not all within.
    pub fn clean_caches(&self, offset: u64, len: u64) -> io::Result<()> {
        let place = self.place(offset, len)?;
        clean_range(place.ptr_guard_mut().as_ptr() as usize, place.len());
        Ok(())
    }
}

/// `DC CIVAC` over a mapped range; Linux allows it at EL0 (SCTLR_EL1.UCI).
#[cfg(target_arch = "aarch64")]
fn clean_range(start: usize, len: usize) {
    let ctr: u64;
    // SAFETY: reads the cache type register, which Linux allows at EL0 or emulates (SCTLR_EL1.UCT).
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    // CTR_EL0.DminLine: log2 of the words in the smallest data cache line.
    let line = 4_usize << ((ctr >> 16) & 0xf);
    for address in (start..start.saturating_add(len)).step_by(line) {
        // SAFETY: cleaning a line changes no memory that a program can see; the address is mapped and
        // writable.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
    }
    // SAFETY: a barrier: the maintenance above has ended before anything after it.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Nothing: no other architecture runs zones.
#[cfg(not(target_arch = "aarch64"))]
fn clean_range(_start: usize, _len: usize) {}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::{PART, PRIVATE, Ram, Share, clear, map, open_file, parts};
    use crate::boot::content::Content;
    use crate::host::RamError;

    fn ram(bytes: u64) -> (tempfile::TempDir, Ram) {
        let directory = tempfile::tempdir().unwrap();
        let file = open_file(&directory.path().join("z.ram"), bytes, true).unwrap();
        (directory, map(file, bytes).unwrap())
    }

    #[test]
    fn ram_is_written_and_read() {
        let (_directory, ram) = ram(4 << 20);
        ram.write((4 << 20) - 3, b"end").unwrap();
        ram.clean_caches(Share::Quarter).unwrap();
        let mut back = [0; 3];
        ram.read((4 << 20) - 3, &mut back).unwrap();
        assert_eq!(&back, b"end");
        assert!(ram.write((4 << 20) - 2, b"end").is_err());
    }

    #[test]
    fn content_is_put_from_memory_and_from_a_file() {
        use std::io::Write;
        let (_directory, ram) = ram(64 << 20);
        let bytes: Vec<u8> = (0..PART + 100_000).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let in_file = Content::of(file.reopen().unwrap()).unwrap();
        let all = 0..bytes.len() as u64;
        // Twice from the file: each time it begins at its beginning.
        for (offset, content) in [
            (4096, &in_file),
            (20 << 20, &in_file),
            (40 << 20, &bytes.clone().into()),
        ] {
            ram.put(offset, content, &all).unwrap();
            let mut back = vec![0; bytes.len()];
            ram.read(offset, &mut back).unwrap();
            assert_eq!(back, bytes, "at {offset:#x}");
        }
        for content in [&in_file, &bytes.clone().into()] {
            ram.put(0, content, &(5_000..9_000)).unwrap();
            ram.clear(3_000, 6_000).unwrap();
            let mut back = [0xff; 10_000];
            ram.read(0, &mut back).unwrap();
            assert_eq!(back[..3_000], bytes[5_000..8_000]);
            assert_eq!(back[3_000..9_000], [0; 6_000]);
            assert_eq!(back[9_000..], bytes[9_000 - 4096..10_000 - 4096]);
        }
        assert!(ram.clear(64 << 20, 1).is_err());
        for offset in [(48 << 20) - 99_999, 64 << 20] {
            assert!(
                ram.put(offset, &in_file, &all).is_err(),
                "it does not fit at {offset:#x}"
            );
        }
        file.as_file().set_len(50_000).unwrap();
        assert!(ram.put(0, &in_file, &all).is_err(), "it has become shorter");
    }

    #[test]
    fn all_parts_are_done_once() {
        for size in [0, 1, PART - 1, PART, PART + 1, 7 * PART + 4096] {
            let seen = std::sync::Mutex::new(Vec::new());
            parts(size, 4, |part| {
                seen.lock().unwrap().push(part);
                true
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_by_key(|part| part.start);
            let mut end = 0;
            for part in seen {
                assert_eq!(part.start, end);
                assert!(part.len() <= PART && !part.is_empty());
                end = part.end;
            }
            assert_eq!(end, size);
        }
    }

    #[test]
    fn a_restart_takes_a_share_of_the_cpus() {
        let seen = std::sync::Mutex::new(std::collections::HashSet::new());
        parts(64 * PART, 1, |_| {
            seen.lock().unwrap().insert(std::thread::current().id());
            true
        });
        assert_eq!(seen.into_inner().unwrap().len(), 1);
        let all = Share::All.threads();
        assert_eq!(Share::Quarter.threads(), (all / 4).max(1));
    }

    #[test]
    fn every_page_is_there_before_it_is_asked_for() {
        use std::os::unix::fs::MetadataExt;
        let bytes = 3 * PART as u64 + (2 << 20);
        // `clear` alone, without `fallocate` after it.
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        clear(&file, bytes);
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= bytes);
    }

    #[test]
    fn flash_is_behind_ram() {
        let (directory, ram) = ram(8 << 20);
        ram.write((2 << 20) - 1, b"RF").unwrap();
        let ram = ram.with_blocks(|_| Ok(4096)).unwrap();
        let (ram, flash) = ram.split_flash(6 << 20).unwrap();
        assert_eq!((ram.bytes, ram.blocks.len(), flash.blocks.len()), (2 << 20, 1, 3));
        let mut back = [0; 1];
        ram.read((2 << 20) - 1, &mut back).unwrap();
        assert_eq!(&back, b"R");
        assert!(ram.write(2 << 20, b"x").is_err(), "no device reaches flash");
        flash.place(0, 1).unwrap().copy_to(&mut back);
        assert_eq!(&back, b"F");
        flash.place((6 << 20) - 1, 1).unwrap().copy_from(b"E");
        flash.clean_caches(0, 6 << 20).unwrap();
        assert!(flash.place((6 << 20) - 1, 2).is_err() && flash.clean_caches(6 << 20, 1).is_err());
        let file = std::fs::read(directory.path().join("z.ram")).unwrap();
        assert_eq!(file.last(), Some(&b'E'));
        assert!(ram.split_flash(4 << 20).is_err());
    }

    #[test]
    fn blocks_are_listed_in_order() {
        let (_directory, ram) = ram(6 << 20);
        let base = ram.base().unwrap() as usize;
        let ram = ram
            .with_blocks(|address| Ok((address - base) as u64 + 0x8000_0000))
            .unwrap();
        assert_eq!(ram.blocks, [0x8000_0000, 0x8020_0000, 0x8040_0000]);
    }

    // torture i1
    #[test]
    fn other_users_cannot_open_ram_nor_lead_it_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("z.ram");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        drop(open_file(&path, 2 << 20, true).unwrap());
        assert_eq!(mode(&path), PRIVATE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        drop(open_file(&path, 2 << 20, false).unwrap());
        assert_eq!(mode(&path), PRIVATE, "a file of an earlier version is tightened");
        let link = directory.path().join("link.ram");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for create in [false, true] {
            assert!(open_file(&link, 2 << 20, create).is_err(), "a link is followed");
        }
    }

    // torture i2
    #[test]
    fn pages_that_the_file_has_lost_are_held() {
        use std::io::Read;
        let (directory, ram) = ram(6 << 20);
        for block in 0..3_u8 {
            ram.write(u64::from(block) << 21, &[block + 1; 4096]).unwrap();
        }
        let mut pins = ram.pin().unwrap();
        let path = directory.path().join("z.ram");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 0, 6 << 20).unwrap();
        let message = open_file(&path, 6 << 20, false).unwrap_err().to_string();
        assert!(message.contains("pages are missing"), "{message}");
        let mut held = vec![0; 3 * 4096];
        pins[0].read_exact(&mut held).unwrap();
        let expected: Vec<u8> = [1, 2, 3].iter().flat_map(|byte| [*byte; 4096]).collect();
        assert!(held == expected, "other pages are held");
    }

    #[test]
    fn hidden_addresses_are_explained() {
        let (_directory, ram) = ram(2 << 20);
        let hidden = |_| Err(io::ErrorKind::PermissionDenied.into());
        assert!(matches!(ram.with_blocks(hidden), Err(RamError::HiddenAddresses)));
    }

    #[test]
    fn ram_of_another_size_is_not_taken_over() {
        let (directory, _ram) = ram(2 << 20);
        let path = directory.path().join("z.ram");
        assert!(open_file(&path, 2 << 20, false).is_ok());
        let message = open_file(&path, 4 << 20, false).unwrap_err().to_string();
        assert!(
            message.contains("it has 2097152 bytes, expected 4194304"),
            "{message}"
        );
    }
}
