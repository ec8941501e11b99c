//! The daemon's start: options and the processes that it consists of.
//!
//! | process | started as | does |
//! |---|---|---|
//! | supervisor | `ringd --supervise` | starts the daemon again whenever it ends ([`crate::supervise`]) |
//! | broker | `ringd` | takes the run lock, keeps root's rights for the worker ([`crate::broker`]) |
//! | worker | `ringd --worker`, by the broker | everything else; here |
//! | keeper | `ringd --keep-ports`, by the broker | keeps the ports of network devices ([`crate::ports`]) |
//!
//! The broker attaches to EL2; the worker maps what it serves zones with as root, then drops its privileges
//! ([`crate::sandbox`]), and only after that looks at anything that a guest or a client wrote. The supervisor
//! keeps a second broker and worker, which have done all that can be done while another daemon runs: the next
//! one ([`supervise::standby`]).

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use parking_lot::Mutex;

use crate::broker::{self, Broker, BrokerEnd};
use crate::control::protocol::LogLevel;
use crate::control::server;
use crate::device::Environment;
use crate::host::Linux;
use crate::hv::Interrupt;
use crate::hv::device::{self, ControlDevice};
use crate::hv::pci;
use crate::instance::{self, State};
use crate::io::Io;
use crate::stats::metrics;
use crate::zone::Context;
use crate::zone::registry::{Registry, Upgrade};
use crate::{log, ports, sandbox, serve, signals, supervise, upgrade};

/// The default directory of the daemon's files.
pub const RUN_DIR: &str = "/run/ringd";
/// Queues of remote disks that are kicked without a thread.
const REMOTE_QUEUES: usize = 64;
/// How long the reactor busy-polls by default, in microseconds.
const POLL: u32 = ringvirtio::ReactorOptions::POLL.as_micros() as u32;
/// How long `--daemonize` waits for the daemon to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a daemon that is replaced waits for requests in flight to complete.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs ringvisor's zones and is the device behind their virtio transports.
///
/// Runs in the root zone. Attaches to the hypervisor through its control device, serves the zones' devices
/// and consoles, and listens for `ringctl`. It may die at any time: zones continue, and the next daemon takes
/// them over.
#[derive(Parser, Debug, Clone)]
#[command(name = "ringd", version)]
pub struct Options {
    /// Run in the background; returns when the daemon answers. The log goes to ringd.log in the run
    /// directory.
    #[arg(long)]
    pub daemonize: bool,
    /// Start the daemon again whenever it ends, until a signal that ends programs comes.
    #[arg(long)]
    pub supervise: bool,
    /// Directory for socket, lock and state.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, env = "RINGD_RUN_DIR")]
    pub run_dir: PathBuf,
    /// What to log.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_enum)]
    pub log_level: LogLevel,
    /// Append the log to a file instead of standard error.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Do without io_uring: all disks use threads.
    #[arg(long)]
    pub no_io_uring: bool,
    /// For how many microseconds to busy-poll for requests, at most, before going to sleep; 0: not at all.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = POLL, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub poll: u32,
    /// Give counters to Prometheus at http://ADDRESS/metrics, for example 127.0.0.1:9100.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// User and group that the daemon becomes once it is set up; needs no entry in /etc/passwd.
    #[arg(long, value_name = "ID", default_value_t = 7276)]
    pub user: u32,
    /// Keep root's privileges and all system calls, to debug the daemon itself.
    #[arg(long)]
    pub no_sandbox: bool,
    /// Started by `--daemonize`.
    #[arg(long, hide = true)]
    pub background: bool,
    /// Started by the broker.
    #[arg(long, hide = true)]
    pub worker: bool,
    /// Started by the supervisor, to wait until the daemon that runs has died.
    #[arg(long, hide = true)]
    pub standby: bool,
    /// Started by the broker, to keep the ports of network devices.
    #[arg(long, hide = true)]
    pub keep_ports: bool,
    /// Says whether this program can take over from a daemon that runs, with EL2's version of the interface.
    #[arg(long, hide = true, value_name = "ABI")]
    pub check_takeover: Option<u32>,
    /// End with status 0 if this Linux runs as ringvisor's root zone, else with 1.
    #[arg(long)]
    pub check_hypervisor: bool,
    /// What else the program does.
    #[command(subcommand)]
    pub command: Option<Subcommand>,
}

/// Other commands of `ringd`.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum Subcommand {
    /// Serve a disk image to QEMU or another VMM over vhost-user, on any Linux.
    Serve(serve::ServeOptions),
}

