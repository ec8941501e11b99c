//! Pins: references to huge pages, which keep them from the pool even if their file loses them.
//!
//! A process with a descriptor of a zone's RAM (the worker, a device's server) can truncate the file or punch
//! holes into it. The pages would be root's again while EL2 still maps them for the guest. A pipe into which
//! they were spliced (vmsplice(2)) holds a reference to each, and is a descriptor that another process can
//! keep.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Pages that a pipe holds at most: its kernel memory is one allocation, 40 bytes for each.
const PIPE_MAX: usize = 2048;
/// Entries of a vector in one call (IOV_MAX).
const VECTOR_MAX: usize = 1024;
const PAGE: usize = 4096;

/// Pins the pages that are mapped at these addresses: until the descriptors are closed, here and where they
/// were sent, none is freed.
///
/// # Errors
/// The system refused, or one is not mapped.
pub fn pin(addresses: &[usize]) -> io::Result<Vec<File>> {
    addresses.chunks(PIPE_MAX).map(pipe_of).collect()
}

/// Returns a pipe that holds a reference to the page at each address.
fn pipe_of(addresses: &[usize]) -> io::Result<File> {
    let (kept, end): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&end, addresses.len().saturating_mul(PAGE))?;
    let slices: Vec<_> = addresses
        .iter()
        .map(|address| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(*address),
            iov_len: PAGE,
        })
        .collect();
    for part in slices.chunks(VECTOR_MAX) {
        // SAFETY: the vector outlives the call. The kernel takes references to the pages, and neither reads
        // nor writes them; where none is mapped it returns an error.
        let spliced = unsafe { libc::vmsplice(end.as_raw_fd(), part.as_ptr(), part.len(), 0) };
        match usize::try_from(spliced) {
            Err(_) => return Err(io::Error::last_os_error()),
            Ok(bytes) if bytes == part.len().saturating_mul(PAGE) => {}
            Ok(bytes) => {
                let pages = part.len();
                return Err(io::Error::other(format!(
                    "{bytes} bytes of {pages} pages could be pinned"
                )));
            }
        }
    }
    Ok(kept.into())
}
