//! A daemon on fakes in this process, with a real socket, for tests of its clients.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ringd::control::server;
use ringd::device::Environment;
use ringd::host::fake::FakeHost;
use ringd::hv::fake::FakeEl2;
use ringd::hv::{Hypervisor, Interrupt};
use ringd::io::Io;
use ringd::zone::Context;
use ringd::zone::registry::Registry;

/// CPUs of the machine.
pub const CPUS: u32 = 4;
/// Huge pages of the machine.
pub const PAGES: u64 = 64;

pub struct Machine {
    pub el2: Arc<FakeEl2>,
    pub host: Arc<FakeHost>,
    pub directory: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        Self::restricted(|| {})
    }

    /// Calls `restrict` where the daemon restricts its system calls: socket and reactor are made, no thread
    /// is started.
    pub fn restricted(restrict: impl FnOnce()) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let host = Arc::new(FakeHost::new(directory.path().to_owned(), CPUS, PAGES));
        let el2 = Arc::new(FakeEl2::new(CPUS as usize).unwrap());
        fs::write(path("Image"), b"\0 flat kernel").unwrap();
        fs::write(path("disk.img"), vec![0; 1 << 20]).unwrap();
        fs::create_dir(path("zones")).unwrap();
        let hv: Arc<dyn Hypervisor> = el2.clone();
        let reactor = ringvirtio::Reactor::new(ringvirtio::ReactorOptions::default()).unwrap();
        let socket = server::reserve(&path("sock")).unwrap();
        restrict();
        let io = Io::run(hv.clone(), reactor).unwrap();
        let (records, cpus) = (path("zones"), parking_lot::Mutex::default());
        let context = Context {
            hv,
            host: host.clone(),
            io: io.clone(),
            environment: Environment::default(),
            records,
            cpus,
        };
        let registry = Arc::new(Registry::new(Arc::new(context)));
        registry.take_over();
        io.listen(Interrupt {
            fd: el2.interrupt().unwrap(),
            width: ringvirtio::ReadWidth::Eight,
            cpu: None,
        });
        let listener = server::listen(socket).unwrap();
        std::thread::spawn(move || server::serve(&listener, &registry, Box::new(|_| {})));
        Self { el2, host, directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a zone file with this line added, and returns its path.
    pub fn zone_file(&self, name: &str, line: &str) -> PathBuf {
        let text = format!("name = {name:?}\ncpus = 1\nmemory = \"16M\"\nkernel = \"Image\"\n{line}\n");
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// Checks that no zone has left a CPU, a page or a record.
    pub fn assert_clean(&self) {
        assert_eq!(self.host.online(), (0..CPUS).collect::<Vec<_>>());
        assert_eq!(self.host.free_pages(), PAGES);
        assert!(self.el2.zones().is_empty());
        // But how zones ended.
        let left = fs::read_dir(self.path("zones")).unwrap().flatten();
        let mut left = left.filter(|file| !file.file_name().to_string_lossy().ends_with(".ended"));
        assert!(left.next().is_none());
    }
}