impl Options {
    /// Returns the options as arguments, after those of the process's role, without those that choose the
    /// process.
    fn arguments(&self, role: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = role.iter().map(|&option| option.into()).collect();
        let mut add = |option: &str, value: &str| arguments.extend([option.into(), value.into()]);
        add("--run-dir", &self.run_dir.display().to_string());
        add("--log-level", &format!("{:?}", self.log_level).to_lowercase());
        add("--user", &self.user.to_string());
        add("--poll", &self.poll.to_string());
        if let Some(file) = &self.log_file {
            add("--log-file", &file.display().to_string());
        }
        if let Some(address) = self.metrics {
            add("--metrics", &address.to_string());
        }
        for (option, given) in [
            ("--no-io-uring", self.no_io_uring),
            ("--no-sandbox", self.no_sandbox),
        ] {
            if given {
                arguments.push(option.into());
            }
        }
        arguments
    }
}

/// Runs the daemon; returns only when it cannot, or after `--daemonize`.
///
/// # Errors
/// What keeps the daemon from running, for people.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(abi) = options.check_takeover {
        upgrade::check(&options.run_dir, abi)?;
        println!("{}", upgrade::CAN);
        return Ok(());
    }
    if options.check_hypervisor {
        return pci::find(Path::new("/")).map(drop);
    }
    if let Some(Subcommand::Serve(what)) = &options.command {
        return serve::run(what, log::level_filter(options.log_level));
    }
    // The name that `instance` and administrators look for, whatever the file is called.
    let _ = rustix::thread::set_name(c"ringd");
    // Stacks of 2 MiB, of which threads use some KiB, would be a huge page each. Inherited by all processes.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    if !options.supervise && !options.keep_ports {
        signals::Signals::unblock(&signals::ENDING).context("cannot unblock signals")?;
        signals::Signals::unblock(&[libc::SIGABRT]).context("cannot unblock SIGABRT")?;
    }
    if options.worker {
        return worker(options);
    }
    if options.keep_ports {
        drop(log::start(options.log_level, options.log_file.as_deref())?);
        return ports::keeper::run(&options.run_dir);
    }
    let records = options.run_dir.join("zones");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&records);
    made.with_context(|| format!("cannot make {}", records.display()))?;
    if options.daemonize {
        return daemonize(options);
    }
    if options.background {
        // A session of its own: the terminal it was started from may be closed.
        let _ = rustix::process::setsid();
    }
    drop(log::start(options.log_level, options.log_file.as_deref())?);
    spare_when_memory_is_short(Path::new("/proc/self/oom_score_adj"));
    if options.supervise {
        return supervise::run(&options.run_dir, &options.arguments(&[]));
    }
    broker(options)
}

/// Images in memory are mapped and count as the worker's own, so that it would be among the first to be
/// killed where root's memory is short, again and again: its end frees none of them. What an administrator
/// has set stays; processes inherit it.
fn spare_when_memory_is_short(score: &Path) {
    let unset = fs::read_to_string(score).is_ok_and(|set| set.trim() == "0");
    if unset && let Err(error) = fs::write(score, "-900\n") {
        tracing::debug!(%error, "cannot change how likely the daemon is killed where memory is short");
    }
}

/// The privileged half: starts the worker and serves it.
fn broker(options: &Options) -> anyhow::Result<()> {
    let broker = Broker::new(&options.run_dir, options.arguments(&[]))?;
    let arguments = options.arguments(&["--worker"]);
    let (lock, worker) = if options.standby {
        let worker = broker.start(&arguments)?;
        if !worker.wait_for_turn()? {
            return Ok(());
        }
        (instance::take_lock(&options.run_dir)?, worker)
    } else {
        let lock = instance::take_lock(&options.run_dir)?;
        (lock, broker.start(&arguments)?)
    };
    State::new(&options.run_dir)
        .context("cannot write into the run directory")?
        .set("starting");
    match broker.run(worker, &lock)? {
        BrokerEnd::Ended(why) => bail!("the worker {why}"),
        BrokerEnd::Upgrade(program) => {
            tracing::info!(program = %program.display(), "another program takes over");
            // The supervisor starts it, too, should it have to.
            fs::write(
                supervise::program_file(&options.run_dir),
                program.display().to_string(),
            )?;
            drop(lock);
            let error = Command::new(&program).args(options.arguments(&[])).exec();
            Err(error).with_context(|| format!("cannot run {}", program.display()))
        }
    }
}

