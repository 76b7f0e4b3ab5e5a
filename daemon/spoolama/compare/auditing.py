"""The audit at work: when a segment ends, some of its rows are asked again in isolation.

What is asked follows from the seed, the segment and the ledger, so a restart asks the same. A segment is
noted as audited when its audit is over; one whose audit was interrupted is audited at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
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
from spoolama.compare.likeness import Likeness, likeness_of
from spoolama.compare.pilot import ISOLATED, SEED
from spoolama.context.turns import Turns
from spoolama.errors import JobError
from spoolama.job.labels import enum_of
from spoolama.job.plan import sees_others
from spoolama.job.record import StoredRow
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress

__all__ = ["AUDIT", "ODD", "Auditing", "audit_budget", "left_to_audit"]

AUDIT = "audit"
"""Rows of the random sample, asked again in isolation."""
ODD = "odd"
"""Likewise rows of segments that look odd."""
_AGAIN = "-again"
"""Ends the name of the second isolated answers of either."""


async def audit_budget(sidecar: Sidecar, store: RowStore, total: int) -> AuditBudget:
    """What the audit of this job may ask; noted when the job is first run, before its first plan."""
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
    return budget_of(sidecar.audit_rows, total, noisy=sidecar.options.temperature > 0)


def _budget_after_guard(sidecar: Sidecar, plans: Sequence[Mapping[str, Any]], total: int) -> AuditBudget:
    """Of a job that an earlier version began: what its guard did goes on, and what its audit was to do.

    Without `audit` the guard asked rows of segments that looked odd and no others.
    """
    if all(plan["segment_rows"] == 1 for plan in plans):
        return AuditBudget(0, 0)
    usual = budget_of(None, total, noisy=sidecar.options.temperature > 0)
    asked = sidecar.audit_rows if "audit" in sidecar.model_fields_set else 0
    return AuditBudget(min(asked or 0, total), max(CHECKS, usual.odd))


async def left_to_audit(store: RowStore) -> bool:
    """Whether the audit has not ended, though all rows may have their end."""
    noted = await store.meta("audit")
    if noted is not None and not noted["random"] + noted["odd"]:
        return False
    if await store.unaudited():
        return True
    return not await store.meta("audited", False) and await store.any_in_company()


class Auditing:
    """Audits the conversations of a job.

    Args:
        sidecar: What to do about harm.
        store: Has the answers, and keeps what was found.
        planner: Ends conversations on harm.
        turns: Says what of an answer counts.
        tally: Counts rows that are asked again.
        progress: Where harm and work are shown.
        total: Rows of the job.
        budget: What may be asked.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        store: RowStore,
        planner: Planner,
        turns: Turns,
        tally: RowCounts,
        progress: Progress,
        *,
        total: int,
        budget: AuditBudget,
    ) -> None:
        self._sidecar = sidecar
        self._store = store
        self._planner = planner
        self._turns = turns
        self._tally = tally
        self._progress = progress
        self._total = total
        self._budget = budget
        self._margin = sidecar.trim.margin
        self._noisy = sidecar.options.temperature > 0
        self._enum = enum_of(sidecar)
        self._by_gold = False
        self._rows: dict[str, dict[int, AuditedRow]] = {AUDIT: {}, ODD: {}}
        self._others: dict[int, str] = {}
        """Further isolated answers, from all over the job."""
        self._reserved = 0
        """Rows of segments that look odd which a lane is about to ask."""
        self._harm: Mapping[str, Any] | None = None
        self._deciding = asyncio.Lock()

    async def open(self) -> None:
        """Read what the ledger has.

        Raises:
            JobError: harm was found before a restart, and the sidecar wants the job to fail.
        """
        pilot = await self._store.meta("pilot") or {}
        self._by_gold = pilot.get("why") == "better"
        if self._by_gold:  # its answers are meant to differ: what looks odd says nothing
            self._budget = AuditBudget(self._budget.rows, 0)
        samples = await self._store.samples()
        self._others = {row.ordinal: self._turns.label(row.answer or "") for row in samples}
        self._others |= await self._labels(ISOLATED)
        for kind in (AUDIT, ODD):
            rows = await self._store.given_in_company(kind, self._sidecar.gold)
            self._rows[kind] = await self._audited(kind, rows)
        self._harm = await self._store.meta("harm")
        if self._harm is not None:
            self._progress.harm = self._harm["words"]
            await self._act()  # the service may have ended in between

    async def look(self, segment: int, first: int, last: int, lane: Lane) -> bool:
        """Audit a segment that is done; whether its rows are to be asked again in isolation.

        Args:
            segment: 0-based.
            first: Ordinal of its first row.
            last: Of its last one.
            lane: Asks the rows.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        rows = {row.ordinal: row for row in await self._store.company_of(segment, self._sidecar.gold)}
        if not rows:
            return False
        odd = None
        if len(rows) > 1:
            number = needed_in_segment(first, last, self._total, self._budget.random)
            await self._ask(AUDIT, rows, self._chosen(AUDIT, rows, number, segment), segment, lane)
            labels = {n: self._turns.label(row.answer or "") for n, row in rows.items()}
            odd = await self._look_closer(segment, rows, labels, lane)
        async with self._deciding:
            return await self._decide(segment, odd)

    def isolating(self, segment: int) -> AbstractContextManager[None]:
        """To be held while a segment's rows are asked again in isolation."""
        return self._progress.task(f"asking segment {segment + 1} again in isolation")

    async def finish(self) -> None:
        """Every segment was audited: the last look at the sample.

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

    # --- what is asked -----------------------------------------------------------------------------------

    def _chosen(self, kind: str, rows: Iterable[int], number: int, segment: int) -> list[int]:
        seed = self._sidecar.options.seed
        return rows_to_audit(list(rows), self._rows[kind].keys(), number, segment, seed)

    async def _look_closer(
        self, segment: int, rows: Mapping[int, StoredRow], labels: Mapping[int, str], lane: Lane
    ) -> str | None:
        """What is odd about the segment, if it is; then more of its rows are asked again."""
        own = self._own(rows)
        before = [n for n in self._rows[ODD] if n in rows]
        others = [label for n, label in self._isolated().items() if n not in labels]
        why = looks_odd(list(labels.values()), [row.isolated for row in own], others)
        spare = self._budget.odd - len(self._rows[ODD]) - self._reserved + len(before)
        sampled = sum(n in self._rows[AUDIT] for n in rows)
        number = min(CHECKS - sampled, spare)
        if why is None or number <= 0:
            return why if own else None
        chosen = self._chosen(ODD, [n for n in rows if n not in self._rows[AUDIT]], number, segment)
        more = len(chosen) - len(before)
        self._reserved += more
        try:
            await self._ask(ODD, rows, chosen, segment, lane)
        finally:
            self._reserved -= more
        return why

    async def _ask(
        self, kind: str, rows: Mapping[int, StoredRow], chosen: Sequence[int], segment: int, lane: Lane
    ) -> None:
        """Ask those of these rows that were not asked before, and a second time where that is needed."""
        plan = self._planner.latest
        left = [n for n in chosen if n not in self._rows[kind]]
        asked = {n: rows[n] for n in chosen}
        with self._progress.task(f"auditing segment {segment + 1}") if left else nullcontext():
            await lane.run_apart(kind, left, plan, seed=SEED)
            found = await self._audited(kind, asked.values())
            twice = [
                n
                for n, row in found.items()
                if row.again is None and (self._noisy or row.given.casefold() != row.isolated.casefold())
            ]
            await lane.run_apart(kind + _AGAIN, twice, plan, seed=2 * SEED)
        self._rows[kind] |= await self._audited(kind, asked.values())

    # --- what follows ------------------------------------------------------------------------------------

    async def _decide(self, segment: int, odd: str | None) -> bool:
        own, knew = self._of_segment(segment), self._harm is not None
        evidence = self._weigh(self._rows[AUDIT].values())
        if evidence.shows() and self._judges():
            await self._note(self._words(evidence), evidence, None)
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
            self._tally.undone(await self._store.redo(segment, verdict))
        else:
            await self._store.audited(segment, verdict)
        if not knew:
            await self._act()
        return again

    async def _note(self, words: str, evidence: Evidence, segment: int | None) -> None:
        """Harm, once: on disk before anything follows from it."""
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
        self._progress.harm = words
        self._progress.on_notice("harm", words)

    async def _act(self) -> None:
        """What follows from harm that is noted; what was done before is not done again.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        if self._harm is None:
            return
        if self._sidecar.on_harm == "fail":
            raise JobError(
                self._harm["words"],
                fix="Drop it again with mode: isolated, or with on_harm: isolate.",
                code="harm",
            )
        isolate = self._sidecar.on_harm == "isolate"
        # What the pilot chose by a sample is left when the job itself speaks against it.
        if isolate or self._sidecar.trim.strategy == "auto":
            await self._planner.leave_conversations()
        if isolate:
            await self._redo_harmed()

    async def _redo_harmed(self) -> None:
        """Segments that were audited before harm was known, and whose own rows show it."""
        done = {verdict["segment"] for verdict in await self._store.verdicts() if verdict["harm"]}
        done |= set(await self._store.unaudited())  # each is judged when its audit is over
        for segment in sorted({self._segment_of(n) for n in self._rows[AUDIT]} - done):
            evidence = self._weigh(self._of_segment(segment))
            if evidence.shows():
                verdict = _verdict(segment, None, evidence, harm=True)
                self._tally.undone(await self._store.redo(segment, verdict))

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

    # --- what is known -----------------------------------------------------------------------------------

    def _weigh(self, rows: Iterable[AuditedRow]) -> Evidence:
        if self._by_gold:
            return weigh_by_gold(sorted(rows, key=lambda row: row.ordinal), self._enum)
        return weigh(list(rows), self._like(), self._margin, noisy=self._noisy)

    def _judges(self) -> bool:
        """Whether answers that differ are harm: texts are worded otherwise where they mean the same."""
        return self._by_gold or self._like().kind != "texts"

    def _like(self) -> Likeness:
        return likeness_of(list(self._isolated().values()), listed=self._enum is not None)

    def _isolated(self) -> dict[int, str]:
        """All isolated answers, by ordinal."""
        asked = {n: row.isolated for rows in self._rows.values() for n, row in rows.items()}
        return {**self._others, **asked}

    def _segment_of(self, ordinal: int) -> int:
        return ordinal // self._planner.segment_rows

    def _of_segment(self, segment: int) -> list[AuditedRow]:
        return [
            row for rows in self._rows.values() for n, row in rows.items() if self._segment_of(n) == segment
        ]

    def _own(self, ordinals: Iterable[int]) -> list[AuditedRow]:
        wanted = set(ordinals)
        return [row for rows in self._rows.values() for n, row in rows.items() if n in wanted]

    async def _audited(self, kind: str, rows: Iterable[StoredRow]) -> dict[int, AuditedRow]:
        """Those of these rows, which have their conversation's answers, that were asked again."""
        isolated, again = await self._labels(kind), await self._labels(kind + _AGAIN)
        return {
            row.ordinal: AuditedRow(
                row.ordinal,
                self._turns.label(row.answer or ""),
                isolated[row.ordinal],
                again.get(row.ordinal),
                _text(row.fields.get(self._sidecar.gold or "")),
            )
            for row in rows
            if row.ordinal in isolated
        }

    async def _labels(self, kind: str) -> dict[int, str]:
        return {row.ordinal: self._turns.label(row.answer or "") for row in await self._store.trials(kind)}


def _verdict(segment: int, odd: str | None, evidence: Evidence, *, harm: bool) -> dict[str, Any]:
    return {
        "segment": segment,
        "suspicion": odd or "",
        "rows": evidence.rows,
        "differ": round(evidence.changed * evidence.rows, 2),
        "harm": harm,
    }


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
