//! The thread of one zone, from its start to its end.
//!
//! It alone sends the zone's commands to EL2. It receives [`Message`]s: EL2's zone events, by way of the
//! reactor, and users' commands. An event only says that something has changed; the state is then read from
//! EL2, so a lost or doubled event does no harm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ringvisor::abi::command::{CommandStatus, ZoneInfo};
use ringvisor::abi::{StopReason, ZoneState};

use super::ended::Ended;
use super::load::{self, BootFiles, Entry};
use super::record::Record;
use super::resources::Resources;
use super::shared::{Ending, Phase, Shared};
use super::{Context, cpus};
use crate::config::{OnCrash, OnReboot};
use crate::device::Change;
use crate::device::context::Wake;
use crate::hv::Refusal;
use crate::limits;

/// How long EL2 may take to get all vCPUs out of the guest.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the state is read during a wait, in case an event is lost.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a guest has run that is started again as if for the first time.
const STEADY: Duration = Duration::from_secs(60);
/// Reboots in a row, each within [`STEADY`] of the last start, that are not delayed.
const FREE_REBOOTS: u32 = 5;
/// First delay before a zone is started again, doubled each time: a guest that restarts in a loop would keep
/// root busy with its files and its memory.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Decides how long to wait before a zone is started again.
#[derive(Debug, Default)]
struct BackOff {
    /// Restarts in a row.
    quick: u32,
}

impl BackOff {
    /// Returns the delay after a guest that ran this long and has rebooted or crashed.
    fn after(&mut self, ran: Duration, crashed: bool) -> Duration {
        if ran >= STEADY {
            self.quick = 0;
        }
        let free = if crashed { 0 } else { FREE_REBOOTS };
        let delay = self.quick.checked_sub(free).map_or(Duration::ZERO, |delayed| {
            FIRST_DELAY
                .saturating_mul(1 << delayed.min(16))
                .min(LONGEST_DELAY)
        });
        self.quick = self.quick.saturating_add(1);
        delay
    }
}

/// What the thread receives.
pub enum Message {
    /// EL2's state of the zone, or something about its devices, has changed.
    Changed,
    /// A user's command, and where to send the result.
    Command(Command, Sender<CommandResult>),
}

/// The slot, if a command was about a device; or why it failed.
pub type CommandResult = anyhow::Result<Option<u8>>;

/// A user's command for a zone that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// End it.
    Stop,
    /// Pause its vCPUs.
    Pause,
    /// Resume its vCPUs.
    Resume,
    /// Press or release its power key.
    PowerKey {
        /// Press it.
        pressed: bool,
    },
    /// Change a device.
    Change(Change),
}

/// The thread's own state.
struct Actor {
    context: Arc<Context>,
    shared: Arc<Shared>,
    resources: Resources,
    number: u8,
    inbox: Receiver<Message>,
    /// Commands that came during a wait.
    later: VecDeque<(Command, Sender<CommandResult>)>,
    /// When the guest was last started, or taken over.
    started: Instant,
    back_off: BackOff,
}

/// Whether the thread continues.
enum Next {
    Continue,
    End(Ending),
}

fn wake(outbox: &Sender<Message>) -> Wake {
    let outbox = outbox.clone();
    Arc::new(move || {
        let _ = outbox.send(Message::Changed);
    })
}

/// Starts a zone on a thread of its own; returns the way to send it messages once the zone runs.
///
/// # Errors
/// The zone cannot be started; nothing of it is left.
pub fn start(context: &Arc<Context>, shared: &Arc<Shared>) -> anyhow::Result<Sender<Message>> {
    let (outbox, inbox) = channel();
    let (mut resources, entry) = Resources::acquire(context, shared, wake(&outbox))?;
    resources.start_devices(wake(&outbox));
    let actor = Actor::new(context, shared, resources, inbox);
    actor.spawn(|actor| actor.launch(entry))?;
    Ok(outbox)
}

