//! `ringctl stats`, `top`, `trace` and `doctor` as users run them, against a daemon on fakes.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Machine;
use ringvisor::abi::counters::{self, DeviceEvent, Exit, word};
use ringvisor::abi::trace::{self, Kind, Record};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::Value;

fn command(machine: &Machine, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringctl"));
    command
        .arg("--run-dir")
        .arg(machine.directory.path())
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn ringctl(machine: &Machine, arguments: &[&str]) -> Output {
    command(machine, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A machine with a zone that has a disk, on CPU 3.
fn with_zone() -> Machine {
    let machine = Machine::new();
    let file = machine.zone_file("one", "[[disk]]\npath = \"disk.img\"");
    stdout(&ringctl(&machine, &["zone", "start", file.to_str().unwrap()]));
    machine
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stats_show_what_el2_counts() {
    let machine = with_zone();
    let cpu = counters::cpu(3).unwrap();
    machine
        .el2
        .set_bar_word(cpu + (word::EXITS + Exit::Permission as usize) * 8, 42);
    let device = counters::device(1, 0).unwrap();
    machine
        .el2
        .set_bar_word(device + DeviceEvent::Notifications as usize * 8, 17);
    let text = stdout(&ringctl(&machine, &["stats"]));
    for line in [
        "cpu3.exits.permission 42",
        "disk.one.0.notifications 17",
        "zone.one.vcpus 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    let json: Value = serde_json::from_str(&stdout(&ringctl(&machine, &["stats", "--json"]))).unwrap();
    assert_eq!(json["cpus"][3]["exits"]["permission"], 42);
    assert_eq!(
        (&json["cpus"][3]["zone"], &json["cpus"][2]["zone"]),
        (&1.into(), &Value::Null)
    );
    assert_eq!(json["disks"][0]["notifications"], 17);
    assert_eq!(json["zones"][0]["state"], "running");
    machine.el2.guest_prints(1, "hello\n");
    until("a wake-up for the console", || {
        let text = stdout(&ringctl(&machine, &["stats"]));
        let has = |name: &str| text.lines().any(|line| line.starts_with(name));
        has("daemon.wakeups 1") && has("daemon.entries ") && has("daemon.rounds ")
    });
}

#[test]
fn top_prints_once_without_a_terminal() {
    let machine = with_zone();
    for arguments in [&["top", "--interval", "0.1"][..], &["top", "--once", "-d", "0.1"]] {
        let text = stdout(&ringctl(&machine, arguments));
        assert!(text.starts_with("ringvisor fake "), "{text}");
        let row = text.lines().find(|line| line.starts_with("one ")).unwrap();
        assert!(row.contains("running"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }
    let bad = ringctl(&machine, &["top", "--interval", "0"]);
    assert_eq!(bad.status.code(), Some(2));
}

fn is_raw(terminal: &File) -> bool {
    !tcgetattr(terminal)
        .unwrap()
        .local_modes
        .intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    top_leaves(|keyboard, _| keyboard.write_all(b"q").unwrap(), 0);
    // By a signal, too.
    let term = |_: &mut File, top: u32| {
        let pid = rustix::process::Pid::from_raw(top.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    };
    top_leaves(term, libc::SIGTERM);
}

fn top_leaves(end: impl FnOnce(&mut File, u32), signal: i32) {
    let machine = with_zone();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut keyboard = File::from(master);
    // Without a size, as a serial console.
    let mut top = command(&machine, &["top", "--interval", "0.1"])
        .env("TERM", "vt100")
        .stdin(Stdio::from(terminal.try_clone().unwrap()))
        .stdout(Stdio::from(terminal.try_clone().unwrap()))
        .stderr(Stdio::from(terminal.try_clone().unwrap()))
        .spawn()
        .unwrap();
    let mut screen = keyboard.try_clone().unwrap();
    let seen = Arc::new(Mutex::new(String::new()));
    let screen_text = Arc::clone(&seen);
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while !screen_text.lock().unwrap().contains("[?1049l") {
            match screen.read(&mut chunk) {
                Ok(count) if count > 0 => screen_text
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&chunk[..count])),
                _ => break,
            }
        }
    });
    until("a table", || seen.lock().unwrap().contains("running"));
    assert!(is_raw(&terminal));
    end(&mut keyboard, top.id());
    let status = top.wait().unwrap();
    reader.join().unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(status.signal().unwrap_or(0), signal, "{seen}");
    assert!(signal != 0 || status.success(), "{seen}");
    assert!(!is_raw(&terminal));
    // The alternate screen, the tables, and back.
    for text in ["\x1b[?1049h", "ringvisor", "running", "\x1b[?1049l", "\x1b[?25h"] {
        assert!(seen.contains(text), "{text:?} is not in {seen:?}");
    }
}

/// A single test, because recording is a state of the process.
#[test]
fn a_trace_is_recorded_written_and_switched_off() {
    let machine = with_zone();
    let put = |number: u64, record: Record| {
        let place = trace::OFFSET + number as usize * trace::RECORD_SIZE;
        machine.el2.set_bar_word(place, record.stamp);
        machine.el2.set_bar_word(place + 8, record.word());
        let head = counters::cpu(0).unwrap() + word::TRACE_HEAD * 8;
        machine.el2.set_bar_word(head, number + 1);
    };
    let path = machine.path("trace.json");
    let spawned = command(
        &machine,
        &["trace", "--seconds", "1", "-o", path.to_str().unwrap()],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    until("recording", || machine.el2.trace_mask() == trace::ALL);
    let busy = ringctl(&machine, &["trace"]);
    assert_eq!(busy.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("being recorded already"));
    for number in 0..5 {
        put(
            number,
            Record {
                stamp: 1000 + number,
                kind: Kind::Exit,
                zone: 1,
                slot: Exit::Irq as u8,
                queue: 0,
                value: 2000,
            },
        );
    }
    let output = spawned.wait_with_output().unwrap();
    let text = stdout(&output);
    assert!(text.contains(" 0 lost; 0 requests"), "{text}");
    let row = text.lines().find(|line| line.starts_with("zone 1 irq")).unwrap();
    assert_eq!(row.split_whitespace().nth(3), Some("5"));
    let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let slices = file["traceEvents"].as_array().unwrap().iter();
    assert_eq!(slices.filter(|event| event["ph"] == "X").count(), 5);
    until("the end of recording", || machine.el2.trace_mask() == 0);
    // An interrupted recording is switched off, too.
    let mut early = command(&machine, &["trace", "--seconds", "60"]).spawn().unwrap();
    until("recording", || machine.el2.trace_mask() == trace::ALL);
    early.kill().unwrap();
    early.wait().unwrap();
    until("the end of recording", || machine.el2.trace_mask() == 0);
    let nowhere = ringctl(&machine, &["trace", "-o", "/nowhere/trace.json"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("cannot write /nowhere/trace.json"));
}

#[test]
fn doctor_works_without_a_hypervisor() {
    let directory = tempfile::tempdir().unwrap();
    let doctor = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ringctl"))
            .arg("--run-dir")
            .arg(directory.path())
            .args(arguments)
            .output()
            .unwrap()
    };
    // This machine is not a root zone of ringvisor.
    let output = doctor(&["doctor"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("WRONG  control device")),
        "{text}"
    );
    assert!(text.contains("start it: ringd --daemonize"), "{text}");
    let json: Value = serde_json::from_slice(&doctor(&["doctor", "--json"]).stdout).unwrap();
    let checks = json.as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|check| check["name"] == "daemon" && check["verdict"] == "advice")
    );
}
