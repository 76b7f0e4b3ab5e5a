"""Stores in a job's directory that the job is paused, so that the pause survives a restart."""

from __future__ import annotations

import contextlib

from spoolama.spool.claim import JobDir
from spoolama.spool.durable import write_atomic

__all__ = ["is_paused", "pause", "resume"]

_PAUSED = "paused"


def pause(job: JobDir) -> None:
    """Pause the job until `resume`."""
    write_atomic(job.path / _PAUSED, b"")


def resume(job: JobDir) -> None:
    """End the pause."""
    with contextlib.suppress(FileNotFoundError):
        (job.path / _PAUSED).unlink()


def is_paused(job: JobDir) -> bool:
    """Whether the job is paused."""
    return (job.path / _PAUSED).exists()
