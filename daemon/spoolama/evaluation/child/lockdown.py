"""Drops the privileges of the evaluation process before it reads any user input.

There are two independent barriers: resource limits (setrlimit(2)) and a list of permitted system calls
(seccomp(2), a classic BPF filter). After `lock_down` the process can compute, allocate up to its limit, and
read and write its open descriptors. Opening a file, creating a socket and starting a child fail with EPERM,
EMFILE or EAGAIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
# linux/prctl.h, linux/seccomp.h

_RET_ALLOW = 0x7FFF0000
_RET_ERRNO_EPERM = 0x00050000 | 1
_RET_KILL = 0x80000000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCH = 0, 4
# linux/seccomp.h, linux/bpf_common.h: opcodes, and offsets in struct seccomp_data

_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
            "rt_sigprocmask": 14, "rt_sigreturn": 15, "mremap": 25, "madvise": 28, "sched_yield": 24,
            "getpid": 39, "setitimer": 38, "exit": 60, "gettid": 186, "futex": 202, "restart_syscall": 219,
            "clock_gettime": 228, "exit_group": 231, "tgkill": 234, "getrandom": 318, "rseq": 334,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "read": 63, "write": 64, "exit": 93, "exit_group": 94, "futex": 98, "setitimer": 103,
            "clock_gettime": 113, "sched_yield": 124, "restart_syscall": 128, "tgkill": 131,
            "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpid": 172, "gettid": 178,
            "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233,
            "getrandom": 278, "rseq": 293,
        },
    ),
}  # fmt: skip
"""For each machine: its audit number (linux/audit.h) and the permitted system calls: memory, time, signals to
the process itself, and reading and writing open descriptors."""


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends.

    Args:
        parent: The parent's process id; if the parent has ended already, this process exits.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def lock_down(memory_bytes: int) -> bool:
    """Drop all privileges that computing does not need.

    Args:
        memory_bytes: Limit of the address space, including the part already in use.

    Returns:
        Whether system calls are restricted. False if there is no filter for this machine or kernel; then only
        the resource limits and Jinja2's sandbox protect the service.

    Raises:
        OSError: a limit cannot be set.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")  # the OOM killer prefers this process to the service
    os.closerange(3, 1 << 16)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return _restrict_calls()


def _restrict_calls() -> bool:
    if platform.machine() not in _CALLS or struct.calcsize("P") != 8:
        return False
    architecture, calls = _CALLS[platform.machine()]
    steps = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _RET_KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        *((_JUMP_EQUAL, len(calls) - place, 0, number) for place, number in enumerate(calls.values())),
        (_RETURN, 0, 0, _RET_ERRNO_EPERM),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = _Filter(len(steps), ctypes.addressof(code))
    try:
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
    except OSError:
        return False
    return True


def _prctl(option: int, value: int, more: int = 0) -> None:
    call = ctypes.CDLL(None, use_errno=True).prctl
    call.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if call(option, value, more, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
