"""Settling: making sure that nobody can change a claimed file any more.

A claim takes the file's path away, but a client that had it open goes on writing: uploads were seen to grow
by megabytes after the rename. The kernel knows who has a file open for writing: a read lease is granted if
nobody has (`fcntl(F_SETLEASE)`, fcntl(2)). Renamed into a private directory, lease granted, no second name:
then the content is frozen. Whether it is complete only the content can say (`content.py`).
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

__all__ = ["Lease", "Refused", "Settled", "Settling", "ask_lease", "settle"]


@dataclass(frozen=True, slots=True)
class Settled:
    """Nobody writes to the job's files, and they are on the disk."""

    said: str = ""
    """Why the kernel did not confirm it, so that only the quiet time speaks for it; empty if it did."""


@dataclass(frozen=True, slots=True)
class Settling:
    """Somebody still writes. Ask again; do not read yet."""

    reason: str
    """In words, for the status."""


@dataclass(frozen=True, slots=True)
class Refused:
    """These files cannot become a job."""

    code: str
    """Stable name: `unreadable`, `not_regular`, `hard_linked`, `vanished`."""
    message: str
    """In words: who must do what."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What the kernel said when asked whether anybody writes to a file."""

    writer: bool
    """Somebody has it open for writing."""
    denied: str = ""
    """Why the kernel would not say; empty if it did."""


def ask_lease(fd: int) -> Lease:
    """Ask the kernel whether anybody has this file open for writing.

    Needs a file of our own or CAP_LEASE (useless in a unit with PrivateUsers=yes),
    and a file system with leases (not NFS).

    Args:
        fd: Open for reading only.
    """
    try:
        # Whoever opens the file while we hold the lease makes the kernel send us a signal. The usual one,
        # SIGIO, would end the process; SIGURG is ignored by default.
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
) -> Settled | Settling | Refused:
    """Find out whether a claimed job's files are frozen; if so, make them last through a power cut.

    Args:
        ask: Asks about one open file.

    Raises:
        DiskFailed: the disk did not keep the upload.
    """
    denied = ""
    for path in (job.data, *([] if job.sidecar is None else [job.sidecar])):
        answer = _settle_file(path, ask, disk)
        if not isinstance(answer, Settled):
            return answer
        denied = denied or answer.said
    return Settled(denied)


def _settle_file(path: Path, ask: Callable[[int], Lease], disk: Disk) -> Settled | Settling | Refused:
    name = readable(path.name)
    try:
        # Without O_NONBLOCK a FIFO that was swapped in would block the open for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return Refused(
            "unreadable",
            f"{name} is closed to the service. Run chmod 644 on your copy and upload it again.",
        )
    except FileNotFoundError:
        return Refused("vanished", f"{name} is not in the job's directory any more. Upload it again.")
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
                f"{name} has a second name on this disk, by which it could still be changed. "
                "Upload a copy, not a hard link.",
            )
        with in_words(f"keeping {name}"):
            disk.fsync(fd)
    finally:
        os.close(fd)
    if lease.denied:
        return Settled(f"the kernel does not say whether {name} is still written to: {lease.denied}")
    return Settled()


def _not_regular(name: str) -> Refused:
    return Refused(
        "not_regular", f"{name} is no plain file. Upload the file itself, not a link or a directory."
    )
