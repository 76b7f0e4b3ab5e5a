"""Rounds of runs: each configuration once, then all again."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.engine.ceiling import RAW_PARAMS, Rendered, render, run_raw
from bench.engine.first_loop import run_loop
from bench.engine.job_run import TimedBackend, accepted, run_job
from bench.engine.measured import Measured
from bench.engine.settings import CONFIGURATIONS, NUM_PREDICT, Review, read_reviews
from bench.engine.table import CEILING, LOOP, RAW
from spoolama.clock import SystemClock
from spoolama.errors import SpoolamaError


@dataclass(frozen=True, slots=True)
class Given:
    """The options of the command line."""

    rows: int
    models: tuple[str, ...]
    slots: tuple[int, ...]
    names: tuple[str, ...]
    repeats: int
    minutes: float
    segment: int
    threads: int
    cache_dir: Path

    @property
    def items(self) -> list[tuple[str, int, str]]:
        """Return the runs of a round in order; the raw ones need the answers of `alone` before them.

        The first loop sends one request at a time, so it is run with one number of slots only.
        """
        return [
            (model, slots, name)
            for model, slots in itertools.product(self.models, self.slots)
            for name in self.names
            if name != LOOP or slots == self.slots[0]
        ]


class Rounds:
    """Runs rounds and reports the progress on stderr."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._reviews: tuple[Review, ...] = read_reviews(given.rows)
        self._clock = SystemClock()
        self._backend = TimedBackend(clock=self._clock, threads=given.threads, cache_dir=given.cache_dir)
        self._rendered: dict[str, Rendered] = {}
        self._took: list[float] = []
        self._began = time.monotonic()
        self.measured: list[Measured] = []
        self.stopped: str | None = None
        """Why there were fewer rounds than requested."""

    @property
    def reviews(self) -> tuple[Review, ...]:
        """The rows."""
        return self._reviews

    async def run(self) -> None:
        """Run all rounds, or as many as the time allows."""
        given = self._given
        self._began = began = time.monotonic()
        try:
            for model in given.models:
                self._rendered[model] = await render(model, self._reviews, given.threads, given.cache_dir)
                prefix, own = len(self._rendered[model].prefix), sum(self._rendered[model].own)
                _say(f"{model}: shared prefix {prefix} tokens, {own / given.rows:.1f} own tokens a row")
            for number in range(given.repeats):
                started = time.monotonic()
                await self._round(number)
                ended = time.monotonic()
                if number + 1 < given.repeats and ended - began + ended - started > given.minutes * 60:
                    self.stopped = (
                        f"{number + 1} of {given.repeats} rounds: another would have passed"
                        f" {given.minutes:g} minutes"
                    )
                    _say(f"stopped after {self.stopped}")
                    return
        finally:
            await self._backend.aclose()

    async def _round(self, number: int) -> None:
        items = self._given.items
        for place, (model, slots, name) in enumerate(items):
            began = time.monotonic()
            found = await self._measure(model, slots, name, number)
            self.measured.append(found)
            if (
                found.seconds is not None
            ):  # a refused configuration takes no time and says nothing about the others
                self._took.append(time.monotonic() - began)
            shown = found.wrong or f"{found.rate or 0:.2f} rows/s"
            shown += "".join(f", {rows} failed ({code})" for code, rows, _ in found.failed)
            estimate = self._left(len(items), place, number)
            _say(
                f"round {number + 1}, {place + 1} of {len(items)}: {model}, slots {slots},"
                f" {name}: {shown}{estimate}"
            )

    def _left(self, items: int, place: int, number: int) -> str:
        """Return the remaining time, without rounds that cannot start any more."""
        if not self._took:
            return ""
        mean = statistics.mean(self._took)
        here = (items - place - 1) * mean
        spare = self._given.minutes * 60 - (time.monotonic() - self._began) - here
        rounds = min(self._given.repeats - number - 1, max(0, int(spare / (items * mean))))
        return f", about {(here + rounds * items * mean) / 60:.0f} min left"

    async def _measure(self, model: str, slots: int, name: str, number: int) -> Measured:
        try:
            if name in RAW:
                return await self._raw(model, slots, name, number)
            own = self._rendered[model].own
            if name == LOOP:
                return await run_loop(
                    model,
                    self._reviews,
                    own,
                    slots=slots,
                    number=number,
                    backend=self._backend,
                    clock=self._clock,
                )
            configuration = next(c for c in CONFIGURATIONS if c.name == name)
            sidecar = accepted(configuration, model, self._given.segment)
            if isinstance(sidecar, str):
                return self._not_run(model, slots, name, number, f"skipped, {sidecar}")
            return await run_job(
                name,
                sidecar,
                self._reviews,
                own,
                slots=slots,
                number=number,
                backend=self._backend,
                clock=self._clock,
            )
        except SpoolamaError as error:
            return self._not_run(model, slots, name, number, f"it failed: {' '.join(str(error).split())}")

    async def _raw(self, model: str, slots: int, name: str, number: int) -> Measured:
        """Run with as many answer tokens as the isolated rows had in this round."""
        alone = self.measured[::-1]
        reference = next(
            (m for m in alone if (m.model, m.slots, m.name, m.round) == (model, slots, "alone", number)), None
        )
        if reference is None or reference.wrong is not None or not reference.rows:
            return self._not_run(model, slots, name, number, "skipped, `alone` did not run")
        answers = {row.ordinal: row.completion for row in reference.rows}
        await self._backend.release()  # the raw run uses the cores
        return await run_raw(
            name,
            model,
            self._rendered[model],
            [answers.get(review.ordinal, NUM_PREDICT) for review in self._reviews],
            RAW_PARAMS if name == CEILING else {},
            slots=slots,
            number=number,
            threads=self._given.threads,
            cache_dir=self._given.cache_dir,
            clock=self._clock,
        )

    def _not_run(self, model: str, slots: int, name: str, number: int, why: str) -> Measured:
        return Measured(model, slots, name, number, asked=len(self._reviews), wrong=why)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
