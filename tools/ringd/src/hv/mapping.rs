//! Memory shared with EL2: the shared page, as atomics, and BAR 0, as volatile words.
//!
//! The only module of the daemon, beside guest RAM ([`crate::host::ram`]), that turns mapped addresses into
//! references. EL2 may change any byte of the shared page at any time, so it is reached through atomics only.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use ringvisor::abi::{BAR_SIZE, SERVING_SIZE, shared};
use ringvisor::ring::ZoneWindow;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping that is unmapped when dropped.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, reached through atomics and volatile accesses only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of_file(file: &File, len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no memory of ours is replaced.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                0,
            )?
        };
        Self::from_raw(base.cast(), len)
    }

    fn anonymous(len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so no memory of ours is replaced.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED)? };
        Self::from_raw(base.cast(), len)
    }

    fn from_raw(base: *mut u8, len: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { base, len })
    }

    /// Returns a pointer to `size` bytes at `offset`, which must be a multiple of `align`.
    fn at(&self, offset: usize, size: usize, align: usize) -> Option<*mut u8> {
        let end = offset.checked_add(size)?;
        (end <= self.len && offset.is_multiple_of(align)).then(|| self.base.as_ptr().wrapping_add(offset))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a mapping that this value made, and nothing borrowed from it
        // lives.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The 2 MiB that daemon and EL2 share.
pub struct SharedPage(Mapping);

impl SharedPage {
    /// Maps the hugetlbfs file that holds the page.
    ///
    /// # Errors
    /// The system refused, as it does when no huge page is left.
    pub fn map(file: &File) -> io::Result<Self> {
        Mapping::of_file(file, shared::SIZE, MapFlags::SHARED | MapFlags::POPULATE).map(Self)
    }

    /// Returns a page of this process alone, for [`super::fake`].
    ///
    /// # Errors
    /// The system has no memory.
    pub fn private() -> io::Result<Self> {
        Mapping::anonymous(shared::SIZE).map(Self)
    }

    /// Returns the virtual address of the page.
    pub fn address(&self) -> usize {
        self.0.base.as_ptr() as usize
    }

    /// Returns the 32-bit word at `offset`.
    pub fn u32_at(&self, offset: usize) -> Option<&AtomicU32> {
        let base = self.0.at(offset, 4, 4)?;
        // SAFETY: `at` checked that the words are inside of the mapping, which lives as long as `self`, and
        // aligned (mappings are page-aligned). Atomics may be changed by others.
        Some(unsafe { &*base.cast::<AtomicU32>() })
    }

    /// Returns `count` bytes at `offset`.
    pub fn bytes(&self, offset: usize, count: usize) -> Option<&[AtomicU8]> {
        let base = self.0.at(offset, count, 1)?;
        // SAFETY: as in `u32_at`.
        Some(unsafe { std::slice::from_raw_parts(base.cast(), count) })
    }

    /// Returns rings and console buffers of a zone.
    pub fn window(&self, zone: u8) -> Option<&ZoneWindow> {
        let base = self.0.at(
            shared::zone_window(zone)?,
            size_of::<ZoneWindow>(),
            align_of::<ZoneWindow>(),
        )?;
        // SAFETY: as in `u32_at`; a window is made of atomics and their padding is atomics too.
        Some(unsafe { &*base.cast::<ZoneWindow>() })
    }

    /// Copies `from` into the page. Returns `None` if it does not fit.
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        for (to, from) in self.bytes(offset, from.len())?.iter().zip(from) {
            to.store(*from, Ordering::Relaxed);
        }
        Some(())
    }

    /// Copies out of the page. Returns `None` if that reaches outside of it.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        for (from, to) in self.bytes(offset, to.len())?.iter().zip(to) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(())
    }
}

/// BAR 0 of the control device: Device memory, so only aligned accesses of 4 or 8 bytes, each made exactly
/// once.
pub struct Bar(Mapping);

