//! The report as Prometheus reads it, and the listener that serves it: `ringd --metrics ADDRESS`.
//!
//! One thread serves one connection at a time: what it reads is bounded, and a client that is slower than
//! [`TIMEOUT`] is disconnected. Every client that can reach the address reads the numbers; nothing can be
//! changed.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Metrics;

use super::{CpuStats, StatsReport, ZoneStats};
use crate::device::report::{Counts, DeviceStats, Latency};
use crate::zone::registry::Registry;

/// How long a client may take for its request, and for its answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest request, in bytes.
const MAX_REQUEST: usize = 8 << 10;
/// Bounds of histograms, in nanoseconds: powers of two from a microsecond to 17 seconds.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=34;

type Labels = Vec<(&'static str, String)>;
type Row = (Labels, u64);

/// Serves the statistics of `registry` until the process ends.
pub fn serve(listener: &TcpListener, registry: &Arc<Registry>) {
    for stream in listener.incoming() {
        let served = stream.and_then(|stream| answer(stream, || super::collect(registry)));
        if let Err(error) = served {
            tracing::debug!(%error, "metrics connection");
            if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Reads one request and answers it.
fn answer(mut stream: TcpStream, report: impl FnOnce() -> StatsReport) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    let deadline = std::time::Instant::now() + TIMEOUT;
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk)?;
        request.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if count == 0 || request.len() > MAX_REQUEST || std::time::Instant::now() > deadline {
            return respond(&mut stream, "400 Bad Request", "text/plain", "not a request\n");
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            respond(&mut stream, "200 OK", kind, &text(report()))
        }
        (Some("GET"), Some("/")) => respond(&mut stream, "200 OK", "text/plain", "ringd: see /metrics\n"),
        (Some("GET"), Some(_)) => respond(&mut stream, "404 Not Found", "text/plain", "see /metrics\n"),
        _ => respond(&mut stream, "405 Method Not Allowed", "text/plain", "only GET\n"),
    }
}

fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// Returns the report in the text format of OpenMetrics.
pub fn text(report: StatsReport) -> String {
    let mut metrics = Metrics::with_prefix("ringvisor");
    metrics.register_collector(Box::new(Report(report)));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &metrics);
    text
}

#[derive(Debug)]
struct Report(StatsReport);

impl Collector for Report {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = &self.0;
        let encoder = &mut encoder;
        cpus(encoder, report)?;
        zones(encoder, report)?;
        devices(encoder, report)?;
        daemon(encoder, report)
    }
}

fn counter<N: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, N)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        metric
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, N, u64>(&value, None)?;
    }
    Ok(())
}

