"""What a worker gives up before it serves: network, other processes, the file system, its user and capabilities.

Bubblewrap (the system's package) does it where it is present; else our own namespaces, each step tried and reported by
name. A program's own process adds a filter of system calls (seccomp, mode 2, classic BPF): what is not on the list
below fails with EPERM, so sockets, processes, signals, mounts, priorities and whatever a newer kernel brings are
refused unnamed. Linux only: elsewhere nothing is reported, and the sandbox refuses to start.
"""

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER_MODE = 1, 4, 22, 38, 2
CAPSET = {"x86_64": 126, "aarch64": 91}
NOBODY = 65534
SCRATCH, SCRATCH_MEBIBYTES = Path("/scratch"), 16
NAMESPACES = ("network", "processes", "mounts", "ipc")

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
X32_BIT = 0x40000000  # the x32 calls of x86_64 would pass under other numbers
CLONE3 = 435  # ENOSYS, so that libc falls back to clone, which is refused
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Number on x86_64 and on aarch64 ("-": not there), the most frequent first.
ALLOWED = """
read 0 63, write 1 64, mmap 9 222, munmap 11 215, brk 12 214, newfstatat 262 79, fstat 5 80, openat 257 56, close 3 57,
lseek 8 62, futex 202 98, mprotect 10 226, madvise 28 233, rt_sigaction 13 134, rt_sigprocmask 14 135, open 2 -,
stat 4 -, lstat 6 -, poll 7 -, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, dup 32 23,
dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, exit 60 93,
wait4 61 260, uname 63 160, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -, unlink 87 -,
symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177,
getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155,
getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
statfs 137 43, fstatfs 138 44, getpriority 140 141, setrlimit 160 164, gettid 186 178, time 201 -, getdents64 217 61,
fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
waitid 247 95, mkdirat 258 34, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78,
fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, utimensat 280 88, fallocate 285 47, dup3 292 24,
pipe2 293 59, preadv 295 69, pwritev 296 70, getcpu 309 168, renameat2 316 276, getrandom 318 278, membarrier 324 283,
copy_file_range 326 285, statx 332 291, rseq 334 293, close_range 436 436, faccessat2 439 439
"""
# Number on both machines, which argument is looked at, and the values that it may have: only a process's own limits and
# processors (0), no owner of a descriptor, no terminal.
ALLOWED_IF = {
    "prlimit64": (302, 261, 0, (0,)),
    "sched_getaffinity": (204, 123, 0, (0,)),
    "fcntl": (72, 25, 1, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),  # F_DUPFD … F_SETLKW, F_DUPFD_CLOEXEC
    "ioctl": (16, 29, 1, (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)),  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
}

libc = ctypes.CDLL(None, use_errno=True)


# --- Bubblewrap ---


