//! Commands that last as long as a zone: when the daemon dies, they continue with the next one.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Reply, Request};

/// How long to wait for a daemon that no supervisor starts: an administrator may be about to.
const NOBODY: Duration = Duration::from_secs(60);
/// How long one attempt to connect takes at most.
const ATTEMPT: Duration = Duration::from_millis(200);

/// Waits for the next daemon: without a limit if there is a process that may become or start one, else for a
/// minute. Returns `None` if `enough` says so.
///
/// # Errors
/// None came.
pub fn next_daemon(
    socket: &Path,
    lost: &io::Error,
    enough: impl Fn() -> bool,
) -> Result<Option<Client>, ClientError> {
    eprintln!(
        "\r\nringctl: lost the connection to ringd ({lost}); the zone continues, waiting for the next ringd\r"
    );
    let mut alone = None::<Instant>;
    while !enough() {
        match Client::connect_within(socket, ATTEMPT) {
            Ok(client) => {
                eprintln!("ringctl: ringd serves again\r");
                return Ok(Some(client));
            }
            Err(
                ClientError::Starting { .. }
                | ClientError::Dying(_)
                | ClientError::Stopped(_)
                | ClientError::Between { .. },
            ) => alone = None,
            Err(error @ ClientError::NotRunning(_)) => {
                if alone.get_or_insert_with(Instant::now).elapsed() > NOBODY {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        std::thread::sleep(ATTEMPT / 4);
    }
    Ok(None)
}

/// Waits for a zone's end, across the ends of daemons.
///
/// # Errors
/// There is no such zone, or no daemon any more.
pub fn wait(socket: &Path, name: &str) -> Result<Reply, ClientError> {
    let mut client = Client::connect(socket)?;
    let mut again = false;
    loop {
        let error = match client.ask(&Request::Wait { name: name.into() }) {
            Err(ClientError::Lost(error)) => error,
            Err(ClientError::Refused(_) | ClientError::NoSuchZone(_)) if again => {
                return Err(ClientError::Forgotten(name.into()));
            }
            answer => return answer,
        };
        again = true;
        match next_daemon(socket, &error, || false)? {
            Some(next) => client = next,
            None => return Err(error.into()),
        }
    }
}
