"""The note in a job's own directory that it is paused. It survives a restart, and goes with the directory."""

from __future__ import annotations

import contextlib

from spoolama.spool.claim import JobDir
from spoolama.spool.durable import write_atomic

__all__ = ["is_paused", "pause", "resume"]

_PAUSED = "paused"


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
