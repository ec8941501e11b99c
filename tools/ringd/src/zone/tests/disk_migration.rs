//! Migration of disks: the zone's record at each step, and how the next daemon continues from it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringblk::{EngineKind, OnError};

use super::{Machine, daemon, until};
use crate::config::{Cpus, ZoneConfig};
use crate::device::disk::change::Change;
use crate::device::disk::config::DiskConfig;
use crate::device::disk::migration::Pending;
use crate::device::{self, Configs, State, inflight};
use crate::zone::actor::Command;
use crate::zone::record::Record;
use crate::zone::{Phase, Shared};

const MIB: usize = 1 << 20;

impl Machine {
    /// Creates an image whose sectors differ from each other.
    fn filled(&self, name: &str, bytes: usize) -> DiskConfig {
        let disk = self.disk(name, bytes);
        let content: Vec<u8> = (0..bytes).map(|at| (at / 512 % 251) as u8).collect();
        fs::write(&disk.path, content).unwrap();
        disk
    }

    /// Creates a sparse image of 256 MiB.
    fn sparse(&self, name: &str) -> DiskConfig {
        let disk = self.disk(name, 0);
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.set_len(256 << 20).unwrap();
        disk
    }

    fn migrate(&self, target: &DiskConfig) -> Result<(), String> {
        let target = Box::new(DiskConfig {
            engine: EngineKind::default(),
            ..target.clone()
        });
        let done = self.registry.execute(
            "a",
            Command::Change(device::Change::Disk(Change::Migrate { slot: 0, target })),
        );
        done.map(drop).map_err(|error| error.to_string())
    }

    fn only_record(&self) -> Record {
        let mut all = Record::load_all(&self.path("records")).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0).unwrap()
    }

    fn zone_with(&self, disk: &DiskConfig) -> Arc<Shared> {
        let config = ZoneConfig {
            devices: Configs {
                disk: vec![disk.clone()],
                ..Configs::default()
            },
            ..self.config("a")
        };
        self.registry.start(config).unwrap()
    }
}

fn finished(zone: &Shared) {
    until("the end of the migration", || {
        zone.devices.disk.migrations().is_empty()
    });
}

