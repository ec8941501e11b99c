//! The daemon's side of connections: a thread for each, none of which the reactor waits for.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use ringvisor::abi::info::{InfoPage, OWNER_NONE};
use ringvisor::abi::{ROOT_ZONE, ZoneState};
use rustix::net;
use serde::Serialize;
use zerocopy::IntoBytes;

use super::protocol::{
    CpuReport, Frame, InfoReport, LogLevel, LogTarget, MAX_LINE, Reply, Request, Response,
};
use crate::console::Console;
use crate::device::api;
use crate::device::net::report::NetReport;
use crate::hv::{self, Hypervisor};
use crate::regular;
use crate::stats;
use crate::trace::record::Recorder;
use crate::zone::actor::Command;
use crate::zone::observe;
use crate::zone::registry::{NoSuchZone, Registry};

/// How often a console without output checks whether its reader is still connected.
const CONSOLE_POLL: Duration = Duration::from_millis(200);
/// How long to wait for room in a zone's console input.
const INPUT_POLL: Duration = Duration::from_millis(5);

/// How often the trace buffers are emptied: they hold more than is written meanwhile.
const TRACE_POLL: Duration = Duration::from_millis(20);
/// Longest trace.
const MAX_TRACE: Duration = Duration::from_secs(600);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Changes the daemon's own log level.
pub type SetLogLevel = Box<dyn Fn(LogLevel) + Send + Sync>;

/// Makes the socket; only its owner may connect.
///
/// # Errors
/// The system refused.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    listen(reserve(path)?)
}

/// Makes the socket but does not listen yet: connections are refused.
///
/// # Errors
/// The system refused.
pub fn reserve(path: &Path) -> io::Result<OwnedFd> {
    regular::remove(path)?;
    bind_for_owner(path)
}

/// Makes a socket that only its owner may connect to, at a path at which there is nothing.
///
/// # Errors
/// The system refused.
pub fn bind_for_owner(path: &Path) -> io::Result<OwnedFd> {
    let socket = net::socket_with(
        net::AddressFamily::UNIX,
        net::SocketType::STREAM,
        net::SocketFlags::CLOEXEC,
        None,
    )?;
    // Linux gives the file that bind(2) makes the socket's mode. Not by the path afterwards, which may be
    // another file's then.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &net::SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens at a socket that was reserved.
///
/// # Errors
/// The system refused.
pub fn listen(socket: OwnedFd) -> io::Result<UnixListener> {
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Serves connections until the process ends.
pub fn serve(listener: &UnixListener, registry: &Arc<Registry>, set_log_level: SetLogLevel) {
    let set_log_level = Arc::new(set_log_level);
    let mut failing = false;
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => {
                failing = false;
                stream
            }
            Err(error) => {
                // Probably no descriptors are left: some connection has to end first.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept a connection; trying again ten times a second");
                }
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (registry, set_log_level) = (registry.clone(), set_log_level.clone());
        let thread = std::thread::Builder::new().name("client".into()).spawn(move || {
            if let Err(error) = converse(&stream, &registry, &set_log_level) {
                tracing::debug!(%error, "connection ended");
            }
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "cannot start a thread for a connection");
        }
    }
}

fn converse(stream: &UnixStream, registry: &Arc<Registry>, set_log_level: &SetLogLevel) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request = match serde_json::from_str::<Request>(&line) {
            Ok(request) => request,
            Err(error) => {
                respond(stream, Err(anyhow!("not a request: {error}")))?;
                return Ok(());
            }
        };
        tracing::debug!(?request, "request");
        if let Request::Console {
            name,
            follow,
            from,
            port,
        } = request
        {
            let found = registry
                .find(&name)
                .and_then(|zone| zone.console_of(port).cloned());
            return match found {
                Ok(found) => {
                    respond(stream, Ok(Reply::Done))?;
                    console(stream, reader, &found, registry, Output { follow, from })
                }
                Err(error) => respond(stream, Err(error)),
            };
        }
        if let Request::Trace { milliseconds } = request {
            return trace(stream, registry, Duration::from_millis(milliseconds));
        }
        if let Request::Upgrade { program } = request {
            match registry.upgrade(program) {
                Ok(upgrade) => {
                    respond(stream, Ok(Reply::Done))?;
                    upgrade.leave();
                }
                Err(error) => respond(stream, Err(error))?,
            }
            continue;
        }
        respond(stream, answer(request, registry, set_log_level))?;
    }
}

