"""The phase before the first segment: rows answered alone, of which the anchors are chosen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from spoolama.answer.handout import Handout
from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.store import RowStore
from spoolama.context.budget import bound
from spoolama.context.selection import Choice, candidates, choose
from spoolama.context.trimming import Turn
from spoolama.context.turns import Turns
from spoolama.errors import JobError
from spoolama.evaluation.asking import Asker
from spoolama.job.plan import Plan
from spoolama.job.record import StoredRow
from spoolama.job.sidecar import Sidecar
from spoolama.job.trim import ANCHORS, CANDIDATES

__all__ = ["Anchoring", "Front", "RunLanes"]

_MOST_OF_THE_ROOM = 0.5
"""Anchors take no more than this share of the room for prompts, and no more than the longest row that was
answered alone leaves of it: what does not fit behind them is asked twice, and in sight of none."""

RunLanes = Callable[[Callable[[Lane], Awaitable[None]]], Awaitable[None]]
"""Runs a piece of work in every lane at once."""


@dataclass(frozen=True, slots=True)
class Front:
    """Rows that could stand in front."""

    anchors: tuple[int, ...]
    """0-based ordinals, in their order there."""
    gold: bool
    """Whether they would carry their known answers."""
    prefix_tokens: int | None
    """Upper bound of the shared prefix, from prompts of rows that were asked alone."""


class Anchoring:
    """Chooses the anchors of a job, and makes their turns.

    Args:
        sidecar: How many, and how they are chosen.
        store: Keeps the answers given alone.
        planner: Writes down what was chosen.
        asker: Renders rows whose length no server has counted.
        turns: Makes the turns.
        tally: Told of anchors that have their end.
        total: Rows of the job.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        store: RowStore,
        planner: Planner,
        asker: Asker,
        turns: Turns,
        tally: RowCounts,
        *,
        total: int,
    ) -> None:
        self._sidecar = sidecar
        self._trim = sidecar.trim
        self._options = sidecar.options
        self._wanted = 0 if sidecar.mode == "isolated" else sidecar.trim.anchor_rows
        self._store = store
        self._planner = planner
        self._asker = asker
        self._turns = turns
        self._tally = tally
        self._total = total
        self._made: dict[tuple[tuple[int, ...], bool, float], tuple[Turn, ...]] = {}

    async def prepare(self, run: RunLanes) -> None:
        """Have the candidates answered, choose, and write the plan; nothing if that was done before.

        Raises:
            JobError: the sidecar names rows that are not there.
        """
        if not self._wanted:
            return
        decided = self._planner.latest.anchors or await self._store.meta("anchored") is not None
        if not decided:
            front = await self.propose(run)
            if front.anchors:
                await self._planner.anchor(front.anchors, gold=front.gold, prefix_tokens=front.prefix_tokens)
            # That none fits is a choice as well: a later bound would let some, in mid-conversation.
            await self._store.note(anchored=[ordinal + 1 for ordinal in front.anchors])
        await self.settle()

    async def propose(self, run: RunLanes) -> Front:
        """Have the candidates answered and choose, or tell what was chosen before.

        Raises:
            JobError: the sidecar names rows that are not there.
        """
        if await self._store.meta("proposed") is None:
            asked = await self._candidates()
            await self._answer(asked, run)
            front = await self._choose(asked)
            await self._store.note(
                proposed=[list(front.anchors), front.gold, front.prefix_tokens],
            )
        anchors, gold, prefix_tokens = await self._store.meta("proposed")
        return Front(tuple(anchors), gold, prefix_tokens)

    async def turns_of(self, plan: Plan) -> tuple[Turn, ...]:
        """The turns that stand in front under this plan."""
        if not plan.anchors:
            return ()
        key = (plan.anchors, plan.gold, plan.tokens_per_byte)
        if key not in self._made:
            rows = {row.ordinal: row for row in await self._store.samples()}
            turns = [await self._turns.anchor(rows[ordinal], plan) for ordinal in plan.anchors]
            self._made[key] = tuple(turns)
        return self._made[key]

    async def _candidates(self) -> list[int]:
        named = self._trim.choose
        if not isinstance(named, tuple):
            return candidates(self._total, CANDIDATES, self._options.seed)
        ids = [str(name) for name in named]
        found = await self._store.ordinals_of(ids)
        if missing := [name for name in ids if name not in found]:
            raise JobError(
                f"trim.choose names rows that the file does not have: {', '.join(missing)}",
                fix="Name rows by the column that `id` says, or by their number from 1.",
                code="anchor_missing",
            )
        return [found[name] for name in ids]

    async def _answer(self, ordinals: list[int], run: RunLanes) -> None:
        done = {row.ordinal for row in await self._store.samples()}
        waiting = Handout(self._rows([ordinal for ordinal in ordinals if ordinal not in done]))
        rows = self._planner.segment_rows
        plan = self._planner.latest

        async def work(lane: Lane) -> None:
            while (row := await waiting.take()) is not None:
                await lane.run_sample(row, row.ordinal // rows, row.ordinal % rows, plan)

        await run(work)

    async def _rows(self, ordinals: list[int]) -> AsyncIterator[StoredRow]:
        for ordinal in ordinals:
            for row in await self._store.pending(ordinal, ordinal, None, 1):
                if not row.isolated:
                    yield row

    async def _choose(self, asked: list[int]) -> Front:
        trim = self._trim
        rows = {row.ordinal: row for row in await self._store.samples() if row.ordinal in set(asked)}
        if isinstance(trim.choose, tuple):
            chosen = [ordinal for ordinal in asked if ordinal in rows]
        else:
            choices = [
                Choice(row.ordinal, self._turns.label(row.answer or ""), await self._score(row))
                for row in rows.values()
            ]
            chosen = choose(choices, self._wanted or ANCHORS, trim.choose or "spread", self._options.seed)
        gold = self._turns.gold_fits(list(rows.values()))
        plan = replace(self._planner.latest, gold=gold)
        left = await self._room_for(list(rows.values()), plan)
        fitting: list[int] = []
        for ordinal in chosen:
            tokens = (await self._turns.anchor(rows[ordinal], plan)).tokens
            if tokens <= left:
                left -= tokens
                fitting.append(ordinal)
        counts = [row.prompt_tokens for row in rows.values() if row.prompt_tokens is not None]
        return Front(tuple(fitting), gold, min(counts, default=None))

    async def _room_for(self, rows: list[StoredRow], plan: Plan) -> float:
        """Tokens that anchors may take, by the server's counts of these rows; bytes where it told none."""
        window = min(self._options.num_ctx, plan.window or self._options.num_ctx)
        room = window - self._options.num_predict - 1
        longest = 0
        for row in rows:
            tokens = row.prompt_tokens
            if tokens is None:
                ask = await self._asker.ask(row.fields, row.line)
                tokens = bound(plan, (*ask.prefix, *ask.own))
            longest = max(longest, tokens)
        return min(_MOST_OF_THE_ROOM * room, room - longest)

    async def _score(self, row: StoredRow) -> float:
        return await self._turns.score(row, row.answer or "", row.logprob)

    async def settle(self) -> None:
        """An anchor is not asked again: in its place it would be judged in sight of itself."""
        anchors = set(self._planner.latest.anchors)
        for row in await self._store.samples():
            if row.ordinal in anchors and row.state == "pending":
                self._store.settle(row.ordinal)
                self._tally.ok()
