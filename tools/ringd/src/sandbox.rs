//! Privileges that the worker drops once it is set up: root's identity, all capabilities, most system calls.
//!
//! [`drop_privileges`], then [`Paths::restrict`] and [`Filter::restrict`], in the process's only thread:
//! threads that are started later inherit them. A system call that is not on the list, or has other arguments
//! than the list says, ends the process with a line in the log that names it. A few that libraries try and
//! can do without fail instead.

mod paths;

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

pub use paths::Paths;

/// Status of a process that made a system call that is not allowed.
pub const STATUS_VIOLATION: i32 = 72;

/// System calls of a daemon at work.
const ALLOWED: &[libc::c_long] = &[
    // Reading, writing, mapping what is open or sent; its own records.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    ringblk::SYS_CACHESTAT,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_ioctl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_renameat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_splice,
    // io_uring and epoll.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets: that of ringctl, and the broker's. None is made but pairs (`with_arguments`).
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_futex,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// Flags of `clone` that a thread of this process has, and a process of its own has not.
const THREAD: libc::c_int = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
/// Reads what the kernel told this program at its start (`linux/prctl.h`). rustix does before it says how
/// large a page is.
const PR_GET_AUXV: libc::c_int = 0x4155_5856;
/// The type in `socketpair`'s type argument, which has flags, too.
const SOCKET_TYPE: u64 = 0xf;

/// Requests of `ioctl`: block devices' sizes and discards (`linux/fs.h`), non-blocking mode, and those by
/// which libraries ask whether a file is a terminal.
const IOCTLS: &[u64] = &[
    0x1268,      // BLKSSZGET
    0x8008_1272, // BLKGETSIZE64
    0x1277,      // BLKDISCARD
    0x127f,      // BLKZEROOUT
    0x1278,      // BLKIOMIN
    0x1279,      // BLKIOOPT
    0x127a,      // BLKALIGNOFF
    0x127b,      // BLKPBSZGET
    0x5421,      // FIONBIO
    0x541b,      // FIONREAD
    // Open taps' headers, offloads and queues (`linux/if_tun.h`); not TUNSETIFF, which opens one.
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54d9, // TUNSETQUEUE
    0x4004_54dc, // TUNSETVNETLE
    0x5401,      // TCGETS
    0x5413,      // TIOCGWINSZ
];

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn word(value: libc::c_int) -> u64 {
    value.unsigned_abs().into()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Returns the system calls that are allowed with some arguments only.
fn with_arguments() -> Result<Rules, BackendError> {
    let thread = word(THREAD);
    // No process.
    let clone = [condition(0, SeccompCmpOp::MaskedEq(thread), thread)?];
    // Not a datagram socket: it could send to any other's address.
    let pair = [
        condition(0, SeccompCmpOp::Eq, word(libc::AF_UNIX))?,
        condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), word(libc::SOCK_STREAM))?,
    ];
    // Of a thread's name, of an allocator's mappings. Not the signal that ends this process with the broker.
    let prctl = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_SET_VMA,
        PR_GET_AUXV,
    ]
    .map(|option| condition(0, SeccompCmpOp::Eq, word(option)));
    let rule = |conditions: Vec<_>| SeccompRule::new(conditions);
    let mut rules = Rules::new();
    rules.insert(libc::SYS_clone, vec![rule(clone.into())?]);
    rules.insert(libc::SYS_socketpair, vec![rule(pair.into())?]);
    let mut options = Vec::new();
    for option in prctl {
        options.push(rule(vec![option?])?);
    }
    rules.insert(libc::SYS_prctl, options);
    Ok(rules)
}

/// Returns the system calls that fail, of those that are allowed otherwise, by error.
fn failing() -> Result<[(i32, Rules); 2], BackendError> {
    // Threads are then made by `clone`, whose flags a filter can read; rings were made before.
    let absent = [libc::SYS_clone3, libc::SYS_io_uring_setup].map(|number| (number, Vec::new()));
    let mut others = Vec::new();
    for request in IOCTLS {
        others.push(condition(1, SeccompCmpOp::Ne, *request)?);
    }
    // Takes pages of a guest's memory away from its file, and so makes them root's again.
    let remove = condition(2, SeccompCmpOp::Eq, word(libc::MADV_REMOVE))?;
    let refused = [
        (libc::SYS_ioctl, vec![SeccompRule::new(others)?]),
        (libc::SYS_madvise, vec![SeccompRule::new(vec![remove])?]),
    ];
    Ok([(libc::ENOSYS, absent.into()), (libc::EPERM, refused.into())])
}

/// Names that x86-64 has beside them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_X86: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_X86: &[libc::c_long] = &[];