/// Records a trace and sends it.
fn trace(stream: &UnixStream, registry: &Registry, time: Duration) -> io::Result<()> {
    if time > MAX_TRACE {
        let most = MAX_TRACE.as_secs();
        return respond(stream, Err(anyhow!("a trace lasts at most {most} s")));
    }
    let mut recorder = match Recorder::start(registry.context().hv.clone()) {
        Ok(recorder) => recorder,
        Err(error) => return respond(stream, Err(error)),
    };
    respond(stream, Ok(Reply::Trace(recorder.about())))?;
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(TRACE_POLL));
        let ended = left.is_zero();
        if ended {
            recorder.stop();
        }
        let mut chunk = recorder.take();
        chunk.end = ended;
        // A client that has disconnected ends the recording.
        send(stream, &chunk)?;
        if ended {
            return Ok(());
        }
    }
}

fn respond(stream: &UnixStream, answer: anyhow::Result<Reply>) -> io::Result<()> {
    let response = match answer {
        Ok(reply) => Response::Ok(reply),
        Err(error) if error.is::<NoSuchZone>() => Response::NoSuchZone(error.to_string()),
        Err(error) => Response::Error(error.to_string()),
    };
    send(stream, &response)
}

/// Sends a line of JSON.
fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer(request: Request, registry: &Registry, set_log_level: &SetLogLevel) -> anyhow::Result<Reply> {
    let execute = |name: &str, command| registry.execute(name, command).map(|_| Reply::Done);
    match request {
        Request::Start { config } => Ok(Reply::Zone(registry.start(*config)?.status())),
        Request::Stop { name } => execute(&name, Command::Stop),
        Request::Pause { name } => execute(&name, Command::Pause),
        Request::Resume { name } => execute(&name, Command::Resume),
        Request::PowerKey { name } => registry.press_power_key(&name).map(|()| Reply::Done),
        Request::StartAgain { name } => Ok(Reply::Zone(registry.start_again(&name)?.status())),
        Request::Wait { name } => Ok(Reply::Ended(registry.find(&name)?.wait())),
        Request::List {} => Ok(Reply::Zones(registry.list())),
        Request::Config { name } => Ok(Reply::Config(Box::new((*registry.find(&name)?.config).clone()))),
        Request::Device(request) => device(registry, request),
        Request::Stats {} => Ok(Reply::Stats(Box::new(stats::collect(registry)))),
        Request::Info {} => Ok(Reply::Info(info(&registry.context().hv.info()))),
        Request::ConsoleSize {
            name,
            port,
            columns,
            rows,
        } => {
            let zone = registry.find(&name)?;
            // A zone that has ended sees no size.
            zone.console_of(Some(port))?
                .resize(ringconsole::Size { columns, rows });
            Ok(Reply::Done)
        }
        Request::Log {} => {
            let log = registry.context().hv.log();
            Ok(Reply::Log(log.ok_or_else(|| anyhow!("EL2 has no log"))?))
        }
        Request::LogLevel { target, level } => {
            match target {
                LogTarget::Ringd => set_log_level(level),
                LogTarget::El2 => registry.context().el2().log_level(level as u32 + 1)?,
            }
            Ok(Reply::Done)
        }
        Request::Console { .. } | Request::Trace { .. } | Request::Upgrade { .. } => {
            bail!("this needs a connection of its own")
        }
    }
}

/// Does what a request about devices asks for; after a change, the reply shows the device.
fn device(registry: &Registry, request: api::Request) -> anyhow::Result<Reply> {
    let api::ChangeRequest { name, change } = match request {
        api::Request::Disks {} => return Ok(Reply::Device(api::Reply::disks(&observe::devices(registry)))),
        api::Request::Nets {} => {
            let nets = NetReport::all(&observe::devices(registry));
            return Ok(Reply::Device(api::Reply::Nets(nets)));
        }
        api::Request::Change(request) => request,
    };
    let removes = change.removes();
    let slot = registry.execute(&name, Command::Change(change))?;
    let found = observe::devices(registry)
        .into_iter()
        .find(|device| !removes && device.zone == name && Some(device.slot) == slot);
    let shown = found.as_ref().and_then(api::Reply::changed);
    Ok(shown.map_or(Reply::Done, Reply::Device))
}

