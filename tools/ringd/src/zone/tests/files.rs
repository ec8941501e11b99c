//! Files whose open does not return: they hold up their own zone alone, and it can be stopped.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use ringblk::{LocalOpener, Opener};
use ringvisor::abi::{StopReason, ZoneState};

use super::{Machine, until};
use crate::config::ZoneConfig;
use crate::device::Environment;
use crate::zone::actor::Command;
use crate::zone::{Ending, Phase};

/// Opens of a path that ends in `slow` wait while it hangs, as on a network file system without a server.
#[derive(Default)]
struct Hanging {
    hangs: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Hanging {
    fn set(&self, hangs: bool) {
        *self.hangs.lock() = hangs;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

impl Opener for Hanging {
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File> {
        if path.ends_with("slow") {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let mut hangs = self.hangs.lock();
            while *hangs {
                self.changed.wait(&mut hangs);
            }
            drop(hangs);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        LocalOpener.open(path, write, flags)
    }
}

fn machine() -> (Machine, Arc<Hanging>) {
    let slow = Arc::new(Hanging::default());
    let mut environment = Environment::default();
    environment.disk.opener = slow.clone();
    (Machine::with(environment), slow)
}

// torture i3
#[test]
fn a_slow_file_holds_up_its_own_zone_and_that_can_be_stopped() {
    let (machine, slow) = machine();
    slow.set(true);
    std::fs::write(machine.path("slow"), b"\0 flat kernel").unwrap();
    let kernel = ZoneConfig {
        kernel: machine.path("slow"),
        ..machine.config("kernel")
    };
    let image = machine.with_disks("image", vec![machine.disk("slow", 1 << 20)]);
    std::thread::scope(|scope| {
        let starts: Vec<_> = [kernel.clone(), image]
            .into_iter()
            .map(|config| scope.spawn(|| machine.registry.start(config).map(drop)))
            .collect();
        until("both to wait", || slow.waiting() == 2);
        // Others start and end.
        machine.registry.start(machine.config("other")).unwrap();
        machine.registry.execute("other", Command::Stop).unwrap();
        for (name, start) in ["kernel", "image"].into_iter().zip(starts) {
            assert_eq!(
                machine.registry.find(name).unwrap().status().state,
                Phase::Created
            );
            machine.registry.execute(name, Command::Stop).unwrap();
            let message = start.join().unwrap().unwrap_err().to_string();
            assert!(
                message.contains("stopped while its files were being opened"),
                "{message}"
            );
            assert!(machine.registry.find(name).is_err(), "its name can be used again");
        }
        machine.assert_clean();
    });
    // What hung returns, with the name in use again.
    slow.set(false);
    until("the opens to return", || slow.waiting() == 0);
    let again = machine.registry.start(kernel).unwrap();
    assert_eq!(again.status().state, Phase::Running);
    machine.registry.execute("kernel", Command::Stop).unwrap();
    machine.assert_clean();
}

// torture i3
#[test]
fn a_file_that_is_slow_at_a_reboot_does_not_keep_the_zone_from_being_stopped() {
    let (machine, slow) = machine();
    std::fs::write(machine.path("slow"), b"\0 flat kernel").unwrap();
    let zone = machine.registry.start(ZoneConfig {
        kernel: machine.path("slow"),
        ..machine.config("a")
    });
    let zone = zone.unwrap();
    slow.set(true);
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset);
    until("the open to wait", || slow.waiting() == 1);
    machine.registry.execute("a", Command::Stop).unwrap();
    assert_eq!(zone.wait(), Ending::Stopped);
    machine.assert_clean();
    slow.set(false);
}
