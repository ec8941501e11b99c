//! A TCG plugin for QEMU that counts executed instructions, by CPU and by where the code is.
//!
//! `-plugin file=libqemu_count.so,counters=FILE[,low=ADDRESS,high=ADDRESS]`: the counters are 64-bit words in
//! FILE, which has to exist and be [`BYTES`] long, and which others may read while QEMU runs. A CPU has
//! [`CLASSES`] words:
//!
//! 0. code in the lower half of the address space: user space, or KVM's part at EL2;
//! 1. code in the upper half: a kernel;
//! 2. code from `low` up to `high`: ringvisor, which runs where it was loaded. Debian's programs are never
//!    there.
//! 3. not a class: the longest time in class 2 from its entry to an ERET or other code, since 0 was last
//!    stored here. With an interrupt pending an ERET returns at once, without an instruction of the guest's.
//!
//! With `profile=FILE` of [`PROFILE_BYTES`], what CPU 0 executes in class 1 is also counted by address: the
//! word at index `address / 4 % PROFILE_WORDS` is the instructions of the blocks that begin there. That is
//! enough for a Linux kernel, whose text is smaller than 16 MiB, if its place is known (`nokaslr`): see
//! docs/performance.md.
//!
//! Whole translation blocks are counted when they begin, so a block that an exception cuts short counts too
//! much: an error of a few instructions per exception. The interface is version 1 of QEMU's `qemu-plugin.h`,
//! which Debian does not package; the few functions of it are declared here. QEMU 7.2 takes that version,
//! QEMU 10 does not.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Words of one CPU.
pub const CLASSES: usize = 4;
/// CPUs that have counters; those of others are not counted.
pub const CPUS: usize = 64;
/// Length of the file.
pub const BYTES: usize = CLASSES * CPUS * 8;
/// Words of a profile.
pub const PROFILE_WORDS: usize = 4 << 20;
/// Length of a profile.
pub const PROFILE_BYTES: usize = PROFILE_WORDS * 8;

/// The class of ringvisor's code.
const HYPERVISOR: usize = 2;
/// The word of the longest time in it.
const LONGEST: usize = 3;

/// The bit of a block that ends with ERET, beside what [`translated`] tells [`executed`].
const RETURNS: usize = 1 << 40;
/// ERET, without authentication.
const ERET: u32 = 0xd69f_03e0;

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers.
const NO_REGISTERS: c_int = 0;

/// The version of the interface, by which QEMU knows that it is ours.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU looks for this name")]
pub static qemu_plugin_version: c_int = 1;

/// A translation block, only ever seen through a pointer.
#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

/// An instruction, only ever seen through a pointer.
#[repr(C)]
pub struct Instruction {
    _private: [u8; 0],
}

type Translated = extern "C" fn(u64, *mut Block);
type Executed = extern "C" fn(c_uint, *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        callback: Executed,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
}

/// The counters, and the range of class 2.
struct State {
    counters: &'static [AtomicU64],
    /// By address; empty without a profile.
    profile: &'static [AtomicU64],
    low: u64,
    high: u64,
}

static STATE: OnceLock<State> = OnceLock::new();
/// By CPU: instructions in [`HYPERVISOR`] since it was entered.
static TIMES: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// Called once by QEMU. Returns 0, or -1 after a message.
///
/// # Safety
/// As QEMU calls it: `argv` are `argc` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let mut arguments = Vec::new();
    for index in 0..usize::try_from(argc).unwrap_or_default() {
        // SAFETY: QEMU passes `argc` strings that live as long as this call.
        let text = unsafe { CStr::from_ptr(*argv.add(index)) };
        arguments.push(text.to_string_lossy().into_owned());
    }
    match state(&arguments) {
        Ok(state) => {
            // Called once, so the cell is empty.
            let _ = STATE.set(state);
            // SAFETY: `id` is the one QEMU gave us, and the callback stays: a plugin is not unloaded while it
            // counts.
            unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
            0
        }
        Err(message) => {
            eprintln!("qemu-count: {message}");
            -1
        }
    }
}

