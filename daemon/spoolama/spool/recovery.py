"""Recovers processing/ at start: brings every job to a state from which the service can continue.

The files on disk are the only source. What is not in the table of `layout.py` is moved to quarantine, never
deleted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from spoolama.errors import SpoolError
from spoolama.spool.claim import JobDir, read_job, unclaim
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_temp, names_in
from spoolama.spool.layout import PROBE, QUARANTINE, DiskState, Spool, read_claim, state_of
from spoolama.spool.names import readable
from spoolama.spool.publication import clean, take_apart


@dataclass(frozen=True)
class Recovered:
    """The result of a recovery."""

    jobs: list[JobDir] = field(default_factory=list)
    """Jobs to settle or to resume, ordered by arrival."""
    actions: list[str] = field(default_factory=list)
    """What was done, in one sentence each, for the log."""


def recover(spool: Spool, *, disk: Disk = DISK) -> Recovered:
    """Bring every job in processing/ to SETTLING or CLAIMED, or remove it. Can be killed and run again.

    Raises:
        DiskFull: no space to continue; run it again when space is free.
    """
    found = Recovered()
    with in_words("recovering what an earlier run left"):
        _sweep(spool, disk)
        for name in names_in(spool.processing):
            if name != QUARANTINE:
                _recover_one(spool, spool.processing / name, found, disk)
    found.jobs.sort(key=lambda job: (job.arrived, job.claimed_at, job.name))
    return found


def _recover_one(spool: Spool, job: Path, found: Recovered, disk: Disk) -> None:
    # Each step leads to another state; more steps than states would be an endless loop.
    for _ in DiskState:
        state = state_of(spool, job)
        match state:
            case DiskState.SETTLING | DiskState.CLAIMED:
                found.jobs.append(read_job(job))
                return
            case DiskState.FINISHED | DiskState.DROPPED:
                return
            case DiskState.OPENED | DiskState.CLAIMING:
                unclaim(spool, job, disk=disk)
                found.actions.append(f"{job.name}: its claim had not moved any file yet; it was undone.")
            case DiskState.TORN:
                found.actions.append(_repair_torn(spool, job, disk))
            case DiskState.BUILDING:
                try:
                    take_apart(job, disk=disk)
                except SpoolError as e:
                    _quarantine(spool, job, str(e), found, disk)
                    return
                found.actions.append(f"{job.name}: an unfinished publication was undone.")
            case DiskState.PUBLISHED:
                if kept := _cleaned(spool, job, disk):
                    _quarantine(spool, job, f"it is published, but without {kept}", found, disk)
                    return
                found.actions.append(f"{job.name}: it was already published; leftover files were removed.")
            case DiskState.UNKNOWN:
                _quarantine(spool, job, "the service never creates this combination of files", found, disk)
                return
    _quarantine(spool, job, "the recovery did not reach a final state", found, disk)


def _repair_torn(spool: Spool, job: Path, disk: Disk) -> str:
    note = read_claim(job)
    if note is None or note.sidecar is None:
        raise SpoolError(f"{job} changed during the recovery. Check whether another daemon uses this spool.")
    try:
        disk.rename(spool.incoming / note.sidecar, job / note.sidecar)
    except FileNotFoundError:
        if unclaim(spool, job, disk=disk):
            return f"{job.name}: its sidecar was removed; the data file was moved back to incoming."
        return f"{job.name}: its sidecar was removed, and incoming already has a new {readable(note.data)}."
    disk.fsync_dir(job)
    disk.fsync_dir(spool.incoming)
    return f"{job.name}: its claim was interrupted; {readable(note.sidecar)} was moved to the job."


def _cleaned(spool: Spool, job: Path, disk: Disk) -> str:
    """Clean a published job; returns the names that were not removed, or the error."""
    try:
        return ", ".join(readable(n) for n in clean(spool, job, disk=disk))
    except SpoolError as e:
        return str(e)


def _quarantine(spool: Spool, path: Path, why: str, found: Recovered, disk: Disk) -> None:
    with contextlib.suppress(FileExistsError):
        disk.mkdir(spool.quarantine, 0o700)
    for number in range(1000):
        target = spool.quarantine / (path.name if number == 0 else f"{path.name}.{number}")
        try:
            disk.rename_new(path, target)
        except FileExistsError:
            continue
        disk.fsync_dir(spool.quarantine)
        disk.fsync_dir(spool.processing)
        found.actions.append(
            f"{readable(path.name)} was moved to {target}: {why}. Nothing was deleted; please check it."
        )
        return
    raise SpoolError(f"{spool.quarantine} has 1,000 entries named {path.name}. Please check and remove them.")


def _sweep(spool: Spool, disk: Disk) -> None:
    """Remove the service's own temporary files: probes of a killed start and unfinished status files."""
    for parent in (spool.incoming, spool.processing, spool.done, spool.failed, spool.status):
        for name in names_in(parent):
            if name.startswith(PROBE):
                path = parent / name
                with contextlib.suppress(OSError):
                    (disk.rmdir if path.is_dir() else disk.unlink)(path)
    for name in names_in(spool.status):
        if is_temp(name) and exists(spool.status / name):
            disk.unlink(spool.status / name)
