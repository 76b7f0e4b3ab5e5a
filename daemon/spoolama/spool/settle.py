"""Settles a job: waits until no process can change the claimed files any more.

A claim moves the file, but a client that has it open continues to write: uploads grew by megabytes after the
rename in tests. The kernel knows whether a process has the file open for writing: it grants a read lease only
if none has (`fcntl(F_SETLEASE)`, fcntl(2)). A file in a private directory, with a granted lease and no second
hard link, cannot change any more. Only its content can show whether it is complete (`content.py`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spoolama.spool.claim import JobDir
from spoolama.spool.durable import DISK, Disk, in_words
from spoolama.spool.names import readable

__all__ = ["Lease", "Refused", "SettledFiles", "Settling", "ask_lease", "settle"]


@dataclass(frozen=True, slots=True)
class SettledFiles:
    """No process writes to the job's files, and they are on disk."""

    said: str = ""
    """Why the kernel did not confirm it, so that only the quiet time indicates it; empty if it did."""


@dataclass(frozen=True, slots=True)
class Settling:
    """A process still writes. Ask again; do not read yet."""

    reason: str
    """The reason, for the status."""


@dataclass(frozen=True, slots=True)
class Refused:
    """These files cannot become a job."""

    code: str
    """Stable name: `unreadable`, `not_regular`, `hard_linked`, `vanished`."""
    message: str
    """What is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The kernel's reply whether a process has a file open for writing."""

    writer: bool
    """Whether a process has it open for writing."""
    denied: str = ""
    """Why the kernel refused to reply; empty if it did not."""


def ask_lease(fd: int) -> Lease:
    """Ask the kernel whether a process has this file open for writing.

    Requires a file of our own or CAP_LEASE (which has no effect in a unit with PrivateUsers=yes),
    and a file system with leases (not NFS).

    Args:
        fd: Open for reading only.
    """
    try:
        # If a process opens the file while we hold the lease, the kernel sends us a signal. The default,
        # SIGIO, would end this process; SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        if e.errno == errno.EAGAIN:
            return Lease(writer=True)
        return Lease(writer=False, denied=os.strerror(e.errno or 0))
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Lease(writer=False)


def settle(
    job: JobDir, *, ask: Callable[[int], Lease] = ask_lease, disk: Disk = DISK
) -> SettledFiles | Settling | Refused:
    """Find out whether a claimed job's files can still change; if not, sync them to disk.

    Args:
        ask: Asks the kernel about one open file.

    Raises:
        DiskFailed: the disk reported an I/O error.
    """
    denied = ""
    for path in (job.data, *([] if job.sidecar is None else [job.sidecar])):
        answer = _settle_file(path, ask, disk)
        if not isinstance(answer, SettledFiles):
            return answer
        denied = denied or answer.said
    return SettledFiles(denied)


def _settle_file(path: Path, ask: Callable[[int], Lease], disk: Disk) -> SettledFiles | Settling | Refused:
    name = readable(path.name)
    try:
        # Without O_NONBLOCK, a FIFO that replaced the file would block the open forever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return Refused(
            "unreadable",
            f"The service has no permission to read {name}. Run chmod 644 on your copy and upload it again.",
        )
    except FileNotFoundError:
        return Refused("vanished", f"{name} is no longer in the job's directory. Upload it again.")
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO):
            return _not_regular(name)
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return _not_regular(name)
        lease = ask(fd)
        if lease.writer:
            return Settling(f"{name} is still being written to")
        if os.fstat(fd).st_nlink != 1:
            return Refused(
                "hard_linked",
                f"{name} has more than one hard link, so it could be changed through another name. "
                "Upload a copy, not a hard link.",
            )
        with in_words(f"syncing {name}"):
            disk.fsync(fd)
    finally:
        os.close(fd)
    if lease.denied:
        return SettledFiles(
            f"the kernel cannot tell whether {name} is still being written to: {lease.denied}"
        )
    return SettledFiles()


def _not_regular(name: str) -> Refused:
    return Refused(
        "not_regular", f"{name} is not a regular file. Upload the file itself, not a link or a directory."
    )
