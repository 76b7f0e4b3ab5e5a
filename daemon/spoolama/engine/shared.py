"""Bundles the objects that the lanes of a job share."""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import Callable
from dataclasses import dataclass

from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.context.turns import Turns
from spoolama.engine.byte_budget import ByteBudget
from spoolama.engine.gate import Gate
from spoolama.engine.holder import Holder
from spoolama.engine.patience import Patience
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore
from spoolama.engine.tally import Tally
from spoolama.engine.watch import Watch
from spoolama.evaluation.asking import Asker
from spoolama.evaluation.evaluator import JobEvaluator

__all__ = ["Shared"]


@dataclass(frozen=True, slots=True)
class Shared:
    """The objects that the lanes of a job share."""

    store: RowStore
    backend: Backend
    holder: Holder
    """The loaded model, whose load settings every request has."""
    asker: Asker
    evaluator: JobEvaluator
    """Checks answers."""
    rows_in_work: ByteBudget
    prompts_in_work: ByteBudget
    rendering: Semaphore
    """Bounds the memory that large rows and prompts take."""
    gate: Gate
    patience: Patience
    progress: Progress
    tally: Tally
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
