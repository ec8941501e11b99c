//! The thread that looks after one zone, from its start to its end.
//!
//! It alone sends the zone's commands to EL2. What happens arrives as [`Message`]s: EL2's zone events, by way of the
//! reactor, and users' wishes. An event only says that something has changed; the state is then read from EL2, so a
//! lost or doubled event does no harm.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ringvisor::abi::command::{CommandStatus, ZoneInfo};
use ringvisor::abi::{StopReason, ZoneState};

use super::disks::DiskWish;
use super::load::Entry;
use super::moves::Poke;
use super::record::Record;
use super::resources::Held;
use super::{Context, Ending, Phase, Shared, ZoneError};
use crate::config::{OnCrash, OnReboot};

/// How long EL2 may take to get all vCPUs out of the guest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the state is looked at while something is awaited, should an event be lost.
const GLANCE: Duration = Duration::from_millis(50);
/// Pause before a crashed zone is started again, so that one that crashes at once does not keep root busy.
const CRASH_PAUSE: Duration = Duration::from_secs(1);

/// What the thread is told.
pub enum Message {
    /// EL2 says that the zone's state has changed.
    Changed,
    /// Somebody wants something.
    Wish(Wish, Sender<Granted>),
}

/// A wish that came true, with the slot if it was about a disk; or why it did not.
pub type Granted = Result<Option<u8>, ZoneError>;

/// What users may want of a zone that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// End it.
    Stop,
    /// Hold its vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Something about its disks.
    Disk(DiskWish),
}

/// The thread's own.
struct Actor {
    context: Arc<Context>,
    shared: Arc<Shared>,
    held: Held,
    number: u8,
    inbox: Receiver<Message>,
    /// Wishes that came while something was awaited.
    later: std::collections::VecDeque<(Wish, Sender<Granted>)>,
}

/// Whether the thread goes on.
enum Next {
    Continue,
    End(Ending),
}

fn event(outbox: &Sender<Message>) -> crate::io::ZoneEvent {
    let outbox = outbox.clone();
    Box::new(move || {
        let _ = outbox.send(Message::Changed);
    })
}

fn poke(outbox: &Sender<Message>) -> Poke {
    let outbox = outbox.clone();
    Arc::new(move || {
        let _ = outbox.send(Message::Changed);
    })
}

/// Starts a zone on a thread of its own; gives the way to talk to it once the zone runs.
///
/// # Errors
/// The zone cannot be started; nothing of it is left.
pub fn start(context: &Arc<Context>, shared: &Arc<Shared>) -> Result<Sender<Message>, ZoneError> {
    let (outbox, inbox) = channel();
    let (mut held, entry) = Held::take(context, shared, event(&outbox))?;
    held.listen(poke(&outbox));
    let actor = Actor::new(context, shared, held, inbox);
    actor.spawn(|actor| actor.launch(entry))?;
    Ok(outbox)
}

/// Goes on with a zone that an earlier daemon started.
///
/// # Errors
/// It cannot go on and has been ended.
pub fn take_over(
    context: &Arc<Context>,
    shared: &Arc<Shared>,
    record: Record,
    number: u8,
    say: &dyn Fn(&str),
) -> Result<Sender<Message>, ZoneError> {
    let (outbox, inbox) = channel();
    let record = Record {
        number: Some(number),
        ..record
    };
    let restarts = record.starts.saturating_sub(1);
    let cpus = record.cpus.clone();
    shared.update(|status| (status.number, status.cpus, status.restarts) = (Some(number), cpus, restarts));
    match Held::take_over(context, shared, record, number, event(&outbox), say) {
        Ok(mut held) => {
            held.listen(poke(&outbox));
            held.start_moves();
            shared.update(|status| status.state = Phase::Running);
            Actor::new(context, shared, held, inbox).spawn(|_| Ok(()))?;
            Ok(outbox)
        }
        Err(failed) => {
            let (held, error) = *failed;
            let mut actor = Actor::new(context, shared, held, inbox);
            let _ = actor.stop();
            actor.finish(Ending::Failed(error.to_string()));
            Err(error)
        }
    }
}

/// Ends what an earlier daemon had begun to start and could not.
pub fn clean_up(context: &Arc<Context>, shared: &Arc<Shared>, record: Record) {
    let (_outbox, inbox) = channel();
    let exists = record.number.is_some();
    let mut actor = Actor::new(context, shared, Held::left_over(context, shared, record), inbox);
    if exists {
        let _ = actor.stop();
    }
    actor.finish(Ending::Failed(
        "the daemon died while it was being started".into(),
    ));
}

