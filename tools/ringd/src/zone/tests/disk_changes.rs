//! Changes of a zone's disks while it runs.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringvirtio::inflight::{InflightLog, RESET_BITS};

use ringblk::OnError;

use super::{Machine, daemon, until};
use crate::config::{Cpus, ZoneConfig};
use crate::device::disk::change::{Change, LimitChange};
use crate::device::disk::config::DiskConfig;
use crate::device::{self, Configs, inflight};
use crate::zone::actor::Command;
use crate::zone::record::Record;
use crate::zone::registry::Registry;
use crate::zone::{Phase, Shared};

impl Machine {
    /// Starts a zone with one disk of 4 KiB and a drive without a medium.
    fn start_with_spare(&self) -> Arc<Shared> {
        let config = ZoneConfig {
            devices: Configs {
                disk: vec![self.disk("d.img", 4096)],
                spare_disks: 1,
                ..Configs::default()
            },
            ..self.config("a")
        };
        self.registry.start(config).unwrap()
    }

    fn change(&self, change: Change) -> Result<u8, String> {
        let done = self
            .registry
            .execute("a", Command::Change(device::Change::Disk(change)));
        done.map(|slot| slot.unwrap()).map_err(|error| error.to_string())
    }

    fn attach(&self, disk: &DiskConfig) -> Result<u8, String> {
        self.change(Change::Attach {
            disk: Box::new(disk.clone()),
        })
    }

    /// Returns the capacity that the guest reads.
    fn capacity(&self, slot: u8) -> u64 {
        let config = self.el2.device(1, slot).unwrap().config;
        u64::from_le_bytes(config[..8].try_into().unwrap())
    }

    /// Sets up the first queue of a slot, as the guest's driver does.
    fn activate(&self, slot: u8) {
        self.el2.guest_changes_device(1, slot, |device| {
            (device.status, device.features) = (15, 1 << 32);
            let queue = &mut device.queue[0];
            (queue.size, queue.ready) = (16, 1);
            let base = 0x4040_0000 + u64::from(slot) * 0x1_0000;
            (queue.desc, queue.driver, queue.device) = (base, base + 0x1000, base + 0x2000);
        });
        until("queue", || self.active(slot));
    }

    fn active(&self, slot: u8) -> bool {
        let queues = self.registry.context().io.snapshots(1, slot);
        queues.iter().any(|queue| queue.active)
    }

    fn record(&self) -> Record {
        Record::load_all(&self.path("records"))
            .unwrap()
            .remove(0)
            .unwrap()
    }
}

