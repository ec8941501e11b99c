//! [`RingEngine`]: block operations on the reactor's io_uring.
//!
//! The ring does transfers that the file accepts as they are, and syncs. Large transfers from and to files in
//! memory are `copies` on the reactor's own thread. Everything else goes to a pool of threads, started at
//! first use: the kernel would hand such operations to threads as well.

use std::ops::DerefMut;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use ringvirtio::memory::{GuestRam, IoVec};
use ringvirtio::waiter::registry::Registry;
use ringvirtio::waiter::uring::Uring;
use ringvirtio::{Completion, ReadWidth};

use super::copies::Copies;
use super::threads::Threads;
use super::{Engine, IoKind, IoOp, perform};
use crate::image::Image;
use crate::image::file::RawFile;

/// Transfers of one queue that [`RingState`] has room for at first.
const ROOM: u32 = 256;

/// What the engine needs beside the ring.
pub struct RingState {
    copies: Copies,
    done: Vec<Completion>,
    /// Threads for what the ring does not do.
    helpers: Option<Threads>,
}

impl Default for RingState {
    fn default() -> Self {
        Self {
            copies: Copies::new(ROOM),
            done: Vec::with_capacity(ROOM as usize),
            helpers: None,
        }
    }
}

impl RingState {
    /// Starts what was pushed to the helpers, and copies one round's amount while the kernel works on the
    /// rest.
    pub fn submit(&mut self, ring: &mut Uring) {
        if let Some(helpers) = &mut self.helpers {
            helpers.submit();
        }
        if self.is_copying() {
            ring.submit();
            self.copies.run_round(&mut self.done);
        }
    }

    /// Appends what has completed beside the ring.
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
        if let Some(helpers) = &mut self.helpers {
            helpers.reap(done);
        }
    }

    /// Returns whether [`Self::reap`] has something. What helpers have completed shows in the ring.
    pub fn has_completions(&self) -> bool {
        !self.done.is_empty()
    }

    /// Returns whether there is something left to copy.
    pub fn is_copying(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Drops what is left to copy for the queue that has this tag. Returns how many transfers that were.
    pub fn abandon(&mut self, tag: u64) -> u16 {
        self.copies.abandon(tag)
    }
}

impl Drop for RingState {
    /// Waits for the helpers: they write to memory that may be freed next.
    fn drop(&mut self) {
        self.copies.clear();
        self.helpers = None;
    }
}

/// A ring and its state: borrowed from a reactor for one call, or owned.
pub struct RingEngine<R, S> {
    /// The ring.
    pub ring: R,
    /// What is beside it.
    pub state: S,
}

/// An engine with a ring of its own.
pub type OwnRingEngine = RingEngine<Box<Uring>, Box<RingState>>;

impl OwnRingEngine {
    /// Returns an engine whose ring has `entries` submissions.
    ///
    /// # Errors
    /// The kernel or a policy forbids io_uring.
    pub fn new(entries: u32) -> std::io::Result<Self> {
        Ok(Self {
            ring: Box::new(Uring::new(entries)?),
            state: Box::default(),
        })
    }
}

impl<R: DerefMut<Target = Uring>, S: DerefMut<Target = RingState>> RingEngine<R, S> {
    /// Registers what operations between this image and this memory use, or counts one user more.
    pub fn attach(&mut self, image: &Image, ram: &Arc<GuestRam>) {
        if uses_ring(image) {
            image
                .raw()
                .inspect(|file| self.ring.registry.attach_file(file.fd()));
            self.ring.registry.attach_ram(ram);
        }
    }

    /// Counts one user less. Nothing of the image or the memory is held after the last, which has nothing in
    /// flight.
    pub fn detach(&mut self, image: &Image, ram: &Arc<GuestRam>) {
        if uses_ring(image) {
            image
                .raw()
                .inspect(|file| self.ring.registry.detach_file(file.fd()));
            self.ring.registry.detach_ram(ram);
        }
    }

