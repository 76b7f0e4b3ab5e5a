"""Defines the interface to the storage of rows; `spool/job_ledger.JobLedger` stores them on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from spoolama.context.conversation import AnsweredRows
from spoolama.job.row import Answered, Failed, StoredRow


class RowStore(AnsweredRows, Protocol):
    """Rows, answers, attempts and plans of one job. Writes without `await` keep their order."""

    async def counts(self) -> dict[str, int]:
        """Return the number of rows by state: pending, ok, failed, skipped."""
        ...

    async def models(self) -> list[str | None]:
        """Return the models that pending rows ask for; None is the sidecar's."""
        ...

    async def pending_segments(
        self, after: int, segment_rows: int, model: str | None, limit: int
    ) -> list[int]:
        """Return the next segments with pending rows, beyond segment `after`."""
        ...

    async def pending(self, first: int, last: int, model: str | None, limit: int) -> list[StoredRow]:
        """Return pending rows between two ordinals, both included, with their earlier attempts.

        Large rows have no fields; `completed` reads them.
        """
        ...

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        """Return the next deferred rows, beyond ordinal `after`."""
        ...

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        """Return (ordinal, tokens) of the deferred rows, by model."""
        ...

    async def samples(self) -> list[StoredRow]:
        """Return the candidates for anchors with their isolated answers."""
        ...

    async def trials(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """Return the rows of this comparison with its answers; of their fields only this column."""
        ...

    async def isolated_or_retried(self, kind: str) -> list[int]:
        """Return the rows of this comparison that were isolated, or not answered at the first attempt."""
        ...

    async def has_conversation_answers(self) -> bool:
        """Whether the results have an answer whose prompt contained other rows."""
        ...

    async def conversation_answers(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """Return the rows of this comparison with the answers of their conversation, withdrawn or not.

        Of their fields they have only this column.
        """
        ...

    async def segment_answers(self, segment: int, column: str | None = None) -> list[StoredRow]:
        """Return the rows of a segment that were answered in its conversation.

        Of their fields they have only this column.
        """
        ...

    async def rows_of(self, ordinals: Sequence[int]) -> list[StoredRow]:
        """Return these rows with their results, in order."""
        ...

    async def verdicts(self) -> list[dict[str, Any]]:
        """Return the verdicts about single segments, in order."""
        ...

    async def unaudited(self) -> list[int]:
        """Return the segments with answers in a conversation that were not audited yet."""
        ...

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the first row of each id."""
        ...

    async def last_segment(self) -> int:
        """Return the highest segment that has an answered row; -1 if there is none."""
        ...

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        """Return (most tokens per byte beyond the overhead, measured rows), up to a segment."""
        ...

    async def begin(self, ordinal: int, number: int) -> None:
        """Record an attempt before it is sent."""
        ...

    def end(
        self,
        ordinal: int,
        number: int,
        code: str,
        message: str,
        *,
        counted: bool,
        isolated_tokens: int | None = None,
    ) -> None:
        """Record how an attempt failed; the row stays pending."""
        ...

    def answered(self, answer: Answered) -> None:
        """Store the answer as the row's result."""
        ...

    def sampled(self, answer: Answered) -> None:
        """Store the isolated answer of a candidate; the row stays pending."""
        ...

    def add_trial(self, kind: str, answer: Answered) -> None:
        """Store an answer for comparison; the row's state does not change."""
        ...

    def skip_trial(self, ordinal: int) -> None:
        """Record that a row was not answered for comparison; the row's state does not change."""
        ...

    async def audited(self, segment: int, verdict: Mapping[str, Any] | None) -> None:
        """Record that a segment was audited, with a verdict if it looked odd."""
        ...

    async def forget_audits(self) -> None:
        """Forget the audits of segments without a verdict, so that they are audited again."""
        ...

    async def withdraw_answers(self, segment: int, verdict: Mapping[str, Any]) -> int:
        """Have the rows of a segment that were answered in its conversation asked again in isolation.

        Returns:
            The number of these rows.
        """
        ...

    def use_sample(self, ordinal: int) -> None:
        """Use the isolated answer of a candidate as the row's result."""
        ...

    def defer(self, ordinal: int, tokens: int) -> None:
        """Leave a row that is too long for the window for the second pass."""
        ...

    def failed(self, failure: Failed) -> None:
        """Store the error as the row's result."""
        ...

    async def flush(self) -> None:
        """Wait until everything so far is durable."""
        ...

    async def plans(self) -> list[dict[str, Any]]:
        """Return the plan versions, oldest first."""
        ...

    async def add_plan(self, version: int, body: Mapping[str, Any]) -> None:
        """Store a plan version durably, before it is used."""
        ...

    async def add(self, key: str, amount: float) -> None:
        """Add to a noted number."""
        ...

    async def meta(self, key: str, default: Any = None) -> Any:
        """Return the value that was noted under this key."""
        ...

    async def note(self, **values: Any) -> None:
        """Note values durably."""
        ...


async def completed(row: StoredRow, store: RowStore) -> StoredRow:
    """Return the row with its fields, which `pending` and `deferred` omit for large rows."""
    if row.complete:
        return row
    (found,) = await store.rows_of([row.ordinal])
    return replace(found, attempts=row.attempts)