/// Returns a row of nanoseconds as one of seconds.
fn in_seconds((labels, nanoseconds): Row) -> (Labels, f64) {
    (labels, nanoseconds as f64 / 1e9)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn cpu_labels(cpu: &CpuStats) -> Labels {
    let zone = cpu
        .zone
        .map_or_else(|| "none".to_owned(), |zone| zone.to_string());
    vec![
        ("cpu", cpu.cpu.to_string()),
        ("zone", zone),
        ("vcpu", cpu.vcpu.to_string()),
    ]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

fn cpus(encoder: &mut DescriptorEncoder<'_>, report: &StatsReport) -> fmt::Result {
    let by = |of: fn(&CpuStats) -> &Counts, label: &'static str| -> Vec<Row> {
        let all = report.cpus.iter().flat_map(|cpu| {
            of(cpu)
                .iter()
                .map(move |(name, value)| (with(cpu_labels(cpu), label, name), *value))
        });
        all.collect()
    };
    let exits = by(|cpu| &cpu.exits, "reason");
    counter(encoder, "exits", "Exits to EL2 by reason", exits)?;
    let el2 = by(|cpu| &cpu.el2_ns, "reason").into_iter().map(in_seconds);
    counter(encoder, "el2_seconds", "Time spent at EL2 by reason", el2)?;
    let events = by(|cpu| &cpu.events, "event");
    counter(encoder, "el2_events", "What happened at EL2", events)?;
    let cpus = report.cpus.iter();
    let longest = cpus.map(|cpu| in_seconds((cpu_labels(cpu), cpu.longest_ns)));
    let help = "Longest single stay at EL2";
    gauge(encoder, "el2_longest_stay_seconds", help, longest)
}

fn zones(encoder: &mut DescriptorEncoder<'_>, report: &StatsReport) -> fmt::Result {
    let name = |zone: &ZoneStats| vec![("zone", zone.name.clone())];
    let zones = report.zones.iter();
    let states = zones.map(|zone| (with(name(zone), "state", &zone.state), 1.0));
    gauge(encoder, "zone_state", "The state that the zone is in", states)?;
    let memory = report.zones.iter().map(|zone| (name(zone), zone.memory as f64));
    gauge(encoder, "zone_memory_bytes", "RAM of the zone", memory)?;
    let aborts = report.zones.iter().map(|zone| (name(zone), zone.aborts));
    let help = "Accesses of the zone's answered by an external abort";
    counter(encoder, "zone_aborts", help, aborts)?;
    let zones = report.zones.iter();
    let restarts = zones.map(|zone| (name(zone), u64::from(zone.restarts)));
    let help = "Times that the zone was started again";
    counter(encoder, "zone_restarts", help, restarts)
}

fn devices(encoder: &mut DescriptorEncoder<'_>, report: &StatsReport) -> fmt::Result {
    let devices = report.devices.iter().map(|(_, device)| device);
    let labels =
        |device: &DeviceStats| vec![("zone", device.zone.clone()), ("slot", device.slot.to_string())];
    for (name, help, of) in [
        (
            "device_notifications",
            "Stores to QueueNotify",
            (|device| device.notifications) as fn(&DeviceStats) -> u64,
        ),
        (
            "device_notifications_pending",
            "Stores to QueueNotify that found the pending bit set",
            |device| device.notifications_pending,
        ),
        (
            "device_doorbells",
            "Used-buffer doorbells taken at EL2",
            |device| device.doorbells,
        ),
        (
            "device_interrupts",
            "Times that the interrupt line rose",
            |device| device.interrupts,
        ),
    ] {
        counter(
            encoder,
            name,
            help,
            devices.clone().map(|device| (labels(device), of(device))),
        )?;
    }
    let queues = || {
        devices.clone().flat_map(|device| {
            let queues = device.queues.iter();
            queues.map(move |queue| (with(labels(device), "queue", &queue.queue.to_string()), queue))
        })
    };
    let counts = queues().flat_map(|(labels, queue)| {
        let all = queue.counters.iter();
        all.map(move |(name, value)| (with(labels.clone(), "what", name), *value))
    });
    let help = "Counters of the daemon's queues, by name";
    counter(encoder, "queue", help, counts)?;
    let depths = queues().map(|(labels, queue)| (labels, queue.depth as f64));
    gauge(encoder, "queue_depth", "Requests in flight", depths)?;
    let help = "Time from the available ring to the used ring by type of request; file: of the image alone";
    let mut metric = encoder.encode_descriptor("queue_latency_seconds", help, None, MetricType::Histogram)?;
    for (labels, queue) in queues() {
        for (name, latency) in queue.latencies() {
            let labels = with(labels.clone(), "type", name);
            let buckets = buckets(latency);
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                latency.sum_ns as f64 / 1e9,
                latency.count,
                &buckets,
                None,
            )?;
        }
    }
    Ok(())
}

/// Returns the histogram in the coarser buckets of the metric, each with its own count.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let mut rest = latency.buckets.iter().peekable();
    let mut below = |bound: u64| {
        let mut count = 0;
        while let Some((_, here)) = rest.next_if(|(upper, _)| *upper <= bound) {
            count += here;
        }
        count
    };
    let mut buckets: Vec<(f64, u64)> = BOUNDS
        .map(|bits| 1_u64 << bits)
        .map(|bound| (bound as f64 / 1e9, below(bound)))
        .collect();
    buckets.push((f64::MAX, below(u64::MAX)));
    buckets
}

