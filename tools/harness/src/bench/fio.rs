//! fio's `--minimal` output, version 3: one line of fields between semicolons for each group of jobs.

use serde::Serialize;

/// First field of the reads, and of the writes.
const READ: usize = 5;
const WRITE: usize = 46;
/// Fields after a section's first.
const BANDWIDTH: usize = 1;
const IOPS: usize = 2;
const MEAN: usize = 10;
const PERCENTILES: std::ops::Range<usize> = 12..32;

/// What counts of one group of jobs. Times are from submission to completion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fio {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second, in units of 10^6.
    pub mb_s: f64,
    /// Mean time of a request in microseconds.
    pub mean_us: f64,
    /// The time that 99 % of the requests keep, in microseconds.
    pub p99_us: f64,
}

impl Fio {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it. A console can lose or mix characters, so nothing is taken on trust.
    pub fn parse(line: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.trim().split(';').collect();
        if fields.first() != Some(&"3") || fields.len() < 100 {
            return Err(format!(
                "no line of fio: version {:?}, {} fields",
                fields.first().unwrap_or(&""),
                fields.len()
            ));
        }
        let number = |at: usize| -> Result<f64, String> {
            let text = fields.get(at).copied().unwrap_or_default();
            text.parse::<f64>()
                .ok()
                .filter(|n| n.is_finite() && *n >= 0.0)
                .ok_or_else(|| format!("field {at} of fio's line is {text:?}, expected a number"))
        };
        let error = number(4)?;
        if error != 0.0 {
            return Err(format!("fio reports error {error}"));
        }
        let start = if number(READ)? > 0.0 { READ } else { WRITE };
        if number(start)? == 0.0 {
            return Err("fio moved no data".into());
        }
        let p99 = fields
            .get(start + PERCENTILES.start..start + PERCENTILES.end)
            .unwrap_or_default()
            .iter()
            .find_map(|f| f.strip_prefix("99.000000%="))
            .and_then(|f| f.parse().ok())
            .ok_or("fio's line has no 99th percentile")?;
        Ok(Self {
            iops: number(start + IOPS)?,
            mb_s: number(start + BANDWIDTH)? * 1024.0 / 1e6,
            mean_us: number(start + MEAN)?,
            p99_us: p99,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Fio, MEAN, READ, WRITE};

    /// Returns a line as fio 3.33 prints it, with the sections that are given.
    fn line(read: [&str; 4], write: [&str; 4]) -> String {
        let mut fields = vec!["0".to_owned(); 121];
        fields[0] = "3".into();
        fields[1] = "fio-3.33".into();
        for (start, [total, bandwidth, iops, mean]) in [(READ, read), (WRITE, write)] {
            fields[start] = total.into();
            fields[start + 1] = bandwidth.into();
            fields[start + 2] = iops.into();
            fields[start + MEAN] = mean.into();
            fields[start + 12 + 13] = "99.000000%=1234".into();
        }
        fields.join(";")
    }

    #[test]
    fn reads_and_writes() {
        let none = ["0", "0", "0", "0.000000"];
        let reads = Fio::parse(&line(["8192", "4000", "1000", "960.5"], none)).unwrap();
        assert_eq!(reads.iops, 1000.0);
        assert_eq!(reads.mb_s, 4.096);
        assert_eq!(reads.mean_us, 960.5);
        assert_eq!(reads.p99_us, 1234.0);
        let writes = Fio::parse(&line(none, ["8192", "400", "100", "9.0"])).unwrap();
        assert_eq!((writes.iops, writes.mean_us), (100.0, 9.0));
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        let none = ["0", "0", "0", "0.000000"];
        assert!(Fio::parse("").is_err());
        assert!(Fio::parse("3;fio-3.33;x").is_err());
        assert!(Fio::parse(&line(none, none)).unwrap_err().contains("no data"));
        let spoilt = line(["8192", "4x00", "1000", "1"], none);
        assert!(Fio::parse(&spoilt).unwrap_err().contains("4x00"));
    }

    #[test]
    fn a_real_line() {
        let text = include_str!("../../../../tests/data/fio-minimal.txt");
        let fio = Fio::parse(text).unwrap();
        assert!(fio.iops > 0.0 && fio.mean_us > 0.0 && fio.p99_us >= fio.mean_us / 10.0);
    }
}