@functools.cache
def bubblewrap(shown: tuple[Path, ...] = ()) -> tuple[str, ...]:
    """Return the command that runs a program in isolation; () where Bubblewrap is not there or cannot do it.

    The process is number 1 of its namespace. Where we are root it stays root, for `drop_privileges` to end.
    """
    program = shutil.which("bwrap")
    if not program or platform.system() != "Linux":
        return ()
    who = ("--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)) if os.getuid() else ("--cap-add", "ALL")
    places = _places(shown)
    above = sorted({str(parent) for place in places for parent in place.parents} - {"/"})
    folders = [part for parent in above for part in ("--perms", "0755", "--dir", parent)]  # a home is 0700 outside
    folders += [part for place in places for part in ("--ro-bind", str(place), str(place))]
    for name in ("/lib", "/lib64"):
        if os.path.islink(name):
            folders += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            folders += ["--ro-bind", name, name]
    command = (
        program, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *who,
        "--as-pid-1", *folders, "--size", str(SCRATCH_MEBIBYTES << 20), "--tmpfs", str(SCRATCH), "--remount-ro", "/",
        "--chdir", str(SCRATCH),
    )  # fmt: skip
    tried = subprocess.run([*command, sys.executable, "-I", "-c", ""], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


def _places(shown: Sequence[Path]) -> list[Path]:
    """Folders that a worker needs, none within another."""
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    places = {Path(p) for p in ("/usr", sys.base_prefix, sys.prefix, *libraries)} | {Path(p).resolve() for p in shown}
    return sorted(place for place in places if not any(other in place.parents for other in places))


# --- our own namespaces ---


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_namespaces() -> list[str]:
    """Leave the network, the mounts and (for children) the process numbers of the machine; returns what was left.

    Without root a user namespace is tried first. What the kernel refuses is simply not in the list.
    """
    if platform.system() != "Linux":
        return []
    outside = os.getuid(), os.getgid()
    if outside[0] != 0:
        if libc.unshare(NEWUSER) != 0:
            return []
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {outside[0]} 1")
            Path("/proc/self/gid_map").write_text(f"0 {outside[1]} 1")
    flags = dict(zip(NAMESPACES, (NEWNET, NEWPID, NEWNS, NEWIPC | NEWUTS), strict=True))
    return [name for name, flag in flags.items() if libc.unshare(flag) == 0]


def new_root(scratch: Path, shown: Sequence[Path]) -> None:
    """Replace the file system by Python's own folders, read-only, and one small empty writable folder.

    `scratch` is where the new root is put together; `shown` are further read-only folders. From inside, the writable
    folder is SCRATCH. Raises OSError where the kernel refuses a mount.
    """
    _mount("none", "/", None, REC | PRIVATE)
    root = scratch / "root"
    root.mkdir()
    _mount("tmpfs", str(root), "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for place in _places(shown):
        _show(place, root)
    for name in ("/lib", "/lib64"):
        if os.path.islink(name):
            (root / name[1:]).symlink_to(os.readlink(name))
        elif os.path.isdir(name):
            _show(Path(name), root)
    inside = root / SCRATCH.name
    inside.mkdir()
    _mount("tmpfs", str(inside), "tmpfs", NOSUID | NODEV, f"size={SCRATCH_MEBIBYTES}m,nr_inodes=512,mode=777")
    _mount("tmpfs", str(root), None, REMOUNT | RDONLY | NOSUID | NODEV)
    os.chroot(root)


def _show(place: Path, root: Path) -> None:
    target = root / str(place)[1:]
    target.mkdir(parents=True, exist_ok=True)
    _mount(str(place), str(target), None, BIND | REC)
    _mount("none", str(target), None, BIND | REMOUNT | RDONLY | NOSUID | NODEV)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if part is None else part.encode() for part in (source, target, kind)]
    _check(libc.mount(*encoded, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")


def drop_privileges() -> None:
    """Become nobody (where we were root), without capabilities or core dumps, and die with the parent."""
    if os.getuid() == 0:
        with contextlib.suppress(OSError):  # in a user namespace of our own there is nobody else to become
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    if platform.system() == "Linux":
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if platform.machine() in CAPSET:
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
            libc.syscall(CAPSET[platform.machine()], header, (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def bytes_mapped() -> int:
    """Measure this process's address space without /proc: the least limit under which one more page is given.

    Returns 0 where the system enforces no such limit.
    """
    before, page = resource.getrlimit(resource.RLIMIT_AS), mmap.PAGESIZE

    def given(limit: int) -> bool:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
            mmap.mmap(-1, page).close()
        except (OSError, ValueError, MemoryError):
            return False
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return True

    low, high = 0, 1 << 46
    if given(page) or not given(high):
        return 0
    while high - low > page:
        middle = (low + high) // 2
        low, high = (low, middle) if given(middle) else (middle, high)
    return high


# --- the filter of system calls ---


def _filter_code(machine: str) -> bytes:
    """Instructions (code u16, jump-if-true u8, jump-if-false u8, value u32) of the filter for one machine."""

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    column = list(MACHINES).index(machine)
    numbers = [row.split()[1 + column] for row in ALLOWED.split(",")]
    refuse, allow = step(RETURN, 0, 0, ERRNO | errno.EPERM), step(RETURN, 0, 0, ALLOW)
    steps = [
        step(LOAD, 0, 0, 4),  # seccomp_data.arch
        step(JUMP_EQUAL, 1, 0, MACHINES[machine]),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, 0),  # seccomp_data.nr
        step(JUMP_AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, KILL),
    ]
    for number in numbers:
        if number != "-":
            steps += [step(JUMP_EQUAL, 0, 1, int(number)), allow]
    steps += [step(JUMP_EQUAL, 0, 1, CLONE3), step(RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for *on_machine, argument, values in ALLOWED_IF.values():
        steps += [
            step(JUMP_EQUAL, 0, 2 + 2 * len(values), on_machine[column]),
            step(LOAD, 0, 0, 16 + 8 * argument),  # low half of seccomp_data.args[argument]: the kernel reads an int
        ]
        for value in values:
            steps += [step(JUMP_EQUAL, 0, 1, value), allow]
        steps.append(refuse)
    return b"".join([*steps, refuse])


class SystemCallFilter:
    """A filter made once, so that each call's process only has to install it; not `available` on other machines."""

    def __init__(self) -> None:
        machine = platform.machine() if platform.system() == "Linux" else ""
        self.available = machine in MACHINES
        if self.available:
            code = _filter_code(machine)
            self._code = ctypes.create_string_buffer(code, len(code))
            # struct sock_fprog: u16 length, padding, pointer
            self._header = ctypes.create_string_buffer(
                struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._code))
            )
            self._prctl = ctypes.CDLL(None, use_errno=True).prctl
            self._prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

    def install(self) -> bool:
        """Install it for this process and all that come from it, for good; False where the kernel refuses."""
        if not self.available or self._prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return self._prctl(PR_SET_SECCOMP, FILTER_MODE, ctypes.addressof(self._header), 0, 0) == 0
