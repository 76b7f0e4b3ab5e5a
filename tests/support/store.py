"""A job's rows in memory, for tests of the engine that need thousands of jobs and no disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spoolama.job.row import Answered, Attempt, Failed, Ranges, StoredRow
from spoolama.spool.ledger_rows import only_column


class MemoryStore:
    """The interface of `spool.job_ledger.JobLedger` for the engine, without a file.

    Args:
        fields: The rows, in order.
    """

    def __init__(self, fields: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [
            StoredRow(n, n + 2, str(n + 1), each, None, isolated=False, state="pending")
            for n, each in enumerate(fields)
        ]
        self.results: dict[int, Answered] = {}
        self.sampled_answers: dict[int, Answered] = {}
        self.failures: dict[int, Failed] = {}
        self.deferred_tokens: dict[int, int] = {}
        self.attempt_messages: list[str] = []
        """Messages of failed attempts, in order."""
        self.attempt_log: dict[int, dict[int, Attempt]] = {}
        self.notes: dict[str, Any] = {}
        self.plan_bodies: list[dict[str, Any]] = []
        self.trial_answers: dict[str, dict[int, Answered]] = {}
        self.looked_at: dict[int, dict[str, Any] | None] = {}
        self.replaced: dict[int, Answered] = {}

    # --- reading -----------------------------------------------------------------------------------------

    async def counts(self) -> dict[str, int]:
        found = dict.fromkeys(("pending", "ok", "failed", "skipped"), 0)
        for row in self.rows:
            found[row.state] += 1
        return found

    async def models(self) -> list[str | None]:
        return [None] if any(self._open(row) for row in self.rows) else []

    def _open(self, row: StoredRow) -> bool:
        return row.state == "pending" and row.ordinal not in self.deferred_tokens

    async def pending_segments(
        self, after: int, segment_rows: int, model: str | None, limit: int
    ) -> list[int]:
        found = {row.ordinal // segment_rows for row in self.rows if self._open(row) and row.model == model}
        return sorted(segment for segment in found if segment > after)[:limit]

    async def pending(self, first: int, last: int, model: str | None, limit: int) -> list[StoredRow]:
        rows = self.rows[first : min(last, len(self.rows)) + 1]
        return [self._tried(row) for row in rows if self._open(row) and row.model == model][:limit]

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        rows = [r for r in self.rows if r.state == "pending" and r.ordinal in self.deferred_tokens]
        return [self._tried(row) for row in rows if row.ordinal > after and row.model == model][:limit]

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        sizes = [(n, t) for n, t in self.deferred_tokens.items() if self.rows[n].state == "pending"]
        return {None: sorted(sizes)} if sizes else {}

    async def last_turn(self, segment: int) -> StoredRow | None:
        found = [a for a in self.results.values() if a.segment == segment and not a.isolated]
        return self._answered(max(found, key=lambda a: a.ordinal)) if found else None

    async def first_prompt_tokens(self, segment: int) -> int | None:
        found = [a for a in self.results.values() if a.segment == segment and not a.isolated]
        counted = [a for a in found if a.prompt_tokens is not None]
        return min(counted, key=lambda a: a.ordinal).prompt_tokens if counted else None

    async def turns(self, ranges: Ranges) -> list[StoredRow]:
        ordinals = [n for first, last in ranges for n in range(first, last + 1)]
        found = [self.results[n] for n in ordinals if n in self.results]
        return [self._answered(answer) for answer in found if not answer.isolated]

    async def samples(self) -> list[StoredRow]:
        return [self._answered(answer) for _, answer in sorted(self.sampled_answers.items())]

    async def trials(self, kind: str, column: str | None = None) -> list[StoredRow]:
        found = sorted(self.trial_answers.get(kind, {}).items())
        return [only_column(self._answered(answer), column) for _, answer in found]

    async def isolated_or_retried(self, kind: str) -> list[int]:
        given = self.trial_answers.get(kind, {})
        return sorted(n for n, answer in given.items() if answer.isolated or answer.attempts > 1)

    async def has_conversation_answers(self) -> bool:
        return any(answer.visible_rows for answer in self.results.values())

    async def conversation_answers(self, kind: str, column: str | None = None) -> list[StoredRow]:
        given = {**self.results, **self.replaced}
        found = [given[n] for n in sorted(self.trial_answers.get(kind, {})) if n in given]
        return [only_column(self._answered(answer), column) for answer in found if answer.visible_rows]

    async def segment_answers(self, segment: int, column: str | None = None) -> list[StoredRow]:
        found = [
            a for a in self.results.values() if a.segment == segment and a.visible_rows and not a.isolated
        ]
        found.sort(key=lambda a: a.ordinal)
        return [only_column(self._answered(answer), column) for answer in found]

    async def rows_of(self, ordinals: Sequence[int]) -> list[StoredRow]:
        return [self._answered(self.results[n]) if n in self.results else self.rows[n] for n in ordinals]

    async def verdicts(self) -> list[dict[str, Any]]:
        return [verdict for _, verdict in sorted(self.looked_at.items()) if verdict is not None]

    async def unaudited(self) -> list[int]:
        found = {a.segment for a in self.results.values() if a.visible_rows and not a.isolated}
        return sorted(found - set(self.looked_at))

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        return {row.id: row.ordinal for row in self.rows if row.id in ids and row.id is not None}

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        found = []
        for answer in self.results.values():
            if answer.segment > last_segment or answer.prompt_tokens is None:
                continue
            if answer.own_tokens is not None:
                found.append((answer.own_tokens - 16.0) / max(answer.own_bytes, 1))
            elif not answer.visible_rows:
                found.append((answer.prompt_tokens - 32.0) / max(answer.own_bytes + prefix_bytes, 1))
        found += [
            (answer.prompt_tokens - 32.0) / max(answer.own_bytes + prefix_bytes, 1)
            for answer in self.sampled_answers.values()
            if answer.prompt_tokens is not None
        ]
        return (max(found), len(found)) if found else None

    async def last_segment(self) -> int:
        begun = [a.segment for n, a in self.results.items() if a is not self.sampled_answers.get(n)]
        return max(begun, default=-1)

    async def plans(self) -> list[dict[str, Any]]:
        return list(self.plan_bodies)

    async def meta(self, key: str, default: Any = None) -> Any:
        return self.notes.get(key, default)

    # --- writing -----------------------------------------------------------------------------------------

    async def begin(self, ordinal: int, number: int) -> None:
        self.attempt_log.setdefault(ordinal, {})[number] = Attempt("open", counted=True)

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
        self.attempt_log[ordinal][number] = Attempt(code, counted, isolated_tokens)
        self.attempt_messages.append(message)

    def answered(self, answer: Answered) -> None:
        assert answer.ordinal not in self.results, "the same row twice is a defect"
        self.results[answer.ordinal] = answer
        self._state(answer.ordinal, "ok")
        self.attempt_log.pop(answer.ordinal, None)

    def add_trial(self, kind: str, answer: Answered) -> None:
        self.trial_answers.setdefault(kind, {})[answer.ordinal] = answer
        self.attempt_log.pop(answer.ordinal, None)

    def skip_trial(self, ordinal: int) -> None:
        self.attempt_log.pop(ordinal, None)

    async def audited(self, segment: int, verdict: Mapping[str, Any] | None) -> None:
        self.looked_at[segment] = None if verdict is None else dict(verdict)

    async def forget_audits(self) -> None:
        self.looked_at = {n: verdict for n, verdict in self.looked_at.items() if verdict is not None}

    async def withdraw_answers(self, segment: int, verdict: Mapping[str, Any]) -> int:
        asked = [n for n, a in self.results.items() if a.segment == segment and a.visible_rows]
        for n in asked:
            self.replaced[n] = self.results.pop(n)
            self.rows[n] = replace(self.rows[n], state="pending", isolated=True)
        self.looked_at[segment] = dict(verdict)
        return len(asked)

    def sampled(self, answer: Answered) -> None:
        self.sampled_answers[answer.ordinal] = answer
        self.attempt_log.pop(answer.ordinal, None)

    def use_sample(self, ordinal: int) -> None:
        self.answered(self.sampled_answers[ordinal])

    def defer(self, ordinal: int, tokens: int) -> None:
        self.deferred_tokens[ordinal] = tokens

    def failed(self, failure: Failed) -> None:
        self.failures[failure.ordinal] = failure
        self._state(failure.ordinal, "failed")

    async def flush(self) -> None:
        """There is nothing to flush."""

    async def add_plan(self, version: int, body: Mapping[str, Any]) -> None:
        assert version == len(self.plan_bodies) + 1
        self.plan_bodies.append(dict(body))

    async def add(self, key: str, amount: float) -> None:
        self.notes[key] = self.notes.get(key, 0) + amount

    async def note(self, **values: Any) -> None:
        self.notes.update(values)

    def _state(self, ordinal: int, state: str) -> None:
        self.rows[ordinal] = replace(self.rows[ordinal], state=state)

    def _tried(self, row: StoredRow) -> StoredRow:
        attempt_log = self.attempt_log.get(row.ordinal, {})
        return replace(row, attempts=tuple(attempt_log[number] for number in sorted(attempt_log)))

    def _answered(self, answer: Answered) -> StoredRow:
        return replace(
            self.rows[answer.ordinal],
            answer=answer.answer,
            turn_tokens=answer.turn_tokens,
            visible_rows=answer.visible_rows,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            logprob=answer.logprob,
            thought=bool(answer.thinking),
        )
