"""Bundles the objects that the lanes of a job share."""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import Callable
from dataclasses import dataclass

from spoolama.answer.byte_budget import ByteBudget
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.store import RowStore
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.context.turns import Turns
from spoolama.evaluation.asking import Asker
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.model.gate import Gate, RequestTimeout
from spoolama.model.residency import ModelResidency
from spoolama.model.watch import Watch
from spoolama.progress import Progress

__all__ = ["Shared"]


@dataclass(frozen=True, slots=True)
class Shared:
    """The objects that the lanes of a job share."""

    store: RowStore
    backend: Backend
    residency: ModelResidency
    """The loaded model, whose load settings every request has."""
    asker: Asker
    evaluator: JobEvaluator
    """Checks answers."""
    rows_in_work: ByteBudget
    prompts_in_work: ByteBudget
    rendering: Semaphore
    """Bounds the memory that large rows and prompts take."""
    gate: Gate
    request_timeout: RequestTimeout
    progress: Progress
    tally: RowCounts
    clock: Clock
    retries: int
    turns: Turns
    watch: Watch
    """Detects changes of the loaded model and keeps its slots primed."""
    row_ended: Callable[[], None]
    """Called when a row has its result."""
    defers: bool
    """Whether long rows are deferred to the second pass."""
    repair_temperature: float
    refusal_ends_job: bool
    """Whether a refused request ends the job (all rows have the same options) or the row (OpenAI lines)."""
