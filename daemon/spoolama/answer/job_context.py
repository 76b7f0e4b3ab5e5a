"""Bundles the objects that all parts of a job's run share, and limits the memory that its rows take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.store import RowStore
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.context.turns import Turns
from spoolama.evaluation.asking import MessageBuilder
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.job.sidecar import Sidecar
from spoolama.model.gate import Gate, RequestTimeout
from spoolama.model.observer import ModelObserver
from spoolama.model.residency import ModelResidency
from spoolama.progress import Progress
from spoolama.stopping import Stop

_ROW_BYTES, _FREE_ROW_BYTES = 1024 * 1024, 16 * 1024
PROMPT_BYTES, _FREE_PROMPT_BYTES = 4 * 1024 * 1024, 64 * 1024
"""At 4 bytes a token, the context of more prompts than this exceeds the memory of a 16 GB card."""
_MOST_RENDERING = 16
"""Rows that are rendered at once; the length of a prompt is known only after rendering."""


class ByteBudget:
    """A byte limit that large texts share. A text that exceeds the limit is admitted only by itself.

    Row, prompt, request and reply exist in several copies while a row is asked. With 256 lanes and rows of
    1 MB that would be gigabytes.

    Args:
        total: Maximum bytes held at once.
        free: Texts up to this size never wait and are not counted.
    """

    def __init__(self, total: int, free: int) -> None:
        self._total, self._free = total, free
        self._used = 0
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait until a text of this many bytes fits, and reserve the bytes."""
        if size <= self._free:
            yield
            return
        size = min(size, self._total)
        while self._used + size > self._total:
            self._freed.clear()
            await self._freed.wait()
        self._used += size
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()


@dataclass(frozen=True, slots=True)
class JobContext:
    """What all phases, models and lanes of a job's run share."""

    sidecar: Sidecar
    total: int
    """Rows of the job."""
    store: RowStore
    backend: Backend
    evaluator: JobEvaluator
    asker: MessageBuilder
    turns: Turns
    planner: Planner
    gate: Gate
    counts: RowCounts
    progress: Progress
    clock: Clock
    stop: Stop
    one_model: bool
    """Whether the sidecar's model answers all rows."""
    rows_in_work: ByteBudget = field(default_factory=lambda: ByteBudget(_ROW_BYTES, _FREE_ROW_BYTES))
    prompts_in_work: ByteBudget = field(default_factory=lambda: ByteBudget(PROMPT_BYTES, _FREE_PROMPT_BYTES))
    rendering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_RENDERING))


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model, as its lanes use it."""

    residency: ModelResidency
    watch: ModelObserver
    request_timeout: RequestTimeout
    defers: bool
    """Whether long rows are left for the second pass."""