#[test]
fn a_disk_is_attached_and_detached_under_the_driver() {
    let machine = Machine::new();
    let zone = machine.start_with_spare();
    assert_eq!((machine.capacity(0), machine.capacity(1)), (8, 0));
    assert_eq!(zone.status().devices.disks, 1);
    machine.activate(1);
    let disk = machine.disk("more.img", 1 << 20);
    assert_eq!(machine.attach(&disk), Ok(1));
    assert_eq!((machine.capacity(1), machine.el2.config_changes(1, 1)), (2048, 1));
    assert!(machine.active(1), "the queue is served again");
    assert_eq!(zone.status().devices.disks, 2);
    assert_eq!(machine.record().devices.disks[1].as_ref(), Some(&disk));

    // The image is locked, and there is no room for another.
    let other = ZoneConfig {
        devices: Configs {
            disk: vec![disk.clone()],
            ..Configs::default()
        },
        cpus: Cpus::Count(1),
        ..machine.config("other")
    };
    let message = machine
        .registry
        .start(other.clone())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("in use by another zone"), "{message}");
    let message = machine.attach(&disk).unwrap_err();
    assert!(message.contains("more.img is attached already"), "{message}");
    let message = machine.attach(&machine.disk("third.img", 512)).unwrap_err();
    assert!(
        message.contains("zone a has no drive free for another disk"),
        "{message}"
    );

    assert_eq!(machine.change(Change::Detach { slot: 1 }), Ok(1));
    assert_eq!(machine.capacity(1), 0);
    assert!(machine.active(1));
    assert_eq!(
        (
            zone.status().devices.disks,
            machine.record().devices.disks[1].as_ref()
        ),
        (1, None)
    );
    machine.registry.start(other).unwrap();
    let message = machine.change(Change::Detach { slot: 1 }).unwrap_err();
    assert!(message.contains("zone a has no disk in slot 1"), "{message}");
    assert!(machine.change(Change::Detach { slot: 7 }).is_err());

    machine.registry.execute("a", Command::Stop).unwrap();
    machine.registry.execute("other", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn a_disk_that_cannot_be_attached_leaves_the_drive_empty() {
    let machine = Machine::new();
    machine.start_with_spare();
    for (disk, expected) in [
        (
            DiskConfig::new("/nonexistent".into()),
            "disk image /nonexistent: cannot open it",
        ),
        (
            DiskConfig::new("relative".into()),
            "disk.path = \"relative\": expected an absolute path",
        ),
        (
            machine.disk("odd.img", 1000),
            "size 1000 bytes, expected a multiple of 512",
        ),
        (
            DiskConfig {
                serial: Some("x".repeat(21)),
                ..machine.disk("x.img", 512)
            },
            "disk.serial",
        ),
    ] {
        let message = machine.attach(&disk).unwrap_err();
        assert!(message.contains(expected), "{message}");
        assert_eq!(
            (machine.capacity(1), machine.record().devices.disks[1].as_ref()),
            (0, None)
        );
    }
    assert_eq!(machine.attach(&machine.disk("good.img", 512)), Ok(1));
}

#[test]
fn a_disk_grows_and_shrinks_with_its_file() {
    let machine = Machine::new();
    machine.start_with_spare();
    machine.activate(0);
    let resize = |size, shrink| {
        machine.change(Change::Resize {
            slot: 0,
            size,
            shrink,
        })
    };
    let length = || fs::metadata(machine.path("d.img")).unwrap().len();
    assert_eq!(resize(Some(8192), false), Ok(0));
    assert_eq!((machine.capacity(0), length()), (16, 8192));
    let message = resize(Some(512), false).unwrap_err();
    assert!(message.contains("512 is less than its 8K"), "{message}");
    assert_eq!((machine.capacity(0), length()), (16, 8192));
    assert_eq!(resize(Some(512), true), Ok(0));
    assert_eq!((machine.capacity(0), length()), (1, 512));
    assert!(machine.active(0));
    // The file was extended by another program.
    fs::File::options()
        .write(true)
        .open(machine.path("d.img"))
        .unwrap()
        .set_len(2048)
        .unwrap();
    assert_eq!(machine.capacity(0), 1);
    assert_eq!(resize(None, false), Ok(0));
    assert_eq!(machine.capacity(0), 4);
    for bad in [0, 1000] {
        assert!(
            resize(Some(bad), true)
                .unwrap_err()
                .contains("expected a multiple of 512")
        );
    }
    let message = machine
        .change(Change::Resize {
            slot: 1,
            size: None,
            shrink: false,
        })
        .unwrap_err();
    assert!(message.contains("no disk in slot 1"), "{message}");
}

#[test]
fn limits_change_and_are_recorded() {
    let machine = Machine::new();
    machine.start_with_spare();
    let limit = |change| machine.change(Change::Limit { slot: 0, change });
    let limits = || machine.record().devices.disks[0].as_ref().unwrap().limits;
    let change = LimitChange {
        iops: Some(100),
        bps_burst: None,
        ..LimitChange::default()
    };
    assert_eq!(limit(change), Ok(0));
    assert_eq!(
        (limits().iops.rate, limits().iops.burst(), limits().bps.rate),
        (Some(100), 10, None)
    );
    let change = LimitChange {
        bps: Some(1 << 20),
        bps_burst: Some(4096),
        ..LimitChange::default()
    };
    assert_eq!(limit(change), Ok(0));
    assert_eq!(
        (limits().iops.rate, limits().bps.rate, limits().bps.burst()),
        (Some(100), Some(1 << 20), 4096)
    );
    let change = LimitChange {
        iops: Some(0),
        ..LimitChange::default()
    };
    assert_eq!(limit(change), Ok(0));
    assert_eq!((limits().iops.rate, limits().bps.rate), (None, Some(1 << 20)));
    let change = LimitChange {
        iops_burst: Some(5),
        ..LimitChange::default()
    };
    let message = limit(change).unwrap_err();
    assert!(
        message.contains("iops_burst = 5: expected the key iops beside it"),
        "{message}"
    );
}

#[test]
fn the_next_daemon_has_what_was_attached() {
    let machine = Machine::new();
    machine.start_with_spare();
    machine.attach(&machine.disk("more.img", 1 << 20)).unwrap();
    machine.activate(1);
    machine.registry.context().io.stop();
    // The last daemon died before it reported a new size to the guest. Copies, because this process still
    // holds the locks.
    let path = machine.path("records/a.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        path,
        text.replace("d.img", "copy-d.img")
            .replace("more.img", "copy-m.img"),
    )
    .unwrap();
    fs::copy(machine.path("d.img"), machine.path("copy-d.img")).unwrap();
    fs::write(machine.path("copy-m.img"), vec![0; 2 << 20]).unwrap();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    assert_eq!(next.find("a").unwrap().status().devices.disks, 2);
    until("capacity", || machine.capacity(1) == 4096);
    let queues = || next.context().io.snapshots(1, 1);
    until("queue", || queues().iter().any(|queue| queue.active));
    next.execute(
        "a",
        Command::Change(device::Change::Disk(Change::Detach { slot: 1 })),
    )
    .unwrap();
    assert_eq!(machine.capacity(1), 0);
    next.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn a_device_has_as_many_queues_as_there_are_vcpus_or_as_its_file_says() {
    let machine = Machine::new();
    let config = ZoneConfig {
        cpus: Cpus::Count(3),
        devices: Configs {
            disk: vec![
                machine.disk("d.img", 4096),
                DiskConfig {
                    queues: Some(1),
                    ..machine.disk("e.img", 4096)
                },
            ],
            spare_disks: 1,
            ..Configs::default()
        },
        ..machine.config("a")
    };
    machine.registry.start(config).unwrap();
    let queues = [0, 1, 2].map(|slot| machine.el2.device(1, slot).unwrap().queues);
    assert_eq!(queues, [3, 1, 3]);
    // All of them are served.
    machine.el2.guest_changes_device(1, 0, |device| {
        (device.status, device.features) = (15, 1 << 32);
        for (number, queue) in (0..3).zip(&mut device.queue) {
            (queue.size, queue.ready) = (16, 1);
            let base = 0x4040_0000 + number * 0x1_0000;
            (queue.desc, queue.driver, queue.device) = (base, base + 0x1000, base + 0x2000);
        }
    });
    let report = || machine.registry.context().io.snapshots(1, 0);
    until("queues", || {
        report().iter().filter(|queue| queue.active).count() == 3
    });
    machine.el2.guest_notifies(1, 0, 2);
    // One queue is reset; the others stay active.
    machine
        .el2
        .guest_changes_device(1, 0, |device| device.queue[1].ready = 2);
    until("queue reset", || {
        machine.el2.device(1, 0).unwrap().queue[1].ready == 0
    });
    let active = report().iter().map(|queue| queue.active).collect::<Vec<_>>();
    assert_eq!(active, [true, false, true]);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// Returns whether the daemon has the write cache on.
fn writeback(registry: &Registry) -> bool {
    registry
        .context()
        .io
        .device(1, 0)
        .unwrap()
        .disk()
        .unwrap()
        .clone()
        .control()
        .writeback()
}

// virtio-checklist 53, 58: the byte that the driver writes reaches the disk, if CONFIG_WCE was negotiated;
// another image, a reset and another daemon have it too
#[test]
fn the_driver_turns_the_write_cache_off_and_on() {
    const FLUSH: u64 = 1 << 9;
    const CONFIG_WCE: u64 = 1 << 11;
    let machine = Machine::new();
    machine.start_with_spare();
    machine.activate(0);
    let choose = |features: u64, byte: u8| {
        machine.el2.guest_changes_device(1, 0, |device| {
            device.features = 1 << 32 | features;
            device.config[32] = byte;
        });
    };
    assert_eq!(machine.el2.device(1, 0).unwrap().config[32], 1, "initially on");
    assert!(writeback(&machine.registry));
    for byte in [0, 1, 0] {
        choose(FLUSH | CONFIG_WCE, byte);
        until("mode", || writeback(&machine.registry) == (byte == 1));
    }
    assert!(machine.active(0), "the queue stays active");
    // A change of the capacity does not affect it.
    let change = Change::Resize {
        slot: 0,
        size: Some(8192),
        shrink: false,
    };
    machine.change(change).unwrap();
    assert_eq!(machine.el2.device(1, 0).unwrap().config[32], 0);
    assert!(!writeback(&machine.registry));
    // The next daemon reads it from the device's state.
    machine.registry.context().io.stop();
    let path = machine.path("records/a.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, text.replace("d.img", "copy-d.img")).unwrap();
    fs::copy(machine.path("d.img"), machine.path("copy-d.img")).unwrap();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    until("mode", || !writeback(&next));
    next.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn a_read_only_image_in_a_spare_drive() {
    let machine = Machine::new();
    machine.start_with_spare();
    let disk = DiskConfig {
        readonly: true,
        ..machine.disk("more.img", 1 << 20)
    };
    machine.activate(1);
    assert_eq!(machine.attach(&disk), Ok(1));
    assert_eq!(machine.capacity(1), 2048);
    assert!(machine.active(1), "the queue is served again");
    let image = machine
        .registry
        .context()
        .io
        .device(1, 1)
        .unwrap()
        .disk()
        .unwrap()
        .clone();
    assert!(image.config().readonly);
    assert!(
        machine.record().devices.disks[1].as_ref().unwrap().readonly,
        "the next daemon opens it read-only, too"
    );
    // Its file is not extended, and other processes may read it.
    let change = Change::Resize {
        slot: 1,
        size: Some(2 << 20),
        shrink: false,
    };
    let message = machine.change(change).unwrap_err();
    assert!(message.contains("read-only"), "{message}");
    let other = ZoneConfig {
        devices: Configs {
            disk: vec![disk],
            ..Configs::default()
        },
        cpus: Cpus::Count(1),
        ..machine.config("other")
    };
    machine.registry.start(other).unwrap();
    machine.registry.execute("other", Command::Stop).unwrap();
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// A disk with on_error = "stop" that cannot be opened at a take-over waits until it is resumed; with any
/// other, the zone ends.
#[test]
fn the_next_daemon_waits_for_a_disk_that_stops() {
    for on_error in [OnError::Stop, OnError::Report] {
        let machine = Machine::new();
        machine.start_with_spare();
        let disk = DiskConfig {
            on_error,
            ..machine.disk("more.img", 1 << 20)
        };
        machine.attach(&disk).unwrap();
        machine.activate(1);
        machine.registry.context().io.stop();
        // Copies, because this process still holds the locks.
        let path = machine.path("records/a.json");
        let text = fs::read_to_string(&path).unwrap();
        let text = text
            .replace("d.img", "copy-d.img")
            .replace("more.img", "copy-m.img");
        fs::write(path, text).unwrap();
        fs::copy(machine.path("d.img"), machine.path("copy-d.img")).unwrap();
        let next = daemon(&machine.el2, &machine.host, machine.path("records"));
        if on_error == OnError::Report {
            until("end of the zone", || {
                next.find("a").unwrap().status().state == Phase::Stopped
            });
            machine.assert_clean();
            continue;
        }
        let image = || next.context().io.device(1, 1).unwrap().disk().unwrap().clone();
        assert_eq!((image().is_closed(), machine.capacity(1)), (true, 2048));
        let ask = |change| {
            let done = next.execute("a", Command::Change(device::Change::Disk(change)));
            done.map_err(|error| error.to_string())
        };
        let resume = || ask(Change::Resume { slot: 1 });
        let refused = |expected: &str| {
            let message = resume().unwrap_err();
            assert!(message.contains(expected), "{message}");
            assert_eq!((image().is_closed(), machine.capacity(1)), (true, 2048));
        };
        refused("copy-m.img: cannot open it");
        let size = |bytes| fs::write(machine.path("copy-m.img"), vec![0; bytes]).unwrap();
        size(0);
        refused("size 0 bytes");
        size(1 << 19);
        refused("524288 bytes, expected at least the 1048576 that the guest knows of");
        let target = Box::new(machine.disk("target.img", 1 << 20));
        let message = ask(Change::Migrate { slot: 1, target }).unwrap_err();
        assert!(message.contains("its device is closed"), "{message}");
        size(2 << 20);
        resume().unwrap();
        assert_eq!((image().is_closed(), machine.capacity(1)), (false, 4096));
        until("queue", || {
            let queues = next.context().io.snapshots(1, 1);
            queues.iter().any(|queue| queue.active)
        });
        // Resuming a disk that works only retries its requests.
        let before = image();
        resume().unwrap();
        assert!(Arc::ptr_eq(&before, &image()));
        drop(before);
        next.execute("a", Command::Stop).unwrap();
        machine.assert_clean();
    }
}

// What an earlier zone of the name has left, of which there is no record any more, is not taken up.
#[test]
fn a_new_zone_begins_with_empty_logs() {
    let machine = Machine::new();
    let stale = inflight::map(&machine.path("records"), "a").unwrap();
    let area = inflight::area(&stale, 0, 0, 16).unwrap();
    // The same start and reset generation, but another queue, with requests in flight.
    let (mut log, _) = InflightLog::open(&area, 8, 1 << RESET_BITS).unwrap();
    log.start(3);
    inflight::words(&stale)
        .unwrap()
        .get(0)
        .unwrap()
        .store(4096, Ordering::Relaxed);
    machine.start_with_spare();
    machine.activate(0);
    let log = inflight::map(&machine.path("records"), "a").unwrap();
    assert_eq!(
        inflight::words(&log)
            .unwrap()
            .get(0)
            .unwrap()
            .load(Ordering::Relaxed),
        0
    );
}
