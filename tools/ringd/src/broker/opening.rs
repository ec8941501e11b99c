//! [`Opening`]: files are opened on a thread each, because an open may not return where a file
//! system hangs, and the broker has other work.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use ringblk::Opener as _;

use super::{Failure, Reply, grants, wire};
use crate::host::RamError;

/// Most files that are being opened at once: those that hang would use up root's threads.
const MAX: usize = 256;

/// The files that are being opened.
#[derive(Clone, Default)]
pub struct Opening(Arc<()>);

impl Opening {
    /// Opens a file for reading, and for writing if `write`, with more `O_` flags, if that is granted; sends
    /// the reply to `answer`, a socket.
    pub fn start(&self, path: PathBuf, write: bool, flags: i32, granted: bool, answer: File) {
        let answer = UnixStream::from(OwnedFd::from(answer));
        if !granted {
            let why = grants::refusal(&path.display().to_string());
            return reply(&answer, Err(RamError::Other(why).into()));
        }
        if Arc::strong_count(&self.0) > MAX {
            let why = format!("{MAX} files are being opened, and none of them answers");
            return reply(&answer, Err(RamError::Other(why).into()));
        }
        let counted = self.clone();
        let open = move || {
            let opened = ringblk::LocalOpener.open(&path, write, flags);
            reply(&answer, opened.map_err(Into::into));
            drop(counted);
        };
        // If there can be no thread, the worker sees the end of its socket.
        if let Err(error) = std::thread::Builder::new().name("open".into()).spawn(open) {
            tracing::error!(%error, "cannot start a thread that opens a file");
        }
    }
}

/// Sends the reply; a worker that is gone needs none.
fn reply(answer: &UnixStream, opened: Result<File, Failure>) {
    let _ = match opened {
        Ok(file) => wire::send(answer, &Reply::Done, Some(&file)),
        Err(failure) => wire::send(answer, &Reply::Failed(failure), None),
    };
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::{Opening, Reply, wire};

    fn start(opening: &Opening, path: &Path) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        opening.start(path.to_owned(), false, 0, true, File::from(OwnedFd::from(theirs)));
        ours
    }

    // torture i3: a FIFO without O_NONBLOCK stands for a file system that hangs.
    #[test]
    fn a_file_that_hangs_holds_up_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let [pipe, file] = ["pipe", "file"].map(|name| directory.path().join(name));
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::write(&file, "here").unwrap();
        let opening = Opening::default();
        let hanging = start(&opening, &pipe);
        let (reply, opened) = wire::receive::<Reply>(&start(&opening, &file)).unwrap();
        assert!(matches!(reply, Reply::Done));
        assert_eq!(io::read_to_string(opened.unwrap()).unwrap(), "here");
        let (reply, _) = wire::receive::<Reply>(&start(&opening, &directory.path().join("none"))).unwrap();
        assert!(matches!(reply, Reply::Failed(_)));
        // It ends when it can.
        File::options()
            .write(true)
            .open(&pipe)
            .unwrap()
            .write_all(b"now")
            .unwrap();
        let (_, opened) = wire::receive::<Reply>(&hanging).unwrap();
        assert_eq!(io::read_to_string(opened.unwrap()).unwrap(), "now");
    }
}
