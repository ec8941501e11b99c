//! [`BackendChannel`]: the back-end channel (SET_BACKEND_REQ_FD), on which a server reports that its disk has
//! changed.
//!
//! Read here and not by the `vhost` crate, which waits for the rest of a message without a limit. A disk's
//! server sends only one of the channel's messages, of twelve bytes; any other breaks the protocol.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes of a message's header: request, flags, size of what follows.
const HEADER: usize = 12;
/// Request: the configuration space has changed.
const CONFIG_CHANGE: u32 = 2;
/// Flags: the version, always 1.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
/// Flag: this is a reply.
const REPLY: u32 = 1 << 2;
/// Flag: the sender wants a reply.
const NEED_REPLY: u32 = 1 << 3;

/// Our end of the channel.
#[derive(Debug)]
pub struct BackendChannel {
    stream: UnixStream,
    header: [u8; HEADER],
    /// Bytes of it received so far.
    filled: usize,
}

/// A message of the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendMessage {
    /// No complete message yet.
    None,
    /// The configuration space has changed.
    ConfigChange,
    /// The server has closed the channel, which the protocol allows.
    Closed,
}

impl BackendChannel {
    /// Makes a channel: our end, and the server's.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<(Self, UnixStream)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let channel = Self {
            stream,
            header: [0; HEADER],
            filled: 0,
        };
        Ok((channel, theirs))
    }

    /// Returns the descriptor, which is readable when there is a message to [`Self::receive`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Receives at most one message, without waiting.
    ///
    /// # Errors
    /// It is not one that a disk's server sends.
    pub fn receive(&mut self) -> io::Result<BackendMessage> {
        let rest = self.header.get_mut(self.filled..).unwrap_or_default();
        match (&self.stream).read(rest) {
            Ok(0) => return Ok(BackendMessage::Closed),
            Ok(count) => self.filled += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if self.filled < HEADER {
            return Ok(BackendMessage::None);
        }
        self.filled = 0;
        let [request, flags, size] = words(self.header);
        if request != CONFIG_CHANGE || flags & !NEED_REPLY != VERSION || size != 0 {
            return Err(io::Error::other(format!(
                "the server's message has request {request}, flags {flags:#x} and {size} bytes, \
                 expected CONFIG_CHANGE_MSG: 2, 1 or 9, and 0"
            )));
        }
        if flags & NEED_REPLY != 0 {
            let mut reply = [0; HEADER + 8];
            let head = [CONFIG_CHANGE, flags & VERSION_MASK | REPLY, 8];
            let bytes = head.iter().flat_map(|word| word.to_ne_bytes());
            reply.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            // A server that does not read its replies gets no more.
            match (&self.stream).write(&reply) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(BackendMessage::ConfigChange)
    }
}

fn words(header: [u8; HEADER]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::{BackendChannel, BackendMessage};

    #[test]
    fn one_message_is_known() {
        let (mut channel, mut server) = BackendChannel::new().unwrap();
        assert_eq!(channel.receive().unwrap(), BackendMessage::None);
        let message = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();
        // In two pieces, and one that wants a reply.
        let plain = message([2, 1, 0]);
        server.write_all(&plain[..5]).unwrap();
        assert_eq!(channel.receive().unwrap(), BackendMessage::None);
        server.write_all(&plain[5..]).unwrap();
        assert_eq!(channel.receive().unwrap(), BackendMessage::ConfigChange);
        server.write_all(&message([2, 9, 0])).unwrap();
        assert_eq!(channel.receive().unwrap(), BackendMessage::ConfigChange);
        let mut reply = [0; 20];
        server.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..12], message([2, 5, 8]));
        assert_eq!(reply[12..], [0; 8]);
        for unexpected in [[3, 1, 0], [2, 2, 0], [2, 5, 0], [2, 1, 4]] {
            let (mut channel, mut server) = BackendChannel::new().unwrap();
            server.write_all(&message(unexpected)).unwrap();
            let error = channel.receive().unwrap_err().to_string();
            assert!(error.contains(&format!("request {}", unexpected[0])), "{error}");
        }
        drop(server);
        assert_eq!(channel.receive().unwrap(), BackendMessage::Closed);
    }
}
