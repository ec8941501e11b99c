//! [`Guarded`]: a copy to or from a shared file mapping that fails, instead of ending the process, when a
//! page is gone.
//!
//! Touching a mapping raises SIGBUS where the file has been truncated, its file system in memory has no page
//! left, or the machine has lost the page. So the copy is a few instructions at known addresses, and a
//! handler of SIGBUS resumes behind them if it interrupted one of these. Any other SIGBUS has its previous
//! effect.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

// `ringblk_copy(to, from, bytes)`: returns 0, or 1 if SIGBUS interrupted it anywhere up to
// `ringblk_copy_failed`. It does not use the stack, so the handler can resume there.
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .text.ringblk_copy, \"ax\"",
    ".balign 64",
    ".hidden ringblk_copy, ringblk_copy_failed",
    ".globl ringblk_copy, ringblk_copy_failed",
    "ringblk_copy:",
    "subs x2, x2, #64",
    "b.lo 2f",
    "1:",
    "ldp q0, q1, [x1]",
    "ldp q2, q3, [x1, #32]",
    "add x1, x1, #64",
    "stp q0, q1, [x0]",
    "stp q2, q3, [x0, #32]",
    "add x0, x0, #64",
    "subs x2, x2, #64",
    "b.hs 1b",
    "2:",
    "adds x2, x2, #64",
    "b.eq 4f",
    "5:",
    "subs x2, x2, #8",
    "b.lo 6f",
    "ldr x3, [x1], #8",
    "str x3, [x0], #8",
    "b 5b",
    "6:",
    "adds x2, x2, #8",
    "b.eq 4f",
    "3:",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "subs x2, x2, #1",
    "b.ne 3b",
    "4:",
    "mov w0, wzr",
    "ret",
    "ringblk_copy_failed:",
    "mov w0, #1",
    "ret",
    ".popsection",
);
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.ringblk_copy, \"ax\"",
    ".balign 64",
    ".hidden ringblk_copy, ringblk_copy_failed",
    ".globl ringblk_copy, ringblk_copy_failed",
    "ringblk_copy:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "ringblk_copy_failed:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    safe static ringblk_copy_failed: u8;
    fn ringblk_copy(to: *mut u8, from: *const u8, bytes: usize) -> c_int;
}

/// Proof that the SIGBUS handler is installed.
#[derive(Clone, Copy, Debug)]
pub struct Guarded(());

impl Guarded {
    /// Installs the handler, once for the process.
    ///
    /// # Errors
    /// The system's error.
    pub fn new() -> io::Result<Self> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        let installed =
            INSTALLED.get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
        installed.map(|()| Self(())).map_err(io::Error::from_raw_os_error)
    }

    /// Copies bytes. Returns `false` if a page was gone; any part may have been copied then.
    ///
    /// # Safety
    /// Both ranges are mapped in this process and do not overlap; the mapped file may change.
    pub unsafe fn copy(self, to: *mut u8, from: *const u8, bytes: usize) -> bool {
        // SAFETY: the caller guarantees the mappings; the handler is installed.
        unsafe { ringblk_copy(to, from, bytes) == 0 }
    }
}

/// The previous action for SIGBUS.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install() -> io::Result<()> {
    // SAFETY: a sigaction is plain data for which zeroes are valid.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a query, which stores into `previous`.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // Before the handler can run.
    let _ = PREVIOUS.set(previous);
    let mut action = previous;
    action.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternate stack, as Rust's own handler that reports stack overflows.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Async-signal-safe: loads and stores, `sigaction` and `raise`.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes the cause and the interrupted thread's context.
    let (place, code) = unsafe { (program_counter(context.cast()), (*info).si_code) };
    let start = ringblk_copy as *const () as usize;
    let failed = (&raw const ringblk_copy_failed).addr();
    // A positive code is the kernel's own; a signal that was sent can arrive at any instruction.
    if code > 0 && (start..failed).contains(&(*place as usize)) {
        *place = failed as _;
        return;
    }
    match PREVIOUS.get() {
        Some(previous) if code > 0 && !matches!(previous.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            // A handler without SA_SIGINFO ignores the other arguments.
            // SAFETY: it was a handler for this signal.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(previous.sa_sigaction) };
            handler(signal, info, context);
        }
        _ => {
            // SAFETY: zeroes are SIG_DFL with no flags. The instruction is retried and ends the process; a
            // signal that was sent is raised again.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(libc::SIGBUS);
                }
            }
        }
    }
}