/// Changes the owner of a directory and the files in it to the user that the worker becomes, and their modes
/// so that no other user may read them. Links, files with another name and what is no file stay as they are:
/// the last worker may have made them.
///
/// # Errors
/// The system refused.
pub fn hand_over(directory: &Path, id: u32) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags | OFlags::DIRECTORY, Mode::empty())?;
    rustix::fs::fchown(&directory, uid, gid)?;
    rustix::fs::fchmod(&directory, Mode::RWXU)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        // A FIFO is not waited for.
        let opened = rustix::fs::openat(&directory, name, flags | OFlags::NONBLOCK, Mode::empty());
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(?name, %error, "left alone in the directory of records");
                continue;
            }
        };
        let found = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_nlink != 1 {
            tracing::warn!(
                ?name,
                "left alone in the directory of records: no file, or one with other names"
            );
            continue;
        }
        rustix::fs::fchown(&file, uid, gid)?;
        rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(())
}

/// Becomes the unprivileged user and group `id`, for good: no capabilities are left and none can be gained.
///
/// # Errors
/// The system refused; the process has dropped some privileges only, and should end.
pub fn drop_privileges(id: u32) -> io::Result<()> {
    // Locked memory for io_uring's registered buffers is accounted to a user without CAP_IPC_LOCK.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Memlock, unlimited) {
        tracing::warn!(%error, "cannot lift the limit on locked memory");
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // With the last id that is root's, the kernel clears all capabilities (capabilities(7)).
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true).map_err(Into::into)
}

/// The lists as the kernel takes them: made ahead, since a take-over should not wait for it.
pub struct Filter(Vec<BpfProgram>);

impl Filter {
    /// Translates the lists.
    ///
    /// # Errors
    /// This architecture has no seccomp filters.
    pub fn new() -> io::Result<Self> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let program = |rules, otherwise, on_match| {
            SeccompFilter::new(rules, otherwise, on_match, arch)
                .and_then(BpfProgram::try_from)
                .map_err(io::Error::other)
        };
        let mut allowed = with_arguments().map_err(io::Error::other)?;
        let plain = ALLOWED.iter().chain(ALLOWED_X86);
        allowed.extend(plain.map(|number| (*number, Vec::new())));
        let mut programs = Vec::new();
        for (error, rules) in failing().map_err(io::Error::other)? {
            let errno = SeccompAction::Errno(error.unsigned_abs());
            programs.push(program(rules, SeccompAction::Allow, errno)?);
        }
        // Last: it does not allow another filter to be installed.
        programs.push(program(allowed, SeccompAction::Trap, SeccompAction::Allow)?);
        Ok(Self(programs))
    }

    /// Allows this thread, and those that it starts, the system calls of a daemon at work and no others.
    ///
    /// # Errors
    /// The kernel has no seccomp filters.
    pub fn restrict(&self) -> io::Result<()> {
        on_violation(end)?;
        for program in &self.0 {
            seccompiler::apply_filter(program).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// A handler of a signal that gets its siginfo.
pub type SignalHandler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs the handler of SIGSYS, which the filter sends for a system call that it does not allow.
///
/// # Errors
/// The system refused.
pub fn on_violation(handler: SignalHandler) -> io::Result<()> {
    // SAFETY: a sigaction is plain data for which zeroes are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO requires; the old action is not asked for.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process, with a line that says why. Calls only what a signal handler may.
extern "C" fn end(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    /// Offset of `si_syscall`: behind signal, errno and code, aligned to the pointer `si_call_addr`, and
    /// that.
    const SI_SYSCALL: usize = 24;
    // SAFETY: the kernel gives a valid siginfo with SA_SIGINFO; its size is 128 bytes.
    let mut number = unsafe { info.cast::<u8>().add(SI_SYSCALL).cast::<c_int>().read_unaligned() };
    let mut line = *b"ringd: seccomp: system call      is not allowed; the daemon ends\n";
    if let Some(digits) = line.get_mut(28..32) {
        for digit in digits.iter_mut().rev() {
            if number > 0 {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
    }
    // SAFETY: write and _exit may be called from a signal handler; the line outlives the call.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(STATUS_VIOLATION)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::hand_over;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    // torture i1
    #[test]
    fn only_files_in_the_directory_itself_are_handed_over() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o640)).unwrap();
        let records = outside.path().join("zones");
        fs::create_dir(&records).unwrap();
        let record = records.join("a.json");
        fs::write(&record, "").unwrap();
        for path in [&records, &record] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        symlink(&secret, records.join("b.json")).unwrap();
        fs::hard_link(&secret, records.join("c.json")).unwrap();
        let pipe = records.join("d.json");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let own = rustix::process::getuid().as_raw();
        hand_over(&records, own).unwrap();
        assert_eq!((mode(&records), mode(&record)), (0o700, 0o600));
        assert_eq!(mode(&secret), 0o640, "neither by a link nor by another name");
        let link = outside.path().join("link");
        symlink(&records, &link).unwrap();
        assert!(hand_over(&link, own).is_err());
    }
}
