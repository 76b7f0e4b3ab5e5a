"""One measured run, and the values computed from its counts."""

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
    """The rows that it saw."""
    prompt: int
    cached: int
    completion: int
    own: int
    """Tokens of its own messages: the part of the prompt that no earlier prompt contains."""
    own_counted: bool
    """By two counts of the server (prompt minus last prompt and answer); False: by its tokenizer, as the
    tokens of the isolated row's prompt after the shared prefix.
    """
    answer: str
    latency_s: float
    isolated: bool = False
    """Isolated although the job is in conversation: a sample that became an anchor, or a repair."""

    @property
    def shareable(self) -> int:
        """The tokens that earlier prompts may have left in the cache."""
        return max(0, self.prompt - self.own)

    @property
    def shared(self) -> int:
        """How many of them were cached; chance matches with another row do not count."""
        return min(self.cached, self.shareable)


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over all replies of the server for any purpose; `evaluated` is its own third count."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    evaluated: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration, run once without a cache."""

    model: str
    slots: int
    name: str
    round: int
    asked: int
    """The number of rows."""
    seconds: float | None = None
    """From the first request to the last answer, without loading; None: it did not end."""
    wrong: str | None = None
    """Why it did not run or end."""
    rows: tuple[RowCount, ...] = ()
    """Those that were answered."""
    failed: tuple[tuple[str, int, str], ...] = ()
    """Class, number and a message of the rows that were not."""
    counts: Counts = field(default_factory=Counts)
    primed_s: float | None = None
    """Raw runs: seconds for priming the slots, not in `seconds`."""
    counted_s: float | None = None
    """First loop: seconds for counting tokens, not in `seconds`."""
    others: float | None = None
    """Share of all cores that other programs took meanwhile; None: unknown."""

    @property
    def rate(self) -> float | None:
        """Rows per second; a failed row counts as ended, after more than one attempt."""
        ended = len(self.rows) + sum(number for _, number, _ in self.failed)
        return ended / self.seconds if self.seconds else None

    @property
    def steady_share(self) -> float | None:
        """Share of the shareable tokens that came from the warm cache; None: no such rows."""
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
    """Rows after the first two of each segment; of isolated rows, after two for each slot."""
    if all(row.place == 0 for row in rows):
        return [row for row in rows if row.ordinal >= 2 * slots]
    return [row for row in rows if row.place >= 2 and not row.isolated]


def trims(rows: Sequence[RowCount]) -> list[RowCount]:
    """Rows that do not continue the last row's conversation, because rows were dropped before them.

    The first two of each segment are left out, because anchors may not be in the slot yet.
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
    """Return the label that an answer means; None if it is none of the three."""
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
