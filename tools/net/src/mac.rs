//! [`MacAddress`]: an Ethernet address, as users write it and as a zone has it if none is written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Why a text is no address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("not six pairs of hexadecimal digits with colons between, as 52:54:00:12:34:56")]
    Format,
    /// The first byte is odd.
    #[error("a multicast address; a device's own has an even first byte")]
    Multicast,
    /// Nothing but zeroes.
    #[error("all zeroes; a device's own address is not")]
    Zero,
}

impl MacAddress {
    /// The address of all.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Returns whether it is the address of a group, the broadcast address included.
    #[inline]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Returns a locally administered address made from words such as a machine's ID, a zone's name and a
    /// device's number: the same words give the same address, on any version of the program.
    #[must_use]
    pub fn derived(words: &[&str]) -> Self {
        // FNV-1a, with a byte that UTF-8 never has between the words.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for word in words {
            for byte in word.bytes().chain([0xff]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        // Its high bits depend on all of the input.
        let [a, b, c, d, e, ..] = (hash ^ hash >> 29)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// Checks that it can be a device's own.
    ///
    /// # Errors
    /// It is a multicast address or zero.
    pub fn check(self) -> Result<Self, MacError> {
        match self {
            Self([0, 0, 0, 0, 0, 0]) => Err(MacError::Zero),
            mac if mac.is_multicast() => Err(MacError::Multicast),
            mac => Ok(mac),
        }
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or(MacError::Format)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError::Format);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Format)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Format);
        }
        Self(mac).check()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{MacAddress, MacError};

    #[test]
    fn addresses_are_read_and_written() {
        let mac: MacAddress = "52:54:00:Ab:cD:56".parse().unwrap();
        assert_eq!(mac, MacAddress([0x52, 0x54, 0, 0xab, 0xcd, 0x56]));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:56");
        for (text, error) in [
            ("", MacError::Format),
            ("52:54:00:12:34", MacError::Format),
            ("52:54:00:12:34:56:78", MacError::Format),
            ("52-54-00-12-34-56", MacError::Format),
            ("+2:54:00:12:34:56", MacError::Format),
            ("52:54:0:12:34:56", MacError::Format),
            ("53:54:00:12:34:56", MacError::Multicast),
            ("ff:ff:ff:ff:ff:ff", MacError::Multicast),
            ("00:00:00:00:00:00", MacError::Zero),
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(error), "{text}");
        }
    }

    #[test]
    fn derived_addresses_differ_and_stay() {
        let mut seen = HashSet::new();
        for machine in ["a", "b", "0f3c"] {
            for zone in 0..100 {
                for index in ["0", "1"] {
                    let mac = MacAddress::derived(&[machine, &format!("zone{zone}"), index]);
                    assert_eq!(mac.check(), Ok(mac));
                    assert!(seen.insert(mac), "{mac} twice");
                }
            }
        }
        // Guests know their devices by it: it must not change with the program's version.
        assert_eq!(
            MacAddress::derived(&["0f3c", "web", "0"]).to_string(),
            MacAddress::derived(&["0f3c", "web", "0"]).to_string()
        );
        assert_ne!(
            MacAddress::derived(&["ab", "c"]),
            MacAddress::derived(&["a", "bc"])
        );
    }
}
