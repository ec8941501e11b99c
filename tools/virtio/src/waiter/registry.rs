//! [`Registry`]: a ring and what is registered with it, files as fixed files, guest RAM as fixed buffers.
//!
//! A fixed file saves the kernel the look-up of a descriptor that threads share, a fixed buffer the pinning
//! of a request's pages. Both are registered for the first queue that uses them and unregistered with the
//! last, since they hold the file's lock and the guest's pages. Where the kernel or RLIMIT_MEMLOCK refuse,
//! operations name descriptor and address as without a registry.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::IoUring;

use crate::memory::{GuestRam, IoVec};

/// Files and buffers of a ring.
const SLOTS: u32 = 256;
/// Most bytes of one buffer, says the kernel.
const BUFFER_MAX: u64 = 1 << 30;

struct FixedFile {
    fd: RawFd,
    users: usize,
    registered: bool,
}

struct FixedRam {
    ram: Arc<GuestRam>,
    users: usize,
    /// Slots of its buffers; none if the kernel refused.
    slots: Vec<u32>,
}

/// A registered range of addresses.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    slot: u16,
}

/// A ring with its fixed files and buffers.
pub struct Registry {
    pub(super) ring: IoUring,
    /// By slot.
    files: Vec<Option<FixedFile>>,
    rams: Vec<FixedRam>,
    /// By slot, whether it is in use.
    buffers: Vec<bool>,
    /// Sorted by address.
    spans: Vec<Span>,
}

impl Registry {
    /// Makes empty tables in the ring; what the kernel lacks (before Linux 5.19) is not used.
    pub(super) fn new(ring: IoUring) -> Self {
        let mut registry = Self {
            ring,
            files: Vec::new(),
            rams: Vec::new(),
            buffers: Vec::new(),
            spans: Vec::new(),
        };
        match registry.ring.submitter().register_files_sparse(SLOTS) {
            Ok(()) => registry.files.resize_with(SLOTS as usize, || None),
            Err(error) => tracing::debug!(%error, "io_uring: no fixed files"),
        }
        match registry.ring.submitter().register_buffers_sparse(SLOTS) {
            Ok(()) => registry.buffers.resize(SLOTS as usize, false),
            Err(error) => tracing::debug!(%error, "io_uring: no fixed buffers"),
        }
        registry
    }

    /// Returns how many files and buffers are registered.
    pub fn count(&self) -> (usize, usize) {
        let files = self.files.iter().flatten().filter(|file| file.registered);
        (files.count(), self.spans.len())
    }

    /// Returns the slot of a file.
    pub fn file(&self, fd: RawFd) -> Option<u32> {
        let index = self
            .files
            .iter()
            .position(|file| file.as_ref().is_some_and(|file| file.fd == fd && file.registered))?;
        u32::try_from(index).ok()
    }

    /// Returns the slot of the buffer that has all of `part`.
    pub fn buffer(&self, part: &IoVec) -> Option<u16> {
        let start = part.as_ptr().addr() as u64;
        let index = self.spans.partition_point(|span| span.end <= start);
        let span = self.spans.get(index)?;
        (span.start <= start && start.checked_add(part.len() as u64)? <= span.end).then_some(span.slot)
    }

    /// Registers guest RAM, or counts one user more.
    pub fn attach_ram(&mut self, ram: &Arc<GuestRam>) {
        match self.rams.iter_mut().find(|known| Arc::ptr_eq(&known.ram, ram)) {
            Some(known) => known.users += 1,
            None => {
                let slots = self.register_ram(ram);
                self.rams.push(FixedRam {
                    ram: ram.clone(),
                    users: 1,
                    slots,
                });
            }
        }
    }

