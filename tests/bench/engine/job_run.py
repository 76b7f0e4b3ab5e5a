"""A configuration as users run it: a sidecar, a ledger and the engine, on a freshly loaded model."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from bench.engine.machine import Neighbours
from bench.engine.measured import Counts, Measured, RowCount
from bench.engine.settings import Configuration, Review, sidecar_text
from spoolama.backends.base import Backend, ChatRequest, LoadedModel, LoadSpec, Reply
from spoolama.backends.embedded import EmbeddedBackend
from spoolama.clock import Clock
from spoolama.errors import SpoolamaError
from spoolama.evaluation.asking import MessageBuilder
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.row import Row
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_format import open_reader
from spoolama.spool.ledger_rows import NewRow
from spoolama.stopping import Stop
from support.evaluation import inline_job_evaluator


class TimedBackend(EmbeddedBackend):
    """The embedded backend, with sums over its replies and over the time of its loads."""

    def __init__(self, *, clock: Clock, threads: int, cache_dir: Path) -> None:
        super().__init__(clock=clock, threads=threads, cache_dir=cache_dir)
        self._time = clock
        self.load_s = 0.0
        self.counts = Counts()

    async def cold(self, spec: LoadSpec) -> None:
        """Load the model with an empty cache and reset the sums."""
        await self.release()
        await self.load(spec)
        self.load_s, self.counts = 0.0, Counts()

    @property
    def pids(self) -> list[int]:
        """The child process, if it runs."""
        return [] if self.pid is None else [self.pid]

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load, with the time."""
        began = self._time.monotonic()
        try:
            return await super().load(spec)
        finally:
            self.load_s += self._time.monotonic() - began

    async def chat(self, request: ChatRequest) -> Reply:
        """Chat, with counts."""
        reply = await super().chat(request)
        self._count(reply)
        return reply

    async def prime(
        self, spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 600.0
    ) -> Reply | None:
        """Prime, with counts."""
        reply = await super().prime(spec, text, slot=slot, timeout_s=timeout_s)
        if reply is not None:
            self._count(reply)
        return reply

    def _count(self, reply: Reply) -> None:
        """Add a reply; `prompt_n` is llama.cpp's own count of evaluated tokens."""
        was = self.counts
        self.counts = Counts(
            requests=was.requests + 1,
            prompt=was.prompt + (reply.prompt_tokens or 0),
            cached=was.cached + (reply.cached_tokens or 0),
            evaluated=was.evaluated + int(reply.raw.get("timings", {}).get("prompt_n", 0)),
            completion=was.completion + (reply.completion_tokens or 0),
        )


def accepted(configuration: Configuration, model: str, segment: int) -> Sidecar | str:
    """Return the sidecar, or why it is refused."""
    try:
        return parse_sidecar(sidecar_text(configuration, model, segment), f"{configuration.name}.yaml")
    except SpoolamaError as error:
        return f"its sidecar is refused: {' '.join(str(error).split())}"


async def run_job(
    name: str,
    sidecar: Sidecar,
    reviews: tuple[Review, ...],
    own: tuple[int, ...],
    *,
    slots: int,
    number: int,
    backend: TimedBackend,
    clock: Clock,
) -> Measured:
    """Run the rows through the engine once, without a cache.

    Args:
        name: The configuration's.
        sidecar: Its sidecar.
        reviews: The rows.
        own: Tokens of each row after the shared prefix, by the tokenizer.
        slots: Slots of the server, and lanes.
        number: Of the round, from 0.
        backend: Loads the model again.
        clock: Time.
    """
    await backend.cold(MessageBuilder(sidecar, inline_job_evaluator()).load_spec(sidecar.model, slots))
    seconds: float | None
    wrong: str | None = None
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "ledger.sqlite"
        neighbours = Neighbours(backend.pids)
        try:
            # The model is already loaded, so the engine's own check of it does not count.
            seconds = await answer(path, name, sidecar, reviews, slots, backend, clock) - backend.load_s
        except SpoolamaError as error:
            seconds, wrong = None, f"the job ended: {' '.join(str(error).split())}"
        others = neighbours.share()
        rows, failed = _read(path, own)
    return Measured(
        model=sidecar.model,
        slots=slots,
        name=name,
        round=number,
        asked=len(reviews),
        seconds=seconds,
        wrong=wrong,
        rows=rows,
        failed=failed,
        counts=backend.counts,
        others=others,
    )


async def answer(
    path: Path,
    name: str,
    sidecar: Sidecar,
    reviews: tuple[Review, ...],
    lanes: int,
    backend: Backend,
    clock: Clock,
) -> float:
    """Answer all rows into a new ledger at `path`; return the seconds from the first request to the last
    answer.

    Raises:
        SpoolamaError: the job cannot continue.
    """
    progress = Progress(name, clock, Pulse(clock))
    ledger = JobLedger(path, clock, on_durable=lambda d: progress.durable(ok=d.ok, failed=d.failed))
    try:
        await ledger.take_in(
            [
                NewRow(
                    Row(r.ordinal, r.ordinal + 2, {"text": r.text}, r.text.encode()),
                    str(r.ordinal + 1),
                    unique=False,
                )
                for r in reviews
            ]
        )
        progress.total = len(reviews)
        runner = JobRunner(
            evaluator=inline_job_evaluator(),
            sidecar=sidecar,
            store=ledger,
            backend=backend,
            clock=clock,
            progress=progress,
            lanes=lanes,
            stop=Stop(),
        )
        began = clock.monotonic()
        await runner.run()
        return clock.monotonic() - began
    finally:
        await ledger.close()


def _read(path: Path, own: tuple[int, ...]) -> tuple[tuple[RowCount, ...], tuple[tuple[str, int, str], ...]]:
    """Return the answered rows, and the failed ones by class, with `own_tokens`, which the reader of the
    reports leaves out.
    """
    with closing(open_reader(path)) as db:
        db.row_factory = sqlite3.Row
        failed = db.execute("SELECT code, count(*), min(message) FROM failures GROUP BY code ORDER BY code")
        rows = db.execute("SELECT * FROM results ORDER BY ordinal")
        return (
            tuple(_row(row, own[row["ordinal"]]) for row in rows),
            tuple((code, number, " ".join(message.split())) for code, number, message in failed),
        )


def _row(row: sqlite3.Row, own: int) -> RowCount:
    counted: int | None = row["own_tokens"]
    return RowCount(
        ordinal=row["ordinal"],
        segment=row["segment"],
        place=row["place"],
        visible_rows=tuple(
            n for first, last in json.loads(row["visible_rows"]) for n in range(first, last + 1)
        ),
        prompt=row["prompt_tokens"] or 0,
        cached=row["cached_tokens"] or 0,
        completion=row["completion_tokens"] or 0,
        own=own if counted is None else counted,
        own_counted=counted is not None,
        answer=row["answer"],
        latency_s=row["latency_s"],
        isolated=bool(row["isolated"]),
    )
