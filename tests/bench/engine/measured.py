"""One measured run, and what follows from its counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.engine.settings import LABELS, Review


@dataclass(frozen=True, slots=True)
class RowCount:
    """An answered row, with the server's counts."""

    ordinal: int
    segment: int
    place: int
    """0-based place in its segment."""
    visible_rows: tuple[int, ...]
    """The rows it was answered in sight of."""
    prompt: int
    cached: int
    completion: int
    own: int
    """Tokens of its own messages: all of the prompt that no earlier prompt could have held."""
    own_counted: bool
    """By two of the server's counts (prompt less last prompt and answer); False: by its tokenizer, as the
    tokens of the row's prompt alone behind the prefix that all rows share."""
    answer: str
    latency_s: float
    isolated: bool = False
    """Asked alone although the job is in conversation: a sample that became an anchor, or a repair."""

    @property
    def shareable(self) -> int:
        """What earlier prompts may have left in the cache."""
        return max(0, self.prompt - self.own)

    @property
    def shared(self) -> int:
        """How much of that was there. What a row has in common with another by chance is no part of it."""
        return min(self.cached, self.shareable)


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over all replies of the server, whatever they were for; `evaluated` is its own third count."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    evaluated: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration, run once from cold."""

    model: str
    slots: int
    name: str
    round: int
    asked: int
    """Rows there were."""
    seconds: float | None = None
    """From the first request to the last answer, loading left out; None: it did not end."""
    wrong: str | None = None
    """Why it did not run or end."""
    rows: tuple[RowCount, ...] = ()
    """Those that were answered."""
    failed: tuple[tuple[str, int, str], ...] = ()
    """Class, number and a message of the rows that were not."""
    counts: Counts = field(default_factory=Counts)
    primed_s: float | None = None
    """Raw runs: seconds that went into priming the slots, not in `seconds`."""
    counted_s: float | None = None
    """First try's loop: seconds that went into counting tokens for it, not in `seconds`."""
    others: float | None = None
    """Share of all cores that was taken by others meanwhile; None: unknown."""

    @property
    def rate(self) -> float | None:
        """Rows a second; a failed row has its end as well, after more than one try."""
        ended = len(self.rows) + sum(number for _, number, _ in self.failed)
        return ended / self.seconds if self.seconds else None

    @property
    def steady_share(self) -> float | None:
        """Share of the shareable tokens that came from the cache, once it is warm; None: no such rows."""
        warm = steady(self.rows, self.slots)
        shareable = sum(row.shareable for row in warm)
        return sum(row.shared for row in warm) / shareable if shareable else None

    @property
    def again_at_trims(self) -> float | None:
        """Share of the shareable tokens that was evaluated again after trims; None: there were none."""
        after = trims(self.rows)
        shareable = sum(row.shareable for row in after)
        return 1 - sum(row.shared for row in after) / shareable if shareable else None


def steady(rows: Sequence[RowCount], slots: int) -> list[RowCount]:
    """Rows after the first two of each segment; of rows alone, after as many as two for each slot."""
    if all(row.place == 0 for row in rows):
        return [row for row in rows if row.ordinal >= 2 * slots]
    return [row for row in rows if row.place >= 2 and not row.isolated]


def trims(rows: Sequence[RowCount]) -> list[RowCount]:
    """Rows whose conversation is not the last row's and that row: something was dropped before them.

    The first two of each segment are left out: before them anchors may not have been in the slot yet.
    """
    ordered = sorted((row for row in rows if not row.isolated), key=lambda row: (row.segment, row.place))
    return [
        row
        for last, row in itertools.pairwise(ordered)
        if row.segment == last.segment
        and row.place >= 2
        and set(row.visible_rows) != {*last.visible_rows, last.ordinal}
    ]


def label_of(answer: str) -> str | None:
    """The word an answer means; None if it is none of the three."""
    word = answer.strip().strip('"').lower()
    return word if word in LABELS else None


def labels(rows: Sequence[RowCount]) -> dict[str, int]:
    """How often each answer was given; `other` for what was cut."""
    counts = Counter(label_of(row.answer) or "other" for row in rows)
    return {label: counts[label] for label in (*LABELS, "other")}


def agreement(rows: Sequence[RowCount], reviews: Sequence[Review]) -> float | None:
    """Share of the rows whose answer has the sign of the human rating (neutral: only a rating of 0)."""
    signs = {"negative": -1, "neutral": 0, "positive": 1}
    ratings = {review.ordinal: review.rating for review in reviews}
    hits = [signs.get(label_of(row.answer) or "") == _sign(ratings[row.ordinal]) for row in rows]
    return sum(hits) / len(hits) if hits else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
