//! `ringctl zone shutdown` and `zone reboot`: the power key, then the wait for what the guest does.

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::{reconnect, wait};
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Reply, Request};

/// Exit status if the guest did not end in time.
const STILL_RUNS: u8 = 4;

/// Which zone, and for how long.
#[derive(Args, Debug)]
pub struct ShutdownOptions {
    /// The zone's name.
    pub name: String,
    /// How long the guest may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Stop it after that, as `zone stop` would.
    #[arg(long)]
    pub force: bool,
}

/// Has the guest power off; starts it again then, if `again`.
///
/// # Errors
/// There is no such zone, it does not run, it ended in another way, or it does not start again.
pub fn run(socket: &Path, options: &ShutdownOptions, again: bool) -> anyhow::Result<ExitCode> {
    let ShutdownOptions { name, timeout, force } = options;
    let ask = |request: Request| -> Result<Reply, ClientError> { Client::connect(socket)?.ask(&request) };
    ask(Request::PowerKey { name: name.clone() })?;
    let (sender, ended) = channel();
    let (path, zone) = (socket.to_owned(), name.clone());
    // Left behind when the time has expired: the process ends.
    std::thread::spawn(move || sender.send(reconnect::wait(&path, &zone)));
    let reply = match ended.recv_timeout(Duration::from_secs(*timeout)) {
        Ok(reply) => reply?,
        Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for zone {name} has ended"),
        Err(RecvTimeoutError::Timeout) if *force => {
            eprintln!("ringctl: zone {name} did not end within {timeout} s: stopping it");
            ask(Request::Stop { name: name.clone() })?;
            reconnect::wait(socket, name)?
        }
        Err(RecvTimeoutError::Timeout) => {
            eprintln!("ringctl: zone {name} still runs, {timeout} s after its power key was pressed");
            return Ok(ExitCode::from(STILL_RUNS));
        }
    };
    if again {
        if let Reply::Ended(ending) = &reply {
            eprintln!("ringctl: zone {name} {ending}; starting it again");
        }
        ask(Request::StartAgain { name: name.clone() })?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Reply::Ended(ending) = &reply
        && ending.is_clean()
    {
        eprintln!("ringctl: zone {name} {ending}");
    }
    wait(reply, name)
}
