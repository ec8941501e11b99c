//! `ringctl` as users run it, against a daemon on fakes.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::Machine;
use ringd::control::protocol::Request;
use ringvisor::abi::{StopReason, ZoneState};

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

fn spawn(machine: &Machine, arguments: &[&str]) -> Child {
    let mut command = command(machine, arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failure(output: &Output, status: i32) -> String {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_zone_is_started_listed_paused_and_stopped() {
    let machine = Machine::new();
    let file = machine.zone_file("one", "");
    stdout(&ringctl(&machine, &["zone", "start", file.to_str().unwrap()]));
    let list = stdout(&ringctl(&machine, &["zone", "list"]));
    let line: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(line, ["one", "1", "running", "3", "16M", "0", "0", "-"]);
    let json = stdout(&ringctl(&machine, &["zone", "list", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json[0]["name"], &json[0]["state"]),
        (&"one".into(), &"running".into())
    );
    stdout(&ringctl(&machine, &["zone", "pause", "one"]));
    assert!(stdout(&ringctl(&machine, &["zone", "list"])).contains("paused"));
    stdout(&ringctl(&machine, &["zone", "resume", "one"]));
    stdout(&ringctl(&machine, &["zone", "stop", "one"]));
    machine.assert_clean();
    assert!(stdout(&ringctl(&machine, &["zone", "list"])).contains("was stopped"));
    let waited = failure(&ringctl(&machine, &["zone", "wait", "one"]), 1);
    assert_eq!(waited, "ringctl: zone one was stopped\n");
}

#[test]
fn run_follows_the_console_and_reports_the_end() {
    let machine = Machine::new();
    for (reason, status) in [(StopReason::SystemOff, 0), (StopReason::AllCpusOff, 1)] {
        let kernel = machine.path("Image");
        let disk = machine.path("disk.img");
        let run = spawn(
            &machine,
            &[
                "zone",
                "run",
                "--name",
                "r",
                "--cpus",
                "1",
                "--memory",
                "16M",
                "--kernel",
                kernel.to_str().unwrap(),
                "--disk",
                disk.to_str().unwrap(),
                "--cmdline",
                "console=ttyAMA0",
            ],
        );
        until("start", || machine.el2.starts(1).len() == 1);
        machine.el2.guest_prints(1, "booting\r\n");
        machine.el2.guest_prints(1, "login: ");
        machine.el2.guest_ends(1, ZoneState::Stopped, reason);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.starts_with("booting\r\nlogin: \r\n[ringd: zone r "),
            "{text:?}"
        );
        machine.assert_clean();
    }
}

#[test]
fn the_console_goes_both_ways() {
    let machine = Machine::new();
    let file = machine.zone_file("c", "");
    stdout(&ringctl(&machine, &["zone", "start", file.to_str().unwrap()]));
    machine.el2.guest_prints(1, "before\n");
    let mut console = spawn(&machine, &["zone", "console", "c"]);
    console.stdin.as_mut().unwrap().write_all(b"uname\r").unwrap();
    until("input", || machine.el2.typed(1) == b"uname\r");
    // The end of standard input does not end the console.
    drop(console.stdin.take());
    machine.el2.guest_prints(1, "after\n");
    let mut seen = vec![0; 13];
    console.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"before\nafter\n");
    assert_eq!(
        stdout(&ringctl(&machine, &["zone", "console", "--dump", "c"])),
        "before\nafter\n"
    );
    machine
        .el2
        .guest_ends(1, ZoneState::Stopped, StopReason::SystemOff);
    assert!(console.wait().unwrap().success());
    // The console can still be read after the zone has ended.
    let dump = stdout(&ringctl(&machine, &["zone", "console", "c"]));
    assert!(dump.starts_with("before\nafter\n"), "{dump:?}");
}

#[test]
fn disks_and_the_hypervisor_are_shown() {
    let machine = Machine::new();
    let file = machine.zone_file(
        "d",
        "[[disk]]\npath = \"disk.img\"\nserial = \"root0\"\nreadonly = true",
    );
    stdout(&ringctl(&machine, &["zone", "start", file.to_str().unwrap()]));
    let list = stdout(&ringctl(&machine, &["disk", "list"]));
    let line: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        line[..10],
        ["d", "0", "ro", "1M", "io_uring", "0", "idle", "-", "-", "root0"]
    );
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&ringctl(&machine, &["disk", "stats", "--json"]))).unwrap();
    assert_eq!(json[0]["zone"], "d");
    let info: serde_json::Value =
        serde_json::from_str(&stdout(&ringctl(&machine, &["info", "--json"]))).unwrap();
    assert_eq!((&info["zones"], &info["pages_total"]), (&1.into(), &1024.into()));
    assert!(stdout(&ringctl(&machine, &["info"])).contains("hypervisor  fake"));
    stdout(&ringctl(&machine, &["log-level", "el2", "debug"]));
    assert!(stdout(&ringctl(&machine, &["info"])).contains("log level   4"));
}

