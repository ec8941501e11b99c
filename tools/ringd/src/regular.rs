//! Opening and reading regular files, and nothing else: neither waits for a writer, nor reads without an end.
//! Making and removing files of the daemon's own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file for reading that is not the end of a symbolic link.
///
/// # Errors
/// It is no regular file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    checked(path, libc::O_NOFOLLOW)
}

/// Reads a text of at most `max` bytes. Links are followed: a user named the path.
///
/// # Errors
/// It is no regular file or a longer one, cannot be read, or is not UTF-8.
pub fn read_to_string(path: &Path, max: u64) -> io::Result<String> {
    let file = checked(path, 0)?;
    let length = file.metadata()?.len();
    let mut text = String::new();
    // Files in /proc have no length, and others may grow.
    (&file).take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max {
        let bytes = length.max(text.len() as u64);
        return Err(io::Error::other(format!(
            "it has {bytes} bytes, expected at most {max}"
        )));
    }
    Ok(text)
}

/// Opens a file of the daemon's own for reading and writing, made if there is none: for root alone, and not
/// the end of a symbolic link.
///
/// # Errors
/// The system's error.
pub fn open_private(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Removes a file, if there is one.
///
/// # Errors
/// The system's error.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn checked(path: &Path, flags: i32) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(flags | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(file),
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "file of another kind",
    };
    Err(io::Error::other(format!(
        "it is a {found}, expected a regular file"
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{open, read_to_string};

    // torture i3
    #[test]
    fn what_has_no_end_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let [pipe, link, file] = ["pipe", "link", "file"].map(|name| directory.path().join(name));
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        symlink(&pipe, &link).unwrap();
        for (path, found) in [
            (pipe.as_path(), "FIFO"),
            (&link, "FIFO"),
            (Path::new("/dev/zero"), "character device"),
            (directory.path(), "directory"),
        ] {
            let message = read_to_string(path, 10).unwrap_err().to_string();
            assert!(message.contains(found), "{}: {message}", path.display());
        }
        assert!(open(&link).is_err());
        fs::write(&file, "0123456789").unwrap();
        assert_eq!(read_to_string(&file, 10).unwrap(), "0123456789");
        let message = read_to_string(&file, 9).unwrap_err().to_string();
        assert_eq!(message, "it has 10 bytes, expected at most 9");
    }
}
