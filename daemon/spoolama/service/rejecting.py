"""Publishes rejected uploads and cancelled jobs in failed/."""

from __future__ import annotations

from dataclasses import replace

from spoolama.errors import JobError, LedgerVersion, SpoolamaError, shortened
from spoolama.service.logs import say
from spoolama.service.model import Executor
from spoolama.service.queue import Queued
from spoolama.service.state import ServiceState

__all__ = ["reject"]


async def reject(state: ServiceState, executor: Executor, item: Queued, error: JobError) -> bool:
    """Publish the job in failed/ for this reason.

    Returns:
        Whether it is published. If the disk reports an error, or this version cannot read the job's ledger,
        the job is held in processing/ until the next start.
    """
    item.standing = "held"  # from now on no other task takes it
    try:
        ended = await executor.reject(item.job, error)
    except LedgerVersion as trouble:
        say("job.held", job=item.job.name, error=str(trouble))
        state.queue.hold(item, str(trouble))
        return False
    except (SpoolamaError, OSError) as trouble:
        say("job.held", job=item.job.name, error=str(trouble), exc_info=True)
        state.queue.hold(item, f"It could not be moved to failed/: {trouble}")
        return False
    state.queue.remove(item)
    state.end(item.job, replace(ended, message=shortened(ended.message)), None)
    return True
