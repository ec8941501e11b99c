//! The daemon's start: options, single instance, attaching to EL2, taking over, serving.
//!
//! Everything here and in [`crate::host`] happens once or when zones come and go; what runs for each request is the
//! reactor alone ([`crate::io`]), which needs no privileges.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use rustix::fs::FlockOperation;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::control::protocol::LogLevel;
use crate::control::server;
use crate::host::{Linux, ram};
use crate::hv::device;
use crate::io::Io;
use crate::stats::metrics;
use crate::zone::Context;
use crate::zone::registry::Registry;

/// Where the daemon's files are unless said otherwise.
pub const RUN_DIR: &str = "/run/ringd";
/// How long `--daemonize` waits for the daemon to answer.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The device behind the virtio disks of ringvisor's zones, and the keeper of the zones.
///
/// Runs in the root zone. Attaches to the hypervisor through its control device, serves the zones' disks and consoles,
/// and listens for `ringctl`. It may die at any time: zones go on, and the next daemon takes them over.
#[derive(Parser, Debug)]
#[command(name = "ringd", version)]
pub struct Options {
    /// Run in the background; returns when the daemon answers. The log goes to ringd.log in the run directory.
    #[arg(long)]
    pub daemonize: bool,
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
    /// Give counters to Prometheus at http://ADDRESS/metrics, for example 127.0.0.1:9100.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Started by `--daemonize`.
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Runs the daemon; returns only when it cannot, or after `--daemonize`.
///
/// # Errors
/// What keeps the daemon from running, for people.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let records = options.run_dir.join("zones");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&records);
    made.with_context(|| format!("cannot make {}", records.display()))?;
    if options.daemonize {
        return daemonize(options);
    }
    let set_log_level = start_log(options)?;
    let _lock = lock(&options.run_dir)?;
    if options.background {
        // A session of its own: the terminal it was started from may go.
        let _ = rustix::process::setsid();
    }

    let root = PathBuf::from("/");
    let host = Linux::new(root.clone()).context("no huge pages can be used")?;
    let shared = host
        .shared_page()
        .context("cannot get the page that is shared with EL2")?;
    let physical = |address| ram::physical(&root, address);
    let (el2, interrupt) =
        device::attach(&root, &shared, physical).context("cannot attach to the hypervisor")?;
    let hv: Arc<dyn crate::hv::Hypervisor> = Arc::new(el2);
    let reactor = ringblk::ReactorOptions {
        io_uring: !options.no_io_uring,
        ..Default::default()
    };
    let io = Io::start(hv.clone(), reactor).context("cannot start the reactor")?;
    let context = Context {
        hv,
        host: Arc::new(host),
        io: io.clone(),
        records,
        cpus: Mutex::new(()),
    };
    let registry = Arc::new(Registry::new(Arc::new(context)));
    registry.take_over();
    io.listen(interrupt);

    if let Some(address) = options.metrics {
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen for metrics at {address}"))?;
        let registry = registry.clone();
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || metrics::serve(&listener, &registry))
            .context("cannot start a thread for metrics")?;
    }
    let socket = options.run_dir.join("sock");
    let listener = server::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    tracing::info!(
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    server::serve(&listener, &registry, set_log_level);
    Ok(())
}

/// Starts logging; gives the way to change the level.
fn start_log(options: &Options) -> anyhow::Result<server::SetLogLevel> {
    let (filter, handle) = tracing_subscriber::reload::Layer::new(level_filter(options.log_level));
    let layer = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    match &options.log_file {
        None => registry.with(layer.with_writer(io::stderr)).init(),
        Some(path) => {
            let file = File::options().create(true).append(true).mode(0o600).open(path);
            let file = file.with_context(|| format!("cannot write the log {}", path.display()))?;
            registry.with(layer.with_writer(Arc::new(file))).init();
        }
    }
    Ok(Box::new(move |level| {
        let _ = handle.reload(level_filter(level));
    }))
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Holds the lock that makes this the only daemon, as long as the file lives.
///
/// # Errors
/// Another daemon runs; the message names its process.
pub fn lock(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        bail!(
            "ringd is running already as process {}; there can be only one",
            pid.trim()
        );
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Starts this program once more, in the background, and waits until it answers.
fn daemonize(options: &Options) -> anyhow::Result<()> {
    let default_log = options.run_dir.join("ringd.log");
    let log = options.log_file.as_ref().unwrap_or(&default_log);
    // For the message below, should it fail; the daemon itself reports through the same file.
    drop(lock(&options.run_dir)?);
    let before = fs::metadata(log).map_or(0, |log| log.len());
    let open = || File::options().create(true).append(true).mode(0o600).open(log);
    let output = open().with_context(|| format!("cannot write the log {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--background")
        .arg("--run-dir")
        .arg(&options.run_dir)
        .arg("--log-file")
        .arg(log);
    command
        .arg("--log-level")
        .arg(format!("{:?}", options.log_level).to_lowercase());
    if options.no_io_uring {
        command.arg("--no-io-uring");
    }
    if let Some(address) = options.metrics {
        command.arg("--metrics").arg(address.to_string());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .current_dir("/")
        .spawn()
        .context("cannot start ringd in the background")?;
    let socket = options.run_dir.join("sock");
    let deadline = Instant::now() + START_PATIENCE;
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
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_by_the_first_ones_number() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        let message = lock(directory.path()).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "ringd is running already as process {}; there can be only one",
                std::process::id()
            )
        );
        drop(first);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
