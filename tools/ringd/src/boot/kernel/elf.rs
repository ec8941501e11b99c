//! ELF files: their loadable segments, by physical address (ELF-64 Object File Format, "Program Header";
//! QEMU `include/hw/elf_ops.h.inc`).

use anyhow::{anyhow, bail};
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, EM_386, EM_AARCH64, EM_ARM, EM_LOONGARCH, EM_PPC64, EM_RISCV, EM_S390,
    EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_X, PN_XNUM, PT_LOAD, ProgramHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, pod};
use ringvisor::abi::machine::RAM_BASE;

use super::{BootProtocol, Kernel, Segment};
use crate::boot::content::Content;

type Header = FileHeader64<LittleEndian>;
type Program = ProgramHeader64<LittleEndian>;

/// Returns whether a file that begins with `head` is an ELF file, of any machine.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Returns the kernel in a file that [`is_elf`], for a zone of `memory` bytes.
///
/// # Errors
/// It is one of another machine, is damaged, or a segment does not lie within RAM.
pub fn parse(content: Content, memory: u64) -> anyhow::Result<Kernel> {
    let endian = LittleEndian;
    let (header, _) =
        pod::from_bytes::<Header>(content.head()).map_err(|()| anyhow!("its ELF header is cut short"))?;
    let ident = header.e_ident();
    let machine = header.e_machine(endian);
    if ident.class != ELFCLASS64 || ident.data != ELFDATA2LSB || machine != EM_AARCH64 {
        let order = if ident.data == ELFDATA2LSB {
            "little"
        } else {
            "big"
        };
        let bits = if ident.class == ELFCLASS64 { 64 } else { 32 };
        // The field lies at the same place in both classes, but not in the same byte order.
        let machine = if ident.data == ELFDATA2LSB {
            machine
        } else {
            machine.swap_bytes()
        };
        let machine = machine_name(machine);
        bail!(
            "it is an ELF file of {bits} bits, {order}-endian, for {machine}, expected 64 bits, little-endian, for arm64"
        );
    }
    let kind = header.e_type(endian);
    if kind != ET_EXEC && kind != ET_DYN {
        bail!(
            "it is an ELF file of type {kind}, expected an executable (2 or 3): a file to be linked or a core dump does not run"
        );
    }
    let entry = header.e_entry(endian);
    let programs = programs(header, &content)?;
    let programs: &[Program] = pod::slice_from_all_bytes(&programs).map_err(|()| damaged())?;
    let mut segments = Vec::new();
    let mut physical_entry = entry;
    for program in programs
        .iter()
        .filter(|program| program.p_type(endian) == PT_LOAD)
    {
        let (address, size) = (program.p_paddr(endian), program.p_memsz(endian));
        let (start, len) = (program.p_offset(endian), program.p_filesz(endian));
        if size == 0 {
            continue;
        }
        let offset = address.checked_sub(RAM_BASE);
        let fits = |offset: &u64| offset.checked_add(size).is_some_and(|end| end <= memory);
        let Some(offset) = offset.filter(fits) else {
            let end = RAM_BASE.saturating_add(memory);
            bail!(
                "its segment of {size:#x} bytes at {address:#x} does not lie within RAM, {RAM_BASE:#x} to {end:#x}"
            );
        };
        let end = start
            .checked_add(len)
            .filter(|end| *end <= content.len() && len <= size);
        let Some(end) = end else {
            let file = content.len();
            bail!(
                "its segment at {address:#x} names {len} bytes at {start:#x} of the file, which has {file}, for {size}"
            );
        };
        let virtual_address = program.p_vaddr(endian);
        let within = entry.checked_sub(virtual_address).filter(|within| *within < len);
        if let Some(within) = within.filter(|_| program.p_flags(endian) & PF_X != 0) {
            physical_entry = address.saturating_add(within);
        }
        segments.push(Segment {
            file: start..end,
            offset,
            size,
            zeroes: true,
        });
    }
    segments.sort_unstable_by_key(|segment| segment.offset);
    Ok(Kernel {
        content,
        segments,
        entry: physical_entry,
        protocol: BootProtocol::BareMetal,
    })
}

/// Returns the bytes of the program headers, at most 65534 of them.
fn programs(header: &Header, content: &Content) -> anyhow::Result<Vec<u8>> {
    let endian = LittleEndian;
    let count = header.e_phnum.get(endian);
    let size = size_of::<Program>();
    if count == 0 {
        bail!("it is an ELF file without program headers, which do not say where it goes");
    }
    if count == PN_XNUM || usize::from(header.e_phentsize.get(endian)) != size {
        return Err(damaged());
    }
    content
        .read_at(header.e_phoff.get(endian), usize::from(count) * size)
        .map_err(|_| damaged())
}

fn damaged() -> anyhow::Error {
    anyhow!("its ELF program headers are damaged")
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        EM_AARCH64 => "arm64",
        EM_ARM => "32-bit Arm",
        EM_386 => "x86 (32 bits)",
        EM_X86_64 => "x86-64",
        EM_RISCV => "RISC-V",
        EM_LOONGARCH => "LoongArch",
        EM_PPC64 => "POWER",
        EM_S390 => "s390x",
        other => return format!("machine {other}"),
    };
    name.into()
}
