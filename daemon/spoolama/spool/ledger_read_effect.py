"""Reads the results of pilot and audit from a ledger: compared answers and verdicts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AuditedSegments", "Compared", "EffectReader", "Requests"]


@dataclass(frozen=True, slots=True)
class Compared:
    """A row that was answered in sight of others, and again in isolation."""

    ordinal: int
    given: str
    """Its answer in the conversation, taken back or not."""
    isolated: str
    depth: int
    """Rows in sight of which the conversation's answer was given."""
    place: int
    """Number of rows before it in its segment."""


@dataclass(frozen=True, slots=True)
class AuditedSegments:
    """What was audited."""

    looked_at: int
    """Segments whose audit is over."""
    verdicts: list[dict[str, Any]]
    """Those that were judged by themselves, in order."""
    replaced: int
    """Rows whose answer in a conversation was taken back, to be asked again in isolation."""
    answered_again: int
    """The rows of `replaced` that have an answer now."""


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


class EffectReader:
    """The part of `LedgerReader` for the effect of the conversation on the answers."""

    _db: sqlite3.Connection

    def trial_answers(self, kind: str) -> dict[int, str]:
        """Answers given for this comparison, by ordinal."""
        return dict(
            self._db.execute("SELECT ordinal, answer FROM trials WHERE kind=? ORDER BY ordinal", (kind,))
        )

    def sample_answers(self) -> dict[int, str]:
        """Answers given in isolation to the candidates for anchors, by ordinal."""
        return dict(self._db.execute("SELECT ordinal, answer FROM samples ORDER BY ordinal"))

    def compared(self, kind: str) -> list[Compared]:
        """Rows asked again in isolation for this comparison whose answer was given in sight of others."""
        found = {}
        for answers in ("results", "replaced"):  # what was taken back is what the conversation gave
            for ordinal, given, isolated, visible_rows, place in self._db.execute(
                "SELECT t.ordinal, a.answer, t.answer, a.visible_rows, a.place"  # noqa: S608 - constants
                f" FROM trials t JOIN {answers} a USING (ordinal)"
                " WHERE t.kind=? AND a.visible_rows != '[]'",
                (kind,),
            ):
                depth = sum(last - first + 1 for first, last in json.loads(visible_rows))
                found[ordinal] = Compared(ordinal, given, isolated, depth, place)
        return [found[ordinal] for ordinal in sorted(found)]

    def in_company(self) -> int:
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
        marks = ",".join("?" * len(kinds))
        found = {
            n
            for (n,) in self._db.execute(
                f"SELECT ordinal FROM trials WHERE kind IN ({marks}) UNION SELECT ordinal FROM samples",  # noqa: S608 - only question marks
                tuple(kinds),
            )
        }
        for (body,) in self._db.execute("SELECT body FROM plan"):
            found.update(json.loads(body)["anchors"])
        return found

    def audited_segments(self) -> AuditedSegments:
        """What was audited."""
        looked = [
            verdict
            for (verdict,) in self._db.execute("SELECT verdict FROM audited_segments ORDER BY segment")
        ]
        return AuditedSegments(
            looked_at=len(looked),
            verdicts=[json.loads(verdict) for verdict in looked if verdict != "null"],
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
        marks = ",".join("?" * len(kinds))
        source = f"SELECT {_COSTS} FROM trials WHERE kind IN ({marks})"  # noqa: S608 - constants, question marks
        return self._requests(source + _SAMPLES[samples], tuple(kinds))

    def taken_back(self) -> Requests:
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
        found: int = self._db.execute(sql).fetchone()[0]
        return found
