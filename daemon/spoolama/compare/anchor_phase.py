"""Chooses the anchors before the first segment, from rows that are answered in isolation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spoolama.answer.job_context import JobContext
from spoolama.answer.lane import Lane, RunLanes
from spoolama.context.budget import bound
from spoolama.context.selection import Candidate, candidates, choose
from spoolama.context.trimming import Turn
from spoolama.errors import JobError
from spoolama.job.plan import Plan
from spoolama.job.row import StoredRow
from spoolama.job.sidecar import ANCHORS, CANDIDATES

_MOST_OF_THE_ROOM = 0.5
"""Maximum share of the room for prompts that the anchors take. They also leave room for the longest
candidate, because a row that does not fit behind the anchors is asked twice and without them."""


@dataclass(frozen=True, slots=True)
class ProposedAnchors:
    """The anchors that the candidates allow."""

    rows: tuple[int, ...]
    """0-based ordinals, in prompt order."""
    gold: bool
    """Whether they have their known answers."""
    prefix_tokens: int | None
    """Upper bound of the shared prefix, from the prompts of the candidates."""


class AnchorPhase:
    """Chooses the anchors of a job, and creates their turns.

    Args:
        job: Objects that all parts of the job share.
    """

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self._store = job.store
        self._trim = job.sidecar.trim
        self._wanted = 0 if job.sidecar.mode == "isolated" else job.sidecar.trim.anchor_rows
        self._turns: dict[tuple[tuple[int, ...], bool, float], tuple[Turn, ...]] = {}

    async def prepare(self, run: RunLanes) -> None:
        """Have the candidates answered, choose, and write the plan, unless an earlier run did so.

        Raises:
            JobError: the sidecar names rows that do not exist.
        """
        if not self._wanted:
            return
        planner = self._job.planner
        if not planner.latest.anchors and await self._store.meta("anchored") is None:
            found = await self.propose(run)
            if found.rows:
                await planner.adopt(anchors=found.rows, gold=found.gold, prefix_tokens=found.prefix_tokens)
            # Note an empty choice too: a later bound could allow anchors in the middle of a conversation.
            await self._store.note(anchored=[ordinal + 1 for ordinal in found.rows])
        await self.settle()

    async def propose(self, run: RunLanes) -> ProposedAnchors:
        """Have the candidates answered and choose, unless an earlier run did so.

        Raises:
            JobError: the sidecar names rows that do not exist.
        """
        if await self._store.meta("proposed") is None:
            ordinals = await self._candidates()
            await self._answer(ordinals, run)
            found = await self._choose(ordinals)
            await self._store.note(proposed=[list(found.rows), found.gold, found.prefix_tokens])
        return await self.proposed()

    async def proposed(self) -> ProposedAnchors:
        """Return the choice of `propose`."""
        rows, gold, prefix_tokens = await self._store.meta("proposed")
        return ProposedAnchors(tuple(rows), gold, prefix_tokens)

    async def turns_of(self, plan: Plan) -> tuple[Turn, ...]:
        """Return the turns of the anchors of this plan."""
        if not plan.anchors:
            return ()
        key = (plan.anchors, plan.gold, plan.tokens_per_byte)
        if key not in self._turns:
            rows = {row.ordinal: row for row in await self._store.samples()}
            turns = [await self._job.turns.anchor(rows[ordinal], plan) for ordinal in plan.anchors]
            self._turns[key] = tuple(turns)
        return self._turns[key]

    async def settle(self) -> None:
        """Make the isolated answers of the anchors their results: their own prompts would contain them."""
        anchors = set(self._job.planner.latest.anchors)
        for row in await self._store.samples():
            if row.ordinal in anchors and row.state == "pending":
                self._store.use_sample(row.ordinal)
                self._job.counts.ok()

    async def _candidates(self) -> list[int]:
        named = self._trim.choose
        if not isinstance(named, tuple):
            return candidates(self._job.total, CANDIDATES, self._job.sidecar.options.seed)
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
        planner = self._job.planner
        done = {row.ordinal for row in await self._store.samples()}
        rows: list[StoredRow] = []
        for ordinal in ordinals:
            if ordinal not in done:
                found = await self._store.pending(ordinal, ordinal, None, 1)
                rows += [row for row in found if not row.isolated]
        segment_rows, plan = planner.segment_rows, planner.latest

        async def work(lane: Lane, row: StoredRow) -> None:
            await lane.run_candidate(row, row.ordinal // segment_rows, row.ordinal % segment_rows, plan)

        await run(rows, work)

    async def _choose(self, ordinals: list[int]) -> ProposedAnchors:
        trim, turns = self._trim, self._job.turns
        rows = {row.ordinal: row for row in await self._store.samples() if row.ordinal in set(ordinals)}
        if isinstance(trim.choose, tuple):
            chosen = [ordinal for ordinal in ordinals if ordinal in rows]
        else:
            choices = [
                Candidate(
                    row.ordinal,
                    turns.label(row.answer or ""),
                    await turns.score(row, row.answer or "", row.logprob),
                )
                for row in rows.values()
            ]
            seed = self._job.sidecar.options.seed
            chosen = choose(choices, self._wanted or ANCHORS, trim.choose or "spread", seed)
        gold = turns.gold_fits(list(rows.values()))
        plan = replace(self._job.planner.latest, gold=gold)
        left = await self._room_for(list(rows.values()), plan)
        fitting: list[int] = []
        for ordinal in chosen:
            tokens = (await turns.anchor(rows[ordinal], plan)).tokens
            if tokens <= left:
                left -= tokens
                fitting.append(ordinal)
        counts = [row.prompt_tokens for row in rows.values() if row.prompt_tokens is not None]
        return ProposedAnchors(tuple(fitting), gold, min(counts, default=None))

    async def _room_for(self, rows: list[StoredRow], plan: Plan) -> float:
        """Return the tokens that anchors may take, by the server's counts of these rows or by their bytes."""
        options = self._job.sidecar.options
        room = min(options.num_ctx, plan.window or options.num_ctx) - options.num_predict - 1
        longest = 0
        for row in rows:
            tokens = row.prompt_tokens
            if tokens is None:
                ask = await self._job.asker.ask(row.fields, row.line, row.request)
                tokens = bound(plan, (*ask.prefix, *ask.own))
            longest = max(longest, tokens)
        return min(_MOST_OF_THE_ROOM * room, room - longest)
