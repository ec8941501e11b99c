//! The supervisor with a script as the daemon: starts, ends, signals.
#![cfg(test)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Starts a supervisor whose daemon is a script, as after an upgrade to it.
fn supervisor(directory: &Path, script: &str) -> Child {
    managed(directory, script, &[])
}

/// As [`supervisor`], with variables of a service manager.
fn managed(directory: &Path, script: &str, variables: &[(&str, &OsStr)]) -> Child {
    let program = directory.join("daemon.sh");
    // As the daemon: one that is kept ready waits for its start, and ends with the supervisor.
    let turn = format!(
        "case \"$*\" in *--standby*) echo $$ >>{0}/standby; read turn || {{ echo $$ >>{0}/unused; exit 0; }}; echo $$ >>{0}/turn;; esac",
        directory.display()
    );
    std::fs::write(&program, format!("#!/bin/sh\n{turn}\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Independent of the signals that the caller of the tests ignores: a shell's background processes ignore
    // SIGINT.
    let child = Command::new("env")
        .arg("--default-signal")
        .arg(env!("CARGO_BIN_EXE_ringd"))
        .args(["--supervise", "--run-dir"])
        .arg(directory)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log")).unwrap())
        .spawn()
        .unwrap();
    let own = format!("{}\n", child.id());
    until("its note", || {
        std::fs::read_to_string(directory.join("supervisor")).is_ok_and(|text| text == own)
    });
    // Its own program ends immediately on this machine, which has no EL2; from the next start on it is the
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
fn a_dead_daemon_is_restarted_and_signals_are_passed_on() {
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
        // Long enough not to count as an early end.
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

    // Another program under the same name: the daemon that is kept ready is replaced, and never used.
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
fn restarts_are_rate_limited() {
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

/// Returns the reports to the manager that come within a time.
fn reports(manager: &UnixDatagram, time: Duration) -> String {
    let end = Instant::now() + time;
    let (mut all, mut bytes) = (String::new(), [0; 4096]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return all;
        }
        manager.set_read_timeout(Some(left)).unwrap();
        if let Ok(length) = manager.recv(&mut bytes) {
            all += std::str::from_utf8(&bytes[..length]).unwrap();
            all += "\n";
        }
    }
}

#[test]
fn a_service_manager_reads_that_the_daemon_serves_and_answers() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let manager = UnixDatagram::bind(at("manager")).unwrap();
    let script = format!(
        "echo \"$NOTIFY_SOCKET$WATCHDOG_USEC\" >{0}/variables; echo $$ >{0}/started\n\
         while [ ! -e {0}/go ]; do sleep 0.02; done; echo ready >{0}/state; exec sleep 60",
        directory.path().display()
    );
    let variables = [
        ("NOTIFY_SOCKET", at("manager")),
        ("WATCHDOG_USEC", "2000000".into()),
    ];
    let variables = variables
        .each_ref()
        .map(|(name, value)| (*name, value.as_os_str()));
    let mut supervisor = managed(directory.path(), &script, &variables);
    until("the first start", || lines(&at("started")) == 1);
    let all = reports(&manager, Duration::from_secs(2));
    assert!(!all.contains("READY=1"), "{all}");
    assert!(
        all.contains("STATUS=waiting") && all.contains("WATCHDOG=1"),
        "{all}"
    );

    let listener = UnixListener::bind(at("sock")).unwrap();
    let answers = std::thread::spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 64];
            let length = stream.read(&mut question).unwrap();
            assert_eq!(question[..length].last(), Some(&b'\n'));
            stream.write_all(b"{\"ok\":{\"zones\":[]}}\n").unwrap();
        }
        // From now on it hangs: connections are made and no answer comes.
        listener
    });
    std::fs::write(at("go"), "").unwrap();
    let mut all = String::new();
    until("READY", || {
        all += &reports(&manager, Duration::from_millis(100));
        all.contains("READY=1\nSTATUS=serving")
    });
    let listener = answers.join().unwrap();
    // With the ping for the last answer.
    all += &reports(&manager, Duration::from_secs(1));
    let (_, serving) = all.split_once("READY=1").unwrap();
    assert!(serving.matches("WATCHDOG=1").count() >= 4, "{all}");
    let all = reports(&manager, Duration::from_secs(2));
    assert_eq!(all, "", "a daemon that does not answer");
    drop(listener);

    // As the manager does after that.
    kill_process(Pid::from_child(&supervisor), Signal::ABORT).unwrap();
    assert_eq!(supervisor.wait().unwrap().code(), Some(1));
    let daemon = std::fs::read_to_string(at("started")).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", daemon.trim())).unwrap_or_default();
    until("the daemon's end", || {
        state().is_empty() || state().contains(") Z ")
    });
    assert_eq!(std::fs::read_to_string(at("variables")).unwrap(), "\n");
}

#[test]
fn a_daemon_whose_supervisor_was_killed_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // Its name is what a daemon is known by.
    let script =
        "#!/bin/sh\nexec 9>>\"$1/lock\"; flock 9; echo $$ >\"$1/lock\"\nwhile :; do sleep 0.05; done\n";
    std::fs::write(at("ringd"), script).unwrap();
    std::fs::set_permissions(at("ringd"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let orphan = || Command::new(at("ringd")).arg(directory.path()).spawn().unwrap();
    let mut daemon = orphan();
    until("the lock", || lines(&at("lock")) == 1);
    // A supervisor that has this number would have to live.
    std::fs::write(at("supervisor"), "4194305\n").unwrap();
    let started = format!("echo $$ >>{0}/started; exec sleep 60", directory.path().display());
    let mut first = supervisor(directory.path(), &started);
    assert_eq!(daemon.wait().unwrap().signal(), Some(9));
    until("its own daemon", || lines(&at("started")) == 1);
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    first.wait().unwrap();

    // One that runs without a supervisor is an administrator's.
    std::fs::remove_file(at("lock")).unwrap();
    let mut daemon = orphan();
    until("the lock", || lines(&at("lock")) == 1);
    let mut second = supervisor(directory.path(), &started);
    until("the second's daemon", || lines(&at("started")) == 2);
    assert_eq!(daemon.try_wait().unwrap(), None);
    kill_process(Pid::from_child(&second), Signal::TERM).unwrap();
    second.wait().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
