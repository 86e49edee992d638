"""A system-call filter (Linux seccomp, mode 2): no sockets, no new processes or threads, no signals, no mounts.

The filter is classic BPF: refuse a foreign instruction set, then compare the call's number with the refused ones. A
refused call fails with EPERM (ENOSYS for clone3, so that libc falls back to clone, which is refused too).
"""

import ctypes
import errno
import platform
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER_MODE = 38, 22, 2
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


def _program(machine: str) -> bytes:
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


class Filter:
    """A filter made once, so that each call's process only has to install it; `None` machine: not to be had here."""

    def __init__(self) -> None:
        self.machine = platform.machine() if platform.system() == "Linux" else ""
        self.available = self.machine in ARCHITECTURES
        if self.available:
            code = _program(self.machine)
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