    /// Registers a file, which stays open until it is detached, or counts one user more.
    pub fn attach_file(&mut self, fd: RawFd) {
        if let Some(known) = self.files.iter_mut().flatten().find(|file| file.fd == fd) {
            known.users += 1;
            return;
        }
        let free = self.files.iter_mut().enumerate().find(|(_, file)| file.is_none());
        let Some((slot, file)) = free else {
            return;
        };
        let registered = update_file(&self.ring, slot, fd);
        if let Err(error) = &registered {
            tracing::debug!(%error, "io_uring: file not registered");
        }
        *file = Some(FixedFile {
            fd,
            users: 1,
            registered: registered.is_ok(),
        });
    }

    /// Registers all of a guest's RAM or, on failure, nothing of it. Returns the slots.
    fn register_ram(&mut self, ram: &GuestRam) -> Vec<u32> {
        let mut taken = Vec::new();
        if !ram.fixed {
            return taken;
        }
        for extent in ram.extents() {
            let (host, len) = (extent.host, extent.len);
            let mut at = 0;
            while at < len {
                let size = (len - at).min(BUFFER_MAX);
                let start = host.addr() as u64 + at;
                let slot = match self.register_buffer(host.wrapping_add(at as usize), size) {
                    Ok(slot) => slot,
                    Err(error) => {
                        tracing::debug!(%error, size, "io_uring: guest RAM not registered");
                        self.release(&taken);
                        return Vec::new();
                    }
                };
                let end = start + size;
                self.spans.push(Span { start, end, slot });
                taken.push(u32::from(slot));
                at += size;
            }
        }
        self.spans.sort_unstable_by_key(|span| span.start);
        tracing::debug!(buffers = taken.len(), "io_uring: guest RAM registered");
        taken
    }

    fn register_buffer(&mut self, host: *mut u8, size: u64) -> io::Result<u16> {
        let free = self.buffers.iter().position(|taken| !taken);
        let slot = free.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let buffer = libc::iovec {
            iov_base: host.cast(),
            iov_len: size as usize,
        };
        // SAFETY: `FixedRam` keeps the memory mapped until the buffer is unregistered.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(slot as u32, &[buffer], None)?
        };
        if let Some(taken) = self.buffers.get_mut(slot) {
            *taken = true;
        }
        Ok(slot as u16)
    }

    fn release(&mut self, slots: &[u32]) {
        self.spans.retain(|span| !slots.contains(&u32::from(span.slot)));
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        for &slot in slots {
            // SAFETY: no memory.
            match unsafe { self.ring.submitter().register_buffers_update(slot, &[none], None) } {
                Ok(()) => {
                    if let Some(taken) = self.buffers.get_mut(slot as usize) {
                        *taken = false;
                    }
                }
                // The pages stay until the ring goes, and so does the slot.
                Err(error) => tracing::error!(%error, "io_uring: guest RAM stays registered"),
            }
        }
    }

    /// Counts one user of the file less and unregisters it without any.
    pub fn detach_file(&mut self, fd: RawFd) {
        for (slot, entry) in self.files.iter_mut().enumerate() {
            let Some(file) = entry.as_mut().filter(|file| file.fd == fd) else {
                continue;
            };
            file.users -= 1;
            if file.users == 0 {
                if file.registered
                    && let Err(error) = update_file(&self.ring, slot, -1)
                {
                    tracing::error!(%error, "io_uring: a file stays registered, and locked");
                }
                *entry = None;
            }
            return;
        }
    }

    /// Counts one user of the RAM less and unregisters it without any.
    pub fn detach_ram(&mut self, ram: &Arc<GuestRam>) {
        let Some(index) = self.rams.iter().position(|known| Arc::ptr_eq(&known.ram, ram)) else {
            return;
        };
        let unused = self.rams.get_mut(index).is_some_and(|known| {
            known.users -= 1;
            known.users == 0
        });
        if unused {
            let known = self.rams.swap_remove(index);
            self.release(&known.slots);
        }
    }
}

fn update_file(ring: &IoUring, slot: usize, fd: RawFd) -> io::Result<()> {
    match ring.submitter().register_files_update(slot as u32, &[fd])? {
        0 => Err(io::Error::from(io::ErrorKind::Other)),
        _ => Ok(()),
    }
}
