"""A job's priority, as its sidecar has it."""

from __future__ import annotations

import asyncio
import contextlib

from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.rows.data_file import detect
from spoolama.spool.claim import JobDir

__all__ = ["priority_of"]

_CPU_S = 2.0
"""Processor time for reading a sidecar here, where other jobs wait for it; the executor takes more."""


async def priority_of(job: JobDir, evaluator: Evaluator) -> int:
    """The sidecar's priority; 0 where it cannot be read: the executor will say why."""
    if job.sidecar is None:
        return 0
    # Whatever a sidecar leads to must not end the scanner, and with it the service, at each start again.
    with contextlib.suppress(Exception):
        kind = await asyncio.to_thread(detect, job.data, job.data.name)
        openai = kind.format == "openai"
        return (await evaluator.load_sidecar(job.sidecar, openai=openai, cpu_s=_CPU_S, begun=True)).priority
    return 0
