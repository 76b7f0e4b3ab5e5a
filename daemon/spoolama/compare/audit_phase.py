"""Runs the audit: when a segment ends, has some of its rows asked again in isolation, and acts on harm.

The choice of rows depends on the seed, the segment and the ledger, so a restart chooses the same. A segment
is noted as audited when its audit is over; one whose audit was interrupted is audited at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from spoolama.answer.job_context import JobContext
from spoolama.answer.lane import Lane
from spoolama.answer.store import RowStore
from spoolama.compare.audit import (
    CHECKS,
    SURE,
    AuditBudget,
    AuditedRow,
    Evidence,
    budget_of,
    looks_odd,
    needed_in_segment,
    rows_to_audit,
    sure_of_segment,
    weigh,
    weigh_by_gold,
)
from spoolama.compare.pilot import ISOLATED, SEED
from spoolama.compare.similarity import Similarity, gold_of, similarity_of
from spoolama.errors import JobError
from spoolama.job.answer import enum_of
from spoolama.job.plan import sees_others
from spoolama.job.row import StoredRow
from spoolama.job.sidecar import Sidecar

AUDIT = "audit"
"""The comparison of the random sample with isolated answers."""
ODD = "odd"
"""The comparison of rows of segments that look odd."""
_AGAIN = "-again"
"""Suffix of the comparison with the second isolated answers."""
_EACH_UP_TO = 1000
"""With more audited rows, the sample is evaluated only when it has grown by 1 %, not after each segment."""


async def audit_budget(sidecar: Sidecar, store: RowStore, total: int) -> AuditBudget:
    """Return how many rows the audit of this job may ask; noted before the first plan of the job."""
    if await store.meta("own_requests", False):
        return AuditBudget(0, 0)
    noted = await store.meta("audit")
    if noted is None:
        plans = await store.plans()
        budget = _budget_after_guard(sidecar, plans, total) if plans else _budget(sidecar, total)
        if plans and budget.random:
            await store.forget_audits()
        noted = {**asdict(budget), "begun_before": bool(plans)}
        await store.note(audit=noted)
    return AuditBudget(noted["random"], noted["odd"])


def _budget(sidecar: Sidecar, total: int) -> AuditBudget:
    if not sees_others(sidecar, total):
        return AuditBudget(0, 0)
    return budget_of(sidecar.audit_rows, total, noisy=sidecar.noisy)


def _budget_after_guard(sidecar: Sidecar, plans: Sequence[Mapping[str, Any]], total: int) -> AuditBudget:
    """Return the budget of a job that an earlier version began, which continues what that version did.

    Without `audit` that version's guard asked rows of segments that looked odd, and no random sample.
    """
    if all(plan["segment_rows"] == 1 for plan in plans):
        return AuditBudget(0, 0)
    usual = budget_of(None, total, noisy=sidecar.noisy)
    asked = sidecar.audit_rows if "audit" in sidecar.model_fields_set else 0
    return AuditBudget(min(asked or 0, total), max(CHECKS, usual.odd))


async def left_to_audit(store: RowStore) -> bool:
    """Whether the audit is not over, even if all rows have their results."""
    if await store.meta("own_requests", False):
        return False
    noted = await store.meta("audit")
    if noted is not None and not noted["random"] + noted["odd"]:
        return False
    if await store.unaudited():
        return True
    return not await store.meta("audited", False) and await store.has_conversation_answers()


class AuditPhase:
    """Audits the conversations of a job.

    Args:
        job: Objects that all parts of the job share.
        budget: How many rows may be asked.
    """

    def __init__(self, job: JobContext, budget: AuditBudget) -> None:
        self._job = job
        self._sidecar = job.sidecar
        self._store = job.store
        self._budget = budget
        self._noisy = job.sidecar.noisy
        self._enum = enum_of(job.sidecar)
        self._by_gold = False
        self._rows: dict[str, dict[int, AuditedRow]] = {AUDIT: {}, ODD: {}}
        self._others: dict[int, str] = {}
        """Isolated answers of candidates and pilot rows, by ordinal."""
        self._reserved = 0
        """Rows of segments that look odd which a lane is about to ask."""
        self._harm: Mapping[str, Any] | None = None
        self._deciding = asyncio.Lock()
        self._evaluated = 0
        """Audited rows when the sample was last evaluated."""
        self._similarity: tuple[int, Similarity] | None = None
        """Number of isolated answers when the similarity was last derived from them, and the similarity."""

    async def open(self) -> None:
        """Read the results of earlier runs from the ledger.

        Raises:
            JobError: an earlier run found harm, and the sidecar wants the job to fail.
        """
        pilot = await self._store.meta("pilot") or {}
        self._by_gold = pilot.get("why") == "better"
        if self._by_gold:  # the form is meant to change answers, so odd answers prove nothing
            self._budget = AuditBudget(self._budget.rows, 0)
        samples = await self._store.samples()
        self._others = {row.ordinal: self._label(row) for row in samples}
        self._others |= await self._labels(ISOLATED)
        for kind in (AUDIT, ODD):
            isolated, again = await self._labels(kind), await self._labels(kind + _AGAIN)
            self._rows[kind] = {
                row.ordinal: self._audited(row, isolated[row.ordinal], again.get(row.ordinal))
                for row in await self._store.conversation_answers(kind, self._sidecar.gold)
                if row.ordinal in isolated
            }
        self._harm = await self._store.meta("harm")
        if self._harm is not None:
            self._job.progress.harm = self._harm["words"]
            await self._act()  # the service may have ended before it acted

    async def check(self, segment: int, first: int, last: int, lane: Lane) -> bool:
        """Audit a finished segment; returns whether its rows must be asked again in isolation.

        Args:
            segment: 0-based.
            first: Ordinal of its first row.
            last: Ordinal of its last row.
            lane: Asks the rows.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        rows = {row.ordinal: row for row in await self._store.segment_answers(segment, self._sidecar.gold)}
        if not rows:
            return False
        odd = None
        if len(rows) > 1:
            number = needed_in_segment(first, last, self._job.total, self._budget.random)
            await self._ask(AUDIT, rows, self._chosen(AUDIT, rows, number, segment), segment, lane)
            odd = await self._check_odd(segment, rows, lane)
        async with self._deciding:
            return await self._decide(segment, rows, odd)

    def isolating(self, segment: int) -> AbstractContextManager[None]:
        """Show in the status that a segment's rows are asked again in isolation."""
        return self._job.progress.task(f"asking segment {segment + 1} again in isolation")

    async def finish(self) -> None:
        """Evaluate the whole sample after every segment was audited.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        if await self._store.meta("audited", False):
            return
        async with self._deciding:
            evidence = self._weigh(self._rows[AUDIT].values())
            if evidence.shows_at_end() and self._judges():
                await self._note(self._words(evidence), evidence, None)
                await self._act()
        await self._store.note(audited=True)

    # --- asking rows again -------------------------------------------------------------------------------

    def _chosen(self, kind: str, rows: Iterable[int], number: int, segment: int) -> list[int]:
        seed = self._sidecar.options.seed
        return rows_to_audit(list(rows), self._rows[kind].keys(), number, segment, seed)

    async def _check_odd(self, segment: int, rows: Mapping[int, StoredRow], lane: Lane) -> str | None:
        """Ask more rows of a segment that looks odd; returns why it does."""
        own = self._of(rows)
        labels = [self._label(row) for row in rows.values()]
        others = [] if own else [label for n, label in self._isolated().items() if n not in rows]
        why = looks_odd(labels, [row.isolated for row in own], others)
        if why is None:
            return None
        before = sum(n in self._rows[ODD] for n in rows)
        spare = self._budget.odd - len(self._rows[ODD]) - self._reserved + before
        fresh = [n for n in rows if n not in self._rows[AUDIT]]
        number = min(CHECKS - (len(rows) - len(fresh)), spare)
        if number <= 0:
            return why if own else None
        chosen = self._chosen(ODD, fresh, number, segment)
        more = len(chosen) - before
        self._reserved += more
        try:
            await self._ask(ODD, rows, chosen, segment, lane)
        finally:
            self._reserved -= more
        return why

    async def _ask(
        self, kind: str, rows: Mapping[int, StoredRow], chosen: Sequence[int], segment: int, lane: Lane
    ) -> None:
        """Ask the chosen rows that were not asked yet, and a second time where that is needed."""
        plan, turns = self._job.planner.latest, self._job.turns
        found = {n: self._rows[kind][n] for n in chosen if n in self._rows[kind]}
        left = [n for n in chosen if n not in found]
        task = f"auditing segment {segment + 1}"
        with self._job.progress.task(task) if left else nullcontext():
            answers = await lane.run_isolated(kind, left, plan, seed=SEED)
            found |= {n: self._audited(rows[n], turns.label(text)) for n, text in answers.items()}
            twice = [
                n
                for n, row in found.items()
                if row.again is None and (self._noisy or row.given.casefold() != row.isolated.casefold())
            ]
            answers = await lane.run_isolated(kind + _AGAIN, twice, plan, seed=2 * SEED)
            found |= {n: replace(found[n], again=turns.label(text)) for n, text in answers.items()}
        self._rows[kind] |= found  # only now: other lanes must not count a row without its second answer

    # --- decisions and actions ---------------------------------------------------------------------------

    async def _decide(self, segment: int, rows: Collection[int], odd: str | None) -> bool:
        own, knew = self._of(rows), self._harm is not None
        await self._evaluate()
        verdict: dict[str, Any] | None = None
        if own and (odd is not None or self._harm is not None):
            unfounded = sum(not earlier["harm"] for earlier in await self._store.verdicts())
            evidence = self._weigh(own)
            harm = evidence.shows(sure_of_segment(unfounded) if self._harm is None else SURE)
            if odd is not None or harm:
                verdict = _verdict(segment, odd, evidence, harm=harm)
                if harm:
                    await self._note(self._words(evidence, segment), evidence, segment)
        again = verdict is not None and verdict["harm"] and self._sidecar.on_harm == "isolate"
        if again and verdict is not None:
            self._job.counts.undone(await self._store.withdraw_answers(segment, verdict))
        else:
            await self._store.audited(segment, verdict)
        if not knew:
            await self._act()
        return again

    async def _evaluate(self) -> None:
        """Note harm if the random sample shows it."""
        rows = self._rows[AUDIT]
        if self._harm is None and (len(rows) <= _EACH_UP_TO or len(rows) > 1.01 * self._evaluated):
            self._evaluated = len(rows)
            evidence = self._weigh(rows.values())
            if evidence.shows() and self._judges():
                await self._note(self._words(evidence), evidence, None)

    async def _note(self, words: str, evidence: Evidence, segment: int | None) -> None:
        """Note harm once, on disk before anything follows from it."""
        if self._harm is not None:
            return
        self._harm = {
            "words": words,
            "segment": segment,
            "audited": evidence.rows,
            "changed": round(evidence.changed, 4),
            "answered": (await self._store.counts())["ok"],
        }
        await self._store.note(harm=self._harm)
        self._job.progress.harm = words
        self._job.progress.on_notice("harm", words)

    async def _act(self) -> None:
        """Do what the sidecar wants after harm was noted; what an earlier run did is not repeated.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        if self._harm is None:
            return
        if self._sidecar.on_harm == "fail":
            raise JobError(
                self._harm["words"],
                fix="Upload the files again with mode: isolated, or with on_harm: isolate.",
                code="harm",
            )
        isolate = self._sidecar.on_harm == "isolate"
        # A form that the pilot chose on its sample is left if the job itself shows harm.
        if isolate or self._sidecar.trim.strategy == "auto":
            await self._job.planner.leave_conversations()
        if isolate:
            await self._redo_harmed()

    async def _redo_harmed(self) -> None:
        """Take back the answers of segments that were audited before harm was known and show it too."""
        done = {verdict["segment"] for verdict in await self._store.verdicts() if verdict["harm"]}
        done |= set(await self._store.unaudited())  # each is judged when its audit is over
        segments: dict[int, list[int]] = {}
        for ordinal in {**self._rows[AUDIT], **self._rows[ODD]}:
            segments.setdefault(ordinal // self._job.planner.segment_rows, []).append(ordinal)
        for segment, ordinals in sorted(segments.items()):
            if segment in done or self._rows[AUDIT].keys().isdisjoint(ordinals):
                continue
            evidence = self._weigh(self._of(ordinals))
            if evidence.shows():
                self._job.planner.stop_learning()
                verdict = _verdict(segment, None, evidence, harm=True)
                self._job.counts.undone(await self._store.withdraw_answers(segment, verdict))

    def _words(self, evidence: Evidence, segment: int | None = None) -> str:
        asked = "that were asked again in isolation"
        if self._by_gold:
            return (
                f"the conversation makes answers agree less with {self._sidecar.gold}: of {evidence.rows:,}"
                f" rows {asked}, {evidence.changed * 100:.0f} % more agree better there"
            )
        if segment is not None:
            differ = evidence.changed * evidence.rows
            return (
                f"the conversation changed {differ:.0f} of {evidence.rows} answers {asked} in segment"
                f" {segment + 1}"
            )
        share = f"about {evidence.changed * 100:.0f} %"
        much = f"{share} of the answers" if self._like().kind == "labels" else f"the answers by {share}"
        return f"the conversation changes {much}, by {evidence.rows:,} rows {asked}"

    # --- audited rows ------------------------------------------------------------------------------------

    def _weigh(self, rows: Iterable[AuditedRow]) -> Evidence:
        if self._by_gold:
            return weigh_by_gold(sorted(rows, key=lambda row: row.ordinal), self._enum)
        return weigh(list(rows), self._like(), self._sidecar.trim.margin, noisy=self._noisy)

    def _judges(self) -> bool:
        """Whether different answers are harm; texts with the same meaning differ in their words."""
        return self._by_gold or self._like().kind != "texts"

    def _like(self) -> Similarity:
        number = len(self._others) + sum(len(rows) for rows in self._rows.values())
        if self._similarity is None or number <= _EACH_UP_TO or number > 1.01 * self._similarity[0]:
            answers = list(self._isolated().values())
            self._similarity = number, similarity_of(answers, listed=self._enum is not None)
        return self._similarity[1]

    def _isolated(self) -> dict[int, str]:
        """Return all isolated answers by ordinal."""
        asked = {n: row.isolated for rows in self._rows.values() for n, row in rows.items()}
        return {**self._others, **asked}

    def _of(self, ordinals: Iterable[int]) -> list[AuditedRow]:
        """Return the rows among these that were asked again."""
        return [rows[n] for n in ordinals for rows in self._rows.values() if n in rows]

    def _audited(self, row: StoredRow, isolated: str, again: str | None = None) -> AuditedRow:
        return AuditedRow(row.ordinal, self._label(row), isolated, again, gold_of(row, self._sidecar.gold))

    async def _labels(self, kind: str) -> dict[int, str]:
        return {row.ordinal: self._label(row) for row in await self._store.trials(kind)}

    def _label(self, row: StoredRow) -> str:
        return self._job.turns.label(row.answer or "")


def _verdict(segment: int, odd: str | None, evidence: Evidence, *, harm: bool) -> dict[str, Any]:
    return {
        "segment": segment,
        "suspicion": odd or "",
        "rows": evidence.rows,
        "differ": round(evidence.changed * evidence.rows, 2),
        "harm": harm,
    }
