//! A trapped load or store: [`Width`], [`Register`], [`Access`].

/// Width of one access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// All widths, the narrowest first.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// Decodes the SAS field: log2 of the bytes; only its two low bits count.
    pub const fn from_log2(log2: u64) -> Self {
        match log2 & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// Returns the width in bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// Returns a mask of the bits that are transferred.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }

    /// Sign-extends the low bits of `value` to 64.
    const fn sign_extend(self, value: u64) -> u64 {
        let shift = 64 - 8 * self.bytes();
        (((value << shift) as i64) >> shift) as u64
    }
}

/// A general-purpose register in an instruction; 31 is the zero register in every syndrome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(u8);

impl Register {
    /// Returns the register in the five low bits of `field`.
    pub const fn from_field(field: u64) -> Self {
        Self((field & 31) as u8)
    }

    /// Returns its number 0 to 30, or `None` for the zero register: it reads as 0 and ignores writes.
    #[must_use]
    pub const fn index(self) -> Option<usize> {
        if self.0 < 31 { Some(self.0 as usize) } else { None }
    }
}

/// A load or store with a valid syndrome (ISS with ISV = 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Bytes transferred (SAS).
    pub width: Width,
    /// Register loaded or stored (SRT).
    pub register: Register,
    /// The load sign-extends (SSE).
    pub sign_extend: bool,
    /// The register is 64 bits wide (SF).
    pub sixty_four: bool,
    /// The instruction has acquire or release semantics (AR).
    pub acquire_release: bool,
}

impl Access {
    /// Returns the register's value after loading `value` from a device: extended and truncated as the
    /// instruction says.
    pub const fn loaded(self, value: u64) -> u64 {
        let value = value & self.width.mask();
        let extended = if self.sign_extend {
            self.width.sign_extend(value)
        } else {
            value
        };
        if self.sixty_four {
            extended
        } else {
            extended & 0xffff_ffff
        }
    }

    /// Returns the value stored to the device when the register holds `value`.
    pub const fn stored(self, value: u64) -> u64 {
        value & self.width.mask()
    }
}