/// The unprivileged half, restricted, before it has read anything that a guest or a client wrote.
pub struct Worker {
    /// The connection to the broker.
    pub broker: Arc<broker::client::Client>,
    /// EL2's serving page.
    pub el2: ControlDevice,
    interrupt: Interrupt,
    reactor: (ringvirtio::Reactor, ringvirtio::ReactorHandle),
    environment: Environment,
    records: PathBuf,
    state: Arc<State>,
    socket: PathBuf,
    listener: OwnedFd,
    metrics: Option<TcpListener>,
    set_log_level: server::SetLogLevel,
    /// Held as long as this process lives.
    _lock: Option<File>,
}

/// Prepares the unprivileged half and restricts it. Before the broker's greeting it does nothing that affects
/// another daemon that runs. Returns `None` if the broker has ended, and has logged why if that is an error.
///
/// # Errors
/// What keeps it from serving, for people.
pub fn restricted_worker(options: &Options) -> anyhow::Result<Option<Worker>> {
    let parent = rustix::process::getppid();
    let set_log_level = log::start(options.log_level, options.log_file.as_deref())?;

    // As root: what is opened once.
    let root = PathBuf::from("/");
    let shared = Linux::new(root.clone())
        .context("no huge pages can be used")?
        .shared_page()
        .context("cannot get the page that is shared with EL2")?;
    let prepared = device::prepare(&root, &shared).context("cannot map the control device")?;
    let filter = sandbox::Filter::new().context("cannot restrict system calls")?;
    let records = options.run_dir.join("zones");
    let paths = sandbox::Paths::new(&records).context("cannot restrict what is reached by name")?;
    // The filter allows no more rings.
    let reactor = ringvirtio::Reactor::new(ringvirtio::ReactorOptions {
        io_uring: !options.no_io_uring,
        poll: Duration::from_micros(options.poll.into()),
        ..Default::default()
    });
    let reactor = reactor.context("cannot make the reactor")?;
    if !options.no_io_uring && !options.no_sandbox {
        ringvhost::front::reserve_rings(REMOTE_QUEUES);
    }

    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (broker, _lock) = match broker::client::Client::new(socket) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        greeted => greeted.context("the broker does not answer")?,
    };
    let broker = Arc::new(broker);
    let state = Arc::new(State::new(&options.run_dir).context("cannot write into the run directory")?);
    let (el2, interrupt) = prepared.attached(broker.clone());
    let socket = options.run_dir.join("sock");
    let listener =
        server::reserve(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let metrics = match options.metrics {
        None => None,
        Some(address) => {
            let listener = TcpListener::bind(address);
            Some(listener.with_context(|| format!("cannot listen for metrics at {address}"))?)
        }
    };
    let mut environment = Environment {
        ports: broker.clone(),
        consoles: broker.clone(),
        ..Environment::default()
    };
    if !options.no_sandbox {
        // May be traversed, not listed.
        fs::set_permissions(&options.run_dir, fs::Permissions::from_mode(0o711))?;
        sandbox::hand_over(&records, options.user).context("cannot hand the records over")?;
        sandbox::drop_privileges(options.user).context("cannot drop privileges")?;
        environment.disk.opener = broker.clone();
    }
    // Without the broker no zone could be ended. Not before: a change of identity clears it. Not later: the
    // filter does not allow to change it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != parent {
        bail!("the broker has ended");
    }
    if !options.no_sandbox {
        paths
            .restrict()
            .context("cannot restrict what is reached by name")?;
        filter.restrict().context("cannot restrict system calls")?;
    }
    Ok(Some(Worker {
        broker,
        el2,
        interrupt,
        reactor,
        environment,
        records,
        state,
        socket,
        listener,
        metrics,
        set_log_level,
        _lock,
    }))
}