/// Continues a zone that an earlier daemon started.
///
/// # Errors
/// It cannot continue and has been ended.
pub fn take_over(
    context: &Arc<Context>,
    shared: &Arc<Shared>,
    record: Record,
    number: u8,
    say: &dyn Fn(&str),
) -> anyhow::Result<Sender<Message>> {
    let (outbox, inbox) = channel();
    let record = Record {
        number: Some(number),
        ..record
    };
    let restarts = record.starts.saturating_sub(1);
    // The record has only those that are brought back.
    let cpus = cpus::held(context, number).unwrap_or_else(|_| record.cpus.clone());
    shared.update(|status| (status.number, status.cpus, status.restarts) = (Some(number), cpus, restarts));
    match Resources::take_over(context, shared, record, number, wake(&outbox), say) {
        Ok(mut resources) => {
            resources.start_devices(wake(&outbox));
            shared.update(|status| status.state = Phase::Running);
            Actor::new(context, shared, resources, inbox).spawn(|_| Ok(()))?;
            Ok(outbox)
        }
        Err(failed) => {
            let (resources, error) = *failed;
            let mut actor = Actor::new(context, shared, resources, inbox);
            let _ = actor.stop();
            actor.finish(Ending::Failed(error.to_string()));
            Err(error)
        }
    }
}

/// Ends a zone that an earlier daemon died starting, or ending.
pub fn clean_up(context: &Arc<Context>, shared: &Arc<Shared>, record: Record) {
    let (_outbox, inbox) = channel();
    let exists = record.number.is_some();
    let left = Resources::new(context, shared, record);
    let mut actor = Actor::new(context, shared, left, inbox);
    if exists {
        let _ = actor.stop();
    }
    actor.resources.release();
}

impl Actor {
    /// Runs on a thread of its own once `begin` has succeeded. What the zone holds moves there only then, so
    /// the zone is ended properly whether the thread cannot be started or `begin` fails.
    fn spawn(mut self, begin: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (handover, actor) = channel::<Self>();
        let thread = std::thread::Builder::new()
            .name(format!("zone {}", self.shared.config.name))
            .spawn(move || {
                if let Ok(actor) = actor.recv() {
                    actor.run();
                }
            });
        let begun = match thread {
            Ok(_) => begin(&mut self),
            Err(cause) => Err(self.shared.config.failed(format!("a thread for it: {cause}"))),
        };
        match begun {
            // The thread only ends after it has received.
            Ok(()) => {
                let _ = handover.send(self);
                Ok(())
            }
            Err(error) => {
                let _ = self.stop();
                self.finish(Ending::Failed(error.to_string()));
                Err(error)
            }
        }
    }

    fn new(
        context: &Arc<Context>,
        shared: &Arc<Shared>,
        resources: Resources,
        inbox: Receiver<Message>,
    ) -> Self {
        let number = resources.number().unwrap_or(0);
        Self {
            context: context.clone(),
            shared: shared.clone(),
            resources,
            number,
            inbox,
            later: VecDeque::new(),
            started: Instant::now(),
            back_off: BackOff::default(),
        }
    }

    fn refused(&self, cause: Refusal) -> anyhow::Error {
        self.shared.config.failed(cause)
    }

    /// Returns what EL2 knows of the zone.
    fn info(&self) -> anyhow::Result<ZoneInfo> {
        let info = self.context.el2().zone_info(self.number);
        info.map_err(|cause| self.refused(cause))
    }

    fn launch(&mut self, entry: Entry) -> anyhow::Result<()> {
        self.started = Instant::now();
        let started = self
            .context
            .el2()
            .zone_start(self.number, entry.address, entry.x0);
        started.map_err(|cause| self.refused(cause))?;
        self.shared.update(|status| status.state = Phase::Running);
        tracing::info!(zone = self.shared.config.name, number = self.number, "started");
        Ok(())
    }

    fn run(mut self) {
        let ending = loop {
            let next = match self.later.pop_front() {
                Some((command, reply)) => self.execute(command, &reply),
                None => match self.inbox.recv() {
                    Ok(Message::Changed) => self.refresh(),
                    Ok(Message::Command(command, reply)) => self.execute(command, &reply),
                    Err(_) => Next::End(Ending::Failed("the daemon dropped it".into())),
                },
            };
            if let Next::End(ending) = next {
                break ending;
            }
            // The message for it may have come during a wait.
            self.resources.poll_devices();
        };
        self.finish(ending);
    }

