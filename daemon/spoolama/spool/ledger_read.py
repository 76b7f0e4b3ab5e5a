"""Reads a job's ledger in input order, as a stream and without changing it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from spoolama.spool.ledger_read_effect import EffectReader
from spoolama.spool.ledger_schema import open_reader

__all__ = ["LedgerReader", "Outcome", "Totals"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row and its result. Fields that do not apply to the result are None."""

    ordinal: int
    line: int
    id: str | None
    fields: dict[str, Any] | None
    raw: bytes | None
    state: str
    isolated: bool
    model: str | None
    attempts: int = 0
    at: float | None = None
    answer: str | None = None
    thinking: str | None = None
    finish: str | None = None
    segment: int | None = None
    place: int | None = None
    visible_rows: list[list[int]] | None = None
    """Closed ranges of the 0-based ordinals of the rows in the prompt."""
    plan_version: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    load_s: float | None = None
    prompt_s: float | None = None
    eval_s: float | None = None
    latency_s: float | None = None
    code: str | None = None
    message: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    redone: bool = False
    """Whether an answer in a conversation was withdrawn and the row asked again in isolation."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the answered rows. `*_rows` is the number of rows for which the server returned a count."""

    prompt_tokens: int | None
    prompt_rows: int
    cached_tokens: int | None
    cached_rows: int
    completion_tokens: int | None
    completion_rows: int
    attempts: int
    retries: int
    """Requests beyond each row's first, failed rows included."""
    reloads: int
    """Replies that waited more than 0.1 s for the model to load, without the very first."""
    prompt_s: float
    eval_s: float
    latency_s: float
    trims: int
    """Rows before which earlier rows were dropped from the conversation."""


_OUTCOMES = """
SELECT r.ordinal, r.line, r.id, r.fields, r.raw, r.state, r.isolated, r.model,
       coalesce(a.attempts, f.attempts, 0), coalesce(a.at, f.at),
       a.answer, a.thinking, a.finish, a.segment, a.place, a.visible_rows, a.plan_version,
       a.prompt_tokens, a.cached_tokens, a.completion_tokens, a.load_s, a.prompt_s, a.eval_s, a.latency_s,
       f.code, f.message, f.details, EXISTS (SELECT 1 FROM replaced p WHERE p.ordinal = r.ordinal)
FROM rows r LEFT JOIN results a USING (ordinal) LEFT JOIN failures f USING (ordinal)
"""