/// Returns the program counter at which the thread resumes.
///
/// # Safety
/// The context is a running handler's.
#[cfg(target_arch = "aarch64")]
unsafe fn program_counter<'a>(context: *mut libc::ucontext_t) -> &'a mut u64 {
    // SAFETY: the caller guarantees the context.
    unsafe { &mut (*context).uc_mcontext.pc }
}

/// Returns the program counter at which the thread resumes.
///
/// # Safety
/// The context is a running handler's.
#[cfg(target_arch = "x86_64")]
unsafe fn program_counter<'a>(context: *mut libc::ucontext_t) -> &'a mut i64 {
    // SAFETY: the caller guarantees the context; the array has all registers.
    unsafe {
        &mut *(&raw mut (*context).uc_mcontext.gregs)
            .cast::<i64>()
            .add(libc::REG_RIP as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Guarded;

    fn mapping(file: &std::fs::File, bytes: usize) -> *mut u8 {
        use std::os::fd::AsRawFd;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        at.cast()
    }

    #[test]
    fn copies_any_number_of_bytes_and_no_others() {
        let guarded = Guarded::new().unwrap();
        let from: Vec<u8> = (0..1000_u32).map(|at| (at % 251) as u8 + 1).collect();
        for bytes in (0..200).chain([255, 256, 511, 512, 777]) {
            for (to_shift, from_shift) in [(0, 0), (1, 0), (3, 7)] {
                let mut to = vec![0; 1000];
                let (a, b) = (&mut to[to_shift..], &from[from_shift..]);
                // SAFETY: both are longer than that.
                assert!(unsafe { guarded.copy(a.as_mut_ptr(), b.as_ptr(), bytes) });
                assert_eq!(a[..bytes], b[..bytes]);
                assert!(a[bytes..].iter().all(|&byte| byte == 0), "{bytes}");
            }
        }
    }

    #[test]
    fn a_page_that_is_gone_is_an_error_whichever_side_it_is_on() {
        let guarded = Guarded::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * 65536).unwrap();
        let at = mapping(&file, 3 * 65536);
        let mut own = vec![7; 2 * 65536];
        let own = own.as_mut_ptr();
        for _ in 0..3 {
            file.set_len(3 * 65536).unwrap();
            // SAFETY: all of it stays mapped when the file shrinks.
            unsafe {
                assert!(guarded.copy(at.add(65536), own, 2 * 65536));
                file.set_len(2 * 65536).unwrap();
                assert!(!guarded.copy(at.add(65536), own, 2 * 65536), "to it");
                assert!(!guarded.copy(own, at.add(65536), 2 * 65536), "from it");
                assert!(!guarded.copy(own, at.add(2 * 65536), 1), "one byte");
                assert!(guarded.copy(own, at, 2 * 65536), "what is there");
            }
        }
        // SAFETY: it is not used any more.
        unsafe { libc::munmap(at.cast(), 3 * 65536) };
    }

    // As without this handler, the process ends: by an access that is not a guarded copy, or by a signal that
    // was sent.
    #[test]
    fn any_other_sigbus_ends_the_process() {
        let name = "image::copy::tests::any_other_sigbus_ends_the_process";
        let Some(how) = std::env::var_os("RINGBLK_SIGBUS") else {
            for how in ["access", "sent"] {
                let test = std::process::Command::new(std::env::current_exe().unwrap())
                    .args([name, "--exact", "--nocapture"])
                    .env("RINGBLK_SIGBUS", how)
                    .output()
                    .unwrap();
                use std::os::unix::process::ExitStatusExt;
                assert_eq!(test.status.signal(), Some(libc::SIGBUS), "{test:?}");
                assert!(String::from_utf8_lossy(&test.stdout).contains("copied: false"));
            }
            return;
        };
        let guarded = Guarded::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let at = mapping(&file, 4096);
        file.set_len(0).unwrap();
        let mut own = [0_u8; 16];
        // SAFETY: it is mapped.
        println!("copied: {}", unsafe { guarded.copy(own.as_mut_ptr(), at, 16) });
        if how == "sent" {
            // SAFETY: no pointers.
            unsafe { libc::raise(libc::SIGBUS) };
        } else {
            // SAFETY: it is mapped.
            unsafe { at.read_volatile() };
        }
    }
}
