"""Reads the ledger of a job in input order, as a stream and without changing it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from spoolama.errors import SpoolamaError
from spoolama.job.row import RowRequest
from spoolama.spool.ledger_format import open_reader
from spoolama.spool.ledger_rows import count_failures, count_states, read_meta, read_plans


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
    request: RowRequest | None = None
    """Its own request, if it has one."""


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


@dataclass(frozen=True, slots=True)
class Compared:
    """A row that was answered in a conversation, and again in isolation."""

    ordinal: int
    given: str
    """Its answer in the conversation, withdrawn or not."""
    isolated: str
    depth: int
    """Number of other rows in the prompt of that answer."""
    place: int
    """Number of rows before it in its segment."""


@dataclass(frozen=True, slots=True)
class AuditedSegments:
    """The audited segments."""

    audited: int
    """Number of segments whose audit is over."""
    verdicts: list[dict[str, Any]]
    """The verdicts on segments that looked odd, in order."""
    replaced: int
    """Number of rows whose answer in a conversation was withdrawn."""
    answered_again: int
    """Number of these rows that have a new answer."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Sums over answered requests."""

    answers: int
    seconds: float
    """Sum of the times from sending to the answer."""
    attempts: int
    """Requests sent for these answers. Requests for rows without an answer are not counted."""
    prompt_tokens: int | None
    """Sum of the server's counts; None if a count is missing."""
    cached_tokens: int | None
    completion_tokens: int | None


_COSTS = "latency_s, attempts, prompt_tokens, cached_tokens, completion_tokens"
# The answer of an anchor is also in the results, where it is counted.
_UNUSED = (
    "SELECT s.latency_s, s.attempts, s.prompt_tokens, s.cached_tokens, s.completion_tokens FROM samples s"
    " LEFT JOIN results r USING (ordinal) WHERE r.at IS NOT s.at OR r.latency_s != s.latency_s"
)

_SAMPLES = {
    "none": "",
    "all": f" UNION ALL SELECT {_COSTS} FROM samples",  # noqa: S608 - constants
    "unused": f" UNION ALL {_UNUSED}",
}

_OUTCOMES = """
SELECT r.ordinal, r.line, r.id, r.fields, r.raw, r.state, r.isolated, r.model, r.request,
       coalesce(a.attempts, f.attempts, 0) AS attempts, coalesce(a.at, f.at) AS at,
       a.answer, a.thinking, a.finish, a.segment, a.place, a.visible_rows, a.plan_version,
       a.prompt_tokens, a.cached_tokens, a.completion_tokens, a.load_s, a.prompt_s, a.eval_s, a.latency_s,
       f.code, f.message, f.details,
       EXISTS (SELECT 1 FROM replaced p WHERE p.ordinal = r.ordinal) AS redone
FROM rows r LEFT JOIN results a USING (ordinal) LEFT JOIN failures f USING (ordinal)
"""
"""The columns have the names of the attributes of `Outcome`."""


