"""The phase of the pilot: its sample is answered, and the form of the job's conversations written down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from spoolama.answer.handout import Handout
from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.store import RowStore
from spoolama.compare.anchoring import Anchoring, RunLanes
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
from spoolama.context.trimming import Turn
from spoolama.context.turns import Turns
from spoolama.job.labels import enum_of
from spoolama.job.plan import Plan, pilot_asks
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress

__all__ = ["Piloting"]


class Piloting:
    """Runs a job's pilot.

    Args:
        sidecar: What is asked, and how much the pilot may take.
        store: Keeps the answers, and what was decided.
        planner: Is told the form that was chosen.
        anchoring: Chooses the rows that would stand in front.
        turns: Says what of an answer counts.
        progress: Where to tell how far it is.
        total: Rows of the job.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        store: RowStore,
        planner: Planner,
        anchoring: Anchoring,
        turns: Turns,
        progress: Progress,
        *,
        total: int,
    ) -> None:
        self._sidecar = sidecar
        self._store = store
        self._planner = planner
        self._anchoring = anchoring
        self._turns = turns
        self._progress = progress
        self._done: list[list[Any]] = []
        asks = pilot_asks(sidecar, total)
        enum = enum_of(sidecar)
        self._rules = PilotRules(
            blocks_of(total, asks, sidecar.options.seed) if asks else (),
            asks,
            None if enum is None else tuple(enum),
            longest=None if planner.segment_rows > total else planner.segment_rows,
        )

    async def prepare(self, run: RunLanes) -> None:
        """Have the sample answered, decide, and write the plan; nothing if that was done before."""
        if await self._store.meta("pilot") is None:
            self._done = await self._store.meta("pilot_done", [])
            with self._progress.counting("pilot", self._rules.asks, at_most=True) as count:
                while True:
                    seen = await self._seen()
                    count.done = answers_taken(self._rules, seen)
                    step = next_step(self._rules, seen)
                    if isinstance(step, Decision):
                        break
                    await self._take(step, run)
            await self._adopt(step)
        else:
            await self._adopted()

    async def _adopt(self, decision: Decision) -> None:
        form = form_named(decision.form)
        plan = None if form is None else await self._plan_of(decision.form)
        # Before the plan: a resume that finds it writes the plan again.
        changes = {} if plan is None else _changes(plan)
        await self._store.note(pilot={**decision.to_json(), "changes": changes})
        await self._adopted()

    async def _adopted(self) -> None:
        noted = await self._store.meta("pilot")
        changes = noted["changes"]
        if changes and not await self._store.meta("pilot_adopted", False):
            changes = {**changes, "anchors": tuple(changes["anchors"])}
            await self._planner.adopt(**changes)
            await self._store.note(pilot_adopted=True)
        await self._anchoring.settle()

    async def _take(self, step: Step, run: RunLanes) -> None:
        fronts: dict[str, tuple[Plan, tuple[Turn, ...]]] = {}
        for kind in step.kinds:
            form = form_named(kind)
            if form is None:
                fronts[kind] = self._planner.latest, ()
                continue
            if form.anchored:
                await self._anchoring.propose(run)
            plan = await self._plan_of(kind)
            fronts[kind] = plan, await self._anchoring.turns_of(plan)
        waiting = Handout(_once(step.block))

        async def work(lane: Lane) -> None:
            while (block := await waiting.take()) is not None:
                rows = self._rules.blocks[block]
                for kind in step.kinds:
                    plan, front = fronts[kind]
                    form = form_named(kind)
                    if form is not None and form.anchored and not plan.anchors:
                        pass  # no row fits in front: there is nothing to try
                    elif form is None:
                        await lane.run_apart(kind, rows, plan, seed=SEED)
                    else:
                        await lane.run_trial(kind, rows[0], rows[-1], plan, front)
                    self._done.append([block, kind])
                    await self._store.note(pilot_done=self._done)

        await run(work)

    async def _plan_of(self, name: str) -> Plan:
        form = form_named(name)
        assert form is not None
        base = self._planner.latest
        if not form.anchored:
            return form.plan(base, (), gold=False, prefix_tokens=base.prefix_tokens)
        front = await self._anchoring.propose(_nobody)
        return form.plan(base, front.anchors, gold=front.gold, prefix_tokens=front.prefix_tokens)

    async def _seen(self) -> PilotAnswers:
        labels: dict[str, dict[int, str]] = {}
        gold: dict[int, str] = {}
        for kind in (ISOLATED, *(form.name for form in FORMS)):
            rows = await self._store.trials(kind, self._sidecar.gold)
            if rows:
                labels[kind] = {row.ordinal: self._turns.label(row.answer or "") for row in rows}
            if self._sidecar.gold is not None:
                gold.update({row.ordinal: _text(row.fields.get(self._sidecar.gold)) for row in rows})
        proposed = await self._store.meta("proposed")
        return PilotAnswers(
            labels,
            gold,
            frozenset((block, kind) for block, kind in self._done),
            left={form.name: await self._left(form, labels, proposed or [()]) for form in FORMS},
            no_anchors=proposed is not None and not proposed[0],
        )

    async def _left(
        self, form: Form, labels: Mapping[str, Mapping[int, str]], proposed: Sequence[Any]
    ) -> frozenset[int]:
        """Rows that were not answered in this form at the first try, or not at all."""
        asked = {n for b, kind in self._done if kind == form.name for n in self._rules.blocks[b]}
        anchors = set(proposed[0]) if form.anchored else set()
        unanswered = (asked & set(labels.get(ISOLATED, {}))) - set(labels.get(form.name, {})) - anchors
        return frozenset({*await self._store.strays(form.name), *unanswered})


def _changes(plan: Plan) -> dict[str, Any]:
    return {
        "strategy": plan.strategy,
        "every": plan.every,
        "anchors": list(plan.anchors),
        "gold": plan.gold,
        "prefix_tokens": plan.prefix_tokens,
    }


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


async def _once(block: int) -> AsyncIterator[int]:
    yield block


async def _nobody(work: Callable[[Lane], Awaitable[None]]) -> None:
    """What was proposed is known by then: nothing is left to be asked."""
    raise AssertionError(work)