    /// Returns all resources to root and replies to all commands.
    fn finish(self, ending: Ending) {
        let Self {
            context,
            shared,
            mut resources,
            later,
            inbox,
            ..
        } = self;
        tracing::info!(zone = shared.config.name, %ending, "zone has ended");
        resources.close();
        shared
            .console
            .note(&format!("zone {} {ending}", shared.config.name));
        // Before EL2 forgets the zone: the next daemon knows its end from the one or the other.
        let restarts = shared.status().restarts;
        let config = (*shared.config).clone();
        let ended = Ended::new(config, ending.clone(), restarts, shared.console.tail());
        if let Err(error) = ended.save(&context.records) {
            tracing::error!(zone = shared.config.name, %error, "cannot record how a zone ended");
        }
        resources.release();
        shared.close_consoles();
        shared.update(|status| (status.state, status.ending) = (Phase::Stopped, Some(ending.clone())));
        let waiting = inbox.try_iter().filter_map(|message| match message {
            Message::Command(command, reply) => Some((command, reply)),
            Message::Changed => None,
        });
        for (command, reply) in later.into_iter().chain(waiting) {
            let _ = reply.send(match command {
                Command::Stop => Ok(None),
                _ => Err(shared.status().wrong_phase("running")),
            });
        }
    }

    /// Reads the zone's state from EL2 and does what the zone's policies ask for.
    fn refresh(&mut self) -> Next {
        self.resources.poll_devices();
        let info = match self.context.el2().zone_info(self.number) {
            Ok(info) => info,
            Err(error) => return Next::End(Ending::Failed(error.to_string())),
        };
        match state(&info) {
            ZoneState::Running => self.shared.update(|status| status.state = Phase::Running),
            ZoneState::Paused => self.shared.update(|status| status.state = Phase::Paused),
            ZoneState::Stopped => return self.ended(&info),
            ZoneState::Crashed => return self.crashed(&info),
            ZoneState::None => return Next::End(Ending::Failed("EL2 no longer has it".into())),
            // This thread begins after the start: an earlier daemon died just before it.
            ZoneState::Created => {
                return Next::End(Ending::Failed(
                    "the daemon died while it was being started".into(),
                ));
            }
            ZoneState::Stopping => {}
        }
        Next::Continue
    }

    /// No vCPU runs any more, because of the guest.
    fn ended(&mut self, info: &ZoneInfo) -> Next {
        match (reason(info), self.shared.config.on_reboot) {
            (StopReason::SystemReset, OnReboot::Restart) => self.restart("rebooting", false),
            (StopReason::SystemReset, OnReboot::Stop) => Next::End(Ending::Rebooted),
            (StopReason::SystemOff, _) => Next::End(Ending::PoweredOff),
            (StopReason::AllCpusOff, _) => Next::End(Ending::AllCpusOff),
            (StopReason::Fault, _) => Next::End(Ending::Crashed(crash_detail(info))),
            (StopReason::Requested | StopReason::None, _) => Next::End(Ending::Stopped),
        }
    }

    fn crashed(&mut self, info: &ZoneInfo) -> Next {
        let detail = crash_detail(info);
        tracing::warn!(zone = self.shared.config.name, detail, "zone crashed");
        match self.shared.config.on_crash {
            OnCrash::Hold => {
                self.shared.update(|status| status.state = Phase::Crashed);
                Next::Continue
            }
            OnCrash::Stop => match self.stop() {
                Ok(()) => Next::End(Ending::Crashed(detail)),
                Err(error) => Next::End(Ending::Failed(error.to_string())),
            },
            OnCrash::Restart => match self.stop() {
                Ok(()) => self.restart(&format!("crashed ({detail}), starting again"), true),
                Err(error) => Next::End(Ending::Failed(error.to_string())),
            },
        }
    }

