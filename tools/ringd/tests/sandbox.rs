//! The worker's sandbox. Each test runs in a child process, because a sandbox cannot be left.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Machine;
use ringd::control::client::Client;
use ringd::control::protocol::Request;
use ringd::device::api;
use ringd::sandbox;

/// Returns the command that runs the test `name` of this program as a sandboxed child.
fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env("RINGD_TEST_SANDBOX", name);
    command
}

fn child(name: &str) -> Output {
    command(name).output().unwrap()
}

fn is_child(name: &str) -> bool {
    std::env::var("RINGD_TEST_SANDBOX").is_ok_and(|text| text == name)
}

/// Zones start and end under the filter, with disks on both engines (torture c12). The client is outside.
#[test]
fn a_daemon_at_work_needs_nothing_else() {
    const NAME: &str = "a_daemon_at_work_needs_nothing_else";
    if is_child(NAME) {
        let machine = Machine::restricted(|| sandbox::Filter::new().unwrap().restrict().unwrap());
        std::fs::write(machine.path("other.img"), vec![0; 1 << 20]).unwrap();
        let disks = "[[disk]]\npath = \"disk.img\"\n[[disk]]\npath = \"other.img\"\nengine = \"threads\"";
        machine.zone_file("z", disks);
        eprintln!("directory {}", machine.directory.path().display());
        // Until the parent closes standard input.
        std::io::stdin().read_line(&mut String::new()).unwrap();
        machine.assert_clean();
        return;
    }
    let mut daemon = command(NAME)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let directory = Path::new(
        line.trim()
            .strip_prefix("directory ")
            .unwrap_or_else(|| panic!("{line}")),
    );
    let config = ringd::config::file::load(&directory.join("z.toml"), toml::Table::new()).unwrap();
    let mut client = Client::connect(&directory.join("sock")).unwrap();
    let list = Request::Device(api::Request::Disks {});
    for _ in 0..3 {
        let config = Box::new(config.clone());
        client.ask(&Request::Start { config }).unwrap();
        client.ask(&Request::List {}).unwrap();
        client.ask(&list).unwrap();
        client.ask(&Request::Info {}).unwrap();
        client.ask(&Request::Stop { name: "z".into() }).unwrap();
    }
    drop(daemon.stdin.take());
    let status = daemon.wait().unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(status.success(), "{status}: {rest}");
}

/// A system call that is not listed ends the process with a log line that names it (torture i2).
#[test]
fn other_system_calls_end_the_process() {
    const NAME: &str = "other_system_calls_end_the_process";
    if !is_child(NAME) {
        let output = child(NAME);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(sandbox::STATUS_VIOLATION), "{said}");
        let number = libc::SYS_execve;
        let line = format!("seccomp: system call {number:4} is not allowed");
        assert!(said.contains(&line), "{said}");
        return;
    }
    sandbox::Filter::new().unwrap().restrict().unwrap();
    // An execve, from a thread that was started under the filter.
    let thread = std::thread::spawn(|| {
        use std::os::unix::process::CommandExt;
        Command::new("/bin/true").exec()
    });
    let error = thread.join();
    panic!("a program was started, or tried: {error:?}");
}

/// What a system call is given counts: a thread is made, a process is not; no socket, no device's request, no
/// change of what ties the worker to the broker (torture i2).
#[test]
fn arguments_are_restricted() {
    const NAME: &str = "arguments_are_restricted";
    /// What is tried, and whether it ends the process; else it fails.
    const TRIALS: [(&str, bool); 9] = [
        ("fork", true),
        ("socket", true),
        ("datagrams", true),
        ("death signal", true),
        ("another filter", true),
        ("clone3", false),
        ("ring", false),
        ("ioctl", false),
        ("memory", false),
    ];
    if !is_child(NAME) {
        for (trial, fatal) in TRIALS {
            let output = command(NAME).env("RINGD_TEST_TRIAL", trial).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match fatal {
                true => assert_eq!(
                    output.status.code(),
                    Some(sandbox::STATUS_VIOLATION),
                    "{trial}: {said}"
                ),
                false => assert!(output.status.success(), "{trial}: {said}"),
            }
        }
        return;
    }
    sandbox::Filter::new().unwrap().restrict().unwrap();
    // What is to go on to work, beside each trial.
    std::thread::spawn(|| std::thread::spawn(|| {}).join().unwrap())
        .join()
        .unwrap();
    drop(std::os::unix::net::UnixStream::pair().unwrap());
    assert!(rustix::param::page_size().is_power_of_two());
    let page = vec![0_u64; 512];
    let address = page.as_ptr().addr() as libc::c_long;
    let call = |number, arguments: [libc::c_long; 4]| {
        let [a, b, c, d] = arguments;
        // SAFETY: each call below is refused, or reads and writes at most `page`.
        match unsafe { libc::syscall(number, a, b, c, d) } {
            -1 => std::io::Error::last_os_error().raw_os_error(),
            _ => None,
        }
    };
    let long = |value: libc::c_int| libc::c_long::from(value);
    let failed = match std::env::var("RINGD_TEST_TRIAL").unwrap().as_str() {
        "fork" => (call(libc::SYS_clone, [long(libc::SIGCHLD), 0, 0, 0]), None),
        "socket" => (
            call(
                libc::SYS_socket,
                [long(libc::AF_UNIX), long(libc::SOCK_STREAM), 0, 0],
            ),
            None,
        ),
        "datagrams" => (
            call(
                libc::SYS_socketpair,
                [long(libc::AF_UNIX), long(libc::SOCK_DGRAM), 0, address],
            ),
            None,
        ),
        "death signal" => (
            call(libc::SYS_prctl, [long(libc::PR_SET_PDEATHSIG), 0, 0, 0]),
            None,
        ),
        "another filter" => (
            call(libc::SYS_prctl, [long(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0]),
            None,
        ),
        "clone3" => (call(libc::SYS_clone3, [address, 88, 0, 0]), Some(libc::ENOSYS)),
        "ring" => (
            call(libc::SYS_io_uring_setup, [8, address, 0, 0]),
            Some(libc::ENOSYS),
        ),
        // TIOCSTI, which types into a terminal.
        "ioctl" => (call(libc::SYS_ioctl, [0, 0x5412, address, 0]), Some(libc::EPERM)),
        "memory" => (
            call(
                libc::SYS_madvise,
                [address & !4095, 4096, long(libc::MADV_REMOVE), 0],
            ),
            Some(libc::EPERM),
        ),
        other => panic!("{other}"),
    };
    assert_eq!(failed.0, failed.1);
}

/// Root's privileges cannot be regained (torture i2). Needs root at first.
#[test]
fn privileges_are_dropped() {
    const NAME: &str = "privileges_are_dropped";
    if !rustix::process::getuid().is_root() {
        eprintln!("not run as root: nothing to drop");
        return;
    }
    if !is_child(NAME) {
        let output = child(NAME);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    // In a thread: the test harness's other thread keeps its privileges; the daemon has a single thread at
    // that point.
    let thread = std::thread::spawn(|| {
        if rustix::thread::set_thread_groups(&[]).is_err() {
            eprintln!("root may not change its groups here");
            return;
        }
        sandbox::drop_privileges(7276).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
                .trim()
        };
        assert_eq!(field("Uid:"), "7276\t7276\t7276\t7276");
        assert_eq!(field("Gid:"), "7276\t7276\t7276\t7276");
        assert_eq!(field("Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert!(std::fs::File::open("/etc/shadow").is_err());
        assert!(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_err());
    });
    thread.join().unwrap();
}
