"""Runs the pilot: has its sample answered, and writes the chosen form of the conversations into the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spoolama.answer.job_context import JobContext
from spoolama.answer.lane import Lane, RunLanes
from spoolama.compare.anchor_phase import AnchorPhase
from spoolama.compare.pilot import (
    FORMS,
    ISOLATED,
    SEED,
    Decision,
    Form,
    PilotAnswers,
    PilotRules,
    Step,
    answers_taken,
    blocks_of,
    form_named,
    next_step,
)
from spoolama.compare.similarity import gold_of
from spoolama.job.answer import enum_of
from spoolama.job.plan import Plan, pilot_asks


class PilotPhase:
    """Runs a job's pilot.

    Args:
        job: Objects that all parts of the job share.
        anchors: Chooses the anchors for forms that have them.
    """

    def __init__(self, job: JobContext, anchors: AnchorPhase) -> None:
        self._job = job
        self._store = job.store
        self._anchors = anchors
        self._done: list[list[Any]] = []
        asks = pilot_asks(job.sidecar, job.total)
        enum = enum_of(job.sidecar)
        segment_rows = job.planner.segment_rows
        self._rules = PilotRules(
            blocks_of(job.total, asks, job.sidecar.options.seed) if asks else (),
            asks,
            None if enum is None else tuple(enum),
            longest=None if segment_rows > job.total else segment_rows,
        )

    async def prepare(self, run: RunLanes) -> None:
        """Have the sample answered, decide, and write the plan, unless an earlier run did so."""
        if await self._store.meta("pilot") is None:
            await self._decide(run)
        changes = (await self._store.meta("pilot"))["changes"]
        if changes and not await self._store.meta("pilot_adopted", False):
            await self._job.planner.adopt(**{**changes, "anchors": tuple(changes["anchors"])})
            await self._store.note(pilot_adopted=True)
        await self._anchors.settle()

    async def _decide(self, run: RunLanes) -> None:
        self._done = await self._store.meta("pilot_done", [])
        with self._job.progress.counting("pilot", self._rules.asks) as count:
            while True:
                seen = await self._seen()
                count.done = answers_taken(self._rules, seen)
                step = next_step(self._rules, seen)
                if isinstance(step, Decision):
                    break
                await self._ask(step, run)
        form = form_named(step.form)
        changes: dict[str, Any] = {}
        if form is not None:
            plan = await self._plan_of(form)
            changes = {
                "strategy": plan.strategy,
                "every": plan.every,
                "anchors": list(plan.anchors),
                "gold": plan.gold,
                "prefix_tokens": plan.prefix_tokens,
            }
        # Before the plan, so that a resume can write the plan.
        await self._store.note(pilot={**step.to_json(), "changes": changes})

    async def _ask(self, step: Step, run: RunLanes) -> None:
        """Have one lane answer a block of the sample in these ways."""
        ways = []
        for kind in step.kinds:
            form = form_named(kind)
            if form is not None and form.anchored:
                await self._anchors.propose(run)
            plan = self._job.planner.latest if form is None else await self._plan_of(form)
            ways.append((kind, form, plan, await self._anchors.turns_of(plan)))

        async def work(lane: Lane, block: int) -> None:
            rows = self._rules.blocks[block]
            for kind, form, plan, turns in ways:
                if form is None:
                    await lane.run_isolated(kind, rows, plan, seed=SEED)
                elif plan.anchors or not form.anchored:  # otherwise no anchor fits, and nothing can be tried
                    await lane.run_form(kind, rows[0], rows[-1], plan, turns)
                self._done.append([block, kind])
                await self._store.note(pilot_done=self._done)

        await run([step.block], work)

    async def _plan_of(self, form: Form) -> Plan:
        """Return the plan for this form; its anchors are proposed before."""
        latest = self._job.planner.latest
        if not form.anchored:
            return form.plan(latest, (), gold=False, prefix_tokens=latest.prefix_tokens)
        found = await self._anchors.proposed()
        return form.plan(latest, found.rows, gold=found.gold, prefix_tokens=found.prefix_tokens)

    async def _seen(self) -> PilotAnswers:
        labels: dict[str, dict[int, str]] = {}
        gold: dict[int, str] = {}
        column = self._job.sidecar.gold
        for kind in (ISOLATED, *(form.name for form in FORMS)):
            rows = await self._store.trials(kind, column)
            if rows:
                labels[kind] = {row.ordinal: self._job.turns.label(row.answer or "") for row in rows}
            if column is not None:
                gold.update({row.ordinal: gold_of(row, column) for row in rows})
        proposed = await self._store.meta("proposed")
        anchors = None if proposed is None else proposed[0]
        return PilotAnswers(
            labels,
            gold,
            frozenset((block, kind) for block, kind in self._done),
            left={form.name: await self._left(form, labels, anchors or ()) for form in FORMS},
            no_anchors=anchors == [],
        )

    async def _left(
        self, form: Form, labels: Mapping[str, Mapping[int, str]], anchors: Sequence[int]
    ) -> frozenset[int]:
        """Return the rows that were not answered in this form at the first attempt, or not at all."""
        asked = {n for b, kind in self._done if kind == form.name for n in self._rules.blocks[b]}
        unanswered = (asked & set(labels.get(ISOLATED, {}))) - set(labels.get(form.name, {}))
        if form.anchored:
            unanswered -= set(anchors)
        return frozenset({*await self._store.isolated_or_retried(form.name), *unanswered})