impl Actor {
    /// Runs on a thread of its own once `begin` has worked. What the zone holds moves there only then, so a thread
    /// that cannot be had and a `begin` that fails both end the zone properly.
    fn spawn(mut self, begin: impl FnOnce(&mut Self) -> Result<(), ZoneError>) -> Result<(), ZoneError> {
        let name = self.shared.config.name.clone();
        let (handover, actor) = channel::<Self>();
        let thread = std::thread::Builder::new()
            .name(format!("zone {name}"))
            .spawn(move || {
                if let Ok(actor) = actor.recv() {
                    actor.run();
                }
            });
        let begun = match thread {
            Ok(_) => begin(&mut self),
            Err(cause) => Err(ZoneError::Host {
                name,
                what: "a thread for it".into(),
                cause,
            }),
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

    fn new(context: &Arc<Context>, shared: &Arc<Shared>, held: Held, inbox: Receiver<Message>) -> Self {
        let number = held.number().unwrap_or(0);
        Self {
            context: context.clone(),
            shared: shared.clone(),
            held,
            number,
            inbox,
            later: Default::default(),
        }
    }

    fn refused(&self, cause: crate::hv::Refusal) -> ZoneError {
        ZoneError::Refused {
            name: self.shared.config.name.clone(),
            cause,
        }
    }

    fn launch(&self, entry: Entry) -> Result<(), ZoneError> {
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
                Some((wish, reply)) => self.fulfil(wish, &reply),
                None => match self.inbox.recv() {
                    Ok(Message::Changed) => self.look(),
                    Ok(Message::Wish(wish, reply)) => self.fulfil(wish, &reply),
                    Err(_) => Next::End(Ending::Failed("the daemon let go of it".into())),
                },
            };
            if let Next::End(ending) = next {
                break ending;
            }
            // What said so may have come while something else was awaited.
            self.held.settle_moves();
            self.held.release_stopped();
        };
        self.finish(ending);
    }

    /// Gives everything back and tells everybody.
    fn finish(self, ending: Ending) {
        let Self {
            shared,
            held,
            later,
            inbox,
            ..
        } = self;
        tracing::info!(zone = shared.config.name, %ending, "zone is over");
        held.release();
        shared
            .console
            .note(&format!("zone {} {ending}", shared.config.name));
        shared.console.close();
        shared.update(|status| (status.state, status.ending) = (Phase::Stopped, Some(ending.clone())));
        let waiting = inbox.try_iter().filter_map(|message| match message {
            Message::Wish(wish, reply) => Some((wish, reply)),
            Message::Changed => None,
        });
        for (wish, reply) in later.into_iter().chain(waiting) {
            let _ = reply.send(match wish {
                Wish::Stop => Ok(None),
                _ => Err(wrong(&shared, "running")),
            });
        }
    }

