//! Root's boot modules: checks the kernel and the initial RAM file system, moves the kernel where it has to
//! be, and puts root's device tree into free RAM.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ringvisor::addr::{BLOCK_SIZE, Pa};
use ringvisor::machine::{Machine, Module, Region};

use crate::el2::{arch, mm};

/// Root's boot modules, checked and in place.
pub struct Placed {
    /// Entry point.
    pub kernel: Pa,
    /// Command line.
    pub bootargs: String,
    /// Initial RAM file system.
    pub initrd: Option<Region>,
    taken: Vec<Region>,
}

/// Bytes reserved behind the kernel file for .bss when its header does not say how many it needs.
const UNKNOWN_IMAGE_SIZE: u64 = 32 << 20;

struct Header {
    text_offset: u64,
    image_size: u64,
}

/// Reads the kernel's arm64 Image header (Linux, Documentation/arch/arm64/booting.rst).
fn header(kernel: &Module) -> Result<Header, String> {
    let place = kernel.region;
    if place.size() < 64 {
        return Err(format!(
            "root's kernel at {} has {} bytes, expected an arm64 Image",
            place.base(),
            place.size()
        ));
    }
    let word = |offset: u64| {
        // SAFETY: inside the module, which lies in RAM that is mapped during boot; any alignment.
        unsafe { ((place.base().0 + offset) as *const u64).read_unaligned() }
    };
    let magic = word(56) as u32;
    if magic != u32::from_le_bytes(*b"ARM\x64") {
        return Err(format!(
            "root's kernel at {} has magic {magic:#x}, expected an uncompressed arm64 Image (\"ARM\\x64\")",
            place.base()
        ));
    }
    let image_size = word(16);
    Ok(if image_size == 0 {
        Header {
            text_offset: 0x8_0000,
            image_size: place.size() + UNKNOWN_IMAGE_SIZE,
        }
    } else {
        Header {
            text_offset: word(8),
            image_size,
        }
    })
}

/// Returns free RAM of `size` bytes at a 2 MiB boundary that overlaps no region in `taken`. Never address 0,
/// which Linux takes for the absence of a device tree (`fixmap_remap_fdt`).
fn find(machine: &Machine, taken: &[Region], size: u64) -> Option<Region> {
    machine.ram.iter().find_map(|ram| {
        let mut at = ram.base().0.max(1).next_multiple_of(BLOCK_SIZE);
        while at.checked_add(size)? <= ram.end().0 {
            let candidate = Region::new(Pa(at), size)?;
            match taken.iter().find(|region| region.overlaps(&candidate)) {
                Some(region) => at = region.end().0.next_multiple_of(BLOCK_SIZE),
                None => return Some(candidate),
            }
        }
        None
    })
}

/// Checks the boot modules. The kernel stays if it is aligned and has room behind it, else it is copied
/// elsewhere.
///
/// # Errors
/// A module is missing, malformed or not in RAM, or there is no room for the kernel.
pub fn place(machine: &Machine, firmware_dtb: Pa) -> Result<Placed, String> {
    let kernel = machine
        .kernel
        .as_ref()
        .ok_or("no boot module with compatible \"multiboot,kernel\" in /chosen: root has no kernel")?;
    let header = header(kernel)?;
    let (start, end) = mm::el2_range();
    let mut taken: Vec<Region> = machine.reserved.clone();
    taken.extend(Region::from_bounds(start, end));
    taken.extend(machine.ramdisk.as_ref().map(|module| module.region));
    // The firmware's device tree, at most 2 MiB of it, is read again for root's.
    let dtb = Region::new(firmware_dtb.align_down(4096), BLOCK_SIZE);

    let needed = header.image_size.max(kernel.region.size());
    let inside = |region: &Region| {
        machine
            .ram
            .iter()
            .any(|ram| ram.base() <= region.base() && region.end() <= ram.end())
    };
    if !inside(&kernel.region)
        || machine
            .ramdisk
            .as_ref()
            .is_some_and(|module| !inside(&module.region))
    {
        return Err(format!(
            "a boot module ({:?}, {:?}) is not in RAM",
            machine.kernel, machine.ramdisk
        ));
    }
    let stays = kernel.region.base().0 % BLOCK_SIZE == header.text_offset % BLOCK_SIZE;
    let here = Region::new(kernel.region.base(), needed)
        .filter(|region| stays && inside(region) && !taken.iter().any(|other| other.overlaps(region)));
    let place = match here {
        Some(region) => region,
        None => {
            taken.push(kernel.region);
            taken.extend(dtb);
            let room = find(machine, &taken, header.text_offset + needed)
                .ok_or_else(|| format!("no {needed} bytes of free RAM for root's kernel"))?;
            let to = Pa(room.base().0 + header.text_offset);
            let size = kernel.region.size() as usize;
            // SAFETY: source and destination are disjoint RAM, mapped during boot, used by nothing else.
            unsafe {
                core::ptr::copy_nonoverlapping(kernel.region.base().0 as *const u8, to.0 as *mut u8, size);
            }
            clean(to, size);
            Region::new(to, needed).ok_or("root's kernel is empty")?
        }
    };
    taken.push(place);
    Ok(Placed {
        kernel: place.base(),
        bootargs: kernel.bootargs.clone(),
        initrd: machine.ramdisk.as_ref().map(|module| module.region),
        taken,
    })
}

/// Copies root's device tree into free RAM and returns its address.
///
/// # Errors
/// There is no room.
pub fn write_dtb(machine: &Machine, placed: &Placed, dtb: &[u8]) -> Result<Pa, String> {
    let room = find(machine, &placed.taken, BLOCK_SIZE).ok_or("no free RAM for root's device tree")?;
    if dtb.len() as u64 > room.size() {
        return Err(format!(
            "root's device tree has {} bytes, at most {} fit",
            dtb.len(),
            room.size()
        ));
    }
    // SAFETY: free RAM of root's, mapped during boot, as large as checked.
    unsafe { core::ptr::copy_nonoverlapping(dtb.as_ptr(), room.base().0 as *mut u8, dtb.len()) };
    clean(room.base(), dtb.len());
    Ok(room.base())
}

/// Cleans what EL2 wrote into root's memory to the point of coherency, because root starts with its caches
/// off.
fn clean(start: Pa, len: usize) {
    // SAFETY: root's RAM is mapped until `unmap_ram`, after this.
    unsafe { arch::clean_data_cache(start.0 as usize, len) }
}
