"""Numbered plans: what is learned while a job runs takes effect at a fixed place, and is on disk before.

- *Length* (the bound of tokens a byte): learned from the first segments (at least 100 rows), in force from 16
  segments on; looked at again at twice that place, four times and so on, and raised where denser text came.
- *Cost* (rows between two trims): learned from the first 64 rows, which one lane answers while the others
  wait, in force from the next segment on. What is learned are times, so they differ from run to run; the
  plan that follows from them is written down before it is used, and a resume does not learn again.
- *Anchors*, and the form that a pilot chose: before the first segment.
- *Harm*: where the audit found that the conversation harms the answers, rows are asked in isolation from the
  next segment that nobody has begun.
- *Window*: where the server turns out to hold a smaller one, from the next segment that nobody has begun.

The places depend on the plan alone, not on lanes, crashes or speed; a lane that gets there early waits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from spoolama.context.costs import CostModel, Sample, fit_costs
from spoolama.context.marks import best_every
from spoolama.engine.store import RowStore, Stop
from spoolama.engine.waiting import until
from spoolama.job.plan import Plan

__all__ = ["COST_ROWS", "Planner", "Wanted", "learned_every"]

_LEARN_ROWS = 100
_FORCE_AFTER = 16
_LEAST_MEASURED = 20
"""Of these rows so many must have told their length; behind anchors only those asked alone do."""
_SAFETY = 1.25
"""The bound is a quarter above the densest text seen, ..."""
_LEAST_DENSITY = 0.2
"""... and never below this: English prose has some 0.25 tokens a byte."""
COST_ROWS = 64
"""Rows by which costs are learned."""
_COST_SHARE = 20
"""They are learned only where these rows are at most one in so many of the job."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be learned."""

    density: bool = True
    costs: bool = False


