//! A zone's consoles: carried by ptys, sockets and log files, taken over with what outlives the daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringconsole::Size;
use rustix::termios::{Winsize, tcsetwinsize};

use super::{Machine, daemon_with, until};
use crate::config::ZoneConfig;
use crate::device::console::config::{ConsoleConfig, End};
use crate::device::console::opener::{ConsoleOpener, ConsoleRequest, Part, link};
use crate::device::{Configs, Environment};
use crate::ports::terminal::Terminal;
use crate::zone::actor::Command;
use crate::zone::registry::Registry;

/// Where RAM begins.
const RAM: u64 = 0x4000_0000;
/// Where the driver has its queues of input and output, and their buffers.
const QUEUES: u64 = RAM + 0x40_0000;
const BUFFERS: u64 = RAM + 0x50_0000;

/// A keeper in this process, which outlives its daemons.
#[derive(Default)]
struct Keeper {
    run_dir: PathBuf,
    kept: Mutex<BTreeMap<(String, usize), Terminal>>,
}

impl ConsoleOpener for Keeper {
    fn open(&self, request: &ConsoleRequest, part: Part) -> io::Result<OwnedFd> {
        let key = (request.zone.clone(), request.index);
        let mut kept = self.kept.lock();
        if !kept.contains_key(&key) {
            let made = Terminal::make(&self.run_dir, request.clone());
            kept.insert(key.clone(), made.map_err(io::Error::other)?);
        }
        let part = kept.get_mut(&key).unwrap().part(part);
        part.map_err(io::Error::other)
    }
}

/// The driver of a console's two queues, which writes to the zone's memory.
struct Driver<'a> {
    machine: &'a Machine,
    ram: File,
    printed: u16,
}

impl<'a> Driver<'a> {
    fn new(machine: &'a Machine) -> Self {
        machine.el2.guest_changes_device(1, 0, |device| {
            (device.status, device.features) = (15, 1 << 32);
            for (number, queue) in device.queue.iter_mut().enumerate().take(2) {
                let base = QUEUES + number as u64 * 0x1_0000;
                (queue.size, queue.ready) = (16, 1);
                (queue.desc, queue.driver, queue.device) = (base, base + 0x1000, base + 0x2000);
            }
        });
        let ram = File::options().read(true).write(true).open(machine.path("a.ram"));
        Self {
            machine,
            ram: ram.unwrap(),
            printed: 0,
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, address - RAM).unwrap();
    }

