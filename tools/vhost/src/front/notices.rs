//! [`Notices`]: the channel on which a server says of its own accord that its disk has changed.
//!
//! Read here and not by the `vhost` crate, which waits for the rest of a message for ever: of the channel's messages a disk
//! has a single one, of twelve bytes, and whatever else comes is nonsense.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes of a message's header: request, flags, size of what follows.
const HEADER: usize = 12;
/// Request: the configuration space has changed.
const CONFIG_CHANGE: u32 = 2;
/// Flags: the version, of which there is one.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
/// Flag: this is an answer.
const REPLY: u32 = 1 << 2;
/// Flag: an answer is wanted.
const NEED_REPLY: u32 = 1 << 3;

/// Our end of the channel.
#[derive(Debug)]
pub struct Notices {
    stream: UnixStream,
    header: [u8; HEADER],
    /// Bytes of it that have come.
    filled: usize,
}

/// What came on the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Nothing whole.
    None,
    /// The configuration space has changed.
    Changed,
    /// The server has closed it, as it may.
    Closed,
}

/// What is no message of the channel.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// The system refused something.
    #[error("the server's channel for notices: {0}")]
    System(#[from] io::Error),
    /// Something else than the one message.
    #[error(
        "the server's notice has request {request}, flags {flags:#x} and {size} bytes, expected CONFIG_CHANGE_MSG: 2, 1 or 9, and 0"
    )]
    Nonsense {
        /// Its number.
        request: u32,
        /// Its flags.
        flags: u32,
        /// Bytes that follow.
        size: u32,
    },
}

impl Notices {
    /// Both ends: ours, and the one for the server.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<(Self, UnixStream)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let notices = Self {
            stream,
            header: [0; HEADER],
            filled: 0,
        };
        Ok((notices, theirs))
    }

    /// Readable when there is something to [`Self::take`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Takes at most one message, and waits for none.
    ///
    /// # Errors
    /// It is not one that a disk's server sends.
    pub fn take(&mut self) -> Result<Notice, NoticeError> {
        let rest = self.header.get_mut(self.filled..).unwrap_or_default();
        match (&self.stream).read(rest) {
            Ok(0) => return Ok(Notice::Closed),
            Ok(count) => self.filled += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        if self.filled < HEADER {
            return Ok(Notice::None);
        }
        self.filled = 0;
        let [request, flags, size] = words(self.header);
        if request != CONFIG_CHANGE || flags & !NEED_REPLY != VERSION || size != 0 {
            return Err(NoticeError::Nonsense { request, flags, size });
        }
        if flags & NEED_REPLY != 0 {
            let mut answer = [0; HEADER + 8];
            let head = [CONFIG_CHANGE, flags & VERSION_MASK | REPLY, 8];
            let bytes = head.iter().flat_map(|word| word.to_ne_bytes());
            answer.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            // A server that leaves its answers unread does without.
            match (&self.stream).write(&answer) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Notice::Changed)
    }
}

fn words(header: [u8; HEADER]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_is_known() {
        let (mut notices, mut server) = Notices::new().unwrap();
        assert_eq!(notices.take().unwrap(), Notice::None);
        let message = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();
        // In two pieces, and one that wants an answer.
        let plain = message([2, 1, 0]);
        server.write_all(&plain[..5]).unwrap();
        assert_eq!(notices.take().unwrap(), Notice::None);
        server.write_all(&plain[5..]).unwrap();
        assert_eq!(notices.take().unwrap(), Notice::Changed);
        server.write_all(&message([2, 9, 0])).unwrap();
        assert_eq!(notices.take().unwrap(), Notice::Changed);
        let mut answer = [0; 20];
        server.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..12], message([2, 5, 8]));
        assert_eq!(answer[12..], [0; 8]);
        for nonsense in [[3, 1, 0], [2, 2, 0], [2, 5, 0], [2, 1, 4]] {
            let (mut notices, mut server) = Notices::new().unwrap();
            server.write_all(&message(nonsense)).unwrap();
            let error = notices.take().unwrap_err().to_string();
            assert!(error.contains(&format!("request {}", nonsense[0])), "{error}");
        }
        drop(server);
        assert_eq!(notices.take().unwrap(), Notice::Closed);
    }
}