fn daemon(encoder: &mut DescriptorEncoder<'_>, report: &StatsReport) -> fmt::Result {
    let count = |name: &str| report.daemon.count(name);
    for (name, key, help) in [
        (
            "bells",
            "bells",
            "Interrupts of the control device that EL2 raised",
        ),
        (
            "daemon_wakeups",
            "wakeups",
            "Interrupts of the control device that the daemon took",
        ),
        (
            "daemon_spurious_wakeups",
            "spurious_wakeups",
            "Wake-ups after which no ring had an event",
        ),
        (
            "daemon_polled",
            "polled",
            "Times that busy polling before going to sleep found something",
        ),
        (
            "daemon_polled_in_vain",
            "polled_in_vain",
            "Times that busy polling before going to sleep found nothing",
        ),
        (
            "daemon_polling_nanoseconds",
            "polling_ns",
            "Time that the daemon spent busy polling before going to sleep",
        ),
        ("daemon_rounds", "rounds", "Rounds of the reactor"),
        ("daemon_entries", "entries", "Entries taken off the rings"),
    ] {
        counter(encoder, name, help, [(Vec::new(), count(key))])?;
    }
    let times = [("user", count("user_ns")), ("system", count("system_ns"))];
    let times = times.map(|(mode, value)| in_seconds((vec![("mode", mode.to_owned())], value)));
    counter(encoder, "daemon_cpu_seconds", "CPU time of the daemon", times)?;
    let memory = [(Vec::new(), count("max_rss_bytes") as f64)];
    let help = "Most memory that the daemon has had";
    gauge(encoder, "daemon_max_rss_bytes", help, memory)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::{BOUNDS, MAX_REQUEST, answer, text};
    use crate::device::report::{DeviceReports, DeviceStats, Latency, QueueStats};
    use crate::stats::{CpuStats, StatsReport};

    fn report() -> StatsReport {
        let cpu = CpuStats {
            cpu: 3,
            zone: Some(1),
            exits: [("irq".to_owned(), 12)].into(),
            el2_ns: [("irq".to_owned(), 1_500_000_000)].into(),
            ..CpuStats::default()
        };
        let reads = Latency {
            count: 3,
            sum_ns: 3_000_000,
            buckets: vec![(1000, 1), (1_000_000, 2)],
            ..Latency::default()
        };
        let queue = QueueStats {
            depth: 2,
            counters: [("reads".to_owned(), 7)].into(),
            latencies: [("reads".to_owned(), reads)].into(),
            ..QueueStats::default()
        };
        let disk = DeviceStats {
            zone: "a\"b\\".into(),
            notifications: 5,
            queues: vec![queue],
            ..DeviceStats::default()
        };
        StatsReport {
            cpus: vec![cpu],
            devices: DeviceReports {
                disks: vec![disk],
                ..DeviceReports::default()
            },
            ..StatsReport::default()
        }
    }

    #[test]
    fn the_text_is_openmetrics() {
        let text = text(report());
        for line in [
            r#"ringvisor_exits_total{cpu="3",zone="1",vcpu="0",reason="irq"} 12"#,
            r#"ringvisor_el2_seconds_total{cpu="3",zone="1",vcpu="0",reason="irq"} 1.5"#,
            r#"ringvisor_device_notifications_total{zone="a\"b\\",slot="0"} 5"#,
            r#"ringvisor_queue_total{zone="a\"b\\",slot="0",queue="0",what="reads"} 7"#,
            r#"ringvisor_queue_latency_seconds_count{zone="a\"b\\",slot="0",queue="0",type="read"} 3"#,
            "# TYPE ringvisor_queue_latency_seconds histogram",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        // Buckets are cumulative and end with all.
        let counts: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("latency_seconds_bucket") && line.contains(r#"type="read""#))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(counts.len(), BOUNDS.count() + 1);
        assert!(counts.is_sorted());
        assert_eq!((counts.first(), counts.last()), (Some(&1), Some(&3)));
    }

    // torture i1: every user of root may connect.
    #[test]
    fn no_path_is_shown() {
        let mut report = report();
        let disk = report.devices.disks.first_mut().unwrap();
        disk.path = Some("/srv/secret-name.img".into());
        assert!(!text(report).contains("secret"));
    }

    fn ask(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = answer(stream, report);
        });
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(request).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = Vec::new();
        let _ = client.read_to_end(&mut text);
        server.join().unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn requests_are_answered_and_nonsense_refused() {
        let good = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        let (head, body) = good.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(body.contains("ringvisor_exits_total"));
        assert!(ask(b"GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(b"\xff\xfe\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(b"GET /metrics").starts_with("HTTP/1.1 400 "));
        // Longer than allowed: an answer, or a connection that is closed, but no more memory.
        let long = ask(&[b'a'; MAX_REQUEST * 2]);
        assert!(long.is_empty() || long.starts_with("HTTP/1.1 400 "), "{long}");
    }
}