    fn restart(&mut self, why: &str, crashed: bool) -> Next {
        let name = self.shared.config.name.clone();
        let delay = self.back_off.after(self.started.elapsed(), crashed);
        let when = match delay.as_secs() {
            0 => String::new(),
            seconds => format!(
                " in {seconds} s, for it has restarted {} times",
                self.back_off.quick
            ),
        };
        self.shared.console.note(&format!("zone {name}: {why}{when}"));
        tracing::info!(zone = name, why, ?delay, "restarting");
        if !delay.is_zero() {
            limits::count(&limits::RESTARTS);
        }
        let end = Instant::now() + delay;
        if self.stopped_until(|| Instant::now() >= end) {
            return Next::End(Ending::Stopped);
        }
        let files = match self.open_files() {
            Some(files) => files,
            None => return Next::End(Ending::Stopped),
        };
        let again = files
            .and_then(|files| self.resources.reload(&files))
            .and_then(|entry| self.launch(entry));
        match again {
            Ok(()) => {
                self.shared
                    .update(|status| status.restarts = status.restarts.saturating_add(1));
                Next::Continue
            }
            Err(error) => Next::End(Ending::Failed(error.to_string())),
        }
    }

    /// Opens the zone's files on another thread, which is left alone if the zone is stopped meanwhile: then
    /// returns `None`.
    fn open_files(&mut self) -> Option<anyhow::Result<BootFiles>> {
        let (sender, opened) = channel();
        let (context, config) = (self.context.clone(), self.shared.config.clone());
        let thread = std::thread::Builder::new().name(format!("open {}", config.name));
        let spawned = thread.spawn(move || {
            let _ = sender.send(load::open(context.environment.opener(), &config));
        });
        if let Err(cause) = spawned {
            return Some(Err(self
                .shared
                .config
                .failed(format!("a thread for its files: {cause}"))));
        }
        // Quick in most cases, and then no command is looked for.
        let mut files = opened.recv_timeout(POLL_INTERVAL).ok();
        if files.is_none()
            && self.stopped_until(|| {
                files = opened.try_recv().ok();
                files.is_some()
            })
        {
            return None;
        }
        files
    }