impl Bar {
    /// Maps the part of sysfs' `resource0` that a process needs which serves zones: stores to the rest are
    /// out of its reach.
    ///
    /// # Errors
    /// The system refused.
    pub fn map_serving(file: &File) -> io::Result<Self> {
        Self::map(file, SERVING_SIZE)
    }

    /// Maps all of sysfs' `resource0`.
    ///
    /// # Errors
    /// The system refused.
    pub fn map_all(file: &File) -> io::Result<Self> {
        Self::map(file, BAR_SIZE)
    }

    fn map(file: &File, bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        Mapping::of_file(file, len, MapFlags::SHARED).map(Self)
    }

    /// Returns the 64-bit word at `offset`, or 0 outside of the BAR, as reserved space reads.
    pub fn read_u64(&self, offset: usize) -> u64 {
        let Some(word) = self.0.at(offset, 8, 8) else {
            return 0;
        };
        // SAFETY: inside of the mapping and aligned; the device allows reads of the whole BAR.
        u64::from_le(unsafe { word.cast::<u64>().read_volatile() })
    }

    /// Stores 32 bits; outside of the BAR nothing happens.
    pub fn write_u32(&self, offset: usize, value: u32) {
        if let Some(word) = self.0.at(offset, 4, 4) {
            // SAFETY: inside of the mapping and aligned; a store to the BAR changes no memory of this process
            // but the command slot, which is reached through atomics.
            unsafe { word.cast::<u32>().write_volatile(value.to_le()) }
        }
    }

    /// Stores 64 bits; outside of the BAR nothing happens.
    pub fn write_u64(&self, offset: usize, value: u64) {
        if let Some(word) = self.0.at(offset, 8, 8) {
            // SAFETY: as in `write_u32`.
            unsafe { word.cast::<u64>().write_volatile(value.to_le()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringvisor::ring::{Consumer, Entry, Producer};

    use std::sync::atomic::Ordering;

    use ringvisor::abi::shared;

    use super::SharedPage;

    #[test]
    fn accesses_are_checked_against_the_page() {
        let page = SharedPage::private().unwrap();
        page.write(0x1234, b"ringvisor").unwrap();
        let mut back = [0; 9];
        page.read(0x1234, &mut back).unwrap();
        assert_eq!(&back, b"ringvisor");
        assert!(page.write(shared::SIZE - 1, b"ab").is_none());
        assert!(page.bytes(shared::SIZE - 8, 16).is_none());
        assert!(page.u32_at(6).is_none());
        assert!(page.bytes(1, usize::MAX).is_none());
        assert!(page.u32_at(usize::MAX - 1).is_none());
        page.bytes(8, 1).unwrap()[0].store(1, Ordering::Relaxed);
        assert_eq!(page.u32_at(8).unwrap().load(Ordering::Relaxed), 1);
    }

    // The first notification after the daemon has looked is the one that requests are timed from.
    #[test]
    fn the_first_notification_is_stamped() {
        let page = SharedPage::private().unwrap();
        let window = page.window(1).unwrap();
        let producer = Producer::new();
        let mut consumer = Consumer::attach(&window.ring(), 0);
        let (slot, queue) = (3, 15);
        let notify = |now| {
            window.stamp_notification(slot, queue, now);
            let _ = producer.push(&window.ring(), Entry::Notify { slot, queue });
        };
        assert_eq!(window.notified_at(slot, queue), None);
        notify(100);
        notify(200);
        assert_eq!(window.notified_at(slot, queue), Some(100));
        assert_eq!(consumer.pop(&window.ring()), Some(Entry::Notify { slot, queue }));
        notify(300);
        assert_eq!(window.notified_at(slot, queue), Some(300));
        // No other queue is touched, and there are no others.
        window.stamp_notification(slot, 16, 400);
        window.stamp_notification(32, 0, 400);
        let stamped = (0..=255)
            .flat_map(|slot| (0..=255).map(move |queue| (slot, queue)))
            .filter(|(slot, queue)| window.notified_at(*slot, *queue).is_some());
        assert_eq!(stamped.collect::<Vec<_>>(), [(slot, queue)]);
        window.clear();
        assert_eq!(window.notified_at(slot, queue), None);
    }
}
