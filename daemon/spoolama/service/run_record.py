"""Defines the run record of a job, which shows after a crash whether the job was running.

The service marks the job as running before it starts and removes the mark when the run ends. A mark at the
next start means that the service died while the job ran: by an exception in any task, a signal, or the OOM
killer. A death counts for the job if the job made no progress since the previous death. After a reboot no
death counts. The functions here decide what follows from the counts; `deaths.py` applies the decision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from spoolama.spool.claim import JobDir
from spoolama.spool.durable import write_atomic, write_replace
from spoolama.spool.layout import Spool
from spoolama.spool.ledger_reader import JobProgress

RECORD_FILE: Final = "run.json"

MAX_DEATHS: Final = 3
"""A job is held after this number of crashes during its runs without progress in between."""
MAX_KILLS: Final = 20
"""The same for SIGKILLs without a trace of a crash, which mostly come from an administrator."""

PROBATION_S: float = 5.0
"""Seconds that the service must run before it starts a job during which it died once."""
PROBATION_FACTOR: float = 3.0
"""Each further death multiplies that time by this factor."""
MAX_PROBATION_S: float = 300.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of the runs of one job."""

    boot: str = ""
    """The boot id of the machine when the last run began."""
    running: bool = False
    """A run is in progress. If True at the start of the service, the service died during the run."""
    deaths: int = 0
    """Crashes of the service while this job ran, without progress in between."""
    first_death_at: float | None = None
    """Time of the first death, seconds since the epoch."""
    best: JobProgress = field(default_factory=JobProgress)
    """The best progress that a start of the service found."""
    error: str | None = None
    """The Python exception that ended the last run, if any."""
    other_finished: bool = False
    """Another job has finished since `first_death_at`, so the service works without this job."""
    held: bool = False
    """The job does not run until it is released."""
    kills: int = 0
    """Like `deaths`, for SIGKILLs without a trace of a crash."""


# --- events ----------------------------------------------------------------------------------------------


def begun(record: RunRecord, boot: str) -> RunRecord:
    """The record when a run starts."""
    return replace(record, boot=boot, running=True, error=None)


def ended(record: RunRecord) -> RunRecord:
    """The record when a run has ended without a crash."""
    return replace(record, running=False)


def restarted(
    record: RunRecord, progress: JobProgress, boot: str, now: float, *, killed: bool = False
) -> RunRecord:
    """The record after a start of the service.

    Args:
        record: The record from the previous process.
        progress: The progress in the job's ledger.
        boot: The machine's current boot id; a different one in the record means that the machine rebooted.
        now: Seconds since the epoch.
        killed: Whether the service was killed from outside, as far as known.
    """
    died = record.running and record.boot == boot
    moved = progress.beyond(record.best)
    record = replace(record, running=False, best=record.best.merged(progress))
    if record.held:
        return record
    if moved:
        return cleared(record)
    if not died:
        return record
    first = now if record.first_death_at is None else record.first_death_at
    if killed and record.error is None:
        return replace(record, kills=record.kills + 1, first_death_at=first)
    return replace(record, deaths=record.deaths + 1, first_death_at=first)


def cleared(record: RunRecord) -> RunRecord:
    """The record without deaths: the job made progress, or the service also died without it."""
    return replace(record, deaths=0, kills=0, first_death_at=None, error=None, other_finished=False)


def released(record: RunRecord) -> RunRecord:
    """The record after a user released the job."""
    return replace(cleared(record), held=False)


# --- decisions -------------------------------------------------------------------------------------------


def must_hold(record: RunRecord, others: Iterable[RunRecord]) -> bool:
    """Whether to hold the job because it causes the deaths.

    It does if other jobs finished meanwhile, or if the service died during no other job. If it died during
    several jobs and none finished, the cause is the service, the driver or the machine, and holding jobs
    would not help.

    Args:
        record: The job.
        others: All other jobs in processing/.
    """
    if record.held or (record.deaths < MAX_DEATHS and record.kills < MAX_KILLS):
        return record.held
    return record.other_finished or not any(map(_unexplained, others))


def _unexplained(record: RunRecord) -> bool:
    """Whether the deaths may have another cause: false for a job that was held while others finished."""
    return record.deaths > 0 and not (record.held and record.other_finished)


def probation_s(deaths: int) -> float:
    """Seconds that the service must run before it starts a job with this number of deaths."""
    if deaths == 0:
        return 0.0
    return min(MAX_PROBATION_S, PROBATION_S * PROBATION_FACTOR ** min(deaths - 1, 20))


# --- messages --------------------------------------------------------------------------------------------


def held_reason(record: RunRecord, job: JobDir) -> str:
    """Why a job is held, and the command that releases it."""
    spool = Spool(job.path.absolute().parents[1])
    command = f"touch {shlex.quote(str(spool.incoming / f'{job.name}.resume'))}"
    return f"{_died(record)} The job is held with all its results. To run it again: {command}"


def delay_reason(record: RunRecord, others: Iterable[RunRecord], until: str) -> str:
    """Why a job with deaths waits, and until when."""
    alike = ""
    if record.deaths >= MAX_DEATHS and any(map(_unexplained, others)):
        alike = (
            " It also died while other jobs ran, so the cause is probably the service, the driver or the"
            " machine, and no job is held."
        )
    return f"{_died(record)}{alike} The job runs after the others, and not before {until}."


def _died(record: RunRecord) -> str:
    count, what = (record.deaths, "died") if record.deaths else (record.kills, "was killed")
    times = {1: "once", 2: "twice"}.get(count, f"{count} times")
    between = " in between" if count > 1 else ""
    text = (
        f"The service {what} {times} while this job ran, without any progress{between} "
        f"({record.best.words()})."
    )
    return text if record.error is None else f"{text} The last error: {record.error}."


# --- on disk ---------------------------------------------------------------------------------------------


def read_record(job: JobDir) -> RunRecord:
    """Read the job's record; returns a new one if it is missing or damaged."""
    try:
        body = json.loads((job.path / RECORD_FILE).read_bytes())
        best = body["best"]
        first, error = body["first_death_at"], body["error"]
        return RunRecord(
            boot=str(body["boot"]),
            running=bool(body["running"]),
            deaths=int(body["deaths"]),
            first_death_at=None if first is None else float(first),
            best=JobProgress(
                int(best["rows"]), int(best["ended"]), int(best["answers"]), all_read=bool(best["all_read"])
            ),
            error=None if error is None else str(error),
            other_finished=bool(body["other_finished"]),
            held=bool(body["held"]),
            kills=int(body["kills"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return RunRecord()


def write_record(job: JobDir, record: RunRecord) -> None:
    """Replace the record. Only a hold must survive a power failure: no death counts after a reboot.

    Raises:
        SpoolamaError: the disk is full or failed; the old record stays.
    """
    data = json.dumps(dataclasses.asdict(record), indent=1).encode() + b"\n"
    write = write_atomic if record.held else write_replace
    write(job.path / RECORD_FILE, data)


def forget_record(job: JobDir) -> None:
    """Remove the record."""
    with contextlib.suppress(OSError):
        (job.path / RECORD_FILE).unlink()
