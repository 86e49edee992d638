"""What a worker gives up before it serves: network, other processes, the file system, its user and capabilities.

Each step is tried and its outcome reported by name; none is assumed. Linux only: elsewhere the report says so. The
last step is a filter of system calls (seccomp, mode 2): no sockets, new processes or threads, signals or mounts. It is
classic BPF: refuse a foreign instruction set, then compare the call's number with the refused ones, which fail with
EPERM (ENOSYS for clone3, so that libc falls back to clone, which is refused too).
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from pathlib import Path

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER_MODE = 1, 4, 22, 38, 2
CAPSET = {"x86_64": 126, "aarch64": 91}
NOBODY = 65534
SCRATCH, SCRATCH_MEBIBYTES = Path("/scratch"), 16

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
X32_BIT = 0x40000000  # the x32 calls of x86_64 would pass under other numbers

CLONE3 = 435
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Same numbers on both: pidfd_send_signal, io_uring_setup/enter/register, pidfd_open, pidfd_getfd.
COMMON = (424, 425, 426, 427, 434, 438)
REFUSED = {
    "x86_64": {
        "sockets": (41, 42, 43, 44, 46, 49, 50, 53, 288),
        "processes": (56, 57, 58, 59, 322, 112, 109),
        "signals": (62, 129, 200, 234, 297),
        "debugging": (101, 310, 311, 298, 321, 323, 312),
        "namespaces": (155, 161, 165, 166, 272, 308),
        "kernel": (169, 175, 246, 248, 249, 250, 313),
        "shared memory": (29, 64, 68, 319, 240),
    },
    "aarch64": {
        "sockets": (198, 199, 200, 201, 202, 203, 206, 211, 242),
        "processes": (220, 221, 281, 157, 154),
        "signals": (129, 130, 131, 138, 240),
        "debugging": (117, 270, 271, 241, 280, 282, 272),
        "namespaces": (39, 40, 41, 51, 97, 268),
        "kernel": (104, 105, 142, 217, 218, 219, 273),
        "shared memory": (194, 190, 186, 279, 180),
    },
}

libc = ctypes.CDLL(None, use_errno=True)


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
    flags = {"network": NEWNET, "processes": NEWPID, "mounts": NEWNS, "ipc": NEWIPC | NEWUTS}
    return [name for name, flag in flags.items() if libc.unshare(flag) == 0]


def new_root(scratch: Path, shown: list[Path]) -> None:
    """Replace the file system by Python's own folders, read-only, and one small empty writable folder.

    `scratch` is where the new root is put together; `shown` are further read-only folders. From inside, the writable
    folder is SCRATCH. Raises OSError where the kernel refuses a mount.
    """
    _mount("none", "/", None, REC | PRIVATE)
    root = scratch / "root"
    root.mkdir()
    _mount("tmpfs", str(root), "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    places = {Path(p) for p in ("/usr", sys.base_prefix, sys.prefix)} | set(shown)
    for place in sorted(places):
        if not any(other in place.parents for other in places):
            _show(place, root)
    for name in ("/lib", "/lib64", "/bin"):
        if os.path.islink(name):
            (root / name[1:]).symlink_to(os.readlink(name))
        elif os.path.isdir(name) and name != "/bin":
            _show(Path(name), root)
    inside = root / SCRATCH.name
    inside.mkdir()
    _mount("tmpfs", str(inside), "tmpfs", NOSUID | NODEV, f"size={SCRATCH_MEBIBYTES}m,nr_inodes=512,mode=777")
    _mount("tmpfs", str(root), None, REMOUNT | RDONLY | NOSUID | NODEV)
    os.chroot(root)
    os.chdir(SCRATCH)


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


class Meter:
    """Address space of this process, in bytes, still to be read after /proc has gone; 0 where nothing tells."""

    def __init__(self) -> None:
        self._file = None
        with contextlib.suppress(OSError):
            self._file = open("/proc/self/statm", "rb", buffering=0)

    def last_reading(self) -> int:
        """Return the bytes mapped now, and close the meter."""
        if self._file is None:
            return 0
        with self._file as file:
            return int(file.read().split()[0]) * resource.getpagesize()


def _filter_code(machine: str) -> bytes:
    """Instructions (code u16, jump-if-true u8, jump-if-false u8, value u32) of the filter for one machine."""

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    refused = [number for numbers in REFUSED[machine].values() for number in numbers] + list(COMMON)
    steps = [
        step(LOAD, 0, 0, 4),  # seccomp_data.arch
        step(JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, 0),  # seccomp_data.nr
        step(JUMP_AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, KILL),
        step(JUMP_EQUAL, 0, 1, CLONE3),
        step(RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]
    for number in refused:
        steps += [step(JUMP_EQUAL, 0, 1, number), step(RETURN, 0, 0, ERRNO | errno.EPERM)]
    return b"".join([*steps, step(RETURN, 0, 0, ALLOW)])


class SystemCallFilter:
    """A filter made once, so that each call's process only has to install it; `None` machine: not to be had here."""

    def __init__(self) -> None:
        self.machine = platform.machine() if platform.system() == "Linux" else ""
        self.available = self.machine in ARCHITECTURES
        if self.available:
            code = _filter_code(self.machine)
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
