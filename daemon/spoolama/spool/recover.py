"""Recovery: at start, everything in processing/ is brought to a state from which the service goes on.

Nothing is remembered but what lies on the disk. What is not in the table of
`states.py` is set aside, never deleted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from spoolama.errors import SpoolError
from spoolama.spool.claim import JobDir, read_job, unclaim
from spoolama.spool.durable import DISK, Disk, exists, in_words, is_temp, names_in
from spoolama.spool.layout import PROBE, QUARANTINE, Spool
from spoolama.spool.names import readable
from spoolama.spool.publish import clean, take_apart
from spoolama.spool.states import State, read_claim, state_of

__all__ = ["Recovered", "recover"]


@dataclass(frozen=True)
class Recovered:
    """What a start found."""

    jobs: list[JobDir] = field(default_factory=list)
    """Jobs to settle or to resume, first come first."""
    said: list[str] = field(default_factory=list)
    """What was done, a sentence each, for the log."""


def recover(spool: Spool, *, disk: Disk = DISK) -> Recovered:
    """Bring everything in processing/ to SETTLING, CLAIMED or away. May be killed at any point and run again.

    Raises:
        DiskFull: no room to go on; run it again when there is.
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
    # Each step leads to another state; more steps than states would be going in a circle.
    for _ in State:
        state = state_of(spool, job)
        match state:
            case State.SETTLING | State.CLAIMED:
                found.jobs.append(read_job(job))
                return
            case State.FINISHED | State.DROPPED:
                return
            case State.OPENED | State.CLAIMING:
                unclaim(spool, job, disk=disk)
                found.said.append(f"{job.name}: its claim had moved nothing yet; it was undone.")
            case State.TORN:
                found.said.append(_mend_torn(spool, job, disk))
            case State.BUILDING:
                try:
                    take_apart(job, disk=disk)
                except SpoolError as e:
                    _quarantine(spool, job, str(e), found, disk)
                    return
                found.said.append(f"{job.name}: an unfinished publication was taken apart.")
            case State.PUBLISHED:
                if kept := _cleaned(spool, job, disk):
                    _quarantine(spool, job, f"it is published, but not {kept}", found, disk)
                    return
                found.said.append(f"{job.name}: it was published already; the rest was removed.")
            case State.UNKNOWN:
                _quarantine(spool, job, "it is in no state that the service makes", found, disk)
                return
    _quarantine(spool, job, "recovering it led nowhere", found, disk)


def _mend_torn(spool: Spool, job: Path, disk: Disk) -> str:
    note = read_claim(job)
    if note is None or note.sidecar is None:
        raise SpoolError(f"{job} changed while it was being recovered. Is another daemon at work?")
    try:
        disk.rename(spool.incoming / note.sidecar, job / note.sidecar)
    except FileNotFoundError:
        if unclaim(spool, job, disk=disk):
            return f"{job.name}: its sidecar was taken back; the data went back to incoming."
        return f"{job.name}: its sidecar is gone, and a new {readable(note.data)} lies in incoming already."
    disk.fsync_dir(job)
    disk.fsync_dir(spool.incoming)
    return f"{job.name}: its claim was torn; {readable(note.sidecar)} followed."


def _cleaned(spool: Spool, job: Path, disk: Disk) -> str:
    """Clean a published job; what could not go, in words."""
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
        found.said.append(
            f"{readable(path.name)} was set aside in {target}: {why}. Nothing was deleted; please look at it."
        )
        return
    raise SpoolError(f"{spool.quarantine} has a thousand things called {path.name}. Please look at them.")


def _sweep(spool: Spool, disk: Disk) -> None:
    """Remove the service's own temporary files: probes of a start that was killed, half-written status."""
    for parent in (spool.incoming, spool.processing, spool.done, spool.failed, spool.status):
        for name in names_in(parent):
            if name.startswith(PROBE):
                path = parent / name
                with contextlib.suppress(OSError):
                    (disk.rmdir if path.is_dir() else disk.unlink)(path)
    for name in names_in(spool.status):
        if is_temp(name) and exists(spool.status / name):
            disk.unlink(spool.status / name)
