"""The run record: a file in a job's directory that says whether it runs, and whether the service died of it.

The service marks a run in it before the job starts and takes the mark away when the run ends. A mark that is
there at the next start says that the service died while the job ran, by whatever: an exception in any task, a
signal, the OOM killer. A death counts for the job if the job had no progress since the death before. After a
reboot no death counts. Pure functions here decide what follows from the counts; `deaths.py` acts on it.
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
from spoolama.spool.ledger_progress import JobProgress

__all__ = [
    "MAX_DEATHS",
    "RunRecord",
    "begun",
    "cleared",
    "delay_reason",
    "ended",
    "forget_record",
    "held_reason",
    "must_hold",
    "probation_s",
    "read_record",
    "released",
    "restarted",
    "write_record",
]

RECORD_FILE: Final = "run.json"

MAX_DEATHS: Final = 3
"""A job is held when the service crashed this often while it ran, without progress in between."""
MAX_KILLS: Final = 20
"""The same for a SIGKILL that left no trace of a crash: mostly an administrator's."""

PROBATION_S: float = 5.0
"""Seconds that the service must have lived before it starts a job during which it died once."""
PROBATION_FACTOR: float = 3.0
"""Each further death makes that time longer by this."""
MAX_PROBATION_S: float = 300.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is known of the runs of one job."""

    boot: str = ""
    """The boot id of the machine when the last run began."""
    running: bool = False
    """A run is in progress. True at the start of the service: the service died during it."""
    deaths: int = 0
    """Crashes of the service while this job ran, without progress in between."""
    first_death_at: float | None = None
    """Time of the first of them, seconds since the epoch."""
    best: JobProgress = field(default_factory=JobProgress)
    """The best progress that a start of the service found."""
    error: str | None = None
    """The exception that ended the last run, where it was one of Python."""
    other_finished: bool = False
    """Another job was finished since `first_death_at`, so the service works without this one."""
    held: bool = False
    """The job does not run until it is released."""
    kills: int = 0
    """As `deaths`, for a SIGKILL that left no trace of a crash."""


# --- what happens to it ----------------------------------------------------------------------------------


def begun(record: RunRecord, boot: str) -> RunRecord:
    """A run begins."""
    return replace(record, boot=boot, running=True, error=None)


def ended(record: RunRecord) -> RunRecord:
    """A run ended, and the service lives."""
    return replace(record, running=False)


def restarted(
    record: RunRecord, progress: JobProgress, boot: str, now: float, *, killed: bool = False
) -> RunRecord:
    """The service starts anew.

    Args:
        record: As the life before left it.
        progress: What the job's ledger says.
        boot: The machine's boot id now; another one in the record says that the machine went down.
        now: Seconds since the epoch.
        killed: Whether the service was killed from outside, as far as is known.
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
    """No death counts any more: the job moved on, or the service died without it as well."""
    return replace(record, deaths=0, kills=0, first_death_at=None, error=None, other_finished=False)


def released(record: RunRecord) -> RunRecord:
    """A user lets a held job run again, as if the service had never died of it."""
    return replace(cleared(record), held=False)


# --- what follows from it --------------------------------------------------------------------------------


def must_hold(record: RunRecord, others: Iterable[RunRecord]) -> bool:
    """Whether the deaths are this job's fault.

    They are if other jobs were finished meanwhile, or if no other job died. Where several jobs die alike, and
    none is finished, the service, the driver or the machine is at fault, and holding jobs would not help.

    Args:
        record: The job in question.
        others: All other jobs in processing/.
    """
    if record.held or (record.deaths < MAX_DEATHS and record.kills < MAX_KILLS):
        return record.held
    return record.other_finished or not any(map(_unexplained, others))


def _unexplained(record: RunRecord) -> bool:
    """Whether its deaths may have a cause outside: not those of a job that was held while others finished."""
    return record.deaths > 0 and not (record.held and record.other_finished)


def probation_s(deaths: int) -> float:
    """Seconds that the service must have lived before it starts a job with this number of deaths."""
    if deaths == 0:
        return 0.0
    return min(MAX_PROBATION_S, PROBATION_S * PROBATION_FACTOR ** min(deaths - 1, 20))


# --- in words --------------------------------------------------------------------------------------------


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
            " It died while other jobs ran as well, which points to the service, the driver or the machine,"
            " so no job is held."
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
    """The job's record; a new one if there is none, or if it is damaged."""
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
    """Replace the record. Only a hold must outlast a power cut: no other death counts after one.

    Raises:
        SpoolamaError: the disk is full or failed; the old record stays.
    """
    data = json.dumps(dataclasses.asdict(record), indent=1).encode() + b"\n"
    write = write_atomic if record.held else write_replace
    write(job.path / RECORD_FILE, data)


def forget_record(job: JobDir) -> None:
    """Take the record away."""
    with contextlib.suppress(OSError):
        (job.path / RECORD_FILE).unlink()
