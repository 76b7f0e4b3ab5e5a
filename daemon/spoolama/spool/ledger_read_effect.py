"""Reading what a ledger has of pilot, guard and audit: answers given for comparison, and verdicts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

__all__ = ["Compared", "EffectReader", "Guarded", "Requests"]


@dataclass(frozen=True, slots=True)
class Compared:
    """A row that was answered in sight of others, and again alone."""

    ordinal: int
    given: str
    """Its answer in the results."""
    alone: str
    depth: int
    """Rows in sight of which the answer in the results was given."""
    place: int
    """Rows of its segment before it."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the guard looked at."""

    judged: int
    """Segments with enough answers in sight of others to be judged."""
    short: int
    """Segments with fewer."""
    verdicts: list[dict[str, Any]]
    """How suspicions were settled, by segment."""
    checked: int
    """Rows answered again alone to settle them."""
    replaced: int
    """Rows whose answer in a conversation was taken back, to be asked again alone."""
    answered_again: int
    """Those of them that have an answer now."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Answered requests, and how long they took."""

    answers: int
    seconds: float
    """From sending to the answer, added up."""


class EffectReader:
    """The part of `LedgerReader` that is about what the conversation does to the answers."""

    _db: sqlite3.Connection

    def trial_answers(self, kind: str) -> dict[int, str]:
        """Answers given for this comparison, by ordinal."""
        return dict(
            self._db.execute("SELECT ordinal, answer FROM trials WHERE kind=? ORDER BY ordinal", (kind,))
        )

    def sample_answers(self) -> dict[int, str]:
        """Answers given alone beforehand, of which anchors are chosen, by ordinal."""
        return dict(self._db.execute("SELECT ordinal, answer FROM samples ORDER BY ordinal"))

    def compared(self, kind: str) -> list[Compared]:
        """Rows answered again alone for this comparison whose answer was given in sight of others."""
        return [
            Compared(ordinal, given, alone, sum(last - first + 1 for first, last in json.loads(sight)), place)
            for ordinal, given, alone, sight, place in self._db.execute(
                "SELECT t.ordinal, r.answer, t.answer, r.sight, r.place FROM trials t"
                " JOIN results r USING (ordinal) WHERE t.kind=? AND r.sight != '[]' ORDER BY t.ordinal",
                (kind,),
            )
        ]

    def in_company(self) -> int:
        """Rows whose answer was given in sight of others."""
        return self._number("SELECT count(*) FROM results WHERE sight != '[]'")

    def replaced(self) -> int:
        """Rows whose answer in a conversation was taken back, to be asked again alone."""
        return self._number("SELECT count(*) FROM replaced")

    def chosen_with(self, kinds: Collection[str]) -> set[int]:
        """Ordinals of rows by which was chosen what stands before the others.

        Args:
            kinds: Comparisons that had a part in the choice, besides the candidates for anchors.
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

    def guarded(self, least: int) -> Guarded:
        """What the guard looked at.

        Args:
            least: Answers in sight of others that a segment needs to be judged.
        """
        looked = self._db.execute("SELECT segment, verdict FROM guarded ORDER BY segment").fetchall()
        company = dict(
            self._db.execute(
                "SELECT segment, count(*) FROM results WHERE sight != '[]' AND NOT aside GROUP BY segment"
            )
        )
        verdicts = [json.loads(verdict) for _, verdict in looked if verdict != "null"]
        judged = sum(verdict != "null" or company.get(segment, 0) >= least for segment, verdict in looked)
        return Guarded(
            judged=judged,
            short=len(looked) - judged,
            verdicts=verdicts,
            checked=self._number("SELECT count(*) FROM trials WHERE kind='guard'"),
            replaced=self.replaced(),
            answered_again=self._number("SELECT count(*) FROM replaced JOIN results USING (ordinal)"),
        )

    def requests(self, kinds: Collection[str], *, samples: bool = False) -> Requests:
        """Answers given for these comparisons, with the candidates for anchors where `samples` says so."""
        marks = ",".join("?" * len(kinds))
        sql = f"SELECT count(*), coalesce(sum(latency_s), 0.0) FROM trials WHERE kind IN ({marks})"  # noqa: S608 - likewise
        answers, seconds = self._db.execute(sql, tuple(kinds)).fetchone()
        if samples:
            more, longer = self._db.execute(
                "SELECT count(*), coalesce(sum(latency_s), 0.0) FROM samples"
            ).fetchone()
            answers, seconds = answers + more, seconds + longer
        return Requests(answers, seconds)

    def all_requests(self) -> Requests:
        """Every answer that the job was given, whatever became of it."""
        # An anchor's answer stands in the results as it was given beforehand: it is counted once.
        answers, seconds = self._db.execute(
            "SELECT count(*), coalesce(sum(latency_s), 0.0) FROM ("
            " SELECT latency_s FROM results UNION ALL SELECT latency_s FROM trials"
            " UNION ALL SELECT latency_s FROM replaced UNION ALL SELECT s.latency_s FROM samples s"
            " LEFT JOIN results r USING (ordinal) WHERE r.at IS NOT s.at OR r.latency_s != s.latency_s)"
        ).fetchone()
        return Requests(answers, seconds)

    def _number(self, sql: str) -> int:
        found: int = self._db.execute(sql).fetchone()[0]
        return found
