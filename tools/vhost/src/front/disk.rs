//! [`Driver`] finds disks by connecting to their servers; [`ServedDisk`] is such a disk.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringblk::remote::{BlockingIo, Connector, KnownGeometry, RemoteDisk, RemoteEngine, RemoteImage};
use ringvirtio::GuestRam;

use super::blocking::BlockingFront;
use super::connect::{ConnectFn, Connection, TIMEOUT};
use super::endpoint::Endpoint;
use super::engine::FrontEngine;
use super::kick::Threads;
use super::known::KnownDisk;
use super::link::{Link, QUEUES};

/// Finds disks by connecting to their servers.
pub struct Driver {
    connect: ConnectFn,
    timeout: Duration,
    io_uring: bool,
}

impl Driver {
    /// Connects with `connect`.
    pub fn new(connect: ConnectFn) -> Self {
        Self {
            connect,
            timeout: TIMEOUT,
            io_uring: true,
        }
    }

    /// Sets how long a server may take for an answer, and to release abandoned requests.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets whether io_uring may be used, where the system supports it, to kick servers.
    pub fn with_io_uring(self, io_uring: bool) -> Self {
        Self { io_uring, ..self }
    }

    fn disk(&self, path: &Path, write_zeroes: bool, known: KnownGeometry) -> Arc<ServedDisk> {
        let endpoint = Arc::new(Endpoint {
            path: path.into(),
            connect: self.connect.clone(),
            timeout: self.timeout,
            io_uring: self.io_uring,
            known: KnownDisk::new(known),
        });
        Arc::new(ServedDisk {
            write_zeroes,
            threads: Threads::default(),
            blocking: BlockingFront::new(endpoint.clone()),
            endpoint,
        })
    }
}

impl Connector for Driver {
    fn connect(&self, path: &Path) -> Result<Arc<dyn RemoteDisk>, String> {
        let stream = (self.connect)(path).map_err(|error| format!("cannot connect: {error}"))?;
        let connection = Connection::negotiate_within(stream, QUEUES, self.timeout);
        let connection = connection.map_err(|error| error.to_string())?;
        let info = &connection.info;
        let known = KnownGeometry {
            size: info.size,
            block_size: info.block_size,
            readonly: info.readonly,
        };
        Ok(self.disk(path, info.write_zeroes > 0, known))
    }

    fn connect_later(&self, path: &Path, known: KnownGeometry) -> Arc<dyn RemoteDisk> {
        // A server without write-zeroes refuses each such request.
        self.disk(path, true, known)
    }
}

/// A disk that a server has.
struct ServedDisk {
    endpoint: Arc<Endpoint>,
    write_zeroes: bool,
    threads: Threads,
    /// Used by migration.
    blocking: BlockingFront,
}

impl RemoteImage for ServedDisk {
    fn size(&self) -> u64 {
        self.endpoint.known.size()
    }

    fn block_size(&self) -> u32 {
        self.endpoint.known.block_size
    }

    fn is_readonly(&self) -> bool {
        self.endpoint.known.readonly
    }

    fn supports_write_zeroes(&self) -> bool {
        self.write_zeroes
    }

    fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        self.blocking.run(what, offset)
    }

    fn write_losses(&self) -> u64 {
        self.blocking.write_losses()
    }
}

impl RemoteDisk for ServedDisk {
    fn on_resize(&self, resized: Box<dyn Fn() + Send + Sync>) {
        self.endpoint.known.on_resize(resized);
    }

    fn start(&self, ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        self.blocking.disconnect();
        let link = Link {
            endpoint: self.endpoint.clone(),
            ram: ram.clone(),
            threads: self.threads.clone(),
        };
        Ok(Box::new(FrontEngine::new(link.start()?, ram.clone())))
    }
}
