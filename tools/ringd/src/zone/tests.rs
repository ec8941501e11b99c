//! Zones over a fake EL2, a fake root and the real reactor.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringblk::EngineKind;

use super::Context;
use super::registry::Registry;
use crate::config::{Cpus, OnCrash, OnReboot, ZoneConfig};
use crate::device::disk::config::DiskConfig;
use crate::device::{Configs, Environment};
use crate::host::fake::FakeHost;
use crate::hv::fake::FakeEl2;
use crate::hv::{Hypervisor, Interrupt};
use crate::io::Io;

mod console;
mod disk_changes;
mod disk_migration;
mod files;
mod flash;
mod inflight;
mod life;
mod mutations;
mod net;
mod rng;

const PAGES: u64 = 64;

/// A machine of four CPUs with a daemon on it.
struct Machine {
    el2: Arc<FakeEl2>,
    host: Arc<FakeHost>,
    registry: Arc<Registry>,
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self::with(Environment::default())
    }

    fn with(environment: Environment) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Arc::new(FakeHost::new(directory.path().to_owned(), 4, PAGES));
        let el2 = Arc::new(FakeEl2::new(4).unwrap());
        fs::write(directory.path().join("Image"), b"\0 flat kernel").unwrap();
        fs::create_dir(directory.path().join("records")).unwrap();
        let registry = daemon_with(&el2, &host, directory.path().join("records"), environment);
        Self {
            el2,
            host,
            registry,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, name: &str) -> ZoneConfig {
        ZoneConfig {
            origin: "z.toml".into(),
            name: name.into(),
            cpus: Cpus::Count(2),
            memory: 16 << 20,
            kernel: self.path("Image"),
            flash: None,
            load: None,
            initrd: None,
            cmdline: "console=ttyAMA0".into(),
            on_reboot: OnReboot::Restart,
            on_crash: OnCrash::Stop,
            devices: Configs::default(),
        }
    }

    /// A zone with these disks.
    fn with_disks(&self, name: &str, disk: Vec<DiskConfig>) -> ZoneConfig {
        ZoneConfig {
            devices: Configs {
                disk,
                ..Configs::default()
            },
            ..self.config(name)
        }
    }

    fn disk(&self, name: &str, bytes: usize) -> DiskConfig {
        fs::write(self.path(name), vec![0; bytes]).unwrap();
        DiskConfig {
            engine: EngineKind::Threads,
            ..DiskConfig::new(self.path(name))
        }
    }

    /// Nothing of any zone is left, anywhere.
    fn assert_clean(&self) {
        assert_eq!(self.host.online(), [0, 1, 2, 3]);
        assert_eq!(self.host.free_pages(), PAGES);
        assert_eq!(self.el2.zones(), [] as [u8; 0]);
        // But how it ended.
        let left = fs::read_dir(self.path("records")).unwrap().flatten();
        let left: Vec<_> = left
            .map(|file| file.path())
            .filter(|path| path.extension().is_none_or(|extension| extension != "ended"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn daemon(el2: &Arc<FakeEl2>, host: &Arc<FakeHost>, records: PathBuf) -> Arc<Registry> {
    daemon_with(el2, host, records, Environment::default())
}

fn daemon_with(
    el2: &Arc<FakeEl2>,
    host: &Arc<FakeHost>,
    records: PathBuf,
    environment: Environment,
) -> Arc<Registry> {
    let hv: Arc<dyn Hypervisor> = el2.clone();
    let options = ringvirtio::ReactorOptions {
        io_uring: false,
        ..Default::default()
    };
    let io = Io::start(hv.clone(), options).unwrap();
    let context = Context {
        hv,
        host: host.clone(),
        io: io.clone(),
        environment: Environment {
            ports: Arc::new(net::FakePorts::new(&records)),
            ..environment
        },
        records,
        cpus: Mutex::default(),
    };
    let registry = Arc::new(Registry::new(Arc::new(context)));
    registry.take_over();
    io.listen(Interrupt {
        fd: el2.interrupt().unwrap(),
        width: ringvirtio::ReadWidth::Eight,
        cpu: None,
    });
    registry
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}
