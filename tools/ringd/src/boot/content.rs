//! [`Content`]: what is copied into a zone's RAM. A file that needs no decompression stays a file until then,
//! and is read to its place directly.

use std::fs::{File, FileType};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::time::SystemTime;

/// Bytes at the beginning by which a file's format is recognized.
const HEAD: usize = 4096;

/// What is copied into a zone's RAM.
#[derive(Debug)]
pub struct Content {
    /// Its first [`HEAD`] bytes, or all of a file that is in memory.
    head: Vec<u8>,
    /// The rest, unless all is in memory.
    file: Option<Unread>,
}

/// A file as it was when it was opened.
#[derive(Debug)]
pub struct Unread {
    file: File,
    len: u64,
    modified: SystemTime,
}

impl Unread {
    /// Returns the file, positioned at `start`.
    ///
    /// # Errors
    /// The file cannot be positioned.
    pub fn at(&self, start: u64) -> io::Result<&File> {
        (&self.file).seek(SeekFrom::Start(start))?;
        Ok(&self.file)
    }

    /// Checks, when all has been read, that the file has not changed since it was opened.
    ///
    /// # Errors
    /// It has, so that its format may be another one.
    pub fn check(&self) -> io::Result<()> {
        let now = self.file.metadata()?;
        if now.len() == self.len && now.modified()? == self.modified {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it changed while it was loaded: it has {} bytes and had {}",
            now.len(),
            self.len
        )))
    }
}

impl Content {
    /// Returns the content of a regular file that was opened with `O_NONBLOCK`. Anything else is refused: a
    /// FIFO has no end before its writers close it, a device such as `/dev/zero` has none at all.
    ///
    /// # Errors
    /// It is no regular file, or cannot be read.
    pub fn of(mut file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let found = kind(metadata.file_type());
            return Err(io::Error::other(format!(
                "it is a {found}, expected a regular file"
            )));
        }
        if metadata.len() <= HEAD as u64 {
            let mut head = Vec::new();
            file.read_to_end(&mut head)?;
            return Ok(Self::from(head));
        }
        let mut head = vec![0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        Ok(Self {
            head,
            file: Some(Unread {
                file,
                len: metadata.len(),
                modified: metadata.modified()?,
            }),
        })
    }

    /// Returns the first 4096 bytes, or all if they are fewer.
    pub fn head(&self) -> &[u8] {
        self.head.get(..HEAD).unwrap_or(&self.head)
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.file.as_ref().map_or(self.head.len() as u64, |file| file.len)
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all bytes, in memory.
    ///
    /// # Errors
    /// The file cannot be read, or has changed.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        let Some(unread) = self.file else {
            return Ok(self.head);
        };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(usize::try_from(unread.len).map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
        unread.at(0)?.take(unread.len).read_to_end(&mut bytes)?;
        unread.check()?;
        Ok(bytes)
    }

    /// Returns `len` bytes from `start` on.
    ///
    /// # Errors
    /// There are fewer, or the file cannot be read.
    pub fn read_at(&self, start: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = start.checked_add(len as u64).filter(|end| *end <= self.len());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        match self.source() {
            Source::Bytes(bytes) => Ok(slice(bytes, &(start..end))?.to_vec()),
            Source::File(unread) => {
                let mut bytes = vec![0; len];
                unread.file.read_exact_at(&mut bytes, start)?;
                Ok(bytes)
            }
        }
    }

    /// Returns where the bytes are.
    pub fn source(&self) -> Source<'_> {
        match &self.file {
            Some(unread) => Source::File(unread),
            None => Source::Bytes(&self.head),
        }
    }
}

/// Returns a part of `bytes`.
///
/// # Errors
/// It lies outside.
pub fn slice<'a>(bytes: &'a [u8], part: &Range<u64>) -> io::Result<&'a [u8]> {
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let part = bytes.get(index(part.start)..index(part.end));
    part.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// What a file is that is not regular, in Linux's words.
fn kind(found: FileType) -> &'static str {
    match () {
        () if found.is_dir() => "directory",
        () if found.is_fifo() => "FIFO",
        () if found.is_socket() => "socket",
        () if found.is_char_device() => "character device",
        () if found.is_block_device() => "block device",
        () => "file of another kind",
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
    /// In a file.
    File(&'a Unread),
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::time::SystemTime;

    use super::{Content, HEAD, Source};
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
            let middle = len / 2;
            assert_eq!(
                content.read_at(middle as u64, len - middle).unwrap(),
                bytes[middle..]
            );
            assert!(content.read_at(middle as u64, len - middle + 1).is_err());
            assert!(content.read_at(u64::MAX, 1).is_err());
            assert_eq!(content.into_bytes().unwrap(), bytes);
        }
    }

    // torture i3
    #[test]
    fn only_regular_files_are_read() {
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        let message = Content::of(pipe).unwrap_err().to_string();
        assert_eq!(message, "it is a FIFO, expected a regular file");
        for (path, found) in [("/dev/zero", "character device"), ("/", "directory")] {
            let message = Content::of(File::open(path).unwrap()).unwrap_err().to_string();
            assert!(message.contains(found), "{path}: {message}");
        }
    }

    #[test]
    fn a_changed_file_is_an_error() {
        let two = 2 * HEAD as u64;
        for (now, text) in [
            (two / 2, "4096 bytes and had 8192"),
            (two * 2, "16384"),
            (two, "8192 bytes and had 8192"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(two).unwrap();
            let content = Content::of(file.reopen().unwrap()).unwrap();
            file.as_file().set_len(now).unwrap();
            let later = SystemTime::now() + std::time::Duration::from_secs(1);
            file.as_file().set_modified(later).unwrap();
            let message = content.into_bytes().unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
    }
}
