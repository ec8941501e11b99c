//! Messages between broker and worker: a length, JSON, and at most one descriptor with the first byte.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message: the block list of a zone with 128 GiB fits.
const MAX_LEN: usize = 2 << 20;

/// Sends a message, and a duplicate of `file` with it.
///
/// # Errors
/// The other side is gone.
pub fn send(socket: &UnixStream, message: &impl Serialize, file: Option<&File>) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = file.map(|file| [file.as_fd()]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    // A worker that is gone is an error, not a signal.
    let sent = loop {
        match sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut stream = socket;
    stream.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Receives a message, and the descriptor that came with it.
///
/// # Errors
/// The other side is gone (`UnexpectedEof`), or sent nonsense.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Option<File>)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut length)];
        match recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut stream = socket;
    stream.read_exact(length.get_mut(received..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_LEN {
        return Err(io::Error::other(format!(
            "a message of {length} bytes, expected up to {MAX_LEN}"
        )));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let message = serde_json::from_slice(&body).map_err(io::Error::other)?;
    Ok((message, file.map(OwnedFd::into)))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::{receive, send};
    use crate::broker::{Reply, Request};
    use std::io::Seek;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"contents").unwrap();
        file.rewind().unwrap();
        let blocks: Vec<u64> = (0..4000).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&one, &Reply::Ram(blocks.clone(), 7), Some(&file)).unwrap();
                send(&one, &Reply::Done, None).unwrap();
            });
            let (answer, received) = receive::<Reply>(&two).unwrap();
            assert!(matches!(answer, Reply::Ram(got, 7) if got == blocks));
            let mut text = String::new();
            received.unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "contents");
            let (answer, received) = receive::<Reply>(&two).unwrap();
            assert!(matches!(answer, Reply::Done) && received.is_none());
        });
        drop(one);
        assert_eq!(
            receive::<Request>(&two).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn messages_that_are_too_long_are_refused() {
        let (one, two) = UnixStream::pair().unwrap();
        (&one).write_all(&u32::MAX.to_le_bytes()).unwrap();
        let message = receive::<Request>(&two).unwrap_err().to_string();
        assert!(message.contains("4294967295 bytes"), "{message}");
    }
}