class LedgerReader(EffectReader):
    """A read-only view of a ledger; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._db = open_reader(path)

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def meta(self, key: str, default: Any = None) -> Any:
        """The value stored under this key."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def counts(self) -> dict[str, int]:
        """Number of rows by state; every state is present."""
        counts = dict.fromkeys(("pending", "ok", "failed", "skipped"), 0)
        counts.update(self._db.execute("SELECT state, count(*) FROM rows GROUP BY state"))
        return counts

    def outcomes(self, states: Collection[str] | None = None) -> Iterator[Outcome]:
        """Every row in input order, or those in one of these states; memory use is constant."""
        sql = _OUTCOMES
        if states is not None:
            sql += f" WHERE r.state IN ({','.join('?' * len(states))})"  # inserts only question marks
        for row in self._db.execute(sql + " ORDER BY r.ordinal", tuple(states or ())):
            yield Outcome(
                ordinal=row[0],
                line=row[1],
                id=row[2],
                fields=None if row[3] is None else json.loads(row[3]),
                raw=row[4],
                state=row[5],
                isolated=bool(row[6]),
                model=row[7],
                attempts=row[8],
                at=row[9],
                answer=row[10],
                thinking=row[11],
                finish=row[12],
                segment=row[13],
                place=row[14],
                visible_rows=None if row[15] is None else json.loads(row[15]),
                plan_version=row[16],
                prompt_tokens=row[17],
                cached_tokens=row[18],
                completion_tokens=row[19],
                load_s=row[20],
                prompt_s=row[21],
                eval_s=row[22],
                latency_s=row[23],
                code=row[24],
                message=row[25],
                details={} if row[26] is None else json.loads(row[26]),
                redone=bool(row[27]),
            )

    def failures(self) -> dict[str, int]:
        """Number of failed rows by error code, most frequent first."""
        return dict(
            self._db.execute("SELECT code, count(*) FROM failures GROUP BY code ORDER BY count(*) DESC, code")
        )

    def plans(self) -> list[dict[str, Any]]:
        """The numbered plan versions, oldest first."""
        return [json.loads(body) for (body,) in self._db.execute("SELECT body FROM plan ORDER BY version")]

    def totals(self) -> Totals:
        """Sums over the answered rows, in one pass."""
        row = self._db.execute(
            "SELECT sum(prompt_tokens), count(prompt_tokens), sum(cached_tokens), count(cached_tokens),"
            " sum(completion_tokens), count(completion_tokens), coalesce(sum(attempts), 0), count(*),"
            " coalesce(sum(load_s > 0.1), 0), coalesce(sum(prompt_s), 0.0), coalesce(sum(eval_s), 0.0),"
            " coalesce(sum(latency_s), 0.0), coalesce(sum(trimmed), 0) FROM results"
        ).fetchone()
        failed = self._db.execute(
            "SELECT coalesce(sum(attempts), 0), coalesce(sum(attempts > 0), 0) FROM failures"
        ).fetchone()
        first = self._db.execute("SELECT load_s > 0.1 FROM results ORDER BY at LIMIT 1").fetchone()
        return Totals(
            prompt_tokens=row[0],
            prompt_rows=row[1],
            cached_tokens=row[2],
            cached_rows=row[3],
            completion_tokens=row[4],
            completion_rows=row[5],
            attempts=row[6] + failed[0],
            retries=row[6] - row[7] + failed[0] - failed[1],
            reloads=row[8] - (1 if first and first[0] else 0),
            prompt_s=row[9],
            eval_s=row[10],
            latency_s=row[11],
            trims=row[12],
        )

    def last_plan(self) -> int | None:
        """The newest plan version with which a row was answered."""
        found: int | None = self._db.execute("SELECT max(plan_version) FROM results").fetchone()[0]
        return found

    def second_pass(self, num_ctx: int) -> dict[str, int] | None:
        """The number of rows answered with a larger context window than the job's, or None."""
        rows, window = self._db.execute(
            "SELECT count(*), max(num_ctx) FROM results WHERE num_ctx > ?", (num_ctx,)
        ).fetchone()
        return {"rows": rows, "num_ctx": window} if rows else None

    def token_bound(self) -> dict[str, Any] | None:
        """Compare the upper bound for tokens with the server's counts; None if the server counted nothing."""
        rows, exceeded, bound, counted = 0, 0, 0.0, 0
        for plan in self.plans():
            density, overhead = plan["tokens_per_byte"], plan["overhead_tokens"]
            found = self._db.execute(
                "SELECT count(*), coalesce(sum(own_tokens > own_bytes * ?1 + 1 + ?2), 0),"
                " coalesce(sum(own_bytes * ?1 + 1 + ?2), 0), coalesce(sum(own_tokens), 0) FROM results"
                " WHERE own_tokens IS NOT NULL AND plan_version = ?3",
                (density, overhead, plan["version"]),
            ).fetchone()
            rows, exceeded = rows + found[0], exceeded + found[1]
            bound, counted = bound + found[2], counted + found[3]
        if not rows:
            return None
        newest = self.plans()[-1]["tokens_per_byte"]
        return {
            "tokens_per_byte": newest,
            "rows": rows,
            "over": round(bound / max(1, counted), 3),
            "exceeded": exceeded,
        }

    def logprobs(self) -> int:
        """Number of answers for which the server returned a log probability."""
        found: int = self._db.execute("SELECT count(logprob) FROM results").fetchone()[0]
        return found

    def estimated_cached(self) -> int | None:
        """An estimate of the cached tokens if the server does not count them; None without a rate."""
        counted = self._db.execute("SELECT count(cached_tokens) FROM results").fetchone()[0]
        cold = self._db.execute(
            "SELECT sum(prompt_tokens) / sum(prompt_s) FROM results"
            " WHERE cold AND only_request AND prompt_s > 0"
        ).fetchone()[0]
        if counted or cold is None:
            return None
        found = self._db.execute(
            "SELECT sum(max(0, prompt_tokens - prompt_s * ?)) FROM results"
            " WHERE only_request AND prompt_tokens IS NOT NULL AND prompt_s IS NOT NULL",
            (cold,),
        ).fetchone()[0]
        return None if found is None else round(found)

    def percentile(
        self, column: Literal["latency_s", "prompt_tokens", "completion_tokens"], q: float
    ) -> float | None:
        """The `q` quantile of the column over the answered rows (nearest rank); None if unknown."""
        assert column in ("latency_s", "prompt_tokens", "completion_tokens")
        known = self._db.execute(f"SELECT count({column}) FROM results").fetchone()[0]  # noqa: S608 - asserted
        if not known:
            return None
        rank = min(known - 1, max(0, -int(-q * known // 1) - 1))
        value = self._db.execute(
            f"SELECT {column} FROM results WHERE {column} IS NOT NULL ORDER BY {column} LIMIT 1 OFFSET ?",  # noqa: S608 - asserted
            (rank,),
        ).fetchone()
        return float(value[0])
