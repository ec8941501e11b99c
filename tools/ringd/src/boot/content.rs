//! [`Content`]: what is copied into a zone's RAM. A file of which nothing has to be unpacked stays a file until then, and is read
//! to its place at once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Bytes at the beginning that are looked at to find out what a file is.
const HEAD: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Content {
    /// Its first [`HEAD`] bytes, or all of a file that is in memory.
    head: Vec<u8>,
    /// What is not in memory, and its bytes.
    file: Option<(File, u64)>,
}

impl Content {
    /// A file that has just been opened. What is no regular file, and what is short, is read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(mut file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() <= HEAD as u64 {
            let mut head = Vec::new();
            file.read_to_end(&mut head)?;
            return Ok(Self::from(head));
        }
        let mut head = vec![0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        Ok(Self {
            head,
            file: Some((file, metadata.len())),
        })
    }

    /// Its first bytes: 4096, or all if they are fewer.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.head.get(..HEAD).unwrap_or(&self.head)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.file.as_ref().map_or(self.head.len() as u64, |(_, len)| *len)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it in memory.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        let Some((file, len)) = self.file else {
            return Ok(self.head);
        };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(usize::try_from(len).map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
        // Its position is still its beginning.
        if file.take(len).read_to_end(&mut bytes)? as u64 != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// What has to be read from a file, from its beginning, and its bytes; or what is in memory.
    pub fn source(&self) -> Source<'_> {
        match &self.file {
            Some((file, len)) => Source::File(file, *len),
            None => Source::Bytes(&self.head),
        }
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            head: bytes,
            file: None,
        }
    }
}

/// Where the bytes of a [`Content`] are.
pub enum Source<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// In a file from its beginning, so many.
    File(&'a File, u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file.reopen().unwrap()
    }

    #[test]
    fn long_files_stay_files() {
        for len in [0, 1, HEAD - 1, HEAD, HEAD + 1, 3 * HEAD] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let content = Content::of(file(&bytes)).unwrap();
            assert_eq!(content.len(), len as u64);
            assert_eq!(content.head(), &bytes[..len.min(HEAD)]);
            assert_eq!(matches!(content.source(), Source::File(..)), len > HEAD);
            assert_eq!(content.into_bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn a_pipe_is_read() {
        let (reader, mut writer) = io::pipe().unwrap();
        let bytes = vec![7; 3 * HEAD];
        let expected = bytes.clone();
        let thread = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(Content::of(reader).unwrap().into_bytes().unwrap(), expected);
        thread.join().unwrap();
    }

    #[test]
    fn what_has_become_shorter_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 * HEAD as u64).unwrap();
        let content = Content::of(file.reopen().unwrap()).unwrap();
        file.as_file().set_len(HEAD as u64).unwrap();
        assert_eq!(
            content.into_bytes().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
