//! Requests and answers. One line of JSON each; an answer per request, in order.
//!
//! [`Request::Console`] and [`Request::Trace`] are exceptions: after its answer the connection carries the console's bytes,
//! both ways, and ends with the zone; or the records, and ends with them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::ZoneConfig;
use crate::device;
use crate::stats::StatsReport;
use crate::trace::TraceStart;
use crate::zone::{Ending, Status};

/// Longest line, in bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Starts a zone. Answer: [`Reply::Zone`].
    Start {
        /// Its description.
        config: Box<ZoneConfig>,
    },
    /// Ends a zone. Answer: [`Reply::Done`], when all is given back.
    Stop {
        /// Its name.
        name: String,
    },
    /// Pauses a zone. Answer: [`Reply::Done`].
    Pause {
        /// Its name.
        name: String,
    },
    /// Lets a paused zone go on. Answer: [`Reply::Done`].
    Resume {
        /// Its name.
        name: String,
    },
    /// Waits for a zone's end. Answer: [`Reply::Ended`].
    Wait {
        /// Its name.
        name: String,
    },
    /// Answer: [`Reply::Zones`].
    List,
    /// Answer: [`Reply::Done`], then bytes.
    Console {
        /// The zone.
        name: String,
        /// Go on with what is printed from now on.
        follow: bool,
        /// Bytes of the guest's output seen already. The output then comes in [`Frame`]s, so that a reader whose daemon
        /// died can go on at the next one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
    },
    /// Answer: [`Reply::Info`].
    Info,
    /// Answer: [`Reply::Stats`].
    Stats,
    /// Records what happens. Answer: [`Reply::Trace`], then lines of [`crate::trace::Chunk`] until the time is over.
    Trace {
        /// How long.
        milliseconds: u64,
    },
    /// Changes a log level. Answer: [`Reply::Done`].
    LogLevel {
        /// Whose.
        target: LogTarget,
        /// To what.
        level: LogLevel,
    },
    /// Goes on as another program. Answer: [`Reply::Done`], after which the connection ends.
    Upgrade {
        /// Its path; if not given, that of the program that runs.
        program: Option<PathBuf>,
    },
    /// About devices. Answer: as described there.
    #[serde(untagged)]
    Device(device::api::Request),
}

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogTarget {
    /// The hypervisor.
    El2,
    /// The daemon.
    Ringd,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what is strange.
    Warn,
    /// And what is worth knowing.
    Info,
    /// And what helps finding mistakes.
    Debug,
    /// Everything.
    Trace,
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It worked.
    Ok(Reply),
    /// It did not; why, for people.
    Error(String),
}

/// What a request that worked gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// A zone.
    Zone(Status),
    /// All zones.
    Zones(Vec<Status>),
    /// How a zone ended.
    Ended(Ending),
    /// The hypervisor.
    Info(InfoReport),
    /// All counters.
    Stats(Box<StatsReport>),
    /// Recording has begun.
    Trace(TraceStart),
    /// About devices.
    #[serde(untagged)]
    Device(device::api::Reply),
}

/// What EL2 and the daemon say of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoReport {
    /// Version of EL2.
    pub el2_version: String,
    /// Version of the daemon.
    pub ringd_version: String,
    /// Process of the daemon.
    pub ringd_pid: u32,
    /// Version of the interface between them.
    pub abi_version: u32,
    /// EL2's page frames of 4 KiB in all.
    pub pages_total: u32,
    /// Page frames in use.
    pub pages_used: u32,
    /// Bytes of EL2's heap in all.
    pub heap_total: u32,
    /// Bytes of the heap in use.
    pub heap_used: u32,
    /// Times that a daemon attached since boot.
    pub attaches: u32,
    /// Times that EL2 rang for the daemon.
    pub bells: u32,
    /// EL2's log level, 1 (error) to 5 (trace).
    pub log_level: u32,
    /// Zones that EL2 has, without root.
    pub zones: usize,
    /// CPUs.
    pub cpus: Vec<CpuReport>,
}

/// One physical CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// Affinity fields of its MPIDR.
    pub mpidr: u64,
    /// Zone that has it, if one has; 0 is root.
    pub zone: Option<u8>,
    /// vCPU that it runs there.
    pub vcpu: u8,
    /// "running", "parked" or "dead".
    pub state: String,
}

/// Head of a piece of console output, which so many bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the guest's output up to the piece's end.
    pub seen: u64,
    /// Bytes of the piece; 0: the zone has ended, nothing more will come.
    pub len: u32,
}

impl Frame {
    /// Bytes of a head.
    pub const SIZE: usize = 12;

    /// As bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = self.seen.to_le_bytes().into_iter().chain(self.len.to_le_bytes());
        bytes.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        bytes
    }

    /// From bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            seen: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, Reply, Request, Response};
    use crate::zone::Ending;

    #[test]
    fn requests_are_one_line_of_json() {
        let request = Request::Console {
            name: "a".into(),
            follow: true,
            from: None,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"op":"console","name":"a","follow":true}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert_eq!(serde_json::to_string(&Request::List).unwrap(), r#"{"op":"list"}"#);
    }

    #[test]
    fn answers_say_whether_it_worked() {
        let done = serde_json::to_string(&Response::Ok(Reply::Done)).unwrap();
        assert_eq!(done, r#"{"ok":"done"}"#);
        let ended = Response::Ok(Reply::Ended(Ending::Crashed("x".into())));
        let line = serde_json::to_string(&ended).unwrap();
        assert_eq!(line, r#"{"ok":{"ended":{"how":"crashed","detail":"x"}}}"#);
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), ended);
        let error = serde_json::to_string(&Response::Error("no".into())).unwrap();
        assert_eq!(error, r#"{"error":"no"}"#);
    }

    #[test]
    fn frames_are_twelve_bytes() {
        let frame = Frame {
            seen: 0x0102_0304_0506_0708,
            len: 9,
        };
        assert_eq!(frame.to_bytes(), [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0]);
        assert_eq!(Frame::from_bytes(frame.to_bytes()), frame);
    }

    #[test]
    fn unknown_requests_are_refused() {
        for line in [
            "{}",
            r#"{"op":"format_all"}"#,
            r#"{"op":"stop","name":"a","x":1}"#,
            "[]",
            "7",
        ] {
            let parsed = serde_json::from_str::<Request>(line);
            assert!(parsed.is_err(), "{line} gives {parsed:?}");
        }
    }
}