class Planner:
    """Hands out the plan of each segment.

    Args:
        store: Keeps plan versions, and what they are learned from.
        first: The plan that the job starts with.
        prefix_bytes: UTF-8 bytes of the shared prefix.
        total: Rows of the job.
        stop: A wish to stop ends every wait.
        wanted: What is to be learned.
        room: Tokens that a prompt may have; None: unknown.
    """

    def __init__(
        self,
        store: RowStore,
        first: Plan,
        *,
        prefix_bytes: int,
        total: int,
        stop: Stop,
        wanted: Wanted | None = None,
        room: int | None = None,
    ) -> None:
        self._store = store
        self._plans = [first]
        self._prefix_bytes = prefix_bytes
        self._stop = stop
        self._wanted = wanted or Wanted()
        self._room = room
        self._total = total
        rows = first.segment_rows or total or 1
        self._rows = rows
        self._learn_last = -(-_LEARN_ROWS // rows) - 1
        """Last segment that lengths are first learned from."""
        self._checked = 0
        """How many times lengths were looked at."""
        self._cost_from = -(-COST_ROWS // rows)
        """First segment in which learned costs are in force."""
        self._costs_known = not self._wanted.costs
        self._begun = -1
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._moved = asyncio.Event()

    async def open(self) -> None:
        """Read the versions so far; write the first one if there is none."""
        bodies = await self._store.plans()
        if bodies:
            self._plans = [Plan.from_json(body) for body in bodies]
            self._begun = await self._store.last_segment()
        else:
            await self._store.add_plan(self._plans[0].version, self._plans[0].to_json())
        if not self._costs_known:
            await self._open_costs()

    async def _open_costs(self) -> None:
        known = any(plan.marks != "safe" for plan in self._plans)
        reason = ""
        if self._total < COST_ROWS * _COST_SHARE:
            reason = f"the job has fewer than {COST_ROWS * _COST_SHARE} rows"
        elif self._cost_from * self._rows >= self._total:
            reason = "the rows are one segment, and what is learned is in force from the next one on"
        learned = await self._store.meta("learned")
        if learned is not None and learned["costs"] is not None and not known:
            await self._apply(learned["every"])  # the service ended between the two
        self._costs_known = known or bool(reason) or learned is not None
        if reason and not known and learned is None and self._plans[0].marks == "safe":
            await self._store.note(learned={"every": self._plans[0].every, "costs": None, "reason": reason})

    @property
    def segment_rows(self) -> int:
        """Rows of a segment; a number beyond any job if all rows are one."""
        return self._plans[0].segment_rows or 1 << 61

    @property
    def latest(self) -> Plan:
        """The newest version."""
        return self._plans[-1]

    def moved(self) -> None:
        """To be called when a row ends: somebody may wait for what can now be learned."""
        self._moved.set()

    async def ready(self, lane: int) -> bool:
        """To be awaited before a lane takes a segment; False if the service stops.

        Costs can be told from times only while a single lane works, so the others wait for the first one.
        """
        return lane == 0 or self._costs_known or await self._locked(self._learn_costs)

    async def plan_for(self, segment: int) -> Plan | None:
        """The plan in force for this segment; None if the service stops before it can be known."""
        if segment >= self._cost_from and not self._costs_known and not await self._locked(self._learn_costs):
            return None
        while self._wanted.density and segment >= self._look_at:
            if not await self._locked(lambda: self._learn_density(segment)):
                return None
        # Not while a version is being written that may be meant for this very segment.
        async with self._writing:
            self._begun = max(self._begun, segment)
            return next(plan for plan in reversed(self._plans) if plan.from_segment <= segment)

    async def anchor(self, ordinals: tuple[int, ...], *, gold: bool, prefix_tokens: int | None) -> None:
        """These rows stand in front from the first segment on, behind a prefix of at most so many tokens."""
        await self._add(0, anchors=ordinals, gold=gold, prefix_tokens=prefix_tokens)

    async def adopt(self, **changes: Any) -> None:
        """The form that the pilot has chosen, in force from the first segment on."""
        await self._add(0, **changes)

    async def leave_conversations(self) -> None:
        """From the next segment that nobody has begun each row is asked in isolation."""
        latest = self._plans[-1]
        if latest.anchors or latest.strategy != "reset" or latest.every != 1:
            await self._add(None, strategy="reset", every=1, keep=0, anchors=(), gold=False, marks="fixed")

    async def shrink(self, window: int) -> None:
        """The server holds a window of this size, whatever was asked for."""
        if self._plans[-1].window != window:
            await self._add(None, window=window)

    async def _locked(self, learn: Any) -> bool:
        async with self._lock:
            done: bool = await learn()
            return done

    @property
    def _look_at(self) -> int:
        """The segment from which on lengths looked at next are in force."""
        return self._learn_last + _FORCE_AFTER * (1 << self._checked)

    async def _learn_density(self, segment: int) -> bool:
        force_from = self._look_at
        if segment < force_from:
            return True  # another lane was faster
        last = force_from - _FORCE_AFTER
        if not await self._answered((last + 1) * self._rows):
            return False
        measured = await self._store.measured_density(last, self._prefix_bytes)
        if measured is not None:
            density = max(_LEAST_DENSITY, round(measured[0] * _SAFETY, 3))
            known = next(p for p in reversed(self._plans) if p.from_segment <= force_from).tokens_per_byte
            unlearned = known == self._plans[0].tokens_per_byte
            if density > known or (unlearned and density < known and measured[1] >= _LEAST_MEASURED):
                await self._add(force_from, tokens_per_byte=density)
        self._checked += 1  # last: other lanes go by it
        return True

    async def _learn_costs(self) -> bool:
        if self._costs_known:
            return True
        if not await self._answered(COST_ROWS):
            return False
        rows = await self._store.solo_costs(COST_ROWS - 1)
        fit = await asyncio.to_thread(fit_costs, [Sample(*row) for row in rows])
        means = await self._store.means(COST_ROWS - 1)
        front = await self._store.first_prompt_tokens(0)
        plan = self._plans[-1]
        every, reason = plan.every, fit.reason
        if fit.model is not None and means is not None:
            keep, room = plan.keep + plan.important, self._room
            high = None if room is None else plan.high * room
            every = learned_every(fit.model, keep=keep, means=means, front=front, high=high)
        costs = None if fit.model is None or means is None else fit.model.to_json()
        await self._store.note(learned={"every": every, "costs": costs, "reason": reason})
        if costs is not None:
            await self._apply(every)
        self._costs_known = True
        return True

    async def _apply(self, every: int) -> None:
        await self._add(self._cost_from, every=every, marks="learned")

    async def _answered(self, rows: int) -> bool:
        """Wait until the first rows have their end; False if the service stops."""
        while True:
            self._moved.clear()
            if not await self._store.pending(0, rows - 1, None, 1):
                return True
            await until(self._moved.wait(), self._stop)
            if self._stop.is_set():
                return False

    async def _add(self, from_segment: int | None, **changes: Any) -> None:
        """One version more, on disk before it is used; None: from the next segment that nobody has begun."""
        # Not the lock of the learners: whoever holds that one may be waiting for rows.
        async with self._writing:
            if from_segment is None:
                from_segment = self._begun + 1
            plan = self._plans[-1].next_version(from_segment=from_segment, **changes)
            await self._store.add_plan(plan.version, plan.to_json())
            self._plans.append(plan)


def learned_every(
    costs: CostModel,
    *,
    keep: int,
    means: tuple[float, float],
    front: int | None,
    high: float | None = None,
) -> int:
    """Rows between two trims, by what the first rows have shown.

    Args:
        costs: What they cost.
        keep: Rows that a trim keeps.
        means: Tokens of a row's turn and of its answer, on average.
        front: Prompt tokens of the first row.
        high: Tokens of a prompt at which a trim is due in any case; None: unknown. It would come first, and
            keep other rows than these.
    """
    turn, answer = means
    prefix = max(0.0, (front or 0) - turn + answer)
    every = best_every(costs, keep=keep, turn_tokens=turn, answer_tokens=answer, prefix_tokens=prefix)
    if high is None:
        return every
    return max(1, min(every, int((high - prefix) / max(1.0, turn)) - keep))
