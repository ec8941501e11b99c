//! A zone with firmware: what is in its flash, and what the guest programs and erases.

use std::fs;
use std::path::Path;

use ringvisor::abi::{StopReason, ZoneState};

use super::{Machine, daemon, until};
use crate::config::ZoneConfig;
use crate::config::zone::FlashConfig;
use crate::zone::actor::Command;
use crate::zone::flash::{FIRMWARE, VARIABLES};

const READY: u8 = 0x80;
const PROGRAM_ERROR: u8 = 0x10;
const ERASE_ERROR: u8 = 0x20;

impl Machine {
    fn with_firmware(&self) -> ZoneConfig {
        fs::write(self.path("u-boot.bin"), b"firmware").unwrap();
        fs::write(self.path("vars"), vec![0xff; VARIABLES as usize]).unwrap();
        ZoneConfig {
            kernel: self.path("u-boot.bin"),
            flash: Some(FlashConfig {
                variables: Some(self.path("vars")),
            }),
            cmdline: String::new(),
            ..self.config("a")
        }
    }

    /// Returns the memory of its flash.
    fn flash(&self) -> Vec<u8> {
        let file = fs::read(self.path("a.ram")).unwrap();
        let (ram, flash) = file.split_at(16 << 20);
        assert_eq!(
            ram[..4],
            [0xd0, 0x0d, 0xfe, 0xed],
            "the device tree is at the start of RAM"
        );
        flash.to_vec()
    }

    fn programs(&self, offset: u32, word: u64) {
        self.el2.guest_stores_flash(1, offset, 0x40_0040);
        self.el2.guest_stores_flash(1, offset, word);
    }

    fn erases(&self, offset: u32) {
        self.el2.guest_stores_flash(1, offset, 0x20_0020);
        self.el2.guest_stores_flash(1, offset, 0xd0_00d0);
    }

    fn until_ready(&self) {
        until("ready", || self.el2.flash_status(1) & READY != 0);
    }

    /// Both the file and the bank have these words from the beginning on.
    fn assert_words(&self, file: &Path, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(fs::read(file).unwrap()[..bytes.len()], bytes);
        assert_eq!(self.flash()[FIRMWARE as usize..][..bytes.len()], bytes);
    }
}

#[test]
fn firmware_starts_from_flash_and_keeps_its_variables() {
    let machine = Machine::new();
    let config = machine.with_firmware();
    let zone = machine.registry.start(config).unwrap();
    assert_eq!(machine.el2.starts(1), [(0, 0)]);
    let flash = machine.flash();
    assert_eq!(flash.len() as u64, FIRMWARE + VARIABLES);
    assert_eq!(flash[..9], *b"firmware\0");
    assert_eq!(flash[FIRMWARE as usize..], vec![0xff; VARIABLES as usize]);

    let file = machine.path("vars");
    machine.programs(4, 0x1234_5678);
    machine.until_ready();
    machine.programs(4, 0xffff_00ff);
    machine.until_ready();
    machine.assert_words(&file, &[u32::MAX, 0x1234_0078, u32::MAX]);

    // A reboot reads both files again.
    fs::write(machine.path("u-boot.bin"), b"new").unwrap();
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset);
    until("restart", || zone.status().restarts == 1);
    assert_eq!(machine.flash()[..9], *b"new\0\0\0\0\0\0");
    machine.assert_words(&file, &[u32::MAX, 0x1234_0078]);
    machine.erases(0x3_0000);
    machine.until_ready();
    machine.assert_words(&file, &[u32::MAX; 0x4_0000 / 4]);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