    /// Looks at what EL2 says and does what the zone's policies ask for.
    fn look(&mut self) -> Next {
        self.held.settle_moves();
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

    /// No vCPU runs any more, by the guest's own doing.
    fn ended(&mut self, info: &ZoneInfo) -> Next {
        match (reason(info), self.shared.config.on_reboot) {
            (StopReason::SystemReset, OnReboot::Restart) => self.restart("rebooting"),
            (StopReason::SystemReset, OnReboot::Stop) => Next::End(Ending::Rebooted),
            (StopReason::SystemOff, _) => Next::End(Ending::PoweredOff),
            (StopReason::AllCpusOff, _) => Next::End(Ending::AllCpusOff),
            (StopReason::Fault, _) => Next::End(Ending::Crashed(crash(info))),
            (StopReason::Requested | StopReason::None, _) => Next::End(Ending::Stopped),
        }
    }

    fn crashed(&mut self, info: &ZoneInfo) -> Next {
        let detail = crash(info);
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
                Ok(()) => {
                    std::thread::sleep(CRASH_PAUSE);
                    self.restart(&format!("crashed ({detail}), starting again"))
                }
                Err(error) => Next::End(Ending::Failed(error.to_string())),
            },
        }
    }

    fn restart(&mut self, why: &str) -> Next {
        self.shared
            .console
            .note(&format!("zone {}: {why}", self.shared.config.name));
        tracing::info!(zone = self.shared.config.name, why, "restarting");
        let again = self.held.reload().and_then(|entry| self.launch(entry));
        match again {
            Ok(()) => {
                self.shared
                    .update(|status| status.restarts = status.restarts.saturating_add(1));
                Next::Continue
            }
            Err(error) => Next::End(Ending::Failed(error.to_string())),
        }
    }

    fn fulfil(&mut self, wish: Wish, reply: &Sender<Granted>) -> Next {
        let phase = self.shared.status().state;
        let outcome = match (wish, phase) {
            (Wish::Stop, _) => match self.stop() {
                Ok(()) => {
                    // Answered by `finish`, when all is given back.
                    self.later.push_back((Wish::Stop, reply.clone()));
                    return Next::End(Ending::Stopped);
                }
                Err(error) => Err(error),
            },
            (Wish::Pause, Phase::Running) => self.pause().map(|()| None),
            (Wish::Resume, Phase::Paused) => self.resume().map(|()| None),
            (Wish::Disk(wish), Phase::Running | Phase::Paused | Phase::Crashed) => {
                self.held.change_disk(&wish).map(Some)
            }
            (Wish::Resume, _) => Err(wrong(&self.shared, "paused")),
            (Wish::Pause | Wish::Disk(_), _) => Err(wrong(&self.shared, "running")),
        };
        let _ = reply.send(outcome);
        Next::Continue
    }

    fn stop(&mut self) -> Result<(), ZoneError> {
        let info = self
            .context
            .el2()
            .zone_info(self.number)
            .map_err(|cause| self.refused(cause))?;
        if at_rest(&info) {
            return Ok(());
        }
        // It may have come to rest by itself meanwhile, and EL2 refuses then.
        if let Err(cause) = self.context.el2().zone_stop(self.number)
            && !cause.is(CommandStatus::WrongState)
        {
            return Err(self.refused(cause));
        }
        self.wait_for(&[ZoneState::Stopped, ZoneState::Crashed], "stopped")
    }

    fn pause(&mut self) -> Result<(), ZoneError> {
        self.context
            .el2()
            .zone_pause(self.number)
            .map_err(|cause| self.refused(cause))?;
        // A guest may end while it is being paused; the event for that is still to come.
        let waited = self.wait_for(
            &[ZoneState::Paused, ZoneState::Stopped, ZoneState::Crashed],
            "paused",
        );
        if let Err(error) = waited {
            // Not half paused: it goes on, as its state says.
            let _ = self.context.el2().zone_resume(self.number);
            return Err(error);
        }
        let info = self
            .context
            .el2()
            .zone_info(self.number)
            .map_err(|cause| self.refused(cause))?;
        if state(&info) != ZoneState::Paused {
            return Err(wrong(&self.shared, "running"));
        }
        self.shared.update(|status| status.state = Phase::Paused);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ZoneError> {
        self.context
            .el2()
            .zone_resume(self.number)
            .map_err(|cause| self.refused(cause))?;
        self.shared.update(|status| status.state = Phase::Running);
        Ok(())
    }

    /// Waits until EL2 says one of `wanted`. Wishes that come meanwhile are kept for later.
    fn wait_for(&mut self, wanted: &[ZoneState], what: &'static str) -> Result<(), ZoneError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self
                .context
                .el2()
                .zone_info(self.number)
                .map_err(|cause| self.refused(cause))?;
            if wanted.contains(&state(&info)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let name = self.shared.config.name.clone();
                return Err(ZoneError::Timeout {
                    name,
                    what,
                    seconds: PATIENCE.as_secs(),
                });
            }
            match self.inbox.recv_timeout(GLANCE) {
                Ok(Message::Wish(wish, reply)) => self.later.push_back((wish, reply)),
                Ok(Message::Changed) | Err(RecvTimeoutError::Timeout) => {}
                // Nobody can talk to the zone any more, but EL2 still acts.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(GLANCE),
            }
        }
    }
}

fn wrong(shared: &Shared, expected: &'static str) -> ZoneError {
    let status = shared.status();
    ZoneError::WrongPhase {
        name: status.name,
        phase: status.state,
        expected,
    }
}

fn state(info: &ZoneInfo) -> ZoneState {
    let state = u8::try_from(info.state)
        .ok()
        .and_then(|state| ZoneState::try_from(state).ok());
    state.unwrap_or(ZoneState::None)
}

/// No vCPU is inside: EL2 lets it be started again or destroyed.
fn at_rest(info: &ZoneInfo) -> bool {
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

fn crash(info: &ZoneInfo) -> String {
    let [esr, elr, far] = info.fault;
    format!("exception that cannot be handled, ESR_EL2 {esr:#x}, ELR_EL2 {elr:#x}, FAR_EL2 {far:#x}")
}
