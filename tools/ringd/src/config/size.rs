//! Sizes as people write them: `512M`, `1G`, `2097152`.

/// Bytes of a size such as `512M`. Suffixes K, M, G and T are powers of 1024; `iB` may follow.
/// `None` if it is no size or does not fit.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(digits)?;
    let shift = match suffix.trim().trim_end_matches("iB") {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `bytes` with the largest suffix that divides it.
pub fn format_size(bytes: u64) -> String {
    for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::{format_size, parse_size};

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("512M"), Some(512 << 20));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size(" 64 MiB "), Some(64 << 20));
        assert_eq!(parse_size("2097152"), Some(2 << 20));
        assert_eq!(parse_size("0"), Some(0));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "1Q",
            "0x10",
            "99999999999T",
            "18446744073709551616",
            "1M2",
            "é",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn printing_and_reading_agree() {
        for bytes in [
            1,
            512,
            1 << 10,
            3 << 20,
            512 << 20,
            1 << 30,
            (1 << 30) + (2 << 20),
            u64::MAX,
        ] {
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}
