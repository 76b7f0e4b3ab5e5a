"""What the engine asks of whoever keeps the rows. `spool.job_ledger.JobLedger` is the one that lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from spoolama.context.conversation import AnsweredRows
from spoolama.job.record import Answered, Failed, StoredRow

__all__ = ["RowStore", "completed"]


class RowStore(AnsweredRows, Protocol):
    """Rows, answers, tries and plans of one job. Writes without `await` are kept in order."""

    async def counts(self) -> dict[str, int]:
        """Rows by state: pending, ok, failed, skipped."""
        ...

    async def models(self) -> list[str | None]:
        """The models that pending rows ask for; None is the job's own."""
        ...

    async def pending_segments(
        self, after: int, segment_rows: int, model: str | None, limit: int
    ) -> list[int]:
        """Numbers of the next segments with rows to answer, beyond `after`."""
        ...

    async def pending(self, first: int, last: int, model: str | None, limit: int) -> list[StoredRow]:
        """Rows to answer between two ordinals, both included, with their earlier tries.

        Large rows come without their fields: `completed` reads them.
        """
        ...

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        """The next rows that were found too long for the window, beyond an ordinal."""
        ...

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        """By model: (ordinal, tokens) of the rows that were found too long for the window."""
        ...

    async def samples(self) -> list[StoredRow]:
        """The rows that were answered alone beforehand, with those answers."""
        ...

    async def trials(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows answered for this comparison, with those answers; of their fields only this column."""
        ...

    async def strays(self, kind: str) -> list[int]:
        """Rows of this comparison that were not answered in their conversation at the first try."""
        ...

    async def any_in_company(self) -> bool:
        """Whether a row was answered in sight of others and stands so in the results."""
        ...

    async def given_in_company(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows of this comparison with the answers of their conversation, taken back or not.

        Of their fields they have only this column.
        """
        ...

    async def company_of(self, segment: int, column: str | None = None) -> list[StoredRow]:
        """The rows of a segment that were answered in its conversation, in sight of others.

        Of their fields they have only this column.
        """
        ...

    async def rows_of(self, ordinals: Sequence[int]) -> list[StoredRow]:
        """These rows with their results, in order."""
        ...

    async def verdicts(self) -> list[dict[str, Any]]:
        """Segments that were judged by themselves, in order."""
        ...

    async def unaudited(self) -> list[int]:
        """Segments with answers in conversation that were not audited yet."""
        ...

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The first row of each id."""
        ...

    async def last_segment(self) -> int:
        """The highest segment that has an answered row; -1 if there is none."""
        ...

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        """(Most tokens beyond the overhead per byte, rows measured), up to a segment."""
        ...

    async def begin(self, ordinal: int, number: int) -> None:
        """Mark a try before it is sent."""
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
        """Note how a try failed; the row goes on."""
        ...

    def answered(self, answer: Answered) -> None:
        """The row's end: its answer."""
        ...

    def sampled(self, answer: Answered) -> None:
        """An answer given alone beforehand; the row itself goes on."""
        ...

    def tried(self, kind: str, answer: Answered) -> None:
        """An answer given for comparison; the row itself goes on, or has its end already."""
        ...

    def untried(self, ordinal: int) -> None:
        """A row could not be answered for comparison; it goes on, or keeps its end."""
        ...

    async def audited(self, segment: int, verdict: Mapping[str, Any] | None) -> None:
        """A segment was audited; with a verdict, if it was judged by itself."""
        ...

    async def forget_audits(self) -> None:
        """Have the segments audited again that were found unharmed without a verdict."""
        ...

    async def redo(self, segment: int, verdict: Mapping[str, Any]) -> int:
        """Have the segment's rows that had others in sight asked again in isolation; how many they are."""
        ...

    def settle(self, ordinal: int) -> None:
        """The row's answer given alone is its end."""
        ...

    def defer(self, ordinal: int, tokens: int) -> None:
        """The row is too long for the window: it is for the second pass."""
        ...

    def failed(self, failure: Failed) -> None:
        """The row's end: its error."""
        ...

    async def flush(self) -> None:
        """Return when everything so far is durable."""
        ...

    async def plans(self) -> list[dict[str, Any]]:
        """The plan versions so far, oldest first."""
        ...

    async def add_plan(self, version: int, body: Mapping[str, Any]) -> None:
        """Write a plan version durably, before it is used."""
        ...

    async def add(self, key: str, amount: float) -> None:
        """Add to a noted number."""
        ...

    async def meta(self, key: str, default: Any = None) -> Any:
        """What was noted under this key."""
        ...

    async def note(self, **values: Any) -> None:
        """Note values durably."""
        ...


async def completed(row: StoredRow, store: RowStore) -> StoredRow:
    """The row with its fields, which `pending` and `deferred` leave out where they are large."""
    if row.complete:
        return row
    (found,) = await store.rows_of([row.ordinal])
    return replace(found, attempts=row.attempts)
