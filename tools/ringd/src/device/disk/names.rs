//! Names of a drive's latencies.

/// Latencies: name in JSON, name in metrics and text.
pub const LATENCIES: [(&str, &str); 4] = [
    ("reads", "read"),
    ("writes", "write"),
    ("flushes", "flush"),
    ("file", "file"),
];

/// Returns the name in metrics and text of a latency in JSON.
pub fn label(name: &str) -> Option<&'static str> {
    LATENCIES
        .iter()
        .find(|(json, _)| *json == name)
        .map(|(_, label)| *label)
}