#[test]
fn a_disk_is_migrated_to_a_larger_image() {
    let machine = Machine::new();
    let source = DiskConfig {
        serial: Some("stays".into()),
        ..machine.filled("source.img", MIB)
    };
    let zone = machine.zone_with(&source);
    let target = machine.disk("target.img", 2 * MIB);
    machine.migrate(&target).unwrap();
    finished(&zone);
    assert_eq!(zone.devices.disk.failure(0), None);
    // Everything but the image is unchanged.
    let expected = DiskConfig {
        path: target.path.clone(),
        engine: EngineKind::default(),
        ..source.clone()
    };
    assert_eq!(zone.devices.state().disks[0].as_ref(), Some(&expected));
    let record = machine.only_record();
    assert_eq!(
        (record.devices.disks[0].as_ref(), record.devices.migrations.len()),
        (Some(&expected), 0)
    );
    assert_eq!(
        fs::read(&target.path).unwrap()[..MIB],
        fs::read(&source.path).unwrap()
    );
    let shown = machine.el2.device(1, 0).unwrap().config;
    assert_eq!(
        u64::from_le_bytes(shown[..8].try_into().unwrap()),
        2 * MIB as u64 / 512
    );
    // The source is unlocked, the target is locked.
    let other = |disk: &DiskConfig| ZoneConfig {
        devices: Configs {
            disk: vec![disk.clone()],
            ..Configs::default()
        },
        cpus: Cpus::Count(1),
        ..machine.config("b")
    };
    assert!(machine.registry.start(other(&target)).is_err());
    machine.registry.start(other(&source)).unwrap();
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.registry.execute("b", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn invalid_targets_are_reported() {
    let machine = Machine::new();
    let source = machine.filled("source.img", MIB);
    let zone = machine.zone_with(&source);
    let refused = |target: &DiskConfig| machine.migrate(target).unwrap_err();
    for (target, expected) in [
        (
            machine.disk("small.img", MIB / 2),
            "the target has 524288 bytes, expected at least the disk's 1048576",
        ),
        (
            DiskConfig::new(machine.path("missing.img")),
            "missing.img: cannot open it",
        ),
        (source.clone(), "source.img is attached already, here"),
        (DiskConfig::new("relative".into()), "target.path"),
        (
            DiskConfig {
                readonly: true,
                ..machine.disk("ro.img", MIB)
            },
            "expected of a target only its path, format, engine and cache",
        ),
        (DiskConfig::new("vhost-user:/nonexistent".into()), "/nonexistent"),
    ] {
        let message = refused(&target);
        assert!(
            message.contains("disk in slot 0") || message.contains("target.path"),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");
    }
    let nothing = machine.registry.execute(
        "a",
        Command::Change(device::Change::Disk(Change::CancelMigration { slot: 0 })),
    );
    assert!(nothing.unwrap_err().to_string().contains("not being migrated"));
    assert!(zone.devices.disk.migrations().is_empty() && machine.only_record().devices.migrations.is_empty());
    assert_eq!(zone.devices.state().disks[0].as_ref(), Some(&source));
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// When a target fails, the disk stays where it is.
#[test]
fn a_target_that_fails_is_given_up() {
    let machine = Machine::new();
    let source = machine.filled("source.img", MIB);
    let zone = machine.zone_with(&source);
    // /dev/full is refused: it is a character device.
    let full = DiskConfig::new("/dev/full".into());
    let message = machine.migrate(&full).unwrap_err();
    assert!(message.contains("character device"), "{message}");
    // A zero device drops what is written.
    let forgetful = DiskConfig::new("zero:1M".into());
    machine.migrate(&forgetful).unwrap();
    finished(&zone);
    let reason = zone.devices.disk.failure(0).unwrap();
    assert!(
        reason.contains("the target differs from the disk in the 262144 bytes from byte 0"),
        "{reason}"
    );
    assert_eq!(zone.devices.state().disks[0].as_ref(), Some(&source));
    assert!(machine.only_record().devices.migrations.is_empty());
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// After a kill during the copy, the next daemon continues where the last one was, and does not copy again
/// what is there.
#[test]
fn the_next_daemon_continues_a_migration() {
    for progress in [0, MIB / 2, MIB] {
        let machine = Machine::new();
        let source = machine.filled("source.img", MIB);
        machine.zone_with(&source);
        let target = machine.disk("target.img", MIB);
        let content = fs::read(&source.path).unwrap();
        fs::write(
            &target.path,
            [&content[..progress], &vec![0xee; MIB - progress]].concat(),
        )
        .unwrap();
        machine.registry.context().io.stop();
        let records = machine.path("records");
        // The first daemon's lock is held as long as this process lives.
        let copy = machine.filled("copy.img", MIB);
        let record = Record {
            devices: State {
                disks: vec![Some(copy.clone())],
                migrations: vec![Pending {
                    slot: 0,
                    target: target.clone(),
                }],
                ..State::default()
            },
            ..machine.only_record()
        };
        record.save(&records).unwrap();
        let log = inflight::map(&records, "a").unwrap();
        let words = inflight::words(&log).unwrap();
        words.get(0).unwrap().store(progress as u64, Ordering::Relaxed);
        // After a kill the part that counts as copied is compared as well, and copied again where it differs.
        let broken = progress == MIB / 2;
        if broken {
            let file = File::options().write(true).open(&target.path).unwrap();
            file.write_all_at(&[0xff; 512], 4096).unwrap();
        }
        let next = daemon(&machine.el2, &machine.host, records);
        let zone = next.find("a").unwrap();
        finished(&zone);
        let record = machine.only_record();
        assert!(record.devices.migrations.is_empty());
        assert_eq!(zone.devices.disk.failure(0), None);
        assert_eq!(record.devices.disks[0].as_ref().unwrap().path, target.path);
        assert_eq!(fs::read(&target.path).unwrap(), content);
        next.execute("a", Command::Stop).unwrap();
        machine.assert_clean();
    }
}

/// Without its target a migration cannot continue: the disk stays, and the record of the migration is
/// removed.
#[test]
fn a_target_that_is_gone_is_forgotten() {
    for on_error in [OnError::Report, OnError::Stop] {
        let machine = Machine::new();
        let source = machine.filled("source.img", MIB);
        machine.zone_with(&source);
        machine.registry.context().io.stop();
        let records = machine.path("records");
        let copy = machine.filled("copy.img", MIB);
        let record = Record {
            devices: State {
                disks: vec![Some(copy.clone())],
                migrations: vec![Pending {
                    slot: 0,
                    target: DiskConfig {
                        on_error,
                        ..DiskConfig::new(machine.path("gone.img"))
                    },
                }],
                ..State::default()
            },
            ..machine.only_record()
        };
        record.save(&records).unwrap();
        let next = daemon(&machine.el2, &machine.host, records);
        let zone = next.find("a").unwrap();
        until("running", || zone.status().state == Phase::Running);
        assert!(zone.devices.disk.failure(0).unwrap().contains("gone.img"));
        assert!(machine.only_record().devices.migrations.is_empty());
        assert_eq!(zone.devices.state().disks[0].as_ref(), Some(&copy));
        next.execute("a", Command::Stop).unwrap();
        machine.assert_clean();
    }
}

/// Limits that were changed during a migration apply to the next daemon as well.
#[test]
fn the_next_daemon_has_the_current_limits() {
    let machine = Machine::new();
    machine.zone_with(&machine.filled("source.img", MIB));
    machine.registry.context().io.stop();
    let records = machine.path("records");
    // Large enough for the migration to last until the end of the test.
    let mut copy = machine.sparse("copy.img");
    copy.limits.iops.rate = Some(77);
    let record = Record {
        devices: State {
            disks: vec![Some(copy.clone())],
            migrations: vec![Pending {
                slot: 0,
                target: machine.sparse("target.img"),
            }],
            ..State::default()
        },
        ..machine.only_record()
    };
    record.save(&records).unwrap();
    // What is reported until the take-over.
    let shared = Shared::with_devices(record.config.clone(), record.devices.clone());
    shared.recover(1);
    let reported = |slot| {
        let recovering = shared.status().state == Phase::Recovering;
        let recorded = recovering.then(|| shared.devices.state());
        shared.devices.disk.migration_report(slot, recorded.as_ref())
    };
    let report = reported(0).unwrap();
    assert_eq!((report.target, report.size), (machine.path("target.img"), 0));
    assert_eq!(reported(1), None);
    shared.update(|status| status.state = Phase::Running);
    assert_eq!(reported(0), None);
    let next = daemon(&machine.el2, &machine.host, records);
    let zone = next.find("a").unwrap();
    let limits = next
        .context()
        .io
        .device(1, 0)
        .unwrap()
        .disk()
        .unwrap()
        .clone()
        .control()
        .throttle
        .limits();
    assert_eq!((limits.iops.rate, zone.devices.disk.migrations().len()), (77, 1));
    next.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

/// A target is in use as soon as a migration to it begins.
#[test]
fn a_target_is_for_one_disk() {
    let machine = Machine::new();
    let config = ZoneConfig {
        devices: Configs {
            disk: ["first.img", "second.img"]
                .map(|name| machine.sparse(name))
                .into(),
            spare_disks: 1,
            ..Configs::default()
        },
        ..machine.config("a")
    };
    let zone = machine.registry.start(config).unwrap();
    let target = machine.sparse("target.img");
    machine.migrate(&target).unwrap();
    let changes = [
        Change::Attach {
            disk: Box::new(target.clone()),
        },
        Change::Migrate {
            slot: 1,
            target: Box::new(DiskConfig::new(target.path.clone())),
        },
    ];
    for change in changes {
        let error = machine
            .registry
            .execute("a", Command::Change(device::Change::Disk(change)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("disk in slot 0: it is being migrated to") && error.contains("target.img"),
            "{error}"
        );
    }
    machine
        .registry
        .execute(
            "a",
            Command::Change(device::Change::Disk(Change::CancelMigration { slot: 0 })),
        )
        .unwrap();
    assert!(zone.devices.disk.migrations().is_empty());
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}