    /// Has a thread of the pool perform the operation, or performs it if there is no pool.
    ///
    /// # Safety
    /// As for [`Engine::push`].
    unsafe fn offload(&mut self, op: IoOp) {
        if self.state.helpers.is_none() {
            match Threads::new() {
                Ok(pool) => {
                    // Its completions are reaped in every round: the watch only wakes the thread.
                    self.ring.watch(pool.event().as_raw_fd(), ReadWidth::Eight);
                    self.state.helpers = Some(pool);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot start the thread pool; disk requests run synchronously on the reactor")
                }
            }
        }
        match &mut self.state.helpers {
            // SAFETY: the caller guarantees it.
            Some(pool) => unsafe { pool.push(op) },
            // SAFETY: the caller guarantees it.
            None => self.state.done.push(unsafe { perform(&op) }),
        }
    }
}

impl<R: DerefMut<Target = Uring>, S: DerefMut<Target = RingState>> Engine for RingEngine<R, S> {
    unsafe fn push(&mut self, op: IoOp) {
        if op.immediate {
            // SAFETY: by this function's own contract.
            self.state.done.push(unsafe { perform(&op) });
            return;
        }
        // SAFETY: by this function's own contract.
        let (file, parts) = unsafe { ((*op.image).raw(), op.parts()) };
        match file {
            Some(file) if op.kind.is_transfer() && file.memory => {
                // SAFETY: by this function's own contract.
                unsafe { self.state.copies.push(op) }
            }
            Some(file) if is_native(file, &op, parts) => {
                let entry = build(&self.ring.registry, &op, file, parts);
                // SAFETY: by this function's own contract.
                unsafe { self.ring.push(entry, op.tag) }
            }
            // SAFETY: by this function's own contract.
            _ => unsafe { self.offload(op) },
        }
    }

    fn submit(&mut self) {
        // Even without copies: there is no reactor that waits in the ring next.
        self.ring.submit();
        self.state.submit(&mut self.ring);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.ring.reap(done);
        self.state.reap(done);
    }
}

/// Returns whether an image's transfers go to the ring: those of files in memory are copied.
fn uses_ring(image: &Image) -> bool {
    !image.raw().is_some_and(|file| file.memory)
}

/// Returns whether the ring can do an operation.
fn is_native(file: &RawFile, op: &IoOp, parts: &[IoVec]) -> bool {
    match op.kind {
        IoKind::Sync => true,
        IoKind::Discard | IoKind::WriteZeroes { .. } => false,
        IoKind::Read | IoKind::Write | IoKind::WriteDurable => file.accepts(parts, op.offset),
    }
}

/// Returns the entry of an operation.
fn build(registry: &Registry, op: &IoOp, file: &RawFile, parts: &[IoVec]) -> squeue::Entry {
    let flags = if op.kind == IoKind::WriteDurable {
        libc::RWF_DSYNC
    } else {
        0
    };
    // The crate's types for a descriptor and for a slot share no trait.
    macro_rules! on {
        ($file:expr) => {{
            let file = $file;
            match (op.kind, parts) {
                (IoKind::Sync, _) => opcode::Fsync::new(file)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build(),
                // A descriptor's length is 32 bits, so a single buffer's fits.
                (IoKind::Read, [one]) => match registry.buffer(one) {
                    Some(buffer) => opcode::ReadFixed::new(file, one.as_ptr(), one.len() as u32, buffer)
                        .offset(op.offset)
                        .build(),
                    None => opcode::Read::new(file, one.as_ptr(), one.len() as u32)
                        .offset(op.offset)
                        .build(),
                },
                (IoKind::Read, _) => opcode::Readv::new(file, op.iov.cast(), op.count)
                    .offset(op.offset)
                    .build(),
                (_, [one]) => match registry.buffer(one) {
                    Some(buffer) => opcode::WriteFixed::new(file, one.as_ptr(), one.len() as u32, buffer)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Write::new(file, one.as_ptr(), one.len() as u32)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                },
                (_, _) => opcode::Writev::new(file, op.iov.cast(), op.count)
                    .offset(op.offset)
                    .rw_flags(flags)
                    .build(),
            }
        }};
    }
    match registry.file(file.fd()) {
        Some(slot) => on!(types::Fixed(slot)),
        None => on!(types::Fd(file.fd())),
    }
}
