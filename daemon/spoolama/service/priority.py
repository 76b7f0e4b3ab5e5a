"""A job's priority, as its sidecar has it."""

from __future__ import annotations

import contextlib

from spoolama.job.rows import detect
from spoolama.job.sidecar_file import load_sidecar
from spoolama.spool.claim import JobDir

__all__ = ["priority_of"]


def priority_of(job: JobDir) -> int:
    """The sidecar's priority; 0 where it cannot be read: the executor will say why."""
    if job.sidecar is None:
        return 0
    # Whatever a sidecar leads to must not end the scanner, and with it the service, at each start again.
    with contextlib.suppress(Exception):
        openai = detect(job.data, job.data.name).format == "openai"
        return load_sidecar(job.sidecar, openai=openai).priority
    return 0
