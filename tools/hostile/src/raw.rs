//! System calls and stores as an attacker would make them, past all wrappers.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use libc::{c_int, c_long, c_void};

/// Set by the signal handler: the filter has refused a call.
static REFUSED: AtomicBool = AtomicBool::new(false);

extern "C" fn refused(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    REFUSED.store(true, Ordering::SeqCst);
}

/// Takes the place of the handler that ends the process: `rt_sigaction` is allowed.
///
/// # Errors
/// The system refused.
pub fn survive_refusals() -> io::Result<()> {
    ringd::sandbox::on_violation(refused)
}

/// Makes a system call. A call that the filter refuses with a signal is an error, too.
///
/// # Safety
/// As for the call.
pub unsafe fn call(number: c_long, arguments: [c_long; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = arguments;
    REFUSED.store(false, Ordering::SeqCst);
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if REFUSED.swap(false, Ordering::SeqCst) {
        return Err(io::Error::other("by the filter, with SIGSYS"));
    }
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Returns where the file whose name ends in `suffix` is mapped, and how far.
///
/// # Errors
/// It is not mapped.
pub fn mapping(suffix: &str) -> io::Result<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with(suffix));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let parse = |text: &str| usize::from_str_radix(text, 16).ok();
    range
        .and_then(|(start, end)| Some((parse(start)?, parse(end)?.checked_sub(parse(start)?)?)))
        .ok_or_else(|| io::Error::other(format!("{suffix} is not mapped")))
}

/// Stores to a mapped register.
///
/// # Safety
/// The address is mapped, aligned, and no memory of Rust's.
pub unsafe fn store<T: Copy>(address: usize, value: T) {
    fence(Ordering::SeqCst);
    // SAFETY: the caller's.
    unsafe { std::ptr::with_exposed_provenance_mut::<T>(address).write_volatile(value) };
    fence(Ordering::SeqCst);
}