/// The unprivileged half.
fn worker(options: &Options) -> anyhow::Result<()> {
    let Some(mut worker) = restricted_worker(options)? else {
        return Ok(());
    };
    let servers = worker.broker.clone();
    let connect: ringvhost::front::ConnectFn = Arc::new(move |path: &std::path::Path| servers.connect(path));
    let driver = ringvhost::front::Driver::new(connect).with_io_uring(!options.no_io_uring);
    worker.environment.disk.connector = Some(Arc::new(driver));

    // From here on without privileges.
    tracing::debug!("restricted");
    let hv: Arc<dyn crate::hv::Hypervisor> = Arc::new(worker.el2);
    let io = Io::run(hv.clone(), worker.reactor).context("cannot start the reactor")?;
    tracing::debug!("the reactor runs");
    let context = Context {
        hv,
        host: worker.broker.clone(),
        io: io.clone(),
        environment: worker.environment,
        records: worker.records,
        cpus: Mutex::default(),
    };
    let registry = Arc::new(Registry::new(Arc::new(context)));
    registry.allow_upgrades(Box::new(Leave {
        broker: worker.broker,
        io: io.clone(),
    }));
    worker.state.set("taking over");
    let say = worker.state.clone();
    registry.take_over_saying(&(Arc::new(move |text: &str| say.set(text)) as _));
    io.listen(worker.interrupt);
    if let Some(listener) = worker.metrics {
        let registry = registry.clone();
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || metrics::serve(&listener, &registry))
            .context("cannot start a thread for metrics")?;
    }
    let listener = server::listen(worker.listener)
        .with_context(|| format!("cannot listen at {}", worker.socket.display()))?;
    worker.state.set(instance::READY);
    tracing::info!(
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        user = rustix::process::getuid().as_raw(),
        "ready"
    );
    server::serve(&listener, &registry, worker.set_log_level);
    Ok(())
}

/// How the worker lets another program take over.
struct Leave {
    broker: Arc<broker::client::Client>,
    io: Arc<Io>,
}

impl Upgrade for Leave {
    fn ask(&self, program: Option<PathBuf>, abi: u32) -> io::Result<()> {
        self.broker.upgrade(program, abi)
    }

    /// Nothing more is popped from the queues. What is in flight may complete, but need not: the next daemon
    /// continues from the in-flight log either way.
    fn leave(&self) {
        tracing::info!("another program takes over");
        let io = self.io.clone();
        let quiesced = std::thread::Builder::new()
            .name("leave".into())
            .spawn(move || io.stop());
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while quiesced.as_ref().is_ok_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::process::exit(broker::STATUS_UPGRADE)
    }
}

/// Starts this program once more, in the background, and waits until it answers.
fn daemonize(options: &Options) -> anyhow::Result<()> {
    let default_log = options.run_dir.join("ringd.log");
    let log: &PathBuf = options.log_file.as_ref().unwrap_or(&default_log);
    // For the message below, should it fail; the daemon itself reports through the same file.
    drop(instance::take_lock(&options.run_dir)?);
    let before = fs::metadata(log).map_or(0, |log| log.len());
    let open = || {
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(log)
    };
    let output = open().with_context(|| format!("cannot write the log {}", log.display()))?;
    let mut role = vec!["--background"];
    if options.supervise {
        role.push("--supervise");
    }
    let options = Options {
        log_file: Some(log.clone()),
        ..options.clone()
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(options.arguments(&role));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .current_dir("/")
        .spawn()
        .context("cannot start ringd in the background")?;
    let socket = options.run_dir.join("sock");
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if UnixStream::connect(&socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            let text = fs::read(log).unwrap_or_default();
            let from = usize::try_from(before).unwrap_or(0);
            let said = String::from_utf8_lossy(text.get(from..).unwrap_or_default())
                .trim()
                .to_owned();
            bail!("ringd ended at once ({status}):\n{said}");
        }
        if Instant::now() > deadline {
            bail!("ringd does not answer; see {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Options, spare_when_memory_is_short};
    use crate::control::protocol::LogLevel;

    #[test]
    fn an_administrators_setting_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (before, after) in [("0\n", "-900\n"), ("-1000\n", "-1000\n"), ("300\n", "300\n")] {
            fs::write(&file, before).unwrap();
            spare_when_memory_is_short(file.path());
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
        // No file, no harm.
        spare_when_memory_is_short(Path::new("/nowhere"));
    }

    #[test]
    fn options_survive_being_passed_on() {
        let line = [
            "ringd",
            "--run-dir",
            "/r",
            "--log-level",
            "debug",
            "--user",
            "5",
            "--poll",
            "7",
            "--log-file",
            "/l",
            "--metrics",
            "127.0.0.1:9",
            "--no-io-uring",
        ];
        let options = Options::parse_from(line);
        let again = Options::parse_from(
            ["ringd".to_owned()]
                .into_iter()
                .chain(options.arguments(&["--worker"])),
        );
        assert!(again.worker && again.no_io_uring && !again.no_sandbox);
        assert_eq!((again.user, again.run_dir), (5, PathBuf::from("/r")));
        assert_eq!(again.log_level, LogLevel::Debug);
        assert_eq!((again.poll, again.log_file), (7, Some(PathBuf::from("/l"))));
        assert_eq!(again.metrics, options.metrics);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }
}