    fn used(&self, queue: u64) -> u16 {
        let mut bytes = [0; 2];
        let at = QUEUES + queue * 0x1_0000 + 0x2002 - RAM;
        self.ram.read_exact_at(&mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn offer(&self, queue: u64, len: u32, flags: u16, index: u16) {
        let base = QUEUES + queue * 0x1_0000;
        let mut descriptor = (BUFFERS + queue * 0x1_0000).to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend([0, 0]);
        self.write(base, &descriptor);
        self.write(base + 0x1004 + 2 * u64::from(index % 16), &[0, 0]);
        self.write(base + 0x1002, &(index + 1).to_le_bytes());
        self.machine.el2.guest_notifies(1, 0, queue as u8);
    }

    /// Prints, and waits until that is done.
    fn print(&mut self, text: &str) {
        self.write(BUFFERS + 0x1_0000, text.as_bytes());
        self.offer(1, text.len() as u32, 0, self.printed);
        self.printed += 1;
        until("output", || self.used(1) == self.printed);
    }

    /// Waits for input.
    fn read(&self, len: usize, index: u16) -> String {
        self.offer(0, len as u32, 2, index);
        until("input", || self.used(0) == index + 1);
        let mut bytes = vec![0; len];
        self.ram.read_exact_at(&mut bytes, BUFFERS - RAM).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

fn machine() -> (Machine, Arc<Keeper>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let keeper = Arc::new(Keeper {
        run_dir: directory.path().to_owned(),
        kept: Mutex::default(),
    });
    let environment = Environment {
        consoles: keeper.clone(),
        ..Environment::default()
    };
    (Machine::with(environment), keeper, directory)
}

fn zone(machine: &Machine, console: Vec<ConsoleConfig>, console_log: Option<&Path>) -> ZoneConfig {
    ZoneConfig {
        devices: Configs {
            console,
            console_log: console_log.map(Path::to_owned),
            ..Configs::default()
        },
        ..machine.config("a")
    }
}

fn receive(from: &mut impl Read, len: usize) -> String {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn shown(registry: &Registry, port: Option<usize>) -> String {
    let zone = registry.find("a").unwrap();
    let chunk = zone.console_of(port).unwrap().read(0, Duration::ZERO);
    String::from_utf8(chunk.map(|chunk| chunk.bytes).unwrap_or_default()).unwrap()
}

#[test]
fn a_pty_and_a_log_outlive_the_daemon() {
    let (machine, keeper, run_dir) = machine();
    let [log, uart] = ["log", "uart"].map(|name| machine.path(name));
    let console = ConsoleConfig {
        end: Some(End::Pty),
        log: Some(log.clone()),
    };
    let config = zone(&machine, vec![console], Some(&uart));
    machine.registry.start(config).unwrap();
    let device = machine.el2.device(1, 0).unwrap();
    assert_eq!((device.queues, machine.el2.device(1, 1).is_none()), (2, true));
    let mut driver = Driver::new(&machine);
    driver.print("nobody sees this\n");
    // The thread that writes has passed over it.
    let device = machine.registry.context().io.device(1, 0);
    let Some(crate::device::Device::Console(device)) = device else {
        panic!("no console device");
    };
    let sent = || device.ports()[0].memory().get(ringconsole::Word::Sent);
    until("output that is not sent", || sent() == 17);
    let name = link(run_dir.path(), "a", 0);
    let mut pty = File::options().read(true).write(true).open(&name).unwrap();
    // The guest reads, so the daemon knows of the program at the pty.
    pty.write_all(b"root\n").unwrap();
    assert_eq!(driver.read(5, 0), "root\n");
    driver.print("login: ");
    assert_eq!(receive(&mut pty, 7), "login: ");
    let size = Winsize {
        ws_col: 132,
        ws_row: 43,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&pty, size).unwrap();
    until("size", || {
        machine.el2.device(1, 0).unwrap().config[..4] == [132, 0, 43, 0]
    });
    machine.el2.guest_prints(1, "from the UART");
    until("log", || fs::read_to_string(&uart).unwrap() == "from the UART");
    until("log", || {
        fs::read_to_string(&log).unwrap() == "nobody sees this\nlogin: "
    });
    assert_eq!(shown(&machine.registry, Some(0)), "nobody sees this\nlogin: ");
    let error = machine.registry.find("a").unwrap().console_of(Some(1)).map(drop);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("no console 1: 1 are described")
    );

    // What is printed while there is no daemon comes from the next one, and nothing a second time.
    machine.registry.context().io.stop();
    driver.write(BUFFERS + 0x1_0000, b"welcome");
    driver.offer(1, 7, 0, driver.printed);
    let environment = Environment {
        consoles: keeper.clone(),
        ..Environment::default()
    };
    let next = daemon_with(&machine.el2, &machine.host, machine.path("records"), environment);
    assert_eq!(receive(&mut pty, 7), "welcome");
    until("log", || {
        fs::read_to_string(&log).unwrap() == "nobody sees this\nlogin: welcome"
    });
    until("output", || driver.used(1) == driver.printed + 1);
    assert_eq!(shown(&next, Some(0)), "nobody sees this\nlogin: welcome");
    assert_eq!(fs::read_to_string(&uart).unwrap(), "from the UART");
    next.execute("a", Command::Stop).unwrap();
    assert!(shown(&next, Some(0)).ends_with("welcome"));
    machine.assert_clean();
}

#[test]
fn a_socket_carries_one_connection_after_the_other() {
    let (machine, _keeper, run_dir) = machine();
    let path = run_dir.path().join("hvc1");
    let consoles = vec![
        ConsoleConfig::default(),
        ConsoleConfig {
            end: Some(End::Socket(path.clone())),
            log: None,
        },
    ];
    machine.registry.start(zone(&machine, consoles, None)).unwrap();
    let device = machine.el2.device(1, 0).unwrap();
    // MULTIPORT: queues of two ports, and the control queues.
    assert_eq!((device.queues, device.config[4]), (6, 2));
    let zone = machine.registry.find("a").unwrap();
    let console = zone.console_of(Some(1)).unwrap();
    for text in ["one", "two"] {
        let mut connection = UnixStream::connect(&path).unwrap();
        connection.write_all(text.as_bytes()).unwrap();
        let port = machine.registry.context().io.device(1, 0);
        let Some(crate::device::Device::Console(device)) = port else {
            panic!("no console device");
        };
        until("input", || {
            device.ports()[1].memory().get(ringconsole::Word::Typed) % 3 == 0
        });
        until("input", || {
            device.ports()[1].memory().get(ringconsole::Word::Typed) >= if text == "one" { 3 } else { 6 }
        });
    }
    assert!(console.resize(Size {
        columns: 80,
        rows: 24
    }));
    machine.registry.execute("a", Command::Stop).unwrap();
    assert!(!console.resize(Size {
        columns: 80,
        rows: 25
    }));
    machine.assert_clean();
}

/// What cannot be opened is an error that names key and value, and leaves nothing behind.
#[test]
fn ends_that_cannot_be_opened() {
    let (machine, _keeper, _run_dir) = machine();
    let taken = machine.path("taken");
    fs::write(&taken, "").unwrap();
    fs::create_dir(machine.path("directory")).unwrap();
    for (config, expected) in [
        (
            ConsoleConfig {
                end: Some(End::Socket(taken.clone())),
                log: None,
            },
            "z.toml: console[0].socket = \"",
        ),
        (
            ConsoleConfig {
                end: None,
                log: Some(machine.path("no/log")),
            },
            "z.toml: console[0].log = \"",
        ),
        (
            ConsoleConfig {
                end: None,
                log: Some(machine.path("directory")),
            },
            "z.toml: console[0].log = \"",
        ),
    ] {
        let started = machine.registry.start(zone(&machine, vec![config], None));
        let error = started.map(drop).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    // Who may write to the directory cannot have root append to another file.
    let [file, link, name] = ["file", "link", "name"].map(|name| machine.path(name));
    fs::write(&file, "kept").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    fs::hard_link(&file, &name).unwrap();
    for log in [link, name] {
        let started = machine.registry.start(zone(&machine, Vec::new(), Some(&log)));
        let error = started.map(drop).unwrap_err().to_string();
        assert!(error.starts_with("z.toml: console_log = \""), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    let log = machine.path("no/uart");
    let started = machine.registry.start(zone(&machine, Vec::new(), Some(&log)));
    let error = started.map(drop).unwrap_err().to_string();
    assert!(error.starts_with("z.toml: console_log = \""), "{error}");
    machine.assert_clean();
}

#[test]
fn a_guest_is_not_ended_for_a_log_or_a_terminal() {
    let (machine, _keeper, _run_dir) = machine();
    let logs = ["log", "uart"].map(|name| machine.path(name));
    let console = ConsoleConfig {
        end: Some(End::Pty),
        log: Some(logs[0].clone()),
    };
    machine
        .registry
        .start(zone(&machine, vec![console], Some(&logs[1])))
        .unwrap();
    let mut driver = Driver::new(&machine);
    machine.registry.context().io.stop();
    for log in &logs {
        fs::remove_file(log).unwrap();
        fs::create_dir(log).unwrap();
    }
    // By default nothing opens terminals.
    let environment = Environment::default();
    let next = daemon_with(&machine.el2, &machine.host, machine.path("records"), environment);
    driver.print("and on\n");
    until("output", || shown(&next, Some(0)) == "and on\n");
}
