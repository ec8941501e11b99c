//! Signals as messages: blocked, and taken one at a time. For the supervisor, which has no other thread, and
//! for a thread of `ringctl` that puts the terminal back.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The signals that a supervisor passes on or acts upon.
pub const WATCHED: [i32; 7] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// The signals that ask a program to end.
pub const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

/// A set of blocked signals.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks some signals in this thread, and so in those that it starts, but for those that the process was
    /// started to ignore, as by `nohup`: they stay ignored. Programs that are started inherit what is
    /// blocked.
    ///
    /// # Errors
    /// The system refused.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let blocked = signals
            .iter()
            .copied()
            .filter(|&signal| signal == libc::SIGCHLD || !is_ignored(signal));
        let set = Self::of(blocked);
        set.change(libc::SIG_BLOCK)?;
        Ok(set)
    }

    /// Unblocks some signals in this thread, which a supervisor that started the program may have blocked.
    ///
    /// # Errors
    /// The system refused.
    pub fn unblock(signals: &[i32]) -> io::Result<()> {
        Self::of(signals.iter().copied()).change(libc::SIG_UNBLOCK)
    }

    fn of(signals: impl Iterator<Item = i32>) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset initialises the set that the pointer names.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: the set is initialised.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        Self(set)
    }

    fn change(&self, how: i32) -> io::Result<()> {
        // SAFETY: the set is initialised, and the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(how, &self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Returns the next signal, or `None` when none has come for `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<i32> {
        let time = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(0),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: set and time are initialised and outlive the call; who sent the signal is not asked for.
        let signal = unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), &time) };
        // Negative: EAGAIN after the time, or EINTR by a signal that is not of the set.
        (signal > 0).then_some(signal)
    }

    /// Ends or stops this process as a signal of the set does by default.
    pub fn obey(&self, signal: i32) {
        let _ = self.change(libc::SIG_UNBLOCK);
        // SAFETY: no pointers. It is blocked in all other threads, or ends them as well.
        unsafe { libc::raise(signal) };
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the pointer names room for what is asked for, and nothing is changed.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes are a value, and then what the system wrote.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}