    /// Waits until `holds`, which is called every [`POLL_INTERVAL`], or until the zone is to be stopped.
    /// Returns whether it is. Other commands are kept for later. No vCPU runs.
    fn stopped_until(&mut self, mut holds: impl FnMut() -> bool) -> bool {
        loop {
            if self.later.iter().any(|(command, _)| *command == Command::Stop) {
                return true;
            }
            if holds() {
                return false;
            }
            match self.inbox.recv_timeout(POLL_INTERVAL) {
                Ok(Message::Command(command, reply)) => self.later.push_back((command, reply)),
                Ok(Message::Changed) | Err(RecvTimeoutError::Timeout) => {}
                // No command can come any more.
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn execute(&mut self, command: Command, reply: &Sender<CommandResult>) -> Next {
        let phase = self.shared.status().state;
        let result = match (command, phase) {
            (Command::Stop, _) => match self.stop() {
                Ok(()) => {
                    // Answered by `finish`, when all is given back.
                    self.later.push_back((Command::Stop, reply.clone()));
                    return Next::End(Ending::Stopped);
                }
                Err(error) => Err(error),
            },
            (Command::Pause, Phase::Running) => self.pause().map(|()| None),
            (Command::Resume, Phase::Paused) => self.resume().map(|()| None),
            (Command::Change(change), Phase::Running | Phase::Paused | Phase::Crashed) => {
                self.resources.change_device(&change).map(Some)
            }
            (Command::PowerKey { pressed }, Phase::Running) => {
                let done = self.context.el2().power_key(self.number, pressed);
                done.map(|()| None).map_err(|cause| self.refused(cause))
            }
            (Command::Resume, _) => Err(self.shared.status().wrong_phase("paused")),
            (Command::Pause | Command::PowerKey { .. } | Command::Change(_), _) => {
                Err(self.shared.status().wrong_phase("running"))
            }
        };
        let _ = reply.send(result);
        Next::Continue
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let info = self.info()?;
        if is_stopped(&info) {
            return Ok(());
        }
        // It may have stopped by itself meanwhile, and EL2 refuses then.
        if let Err(cause) = self.context.el2().zone_stop(self.number)
            && !cause.is(CommandStatus::WrongState)
        {
            return Err(self.refused(cause));
        }
        self.wait_for(&[ZoneState::Stopped, ZoneState::Crashed], "stopped")
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        let done = self.context.el2().zone_pause(self.number);
        done.map_err(|cause| self.refused(cause))?;
        // A guest may end while it is being paused; the event for that is still to come.
        let waited = self.wait_for(
            &[ZoneState::Paused, ZoneState::Stopped, ZoneState::Crashed],
            "paused",
        );
        if let Err(error) = waited {
            // Not half paused: it runs, as its state says.
            let _ = self.context.el2().zone_resume(self.number);
            return Err(error);
        }
        let info = self.info()?;
        if state(&info) != ZoneState::Paused {
            return Err(self.shared.status().wrong_phase("running"));
        }
        self.shared.update(|status| status.state = Phase::Paused);
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        let done = self.context.el2().zone_resume(self.number);
        done.map_err(|cause| self.refused(cause))?;
        self.shared.update(|status| status.state = Phase::Running);
        Ok(())
    }

    /// Waits until EL2 reports one of the states in `wanted`. Commands that come meanwhile are kept for
    /// later.
    fn wait_for(&mut self, wanted: &[ZoneState], what: &'static str) -> anyhow::Result<()> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            let info = self.info()?;
            if wanted.contains(&state(&info)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let seconds = STOP_TIMEOUT.as_secs();
                let cause = format!("EL2 has not {what} it within {seconds} s");
                return Err(self.shared.config.failed(cause));
            }
            match self.inbox.recv_timeout(POLL_INTERVAL) {
                Ok(Message::Command(command, reply)) => self.later.push_back((command, reply)),
                Ok(Message::Changed) | Err(RecvTimeoutError::Timeout) => {}
                // No command can come any more, but EL2 still acts.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

fn state(info: &ZoneInfo) -> ZoneState {
    let state = u8::try_from(info.state)
        .ok()
        .and_then(|state| ZoneState::try_from(state).ok());
    state.unwrap_or(ZoneState::None)
}

/// Whether no vCPU is in the guest: EL2 lets the zone be started again or destroyed.
fn is_stopped(info: &ZoneInfo) -> bool {
    matches!(
        state(info),
        ZoneState::Created | ZoneState::Stopped | ZoneState::Crashed
    )
}

fn reason(info: &ZoneInfo) -> StopReason {
    let reason = u8::try_from(info.reason)
        .ok()
        .and_then(|reason| StopReason::try_from(reason).ok());
    reason.unwrap_or(StopReason::None)
}

fn crash_detail(info: &ZoneInfo) -> String {
    let [esr, elr, far] = info.fault;
    format!("exception that cannot be handled, ESR_EL2 {esr:#x}, ELR_EL2 {elr:#x}, FAR_EL2 {far:#x}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BackOff, FREE_REBOOTS, LONGEST_DELAY, STEADY};

    #[test]
    fn restarts_in_a_loop_are_delayed_more_and_more() {
        let mut back_off = BackOff::default();
        let quick = Duration::from_secs(1);
        let seconds = |back_off: &mut BackOff, crashed| back_off.after(quick, crashed).as_secs();
        for _ in 0..FREE_REBOOTS {
            assert_eq!(seconds(&mut back_off, false), 0);
        }
        let delays: Vec<u64> = (0..8).map(|_| seconds(&mut back_off, false)).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off.after(STEADY, false), Duration::ZERO, "it had run");
        let mut back_off = BackOff::default();
        let delays: Vec<u64> = (0..3).map(|_| seconds(&mut back_off, true)).collect();
        assert_eq!(delays, [1, 2, 4]);
        (0..1000).for_each(|_| assert!(back_off.after(quick, true) <= LONGEST_DELAY));
    }
}
