//! Requests and replies: one text line of JSON each; one reply per request, in order.
//!
//! [`Request::Console`] and [`Request::Trace`] are exceptions: after the reply the connection carries the
//! console's bytes, both ways, and ends with the zone; or the records, and ends with them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::ZoneConfig;
use crate::device;
use crate::stats::StatsReport;
use crate::trace::TraceStart;
use crate::zone::{Ending, Status};

/// Longest line, in bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// A request of a client.
///
/// Requests without fields are written with braces: serde accepts unknown fields of a unit variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Starts a zone. Reply: [`Reply::Zone`].
    Start {
        /// Its description.
        config: Box<ZoneConfig>,
    },
    /// Ends a zone. Reply: [`Reply::Done`], when all is given back.
    Stop {
        /// Its name.
        name: String,
    },
    /// Pauses a zone. Reply: [`Reply::Done`].
    Pause {
        /// Its name.
        name: String,
    },
    /// Resumes a paused zone. Reply: [`Reply::Done`].
    Resume {
        /// Its name.
        name: String,
    },
    /// Presses a zone's power key. Reply: [`Reply::Done`].
    PowerKey {
        /// Its name.
        name: String,
    },
    /// Starts a zone that has ended once more. Reply: [`Reply::Zone`].
    StartAgain {
        /// Its name.
        name: String,
    },
    /// Waits for a zone's end. Reply: [`Reply::Ended`].
    Wait {
        /// Its name.
        name: String,
    },
    /// Lists the zones. Reply: [`Reply::Zones`].
    List {},
    /// Reports the description with which a zone was started. Reply: [`Reply::Config`].
    Config {
        /// Its name.
        name: String,
    },
    /// Opens a zone's console. Reply: [`Reply::Done`], then bytes.
    Console {
        /// The zone.
        name: String,
        /// Whether to continue with output from now on.
        follow: bool,
        /// Bytes of the guest's output seen already. The output then comes in [`Frame`]s, so that a reader
        /// whose daemon died can continue at the next one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
        /// Which of its consoles: a port of its console device, or the UART.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<usize>,
    },
    /// A terminal that shows a console has this size. Reply: [`Reply::Done`].
    ConsoleSize {
        /// The zone.
        name: String,
        /// Which of its consoles, as above.
        port: usize,
        /// Columns of the terminal.
        columns: u16,
        /// Rows of the terminal.
        rows: u16,
    },
    /// Reports hypervisor and daemon. Reply: [`Reply::Info`].
    Info {},
    /// Reports all counters. Reply: [`Reply::Stats`].
    Stats {},
    /// Records a trace. Reply: [`Reply::Trace`], then text lines of [`crate::trace::Chunk`] until the time
    /// has expired.
    Trace {
        /// Duration.
        milliseconds: u64,
    },
    /// Reports EL2's log. Reply: [`Reply::Log`].
    Log {},
    /// Changes a log level. Reply: [`Reply::Done`].
    LogLevel {
        /// Whose log.
        target: LogTarget,
        /// The new level.
        level: LogLevel,
    },
    /// Lets another program take over. Reply: [`Reply::Done`], after which the connection ends.
    Upgrade {
        /// Its path; if not given, that of the program that runs.
        program: Option<PathBuf>,
    },
    /// About devices. Reply: as described there.
    #[serde(untagged)]
    Device(device::api::Request),
}

/// Whose log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogTarget {
    /// The hypervisor.
    El2,
    /// The daemon.
    Ringd,
}

/// A log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what is unusual.
    Warn,
    /// And important events.
    Info,
    /// And what helps debugging.
    Debug,
    /// Everything.
    Trace,
}

/// The daemon's response to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The request succeeded.
    Ok(Reply),
    /// The request failed; why, for people.
    Error(String),
    /// There is no zone of the name in the request; for people.
    NoSuchZone(String),
}

/// The result of a request that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing but success.
    Done,
    /// A zone.
    Zone(Status),
    /// All zones.
    Zones(Vec<Status>),
    /// The description of a zone.
    Config(Box<ZoneConfig>),
    /// How a zone ended.
    Ended(Ending),
    /// The hypervisor.
    Info(InfoReport),
    /// All counters.
    Stats(Box<StatsReport>),
    /// EL2's log.
    Log(String),
    /// Recording has begun.
    Trace(TraceStart),
    /// About devices.
    #[serde(untagged)]
    Device(device::api::Reply),
}

/// The state of hypervisor and daemon.
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
    /// Interrupts of the control device that EL2 raised.
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

/// The header of a piece of console output, which follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Frame {
    /// Bytes of the guest's output up to the piece's end.
    pub seen: U64,
    /// Bytes of the piece; 0: the zone has ended, nothing more will come.
    pub len: U32,
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::{Frame, Reply, Request, Response};
    use crate::device::disk::change::Change;
    use crate::device::{self, api};
    use crate::zone::Ending;

    #[test]
    fn requests_are_one_line_of_json() {
        let request = Request::Console {
            name: "a".into(),
            follow: true,
            from: None,
            port: None,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"op":"console","name":"a","follow":true}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert_eq!(
            serde_json::to_string(&Request::List {}).unwrap(),
            r#"{"op":"list"}"#
        );
    }

    #[test]
    fn responses_say_whether_the_request_succeeded() {
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
            seen: 0x0102_0304_0506_0708.into(),
            len: 9.into(),
        };
        assert_eq!(frame.as_bytes(), [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0]);
        assert_eq!(Frame::read_from_bytes(frame.as_bytes()), Ok(frame));
    }

    /// Requests and replies about devices look as all others do.
    #[test]
    fn devices_have_requests_and_replies_of_their_own() {
        let detach = api::ChangeRequest {
            name: "a".into(),
            change: device::Change::Disk(Change::Detach { slot: 1 }),
        };
        let request = Request::Device(api::Request::Change(detach));
        let line = r#"{"op":"disk_detach","name":"a","slot":1}"#;
        let written = serde_json::to_value(&request).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        assert_eq!(serde_json::from_value::<Request>(written).unwrap(), request);
        assert!(
            serde_json::from_str::<Request>(r#"{"op":"disk_detach","name":"a","slot":1,"x":1}"#).is_err()
        );
        let list = Request::Device(api::Request::Disks {});
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"{"op":"disks"}"#);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"op":"disks"}"#).unwrap(),
            list
        );
        assert!(serde_json::from_str::<Request>(r#"{"op":"disks","x":1}"#).is_err());
        let reply = Response::Ok(Reply::Device(api::Reply::Disks(Vec::new())));
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(line, r#"{"ok":{"disks":[]}}"#);
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), reply);
    }

    #[test]
    fn unknown_requests_are_refused() {
        for line in [
            "{}",
            r#"{"op":"format_all"}"#,
            r#"{"op":"stop","name":"a","x":1}"#,
            r#"{"op":"list","x":1}"#,
            r#"{"op":"info","x":1}"#,
            r#"{"op":"stats","x":1}"#,
            "[]",
            "7",
        ] {
            let parsed = serde_json::from_str::<Request>(line);
            assert!(parsed.is_err(), "{line} gives {parsed:?}");
        }
    }
}
