"""Answers the rows that are too long for the context window, with the model loaded in a larger one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from spoolama.answer.job_context import JobContext
from spoolama.answer.lane import Lane
from spoolama.backends.base import LoadSpec
from spoolama.errors import JobError, ModelUnavailable
from spoolama.job.row import Failed, StoredRow
from spoolama.memory.room import Memory
from spoolama.run.model_run import ModelRun

_STEP = 256
"""Windows are multiples of this many tokens."""
_AHEAD = 64


@dataclass(frozen=True, slots=True)
class LongRows:
    """The second pass of one model."""

    window: int
    """Context window in tokens that fits all rows of `fitting`."""
    fitting: tuple[int, ...]
    """Ordinals of the rows that the second pass can answer."""
    too_long: tuple[tuple[int, int], ...]
    """(Ordinal, tokens) of rows that exceed the model's trained context length."""


def select_long_rows(sizes: Sequence[tuple[int, int]], trained: int | None) -> LongRows:
    """Select the rows that a larger window can fit, and compute that window.

    Args:
        sizes: (Ordinal, tokens of prompt and answer together).
        trained: Trained context length of the model; None: unknown.
    """
    fitting: list[tuple[int, int]] = []
    too_long: list[tuple[int, int]] = []
    for row in sizes:
        (fitting if trained is None or row[1] < trained else too_long).append(row)
    most = max((tokens for _, tokens in fitting), default=0)
    window = -(-(most + 1) // _STEP) * _STEP
    return LongRows(
        window=window if trained is None else min(window, trained),
        fitting=tuple(ordinal for ordinal, _ in fitting),
        too_long=tuple(too_long),
    )


async def answer_long_rows(
    job: JobContext, memory: Memory, spec: LoadSpec, model: str | None, sizes: Sequence[tuple[int, int]]
) -> None:
    """Answer the long rows of one model in isolation; rows that no window can fit fail.

    Args:
        job: Objects that all parts of the job share.
        memory: The memory watchdog.
        spec: The load of the first pass.
        model: The model that these rows ask for; None: the sidecar's.
        sizes: (Ordinal, tokens of prompt and answer together) of the rows.

    Raises:
        JobError: too many rows failed.
        Stopping: the service stops.
    """
    trained = (await job.store.meta("trained", {})).get(spec.model)
    rows = select_long_rows(sizes, trained)
    for ordinal, tokens in rows.too_long:
        _fail(job, ordinal, tokens, f"the model's own window has {trained:,}")
    if not rows.fitting:
        return
    spec = replace(spec, num_ctx=rows.window, slots=min(spec.slots, len(rows.fitting)))
    run = ModelRun(job, memory, spec, model, second_pass=True)
    size = job.planner.segment_rows

    async def work(lane: Lane, row: StoredRow) -> None:
        await lane.run_long(row, row.ordinal // size, row.ordinal % size, job.planner.latest)

    try:
        await run.open()
    except JobError as error:
        await _fail_all(job, model, sizes, rows.window, error)
        return
    try:
        job.progress.phase = f"answering {len(rows.fitting)} long rows with a window of {rows.window:,}"
        await run.in_lanes(_deferred(job, model), work)
    except ModelUnavailable as error:
        await _fail_all(job, model, sizes, rows.window, error)
    finally:
        await run.close()


async def _deferred(job: JobContext, model: str | None) -> AsyncIterator[StoredRow]:
    after = -1
    while found := await job.store.deferred(model, after, _AHEAD):
        for row in found:
            yield row
        after = found[-1].ordinal


async def _fail_all(
    job: JobContext, model: str | None, sizes: Sequence[tuple[int, int]], window: int, error: JobError
) -> None:
    tokens = dict(sizes)
    async for row in _deferred(job, model):
        if row.ordinal in tokens:
            why = f"a window of {window:,} cannot be loaded: {error.message}"
            _fail(job, row.ordinal, tokens[row.ordinal], why)


def _fail(job: JobContext, ordinal: int, tokens: int, why: str) -> None:
    message = f"prompt and answer may have {tokens:,} tokens; {why}. Shorten the row."
    job.store.failed(Failed(ordinal, "context_overflow", message, 1, {"tokens": tokens}))
    job.counts.failed("context_overflow", message)
