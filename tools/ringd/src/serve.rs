//! `ringd serve`: a disk image, or a tap device of root, for the guests of another VMM, over vhost-user, on
//! any Linux. Knows nothing of EL2.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use ringblk::{Disk, DiskConfig, EngineKind, Format, HostCache, OpenContext, OpenOptions};
use ringnet::config::MTU_MAX;
use ringnet::{MacAddress, Net, NetConfig, Port, Tap};
use ringvhost::server::{MAX_QUEUES, Served, Server, ServerOptions};
use ringvirtio::ReactorOptions;
use tracing_subscriber::filter::LevelFilter;

/// How long an image is waited for that another program has locked: the I/O of a server that was just killed
/// may not have ended.
const IMAGE_WAIT: Duration = Duration::from_secs(10);

/// What is served.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub struct Device {
    /// Image file or block device; "null:64M" and "zero:64M" have no storage.
    #[arg(long, value_name = "IMAGE")]
    pub disk: Option<PathBuf>,
    /// Tap device, made if there is none: the guest's network.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["format", "readonly", "serial", "writeback"])]
    pub tap: Option<String>,
}

/// How it is served, and where.
#[derive(Args, Debug, Clone)]
pub struct ServeOptions {
    /// Listen at this socket. One front end is served at a time, the next waits.
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user: PathBuf,
    /// What is served.
    #[command(flatten)]
    pub device: Device,
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
/// What keeps the device from being served, for people.
pub fn run(options: &ServeOptions, level: LevelFilter) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
    let reactor = ReactorOptions {
        io_uring: !options.no_io_uring,
        ..ServerOptions::default().reactor
    };
    let queues = options.queues;
    match (&options.device.disk, &options.device.tap) {
        (Some(image), _) => serve(options, disk(options, image)?, ServerOptions { queues, reactor }),
        (None, Some(name)) => {
            let queues = (queues & !1).max(2);
            serve(options, tap(name, queues / 2)?, ServerOptions { queues, reactor })
        }
        (None, None) => bail!("nothing to serve: expected --disk or --tap"),
    }
}

fn serve<D: Served>(options: &ServeOptions, device: Arc<D>, how: ServerOptions) -> anyhow::Result<()> {
    let server = Server::bind(&options.vhost_user, device, how)?;
    let Device { disk, tap } = &options.device;
    tracing::info!(socket = %options.vhost_user.display(), ?disk, ?tap, "ready");
    match server.run().context("cannot serve any more")? {}
}

fn disk(options: &ServeOptions, image: &Path) -> anyhow::Result<Arc<Disk>> {
    let config = DiskConfig {
        path: image.to_owned(),
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
    Ok(Disk::open_with(&config, &OpenContext::default(), &wait)?)
}

/// Returns a network device with the queues of a tap behind it. Address and MTU are the front end's.
fn tap(name: &str, pairs: u16) -> anyhow::Result<Arc<Net>> {
    let opened = ringnet::tap::open(name, pairs).and_then(Tap::new);
    let tap = opened.with_context(|| format!("cannot open the tap {name}"))?;
    let config = NetConfig {
        name: name.into(),
        mac: MacAddress::derived(&[name]),
        mtu: MTU_MAX,
        pairs,
    };
    let net = Net::new(config, tap.offloads(), None);
    net.attach(Arc::new(tap))?;
    Ok(net)
}
