"""Claims a drop, and settles it: waits until no process can change the claimed files any more.

A claim moves the files from incoming/ into a job directory in processing/. The order of the steps makes a
crash at any point harmless; `layout.py` has the table.

A client that has a moved file open continues to write: uploads grew by megabytes after the rename in tests.
The kernel knows whether a process has the file open for writing: it grants a read lease only if none has
(`fcntl(F_SETLEASE)`, fcntl(2)). A file in a private directory, with a granted lease and no second hard link,
cannot change any more. Only its content can show whether it is complete (`expect` in the sidecar).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import stat
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spoolama.clock import Clock
from spoolama.errors import ConfigError, DropGone, SpoolError
from spoolama.regular import open_regular
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_temp, names_in, write_atomic
from spoolama.spool.layout import (
    CLAIM_FILE,
    DEFAULT_SIDECAR,
    LEDGER,
    OUT,
    Claim,
    Spool,
    published_at,
    read_claim,
)
from spoolama.spool.names import job_name, readable
from spoolama.spool.scanner import Drop

_TRIES = 20


@dataclass(frozen=True)
class JobDir:
    """A claimed job: its directory in processing/ and the files in it."""

    path: Path
    """processing/JOB."""
    name: str
    """JOB."""
    data: Path
    """The data file, under its own name."""
    sidecar: Path | None
    """The sidecar, under its own name; None if the drop has none and needs none."""
    dropped_as: str
    """The data file's name in incoming."""
    claimed_at: float
    """Seconds since the epoch."""
    arrived: float
    """When the drop was complete in incoming, seconds since the epoch. Jobs run in this order."""
    default_sidecar: str | None = None
    """Where the sidecar was copied from, if it is the administrator's default."""

    @property
    def ledger(self) -> Path:
        """The job's ledger. It exists only once the content is known and frozen."""
        return self.path / LEDGER

    @property
    def out(self) -> Path:
        """The directory that will be published; `publish.open_out` creates it."""
        return self.path / OUT


def random_token() -> str:
    """Four random characters."""
    return "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(4))


def claim(
    spool: Spool,
    drop: Drop,
    *,
    clock: Clock,
    token: Callable[[], str] = random_token,
    disk: Disk = DISK,
) -> JobDir:
    """Move a drop from incoming into a new job directory.

    Args:
        drop: As the scanner found it.
        token: Returns random characters for the job's name.

    Raises:
        DropGone: the uploader removed it meanwhile; nothing has changed.
        DiskFull: no space for the claim; nothing has changed.
        ConfigError: the default sidecar cannot be read; nothing has changed.
    """
    default = None if drop.default_sidecar is None else _read_default(drop.default_sidecar)
    with in_words(f"claiming {readable(drop.data)}"):
        now = clock.time()
        job = _make_directory(spool, drop, now, token, disk)
        note = Claim(
            data=drop.data,
            sidecar=drop.sidecar if default is None else DEFAULT_SIDECAR,
            default_sidecar=None if default is None else str(drop.default_sidecar),
            claimed_at=now,
            arrived=drop.arrived,
        )
        try:
            write_atomic(job / CLAIM_FILE, note.to_bytes(), disk=disk)
            if default is not None:
                write_atomic(job / DEFAULT_SIDECAR, default, disk=disk)
            disk.fsync_dir(spool.processing)
            _move(spool, job, note, disk)
        except (OSError, SpoolError, DropGone):
            undone = True
            with contextlib.suppress(OSError, SpoolError):
                undone = unclaim(spool, job, disk=disk)
            if undone:
                raise
            # The uploader has uploaded the same name again meanwhile, so the old file cannot go back.
            # It stays a job of its own, without its sidecar if that is the missing file.
    return read_job(job)


def read_job(path: Path) -> JobDir:
    """Read a job directory by its claim; the sidecar is None if it is not in the directory.

    Raises:
        SpoolError: this is not a job directory, or its claim is damaged.
    """
    note = read_claim(path)
    if note is None:
        raise SpoolError(f"{path} has no {CLAIM_FILE}, so it is not a job directory.")
    sidecar = None if note.sidecar is None else path / note.sidecar
    return JobDir(
        path=path,
        name=path.name,
        data=path / note.data,
        sidecar=sidecar if sidecar is not None and exists(sidecar) else None,
        dropped_as=note.data,
        claimed_at=note.claimed_at,
        arrived=note.arrived,
        default_sidecar=note.default_sidecar,
    )


