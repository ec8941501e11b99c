//! `ringd serve`: a disk image for the guests of another VMM, over vhost-user, on any Linux. Knows nothing of
//! EL2.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ringblk::{Disk, DiskConfig, EngineKind, Format, HostCache, OpenContext, OpenOptions};
use ringvhost::server::{MAX_QUEUES, Server, ServerOptions};
use ringvirtio::ReactorOptions;
use tracing_subscriber::filter::LevelFilter;

/// How long an image is waited for that another program has locked: the I/O of a server that was just killed
/// may not have ended.
const IMAGE_WAIT: Duration = Duration::from_secs(10);

/// What is served, and where.
#[derive(Args, Debug, Clone)]
pub struct ServeOptions {
    /// Listen at this socket. One front end is served at a time, the next waits.
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user: PathBuf,
    /// Image file or block device; "null:64M" and "zero:64M" have no storage.
    #[arg(long, value_name = "IMAGE")]
    pub disk: PathBuf,
    /// What the image is: raw or qcow2. It is never probed; without this, it is raw, and refused if it looks
    /// like another format.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,
    /// Refuse to write.
    #[arg(long)]
    pub readonly: bool,
    /// Up to 20 bytes that the guest can read.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub serial: String,
    /// Use the page cache instead of O_DIRECT.
    #[arg(long)]
    pub writeback: bool,
    /// Queues offered.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    pub queues: u16,
    /// Do without io_uring: use threads.
    #[arg(long)]
    pub no_io_uring: bool,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(format!("{other:?}, expected raw or qcow2")),
    }
}

/// Serves until a signal ends the process.
///
/// # Errors
/// What keeps the disk from being served, for people.
pub fn run(options: &ServeOptions, level: LevelFilter) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
    let config = DiskConfig {
        path: options.disk.clone(),
        readonly: options.readonly,
        serial: options.serial.clone(),
        engine: if options.no_io_uring {
            EngineKind::Threads
        } else {
            EngineKind::IoUring
        },
        format: options.format.unwrap_or_default(),
        cache: if options.writeback {
            HostCache::Writeback
        } else {
            HostCache::None
        },
    };
    let wait = OpenOptions {
        known: None,
        format_unstated: options.format.is_none(),
        owner: None,
        wait: IMAGE_WAIT,
    };
    let disk = Disk::open_with(&config, &OpenContext::default(), &wait)?;
    let reactor = ReactorOptions {
        io_uring: !options.no_io_uring,
        ..ServerOptions::default().reactor
    };
    let queues = options.queues;
    let server = Server::bind(&options.vhost_user, disk, ServerOptions { queues, reactor })?;
    tracing::info!(socket = %options.vhost_user.display(), disk = %options.disk.display(), "ready");
    match server.run().context("cannot serve any more")? {}
}
