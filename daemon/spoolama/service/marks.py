"""Small notes that the service keeps in a job's own directory: that it is paused, and how often it crashed.

They survive a restart, and go with the directory when the job is published.
"""

from __future__ import annotations

import contextlib
import json

from spoolama.spool.claim import JobDir
from spoolama.spool.durable import write_atomic

__all__ = ["MOST_CRASHES", "count_crash", "crashes", "is_paused", "pause", "resume"]

MOST_CRASHES = 3
"""A job that brought the service down this often is put aside."""

_PAUSED = "paused"
_CRASHES = "crashes.json"


def pause(job: JobDir) -> None:
    """Keep the job from running until `resume`."""
    write_atomic(job.path / _PAUSED, b"")


def resume(job: JobDir) -> None:
    """Let it run again."""
    with contextlib.suppress(FileNotFoundError):
        (job.path / _PAUSED).unlink()


def is_paused(job: JobDir) -> bool:
    """Whether it is to wait."""
    return (job.path / _PAUSED).exists()


def crashes(job: JobDir) -> int:
    """How often executing this job ended in a defect."""
    try:
        return int(json.loads((job.path / _CRASHES).read_bytes())["crashes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def count_crash(job: JobDir, error: str) -> int:
    """One more; the new count."""
    count = crashes(job) + 1
    write_atomic(job.path / _CRASHES, json.dumps({"crashes": count, "last": error}).encode() + b"\n")
    return count
