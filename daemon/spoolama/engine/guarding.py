"""The guard at work: looks at each segment's answers when it is done, and does what the sidecar says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from spoolama.context.turns import Turns
from spoolama.effect.forms import ALONE, SEED
from spoolama.effect.gold import compare
from spoolama.effect.guard import (
    CHECKS,
    GOLD_CHECKS,
    Settled,
    rows_to_check,
    settle,
    settle_by_gold,
    suspicion,
)
from spoolama.effect.likeness import likeness_of
from spoolama.engine.lane import Lane
from spoolama.engine.planner import Planner
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore
from spoolama.engine.tally import Tally
from spoolama.errors import JobError
from spoolama.job.labels import enum_of
from spoolama.job.record import StoredRow
from spoolama.job.sidecar import Sidecar

__all__ = ["GUARD", "GUARD_AGAIN", "Guarding"]

GUARD = "guard"
"""Rows answered again alone to settle a suspicion."""
GUARD_AGAIN = "guard-again"
"""Likewise a second time, where the temperature is above 0."""


@dataclass(slots=True)
class _Reference:
    """What segments are held against."""

    alone: dict[int, str]
    """Answers given alone, from all over the job."""
    form: dict[int, str] | None
    """Answers of the pilot in the form that was chosen for agreeing better with gold."""
    earlier: list[Settled]
    """Suspicions that were settled before."""


class Guarding:
    """Watches what conversations do to the answers of a job.

    Args:
        sidecar: What to do about a segment that went its own way.
        store: Has the answers, and keeps the verdicts.
        planner: Is told to leave conversations, where it was the pilot that chose them.
        turns: Says what of an answer counts.
        tally: Is told of rows that are asked again.
        progress: Where to tell that a segment is looked at again.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        store: RowStore,
        planner: Planner,
        turns: Turns,
        tally: Tally,
        progress: Progress,
    ) -> None:
        self._sidecar = sidecar
        self._store = store
        self._planner = planner
        self._turns = turns
        self._tally = tally
        self._progress = progress
        self._listed = enum_of(sidecar) is not None
        self._seen: _Reference | None = None

    async def look(self, segment: int, lane: Lane) -> bool:
        """Look at a segment that is done; whether its rows are to be asked again, alone.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        rows = await self._store.company_of(segment, self._sidecar.gold)
        if not rows:
            return False
        labels = {row.ordinal: self._turns.label(row.answer or "") for row in rows}
        seen = await self._reference()
        # A form that was chosen for agreeing better with gold is to differ from alone.
        like = seen.alone if seen.form is None else seen.form
        others = [label for ordinal, label in like.items() if ordinal not in labels]
        why = suspicion(list(labels.values()), others)
        if why is None:
            await self._store.guarded(segment, None)
            return False
        with self._progress.task(f"looking again at segment {segment + 1}"):
            settled = await self._settle(segment, why, rows, labels, seen, lane)
        if settled.rows:  # else nothing was settled
            seen.earlier.append(settled)
        verdict = settled.to_json()
        if not settled.harm:
            await self._store.guarded(segment, verdict)
            return False
        if self._sidecar.trim.strategy == "auto":
            await self._planner.leave_conversations()
        if self._sidecar.on_collapse == "redo":
            self._tally.undone(await self._store.redo(segment, verdict))
            return True
        await self._store.guarded(segment, verdict)
        self._end_where_asked(settled)
        return False

    def redoing(self, segment: int) -> AbstractContextManager[None]:
        """To be held while a segment's rows are asked again, alone."""
        return self._progress.task(f"asking segment {segment + 1} again, each row alone")

    async def recall(self) -> None:
        """End the job if a verdict wants it that was given before a restart.

        Raises:
            JobError: the sidecar wants the job to fail.
        """
        for verdict in await self._store.verdicts():
            if verdict["harm"]:
                self._end_where_asked(Settled.from_json(verdict))

    def _end_where_asked(self, settled: Settled) -> None:
        if self._sidecar.on_collapse == "fail":
            raise JobError(
                f"the conversation changed the answers: in segment {settled.segment + 1}"
                f" {settled.suspicion}, and {settled.differ:g} of {settled.rows} of its rows are answered"
                " otherwise alone",
                mend="Drop it again with mode: isolated, or with on_collapse: redo.",
                code="collapsed",
            )

    async def _settle(
        self,
        segment: int,
        why: str,
        rows: Sequence[StoredRow],
        labels: Mapping[int, str],
        seen: _Reference,
        lane: Lane,
    ) -> Settled:
        seed, plan = self._sidecar.options.seed, self._planner.latest
        gold = self._gold_of(rows)
        known = [n for n in labels if n in gold]
        if seen.form is not None and len(known) >= CHECKS:
            asked = rows_to_check(known, segment, seed, GOLD_CHECKS)
            await lane.run_apart(GUARD, asked, plan, seed=SEED)
            alone = await self._labels(GUARD)
            given = {n: labels[n] for n in asked}
            pairs = compare(given, alone, gold, enum=enum_of(self._sidecar))
            return settle_by_gold(segment, why, pairs, seen.earlier)
        asked = rows_to_check(list(labels), segment, seed)
        noisy = self._sidecar.options.temperature > 0
        await lane.run_apart(GUARD, asked, plan, seed=SEED)
        if noisy:
            await lane.run_apart(GUARD_AGAIN, asked, plan, seed=2 * SEED)
        alone = await self._labels(GUARD)
        again = await self._labels(GUARD_AGAIN) if noisy else {}
        compared = [n for n in asked if n in alone and (not noisy or n in again)]
        seen.alone.update({n: alone[n] for n in compared})
        return settle(
            segment,
            why,
            [labels[n] for n in compared],
            [alone[n] for n in compared],
            [again[n] for n in compared] if noisy else [],
            likeness_of(list(seen.alone.values()), listed=self._listed),
            self._sidecar.trim.margin,
            seen.earlier,
        )

    async def _reference(self) -> _Reference:
        """What segments are held against: answers given alone, or in the form that gold has chosen."""
        if self._seen is None:
            given = await self._store.samples()
            alone = {row.ordinal: self._turns.label(row.answer or "") for row in given}
            alone |= {**await self._labels(ALONE), **await self._labels(GUARD)}
            pilot = await self._store.meta("pilot") or {}
            form = await self._labels(pilot["form"]) if pilot.get("why") == "better" else None
            earlier = [Settled.from_json(verdict) for verdict in await self._store.verdicts()]
            self._seen = _Reference(alone, form, earlier)
        return self._seen

    def _gold_of(self, rows: Sequence[StoredRow]) -> dict[int, str]:
        found = {row.ordinal: row.fields.get(self._sidecar.gold or "") for row in rows}
        return {n: str(value).strip() for n, value in found.items() if value not in (None, "")}

    async def _labels(self, kind: str) -> dict[int, str]:
        return {row.ordinal: self._turns.label(row.answer or "") for row in await self._store.trials(kind)}