fn state(arguments: &[String]) -> Result<State, String> {
    let value = |name: &str| {
        arguments
            .iter()
            .find_map(|a| a.strip_prefix(name)?.strip_prefix('='))
    };
    let address = |name: &str| match value(name) {
        None => Ok(0),
        Some(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .map_err(|_| format!("{name}={text}: expected a hexadecimal address")),
    };
    let path = value("counters").ok_or("counters=FILE is missing")?;
    Ok(State {
        counters: map(path, CLASSES * CPUS)?,
        profile: match value("profile") {
            None => &[],
            Some(path) => map(path, PROFILE_WORDS)?,
        },
        low: address("low")?,
        high: address("high")?,
    })
}

/// Maps the file `path` as words, of which it must have as many as said.
fn map(path: &str, words: usize) -> Result<&'static [AtomicU64], String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| format!("{path}: {e}"))?;
    let (length, bytes) = (
        file.metadata().map_err(|e| format!("{path}: {e}"))?.len(),
        words * 8,
    );
    if length != bytes as u64 {
        return Err(format!("{path}: has {length} bytes, expected {bytes}"));
    }
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe {
        mmap(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    };
    let memory = memory.map_err(|e| format!("{path}: cannot be mapped: {e}"))?;
    // SAFETY: the mapping is never taken away, aligned to a page, of that length, and only accessed by
    // atomics here.
    Ok(unsafe { std::slice::from_raw_parts(memory.cast::<AtomicU64>(), words) })
}

/// Called for each new translation block: has it counted when it is executed.
extern "C" fn translated(_id: u64, block: *mut Block) {
    let Some(state) = STATE.get() else { return };
    // SAFETY: QEMU passes a block that lives as long as this call.
    let (start, length) = unsafe { (qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block)) };
    let class = match start {
        _ if (state.low..state.high).contains(&start) => HYPERVISOR,
        _ if start >> 63 != 0 => 1,
        _ => 0,
    };
    // The pointer carries these numbers and is never followed: a block has at most a few hundred
    // instructions.
    let place = (start / 4) as usize % PROFILE_WORDS;
    // SAFETY: the block lives as long as this call, and has `length` instructions of four bytes, whose data
    // live as long; those of a block without any are not asked for.
    let last = length.checked_sub(1).map(|last| unsafe {
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, last))
            .cast::<u32>()
            .read_unaligned()
    });
    let returns = if last.is_some_and(|last| u32::from_le(last) == ERET) {
        RETURNS
    } else {
        0
    };
    let data = returns | (place << 16) | (length.min(0x3fff) * CLASSES) | class;
    let data = std::ptr::without_provenance_mut(data);
    // SAFETY: as above; the callback does not follow the pointer.
    unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, data) };
}

extern "C" fn executed(cpu: c_uint, data: *mut c_void) {
    let Some(state) = STATE.get() else { return };
    let data = data.addr();
    let (place, length, class) = (
        (data >> 16) % PROFILE_WORDS,
        (data & 0xffff) / CLASSES,
        data % CLASSES,
    );
    add(state.counters, cpu as usize * CLASSES + class, length);
    follow(state, cpu as usize, class, length as u64, data & RETURNS != 0);
    if cpu == 0 && class == 1 {
        add(state.profile, place, length);
    }
}

/// Follows how long a CPU is in [`HYPERVISOR`].
fn follow(state: &State, cpu: usize, class: usize, length: u64, returns: bool) {
    let (Some(time), Some(longest)) = (TIMES.get(cpu), state.counters.get(cpu * CLASSES + LONGEST)) else {
        return;
    };
    if class != HYPERVISOR {
        time.store(0, Ordering::Relaxed);
        return;
    }
    let now = time.load(Ordering::Relaxed) + length;
    time.store(if returns { 0 } else { now }, Ordering::Relaxed);
    if now > longest.load(Ordering::Relaxed) {
        longest.store(now, Ordering::Relaxed);
    }
}

/// Adds to a word. A CPU is run by one thread at a time, so its words have one writer.
fn add(words: &[AtomicU64], index: usize, count: usize) {
    if let Some(word) = words.get(index) {
        let before = word.load(Ordering::Relaxed);
        word.store(before.wrapping_add(count as u64), Ordering::Relaxed);
    }
}
