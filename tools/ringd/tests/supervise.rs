//! The supervisor with a program in the daemon's place: starts, deaths, signals.
#![cfg(test)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A supervisor whose daemon is a script: what an upgrade to it would leave.
fn supervisor(directory: &Path, script: &str) -> Child {
    let program = directory.join("daemon.sh");
    // As the daemon does: one that is kept ready waits for its turn, which never comes if the supervisor
    // ends.
    let turn = format!(
        "case \"$*\" in *--standby*) echo $$ >>{0}/standby; read turn || {{ echo $$ >>{0}/unused; exit 0; }}; echo $$ >>{0}/turn;; esac",
        directory.display()
    );
    std::fs::write(&program, format!("#!/bin/sh\n{turn}\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Whatever signals the tests' parent ignores: a shell has its programs in the background ignore
    // SIGINT.
    let child = Command::new("env")
        .arg("--default-signal")
        .arg(env!("CARGO_BIN_EXE_ringd"))
        .args(["--supervise", "--run-dir"])
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log")).unwrap())
        .spawn()
        .unwrap();
    until("its note", || directory.join("supervisor").exists());
    // Its own program dies at once on this machine, which has no EL2; from the next start on it is the
    // script.
    std::fs::write(directory.join("program"), program.display().to_string()).unwrap();
    child
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_daemon_that_dies_is_started_again_and_signals_are_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let script = format!(
        "echo $$ >>{0}/started\necho ready >{0}/state\ntrap 'echo usr1 >>{0}/usr1' USR1\n\
         trap 'echo term >>{0}/term; exit 0' TERM\nwhile :; do sleep 0.05; done",
        directory.path().display()
    );
    let mut supervisor = supervisor(directory.path(), &script);
    until("the first start", || lines(&at("started")) == 1);

    let pid = || -> Pid {
        let text = std::fs::read_to_string(at("started")).unwrap();
        Pid::from_raw(text.lines().last().unwrap().parse().unwrap()).unwrap()
    };
    let last = |name: &str| {
        std::fs::read_to_string(at(name))
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .to_owned()
    };
    for round in 2..5 {
        until("one kept ready", || lines(&at("standby")) == round - 1);
        // Long enough not to count as quick.
        std::thread::sleep(Duration::from_millis(600));
        let killed = Instant::now();
        kill_process(pid(), Signal::KILL).unwrap();
        until("another start", || lines(&at("started")) == round);
        assert!(
            killed.elapsed() < Duration::from_secs(1),
            "{:?}",
            killed.elapsed()
        );
        assert_eq!((lines(&at("turn")), last("turn")), (round - 1, last("started")));
        assert_eq!(last("turn"), last("standby"));
    }
    let log = std::fs::read_to_string(at("log")).unwrap();
    assert!(log.contains("killed by signal 9"), "{log}");

    // Another program of the same name: the one that is kept is exchanged, and the other not used.
    until("one kept ready", || lines(&at("standby")) == 4);
    let program = at("daemon.sh");
    let (stale, new) = (last("standby"), at("new.sh"));
    std::fs::copy(&program, &new).unwrap();
    std::fs::rename(&new, &program).unwrap();
    until("another kept ready", || lines(&at("standby")) == 5);
    assert!(!Path::new("/proc").join(&stale).exists());

    let own = Pid::from_child(&supervisor);
    kill_process(own, Signal::USR1).unwrap();
    until("a signal passed on", || lines(&at("usr1")) == 1);
    kill_process(own, Signal::TERM).unwrap();
    let status = supervisor.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert_eq!(lines(&at("term")), 1);
    assert_eq!(lines(&at("started")), 4);
    assert!(!at("supervisor").exists());
    assert!(!Path::new("/proc").join(last("standby")).exists());
}

#[test]
fn one_kept_ready_ends_when_the_supervisor_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let script = format!(
        "echo $$ >>{0}/started; echo ready >{0}/state; exec sleep 60",
        directory.path().display()
    );
    let mut supervisor = supervisor(directory.path(), &script);
    until("one kept ready", || lines(&at("standby")) == 1);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    until("its end", || lines(&at("unused")) == 1);
    assert_eq!(lines(&at("started")), 1);
    let daemon = std::fs::read_to_string(at("started")).unwrap();
    let daemon = Pid::from_raw(daemon.trim().parse().unwrap()).unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
}

#[test]
fn a_daemon_that_never_serves_is_not_started_all_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let started = directory.path().join("started");
    let script = format!("echo $$ >>{}; exit 3", started.display());
    let mut supervisor = supervisor(directory.path(), &script);
    std::thread::sleep(Duration::from_secs(3));
    let count = lines(&started);
    assert!((1..=7).contains(&count), "{count} starts in three seconds");
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(log.contains("ended with status 3"), "{log}");
    kill_process(Pid::from_child(&supervisor), Signal::INT).unwrap();
    assert_eq!(supervisor.wait().unwrap().code(), Some(0));
}
