"""Learned and fixed rows between two trims on a real model, side by side.

The first rows of a conversation are answered with safe marks, and costs learned from them, as a job does.
Then one conversation for each number of rows tried, and for the learned one, are held in as many slots of one
server. They take turns, a row each, one request at a time: whatever the machine does, it does to all alike.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from bench.engine.job_run import accepted, answer
from bench.engine.settings import Configuration, read_reviews
from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.embedded import EmbeddedBackend
from spoolama.backends.model_shape import ModelShape
from spoolama.clock import Clock
from spoolama.context.costs import CostModel, Sample, fit_costs
from spoolama.context.marks import SAFE_EVERY
from spoolama.engine.planner import learned_every
from spoolama.evaluation.asking import Asker
from spoolama.job.sidecar import Sidecar
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_schema import open_reader
from support.evaluation import inline_job_evaluator

LONGEST = 100
"""Rows between two trims that are tried at most: two periods of them are to be waited for."""

__all__ = ["LONGEST", "Learned", "MarksRun", "Tried", "compare_marks"]


@dataclass(frozen=True, slots=True)
class Learned:
    """What the first rows have shown."""

    every: int | None
    """Rows between two trims; None: nothing could be learned."""
    costs: CostModel | None
    reason: str
    """Why there is nothing."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A number of rows between two trims, and what it cost."""

    every: int
    judged: int
    """Rows that are judged: from the first trim on, whole periods."""
    seconds: float
    """By the server's own times, a row, over the rows that are judged."""
    evaluated: float
    """Prompt tokens evaluated a row."""
    prompt: float
    """Prompt tokens a row."""


@dataclass(frozen=True, slots=True)
class MarksRun:
    """The comparison on one model."""

    model: str
    learned: Learned
    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The cheapest that was tried."""
        return min(self.tried, key=lambda tried: tried.seconds)

    @property
    def ratio(self) -> float | None:
        """What the learned number cost, as a share of the best."""
        own = next((tried for tried in self.tried if tried.every == self.learned.every), None)
        return None if own is None else own.seconds / self.best.seconds


class _Seat:
    """One slot of a server that several jobs use in turns; each takes it for a server of its own."""

    kind = "embedded"
    releases = False

    def __init__(self, backend: EmbeddedBackend, shared: LoadSpec, number: int, turn: asyncio.Lock) -> None:
        self._backend = backend
        self._shared = shared
        self._number = number
        self._turn = turn

    async def probe(self) -> ServerInfo:
        return await self._backend.probe()

    async def load(self, spec: LoadSpec) -> LoadedModel:
        return replace(await self._backend.load(self._shared), slots=1, copies_prefix=False)

    async def chat(self, request: ChatRequest) -> Reply:
        async with self._turn:  # served in the order of asking: one row of each job after the other
            return await self._backend.chat(replace(request, load=self._shared, slot=self._number))

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        return await self._backend.count_tokens(self._shared, messages)

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        return await self._backend.render(self._shared, messages)

    async def prime(
        self,
        spec: LoadSpec,
        text: str,
        *,
        slot: int | None = None,
        timeout_s: float = 600.0,
    ) -> Reply | None:
        async with self._turn:
            return await self._backend.prime(self._shared, text, slot=self._number, timeout_s=timeout_s)

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        return await self._backend.inspect(self._shared)

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        return await self._backend.shape(self._shared)

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        return await self._backend.in_memory()

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        """The others still sit there."""
        return ()

    async def aclose(self) -> None:
        """Likewise."""


async def compare_marks(
    model: str,
    *,
    keep: int,
    tried: Sequence[int],
    learn_rows: int,
    rows: int,
    threads: int,
    cache_dir: Path,
    clock: Clock,
) -> MarksRun:
    """Learn, then try.

    Args:
        model: The model.
        keep: Rows that a trim keeps.
        tried: Fixed rows between two trims.
        learn_rows: Rows that are learned from; a job takes 64.
        rows: Rows of each conversation, or as many as the rarest trims need to come twice.
        threads: CPU threads of llama.cpp.
        cache_dir: Where models are put together.
        clock: Time.
    """
    backend = EmbeddedBackend(clock=clock, threads=threads, cache_dir=cache_dir)
    with tempfile.TemporaryDirectory() as base:
        try:
            learned = await _learn(model, keep, learn_rows, backend, Path(base) / "learn.sqlite", clock)
            marks = sorted({*tried, *([] if learned.every is None else [min(learned.every, LONGEST)])})
            rows = max(rows, keep + 2 * marks[-1])
            sidecars = [_sidecar(model, keep, every, rows) for every in marks]
            shared = Asker(sidecars[0], inline_job_evaluator(), openai=False).load_spec(model, len(marks))
            await backend.release()
            await backend.load(shared)
            turn = asyncio.Lock()
            paths = [Path(base) / f"{every}.sqlite" for every in marks]
            async with asyncio.TaskGroup() as jobs:
                for number, (path, sidecar) in enumerate(zip(paths, sidecars, strict=True)):
                    seat = _Seat(backend, shared, number, turn)
                    reviews = read_reviews(rows)
                    jobs.create_task(
                        answer(path, path.stem, sidecar, reviews, 1, seat, clock), name=path.stem
                    )
        finally:
            await backend.aclose()
        found = [_read(path, keep, every) for path, every in zip(paths, marks, strict=True)]
    return MarksRun(model, learned, tuple(found))


async def _learn(
    model: str, keep: int, rows: int, backend: EmbeddedBackend, path: Path, clock: Clock
) -> Learned:
    """As `engine/planner.py` does with the first rows of a job."""
    sidecar = _sidecar(model, keep, SAFE_EVERY, rows)
    await answer(path, "learn", sidecar, read_reviews(rows), 1, backend, clock)
    ledger = JobLedger(path, clock)
    try:
        samples = [Sample(*row) for row in await ledger.solo_costs(rows - 1)]
        means, front = await ledger.means(rows - 1), await ledger.first_prompt_tokens(0)
    finally:
        await ledger.close()
    fit = fit_costs(samples)
    options, trim = sidecar.options, sidecar.trim
    high = trim.high * (options.num_ctx - options.num_predict)
    if fit.model is None or means is None:
        return Learned(None, None, fit.reason)
    return Learned(learned_every(fit.model, keep=keep, means=means, front=front, high=high), fit.model, "")


def _sidecar(model: str, keep: int, every: int, rows: int) -> Sidecar:
    trim = f"trim: {{strategy: window, keep: {keep}, every: {every}}}"
    found = accepted(Configuration(f"every-{every}", trim), model, rows)
    if isinstance(found, str):
        raise SystemExit(found)
    return found


def _read(path: Path, keep: int, every: int) -> Tried:
    """Whole periods of trims, or rare trims would count once too often or not at all; and no median, which
    would not see the rows that are dear because of a trim."""
    with closing(open_reader(path)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute("SELECT * FROM results ORDER BY ordinal").fetchall()
    first = keep + every  # the first row that is asked after a trim
    found = found[first : first + (len(found) - first) // every * every]
    return Tried(
        every,
        judged=len(found),
        seconds=statistics.fmean(row["prompt_s"] + row["eval_s"] for row in found),
        evaluated=statistics.fmean(row["prompt_tokens"] - row["cached_tokens"] for row in found),
        prompt=statistics.fmean(row["prompt_tokens"] for row in found),
    )