fn info(page: &InfoPage) -> InfoReport {
    let count = usize::try_from(page.cpu_count).unwrap_or(0);
    let zones = (0_u8..).zip(&page.zones);
    InfoReport {
        el2_version: hv::text(&page.version),
        ringd_version: env!("CARGO_PKG_VERSION").into(),
        ringd_pid: std::process::id(),
        abi_version: page.abi_version,
        pages_total: page.pages_total,
        pages_used: page.pages_used,
        heap_total: page.heap_total,
        heap_used: page.heap_used,
        attaches: page.attach_epoch,
        bells: page.event_interrupts,
        log_level: page.log_level,
        zones: zones
            .filter(|(n, zone)| *n != ROOT_ZONE && zone.state != ZoneState::None as u8)
            .count(),
        cpus: page.cpus.iter().take(count).map(cpu).collect(),
    }
}

fn cpu(cpu: &ringvisor::abi::info::CpuInfo) -> CpuReport {
    let state = match cpu.running {
        0 => "parked",
        1 => "running",
        2 => "dead",
        _ => "unknown",
    };
    let zone = (cpu.owner != OWNER_NONE).then_some(cpu.owner);
    CpuReport {
        mpidr: cpu.mpidr,
        zone,
        vcpu: cpu.vcpu,
        state: state.into(),
    }
}

/// What of a console's output is requested.
#[derive(Clone, Copy)]
struct Output {
    follow: bool,
    from: Option<u64>,
}

/// Carries a console's bytes: output from a thread of its own, input here, until either side ends.
fn console(
    stream: &UnixStream,
    mut reader: BufReader<&UnixStream>,
    console: &Arc<Console>,
    registry: &Registry,
    wanted: Output,
) -> io::Result<()> {
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let output = scope.spawn(|| {
            let result = send_output(stream, console, &gone, wanted);
            // Ends the read below, too.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            result
        });
        let input = take_input(&mut reader, console, registry.context().el2(), &gone);
        gone.store(true, Ordering::Relaxed);
        let output = output.join().unwrap_or(Ok(()));
        input.and(output)
    })
}

fn send_output(
    mut stream: &UnixStream,
    console: &Console,
    gone: &AtomicBool,
    wanted: Output,
) -> io::Result<()> {
    let mut send = |position: u64, bytes: &[u8]| {
        if wanted.from.is_some() {
            let frame = Frame {
                seen: console.guest_position(position).into(),
                len: u32::try_from(bytes.len()).map_err(io::Error::other)?.into(),
            };
            stream.write_all(frame.as_bytes())?;
        }
        stream.write_all(bytes)
    };
    let start = wanted.from.map(|guest| console.position_of(guest));
    let mut position = start.unwrap_or_else(|| console.start());
    let timeout = if wanted.follow {
        CONSOLE_POLL
    } else {
        Duration::ZERO
    };
    while !gone.load(Ordering::Relaxed) {
        let Some(chunk) = console.read(position, timeout) else {
            return send(position, b"");
        };
        if chunk.skipped > 0 {
            let skipped = chunk.skipped;
            let note = format!("\r\n[ringd: this reader was too slow for {skipped} bytes]\r\n");
            send(position, note.as_bytes())?;
        }
        if !chunk.bytes.is_empty() {
            send(chunk.next, &chunk.bytes)?;
        } else if !wanted.follow {
            return Ok(());
        }
        position = chunk.next;
    }
    Ok(())
}

fn take_input(
    reader: &mut BufReader<&UnixStream>,
    console: &Console,
    el2: &dyn Hypervisor,
    gone: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let count = reader.read(&mut buffer)?;
        let mut rest = buffer.get(..count).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() && !gone.load(Ordering::Relaxed) {
            // Input for a zone that has ended is dropped.
            let Some(taken) = console.type_in(el2, rest) else {
                break;
            };
            rest = rest.get(taken..).unwrap_or_default();
            if taken == 0 {
                std::thread::sleep(INPUT_POLL);
            }
        }
    }
}