#[test]
fn disks_come_grow_and_go() {
    let machine = Machine::new();
    let file = machine.zone_file("z", "spare_disks = 1");
    stdout(&ringctl(&machine, &["zone", "start", file.to_str().unwrap()]));
    let rows = |output: &Output| {
        let text = stdout(output);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines().skip(1).map(words).collect::<Vec<_>>()
    };
    let list = || rows(&ringctl(&machine, &["disk", "list"])).remove(0);
    assert_eq!(list()[..3], ["z", "0", "-"]);
    let image = machine.path("disk.img").display().to_string();
    let wanted = format!("{image},serial=s1,engine=threads,iops=100");
    let attached = rows(&ringctl(&machine, &["disk", "attach", "z", &wanted])).remove(0);
    assert_eq!(
        attached[..10],
        ["z", "0", "rw", "1M", "threads", "0", "idle", "100", "-", "s1"]
    );
    stdout(&ringctl(&machine, &["disk", "resize", "z", "vda", "2M"]));
    stdout(&ringctl(
        &machine,
        &["disk", "set-limit", "z", "0", "--iops", "none", "--bps", "5M"],
    ));
    assert_eq!(list()[3..9], ["2M", "threads", "0", "idle", "-", "5M"]);
    let json = stdout(&ringctl(&machine, &["disk", "list", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json[0]["size"], &json[0]["disk"]["serial"]),
        (&(2 << 20).into(), &"s1".into())
    );
    stdout(&ringctl(&machine, &["disk", "resume", "z", "0"]));
    for (arguments, status, expected) in [
        (
            &["disk", "resize", "z", "0", "1M"][..],
            3,
            "1M is less than its 2M",
        ),
        (
            &["disk", "attach", "z", "/nonexistent"],
            3,
            "zone z has no drive free for another disk",
        ),
        (&["disk", "detach", "z", "vdb"], 3, "zone z has no disk in slot 1"),
        (&["disk", "detach", "absent", "0"], 5, "no zone absent"),
    ] {
        let message = failure(&ringctl(&machine, arguments), status);
        assert!(message.contains(expected), "{message}");
    }
    for arguments in [
        &["disk", "detach", "z", "sda"][..],
        &["disk", "set-limit", "z", "0"],
    ] {
        failure(&ringctl(&machine, arguments), 2);
    }
    stdout(&ringctl(&machine, &["disk", "detach", "z", "vda"]));
    assert_eq!(list()[..3], ["z", "0", "-"]);
}

#[test]
fn mistakes_end_with_a_message_and_a_status() {
    let machine = Machine::new();
    let bad = machine.zone_file("bad", "colour = \"red\"");
    let message = failure(&ringctl(&machine, &["zone", "start", bad.to_str().unwrap()]), 3);
    let name = bad.display();
    assert!(
        message.starts_with(&format!(
            "ringctl: {name}: unknown key colour = \"red\": expected"
        )),
        "{message}"
    );
    let missing = machine.zone_file("missing", "initrd = \"nope\"");
    let message = failure(&ringctl(&machine, &["zone", "run", missing.to_str().unwrap()]), 3);
    assert!(
        message.contains("initrd = ") && message.contains("No such file"),
        "{message}"
    );
    let message = failure(&ringctl(&machine, &["zone", "stop", "absent"]), 5);
    assert!(message.contains("no zone absent"), "{message}");
    failure(&ringctl(&machine, &["zone", "stop"]), 2);
    failure(&ringctl(&machine, &["frobnicate"]), 2);
    fs::remove_file(machine.path("sock")).unwrap();
    let message = failure(&ringctl(&machine, &["zone", "list"]), 7);
    assert!(
        message.contains("ringd is not running") && message.contains("ringd --daemonize"),
        "{message}"
    );
    machine.assert_clean();
}

/// A fake daemon, whose reply to each connection a test decides.
mod fake_daemon {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use ringd::control::protocol::{Frame, Request};
    use zerocopy::IntoBytes;

    /// Accepts a connection, replies to its first request with `answer`, and returns the request.
    pub fn serve(listener: &UnixListener, answer: &str) -> (Request, UnixStream) {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        writeln!(&stream, "{answer}").unwrap();
        (serde_json::from_str(&line).unwrap(), stream)
    }

    pub fn print(mut stream: &UnixStream, seen: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        let (seen, len) = (seen.into(), len.into());
        stream.write_all(Frame { seen, len }.as_bytes()).unwrap();
        stream.write_all(bytes).unwrap();
    }
}

#[test]
fn consoles_and_waits_outlast_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("sock")).unwrap();
    let ringctl = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ringctl"))
            .arg("--run-dir")
            .arg(directory.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let console = |from| Request::Console {
        name: "z".into(),
        follow: true,
        from: Some(from),
        port: None,
    };
    let wait = Request::Wait { name: "z".into() };
    let done = r#"{"ok":"done"}"#;

    // A console continues where it was: complete messages count, a truncated one does not.
    let mut child = ringctl(&["zone", "console", "z"]);
    let (request, stream) = fake_daemon::serve(&listener, done);
    assert_eq!(request, console(0));
    fake_daemon::print(&stream, 4, b"one ");
    (&stream)
        .write_all(&[9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, b't', b'w'])
        .unwrap();
    drop(stream);
    let (request, stream) = fake_daemon::serve(&listener, done);
    assert_eq!(request, console(4));
    fake_daemon::print(&stream, 9, b"[two]");
    // Input goes to the next daemon.
    child.stdin.as_mut().unwrap().write_all(b"ls\r").unwrap();
    let mut typed = [0; 3];
    (&stream).read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"ls\r");
    fake_daemon::print(&stream, 9, b"");
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "one [two]");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("lost the connection to ringd") && said.contains("ringd serves again"),
        "{said}"
    );

    // A wait continues, and reports if the next daemon does not know the zone.
    for (answer, status) in [
        (r#"{"ok":{"ended":{"how":"powered_off"}}}"#, 0),
        (r#"{"error":"no zone z"}"#, 1),
    ] {
        let child = ringctl(&["zone", "wait", "z"]);
        let (stream, _) = listener.accept().unwrap();
        drop(stream);
        let (request, _stream) = fake_daemon::serve(&listener, answer);
        assert_eq!(request, wait);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            said.contains("zone z has ended: it ended when ringd died"),
            status == 1,
            "{said}"
        );
    }
}