class LedgerReader:
    """A read-only view of a ledger; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._db = open_reader(path)

    def __enter__(self) -> Self:
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
        return read_meta(self._db, key, default)

    def counts(self) -> dict[str, int]:
        """Number of rows by state; every state is present."""
        return count_states(self._db)

    def failures(self) -> dict[str, int]:
        """Number of failed rows by error code, most frequent first."""
        return count_failures(self._db)

    def plans(self) -> list[dict[str, Any]]:
        """The plan versions, oldest first."""
        return read_plans(self._db)

    def outcomes(self, states: Collection[str] | None = None) -> Iterator[Outcome]:
        """Every row in input order, or those in one of these states; memory use is constant."""
        where = ""
        if states is not None:
            where = f" WHERE r.state IN ({','.join('?' * len(states))})"  # inserts only question marks
        cursor = self._db.execute(f"{_OUTCOMES}{where} ORDER BY r.ordinal", tuple(states or ()))
        names = [column[0] for column in cursor.description]
        for row in cursor:
            values = dict(zip(names, row, strict=True))
            for name in ("fields", "visible_rows", "details"):
                if values[name] is not None:
                    values[name] = json.loads(values[name])
            values["details"] = values["details"] or {}
            values["isolated"], values["redone"] = bool(values["isolated"]), bool(values["redone"])
            if values["request"] is not None:
                values["request"] = RowRequest.from_json(values["request"])
            yield Outcome(**values)

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
        found: int | None = self._value("SELECT max(plan_version) FROM results")
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
        return self._number("SELECT count(logprob) FROM results")

    def estimated_cached(self) -> int | None:
        """An estimate of the cached tokens if the server does not count them; None without a rate."""
        cold = self._value(
            "SELECT sum(prompt_tokens) / sum(prompt_s) FROM results"
            " WHERE cold AND only_request AND prompt_s > 0"
        )
        if cold is None or self._number("SELECT count(cached_tokens) FROM results"):
            return None
        found = self._value(
            "SELECT sum(max(0, prompt_tokens - prompt_s * ?)) FROM results"
            " WHERE only_request AND prompt_tokens IS NOT NULL AND prompt_s IS NOT NULL",
            (cold,),
        )
        return None if found is None else round(found)

    def percentile(
        self, column: Literal["latency_s", "prompt_tokens", "completion_tokens"], q: float
    ) -> float | None:
        """The `q` quantile of the column over the answered rows (nearest rank); None if unknown."""
        assert column in ("latency_s", "prompt_tokens", "completion_tokens")
        known = self._number(f"SELECT count({column}) FROM results")  # noqa: S608 - asserted
        if not known:
            return None
        rank = min(known - 1, max(0, -int(-q * known // 1) - 1))
        return float(
            self._value(
                f"SELECT {column} FROM results WHERE {column} IS NOT NULL ORDER BY {column} LIMIT 1 OFFSET ?",  # noqa: S608 - asserted
                (rank,),
            )
        )

    # --- pilot and audit ---------------------------------------------------------------------------------

    def trial_answers(self, kind: str) -> dict[int, str]:
        """Answers given for this comparison, by ordinal."""
        return dict(
            self._db.execute("SELECT ordinal, answer FROM trials WHERE kind=? ORDER BY ordinal", (kind,))
        )

    def sample_answers(self) -> dict[int, str]:
        """Answers given in isolation to the candidates for anchors, by ordinal."""
        return dict(self._db.execute("SELECT ordinal, answer FROM samples ORDER BY ordinal"))

    def compared(self, kind: str) -> list[Compared]:
        """Rows asked again in isolation for this comparison that were answered in a conversation."""
        found = {}
        for answers in ("results", "replaced"):  # a withdrawn answer is the answer of the conversation
            sql = (
                "SELECT t.ordinal, a.answer, t.answer, a.visible_rows, a.place"  # noqa: S608 - constants
                f" FROM trials t JOIN {answers} a USING (ordinal)"
                " WHERE t.kind=? AND a.visible_rows != '[]'"
            )
            for ordinal, given, isolated, visible_rows, place in self._db.execute(sql, (kind,)):
                depth = sum(last - first + 1 for first, last in json.loads(visible_rows))
                found[ordinal] = Compared(ordinal, given, isolated, depth, place)
        return [found[ordinal] for ordinal in sorted(found)]

    def conversation_rows(self) -> int:
        """Number of rows that were answered with other rows in the prompt."""
        return self._number("SELECT count(*) FROM results WHERE visible_rows != '[]'")

    def replaced(self) -> int:
        """Number of rows whose answer in a conversation was withdrawn, to be asked again in isolation."""
        return self._number("SELECT count(*) FROM replaced")

    def chosen_with(self, kinds: Collection[str]) -> set[int]:
        """Ordinals of rows that were used to choose the anchors or the form of the prompt.

        Args:
            kinds: Comparisons that were used for the choice, in addition to the candidates for anchors.
        """
        places = ",".join("?" * len(kinds))
        sql = f"SELECT ordinal FROM trials WHERE kind IN ({places}) UNION SELECT ordinal FROM samples"  # noqa: S608 - only question marks
        found = {ordinal for (ordinal,) in self._db.execute(sql, tuple(kinds))}
        for plan in self.plans():
            found.update(plan["anchors"])
        return found

    def audited_segments(self) -> AuditedSegments:
        """The audited segments, and the answers that were withdrawn because of their verdicts."""
        found = self._db.execute("SELECT verdict FROM audited_segments ORDER BY segment")
        verdicts = [json.loads(verdict) for (verdict,) in found]
        return AuditedSegments(
            audited=len(verdicts),
            verdicts=[verdict for verdict in verdicts if verdict is not None],
            replaced=self.replaced(),
            answered_again=self._number("SELECT count(*) FROM replaced JOIN results USING (ordinal)"),
        )

    def requests(
        self, kinds: Collection[str], *, samples: Literal["none", "all", "unused"] = "none"
    ) -> Requests:
        """Sums over the answers given for these comparisons.

        Args:
            kinds: The comparisons.
            samples: Which candidates for anchors to add. `unused` ones have a different answer in the
                results, or none.
        """
        places = ",".join("?" * len(kinds))
        source = f"SELECT {_COSTS} FROM trials WHERE kind IN ({places})"  # noqa: S608 - constants, question marks
        return self._requests(source + _SAMPLES[samples], tuple(kinds))

    def withdrawn(self) -> Requests:
        """Sums over withdrawn answers, whose rows were asked again in isolation."""
        return self._requests(f"SELECT {_COSTS} FROM replaced")  # noqa: S608 - constants

    def all_requests(self) -> Requests:
        """Sums over every answer of the job, used or not."""
        tables = (f"SELECT {_COSTS} FROM {table}" for table in ("results", "trials", "replaced"))  # noqa: S608 - likewise
        return self._requests(" UNION ALL ".join((*tables, _UNUSED)))

    def _requests(self, source: str, parameters: tuple[str, ...] = ()) -> Requests:
        tokens = ", ".join(
            f"CASE WHEN count({name}) = count(*) THEN sum({name}) END"
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
        )
        sql = f"SELECT count(*), coalesce(sum(latency_s), 0.0), coalesce(sum(attempts), 0), {tokens}"
        return Requests(*self._db.execute(f"{sql} FROM ({source})", parameters).fetchone())

    def _number(self, sql: str) -> int:
        return int(self._value(sql))

    def _value(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        return self._db.execute(sql, parameters).fetchone()[0]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The progress of a job in rows and answers."""

    rows: int = 0
    """Rows read. Reading restarts after a kill, so this number may decrease."""
    ended: int = 0
    """Rows with an answer or an error, and skipped rows."""
    answers: int = 0
    """The same plus further answers: samples, trials and replaced answers."""
    all_read: bool = False
    """Whether `rows` is the number of rows of the whole job."""

    def beyond(self, best: JobProgress) -> bool:
        """Whether more rows are read or more answers exist than in `best`."""
        return self.rows > best.rows or self.answers > best.answers

    def merged(self, other: JobProgress) -> JobProgress:
        """The larger value of each count."""
        return JobProgress(
            max(self.rows, other.rows),
            max(self.ended, other.ended),
            max(self.answers, other.answers),
            self.all_read or other.all_read,
        )

    def words(self) -> str:
        """Text for a sentence: `12 of 1,000 rows done`."""
        if self.all_read:
            return f"{self.ended:,} of {self.rows:,} rows done"
        return f"{self.rows:,} rows read" if self.rows else "no row read"


def job_progress(ledger: Path) -> JobProgress:
    """Count without changing the ledger. A missing or unreadable ledger has no progress."""
    try:
        with contextlib.closing(open_reader(ledger)) as db:
            (rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
            # Two queries, because each has its own index.
            (pending,) = db.execute(
                "SELECT (SELECT count(*) FROM rows WHERE state='pending' AND deferred IS NULL)"
                " + (SELECT count(*) FROM rows WHERE state='pending' AND deferred IS NOT NULL)"
            ).fetchone()
            (extra,) = db.execute(
                "SELECT (SELECT count(*) FROM samples) + (SELECT count(*) FROM trials)"
                " + (SELECT count(*) FROM replaced)"
            ).fetchone()
            all_read = db.execute("SELECT 1 FROM meta WHERE key='intake_done'").fetchone() is not None
    except (SpoolamaError, sqlite3.Error, OSError):
        return JobProgress()
    return JobProgress(rows, rows - pending, rows - pending + extra, all_read)