// The guest waits for the next daemon, which does what the last one has not, or has half done.
#[test]
fn the_next_daemon_does_what_the_guest_waits_for() {
    let machine = Machine::new();
    machine.registry.start(machine.with_firmware()).unwrap();
    machine.registry.context().io.stop();
    machine.programs(0, 0xaaaa_aaaa);
    assert_eq!(machine.el2.flash_status(1), 0);
    // The last daemon had written the file when it died; its own lock is on the other file.
    let mut variables = vec![0xff; VARIABLES as usize];
    variables[..4].fill(0xaa);
    fs::write(machine.path("copy"), variables).unwrap();
    let path = machine.path("records/a.json");
    let text = fs::read_to_string(&path).unwrap().replace("/vars", "/copy");
    fs::write(path, text).unwrap();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    machine.until_ready();
    machine.assert_words(&machine.path("copy"), &[0xaaaa_aaaa, u32::MAX]);
    next.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn variables_without_a_file_last_as_long_as_the_zone() {
    let machine = Machine::new();
    let zone = machine.registry.start(ZoneConfig {
        flash: Some(FlashConfig::default()),
        ..machine.with_firmware()
    });
    let zone = zone.unwrap();
    assert_eq!(machine.flash()[FIRMWARE as usize..], vec![0; VARIABLES as usize]);
    machine.erases(0);
    machine.until_ready();
    machine.programs(0, 0x55);
    machine.until_ready();
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemReset);
    until("restart", || zone.status().restarts == 1);
    assert_eq!(machine.flash()[FIRMWARE as usize..][..5], [0x55, 0, 0, 0, 0xff]);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_of_the_device() {
    let machine = Machine::new();
    machine.registry.start(machine.with_firmware()).unwrap();
    // A file that can only be read takes its place under the same descriptor's number.
    let descriptor = fs::read_dir("/proc/self/fd").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        (target == machine.path("vars")).then(|| entry.file_name().to_str().unwrap().parse::<i32>().unwrap())
    });
    let file = fs::File::open(machine.path("vars")).unwrap();
    let descriptor = descriptor.unwrap();
    let readonly = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: the descriptor is that of the bank of variables, which only writes and closes it.
    let replaced = unsafe { libc::dup2(readonly, descriptor) };
    assert_eq!(replaced, descriptor);
    machine.programs(0, 0);
    machine.until_ready();
    assert_eq!(machine.el2.flash_status(1), READY | PROGRAM_ERROR);
    machine.erases(0);
    until("ready", || {
        machine.el2.flash_status(1) == READY | PROGRAM_ERROR | ERASE_ERROR
    });
    machine.assert_words(&machine.path("vars"), &[u32::MAX]);
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}

#[test]
fn files_that_are_no_firmware_or_variables_are_refused() {
    let machine = Machine::new();
    let config = machine.with_firmware();
    let refused = |config: &ZoneConfig| {
        let error = machine.registry.start(config.clone()).map(drop).unwrap_err();
        machine.assert_clean();
        error.to_string()
    };
    let firmware = machine.path("u-boot.bin");
    for (bytes, expected) in [
        (Vec::new(), "it is empty"),
        (b"\x7fELF".to_vec(), "expected the flat image"),
        (
            vec![1; FIRMWARE as usize + 1],
            "it has 4194305 bytes, expected at most 4194304",
        ),
    ] {
        fs::write(&firmware, bytes).unwrap();
        let message = refused(&config);
        assert!(
            message.contains("firmware = ") && message.contains(expected),
            "{message}"
        );
    }
    // Padding is no firmware.
    let mut padded = vec![1; FIRMWARE as usize];
    padded.resize(64 << 20, 0);
    fs::write(&firmware, padded).unwrap();

    fs::write(machine.path("vars"), vec![0xff; VARIABLES as usize - 1]).unwrap();
    let message = refused(&config);
    assert!(
        message.contains("variables = ") && message.contains("expected at least 2097152"),
        "{message}"
    );
    fs::write(machine.path("vars"), vec![0xff; VARIABLES as usize + 1]).unwrap();
    machine.registry.start(config.clone()).unwrap();
    let message = machine.registry.start(ZoneConfig {
        name: "b".into(),
        cpus: crate::config::Cpus::Count(1),
        ..config
    });
    let message = message.map(drop).unwrap_err().to_string();
    assert!(
        message.contains("variables = ") && message.contains("expected no other user"),
        "{message}"
    );
    machine.registry.execute("a", Command::Stop).unwrap();
    machine.assert_clean();
}
