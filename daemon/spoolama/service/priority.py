"""A job's priority, as its sidecar has it."""

from __future__ import annotations

import asyncio
import contextlib

from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.rows import detect
from spoolama.spool.claim import JobDir

__all__ = ["priority_of"]


async def priority_of(job: JobDir, evaluator: Evaluator) -> int:
    """The sidecar's priority; 0 where it cannot be read: the executor will say why."""
    if job.sidecar is None:
        return 0
    # Whatever a sidecar leads to must not end the scanner, and with it the service, at each start again.
    with contextlib.suppress(Exception):
        kind = await asyncio.to_thread(detect, job.data, job.data.name)
        return (await evaluator.load_sidecar(job.sidecar, openai=kind.format == "openai")).priority
    return 0