def unclaim(spool: Spool, job: Path, *, disk: Disk = DISK) -> bool:
    """Undo an incomplete claim: move the files back and remove the directory.

    Returns:
        True if the drop is as it was before. False if incoming has new files of the same names;
        then the job stays, and its claim names a sidecar only if it has one.
    """
    note = read_claim(job)
    if note is not None:
        try:
            for name in reversed(_uploads(note)):
                if exists(job / name):
                    disk.rename_new(job / name, spool.incoming / name)
        except FileExistsError:
            if note.sidecar is not None and not exists(job / note.sidecar):
                write_atomic(job / CLAIM_FILE, _without_sidecar(note).to_bytes(), disk=disk)
            return False
        disk.fsync_dir(spool.incoming)
        if note.default_sidecar is not None and exists(job / DEFAULT_SIDECAR):
            disk.unlink(job / DEFAULT_SIDECAR)
        disk.unlink(job / CLAIM_FILE)
    for name in names_in(job):
        if is_temp(name):
            disk.unlink(job / name)
    disk.rmdir(job)
    disk.fsync_dir(spool.processing)
    return True


def _move(spool: Spool, job: Path, note: Claim, disk: Disk) -> None:
    """Move the data first: a sidecar without data in processing does not show which file it belongs to."""
    name = note.data
    try:
        for name in _uploads(note):
            disk.rename(spool.incoming / name, job / name)
    except FileNotFoundError as e:
        raise DropGone(f"{readable(name)} was removed by its uploader.") from e
    disk.fsync_dir(job)
    disk.fsync_dir(spool.incoming)


def _make_directory(spool: Spool, drop: Drop, now: float, token: Callable[[], str], disk: Disk) -> Path:
    for _ in range(_TRIES):
        job = spool.processing / job_name(drop.data, now, token())
        if published_at(spool, job.name) is not None:
            continue
        try:
            disk.mkdir(job, 0o700)
        except FileExistsError:
            continue
        return job
    raise SpoolError(f"No free name for a job of {readable(drop.data)} in {_TRIES} attempts.")


def _read_default(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as e:
        raise ConfigError(f"The default sidecar {path} cannot be read: {e.strerror or e}.") from e


def _uploads(note: Claim) -> tuple[str, ...]:
    """The files that came from incoming; a default sidecar is not one of them."""
    return note.files if note.default_sidecar is None else (note.data,)


def _without_sidecar(note: Claim) -> Claim:
    return Claim(note.data, None, None, note.claimed_at, note.arrived)


@dataclass(frozen=True, slots=True)
class SettledFiles:
    """No process writes to the job's files, and they are on disk."""

    unconfirmed: str = ""
    """Why the kernel did not confirm it, so that only the quiet time indicates it; empty if it did."""


@dataclass(frozen=True, slots=True)
class Settling:
    """A process still writes. Ask again; do not read yet."""

    reason: str
    """The reason, for the status."""


@dataclass(frozen=True, slots=True)
class RefusedFiles:
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
) -> SettledFiles | Settling | RefusedFiles:
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
        denied = denied or answer.unconfirmed
    return SettledFiles(denied)


def _settle_file(
    path: Path, ask: Callable[[int], Lease], disk: Disk
) -> SettledFiles | Settling | RefusedFiles:
    name = readable(path.name)
    try:
        # Without O_NONBLOCK, a FIFO that replaced the file would block the open forever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return RefusedFiles(
            "unreadable",
            f"The service has no permission to read {name}. Run chmod 644 on your copy and upload it again.",
        )
    except FileNotFoundError:
        return RefusedFiles("vanished", f"{name} is no longer in the job's directory. Upload it again.")
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
            return RefusedFiles(
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


def _not_regular(name: str) -> RefusedFiles:
    return RefusedFiles(
        "not_regular", f"{name} is not a regular file. Upload the file itself, not a link or a directory."
    )
