//! The console on a terminal: raw while it is open, as it was afterwards, left by Ctrl-].
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Machine;
use ringd::config::file;
use ringd::control::client::Client;
use ringd::control::protocol::Request;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use toml::Table;

/// Both ends of a new terminal.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (File::from(master), slave)
}

const HUP_ENDS: &str = "--default-signal=HUP";

fn is_raw(terminal: &File) -> bool {
    !tcgetattr(terminal)
        .unwrap()
        .local_modes
        .intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `ringctl zone console t`, whatever signals the tests' parent ignores; `signals` is how it takes
/// SIGHUP.
fn console(machine: &Machine, terminal: &File, signals: &str) -> Child {
    Command::new("env")
        .args(["--default-signal=INT,QUIT,TERM", signals])
        .arg(env!("CARGO_BIN_EXE_ringctl"))
        .arg("--run-dir")
        .arg(machine.directory.path())
        .args(["zone", "console", "t"])
        .stdin(Stdio::from(terminal.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn the_terminal_is_raw_and_restored_when_the_user_leaves() {
    let machine = Machine::new();
    let path = machine.zone_file("t", "");
    let config = Box::new(file::load(&path, Table::new()).unwrap());
    Client::connect(&machine.path("sock"))
        .unwrap()
        .ask(&Request::Start { config })
        .unwrap();
    let (mut keyboard, screen) = terminal();
    assert!(!is_raw(&screen));
    let mut console = console(&machine, &screen, HUP_ENDS);
    until("raw mode", || is_raw(&screen));
    // Ctrl-C is the guest's.
    keyboard.write_all(b"top\r\x03").unwrap();
    until("input", || machine.el2.typed(1) == b"top\r\x03");
    machine.el2.guest_prints(1, "bye\n");
    let mut seen = [0; 4];
    console.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"bye\n");
    keyboard.write_all(b"x\x1dy").unwrap();
    let output = console.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!is_raw(&screen));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("Ctrl-] leaves") && said.contains("left the console of t"),
        "{said}"
    );
    until("the last key", || machine.el2.typed(1) == b"top\r\x03x");
    // A program that is ended by a signal leaves no raw terminal behind.
    for signal in [Signal::TERM, Signal::HUP] {
        let mut console = self::console(&machine, &screen, HUP_ENDS);
        until("raw mode", || is_raw(&screen));
        kill_process(Pid::from_child(&console), signal).unwrap();
        assert_eq!(console.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(!is_raw(&screen));
    }
    // One that was started to ignore SIGHUP, as by nohup, continues.
    let mut console = self::console(&machine, &screen, "--ignore-signal=HUP");
    until("raw mode", || is_raw(&screen));
    kill_process(Pid::from_child(&console), Signal::HUP).unwrap();
    keyboard.write_all(b"z").unwrap();
    until("the key after SIGHUP", || machine.el2.typed(1) == b"top\r\x03xz");
    assert!(is_raw(&screen) && console.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&console), Signal::TERM).unwrap();
    assert_eq!(console.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    assert!(!is_raw(&screen));
}
