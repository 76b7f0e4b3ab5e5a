"""Compares answers: how alike two answers to one row are, and which of two agrees better with gold."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Indel

from spoolama.job.answer import number_of, order_of
from spoolama.job.row import StoredRow

TEXTS = "words in common"
"""What is compared if the answers are texts, for people."""

Kind = Literal["labels", "numbers", "texts"]

_FEW = 0.5
"""Answers are labels if at most this share of them is distinct, ..."""
_SHORT = 60
"""... and none has more characters than this."""
_WORDS, _CHARACTERS = 2000, 40_000
"""The part of a text that is compared. The time grows with the square of the words: 3 ms for two texts of
2,000 words, 2 s for 50,000, and it blocks the service."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """How the answers of a job are compared."""

    kind: Kind
    numbers: tuple[float, ...] = ()
    """Isolated answers, ascending: the scale for distances."""

    def of(self, left: str, right: str) -> float:
        """Return the similarity of two answers, from 0 to 1 (the same).

        - Labels are equal or not, ignoring case.
        - Numbers: 1 minus the larger of two distances: that of the values as a share of the middle 90 % of
          isolated answers, and that of their ranks among these.
        - Texts: the share of words that both have in the same order (normalised insertions and deletions over
          the first 2,000 words).
        """
        if self.kind == "numbers":
            first, second = number_of(left), number_of(right)
            if first is not None and second is not None:
                return self._near(first, second)
        elif self.kind == "texts":
            return float(Indel.normalized_similarity(_words(left), _words(right)))
        return float(_folded(left) == _folded(right))

    def _near(self, first: float, second: float) -> float:
        if first == second:
            return 1.0
        last = len(self.numbers) - 1
        middle = self.numbers[last - last // 20] - self.numbers[last // 20]
        by_value = abs(first - second) / middle if middle > 0 else 1.0
        if math.isnan(by_value):  # both are too large for a float; the ranks still differ
            by_value = 0.0
        by_rank = abs(self._rank(first) - self._rank(second))
        return max(0.0, 1.0 - max(by_value, by_rank))

    def _rank(self, value: float) -> float:
        """Return the share of answers below this value; equal ones count by half."""
        below, upto = bisect.bisect_left(self.numbers, value), bisect.bisect_right(self.numbers, value)
        return (below + upto) / 2 / len(self.numbers)

    @property
    def words(self) -> str:
        """What is compared, for people."""
        return {"labels": "equal answers", "numbers": "nearness of the numbers", "texts": TEXTS}[self.kind]


def similarity_of(isolated: Sequence[str], *, listed: bool = False) -> Similarity:
    """Return how answers are compared, derived from the isolated answers.

    Args:
        isolated: Isolated answers, formatted as CSV cells.
        listed: Whether the schema lists the possible answers.
    """
    values = {answer: number_of(answer) for answer in set(isolated)}
    numbers = sorted(value for answer in isolated if (value := values[answer]) is not None)
    distinct = {_folded(answer) for answer in isolated}
    if isolated and len(numbers) == len(isolated) and (len(distinct) > 2 or not listed):
        return Similarity("numbers", tuple(numbers)) if len(distinct) > 2 else Similarity("labels")
    few = len(distinct) <= max(2, _FEW * len(isolated)) and all(len(a) <= _SHORT for a in isolated)
    return Similarity("labels" if listed or few else "texts")


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """How often answers in a form agree better with gold than isolated ones, and how often worse."""

    wins: int
    losses: int
    compared: int
    """Rows, or pairs of rows, that could be compared."""
    how: str
    """What was compared, for people."""


def gold_of(row: StoredRow, column: str | None) -> str:
    """Return the row's known answer; empty if it has none."""
    value = row.fields.get(column or "")
    return "" if value is None else str(value).strip()


def compare(
    form: Mapping[int, str],
    isolated: Mapping[int, str],
    gold: Mapping[int, str],
    *,
    enum: Sequence[str] | None = None,
) -> PairedCounts:
    """Count where a form's answers agree better with gold than isolated answers do, and where worse.

    - If gold is spelled like the answers, a row is won if only the form's answer is right.
    - If both are numbers, a row is won if the form's answer is nearer.
    - If answers are labels with an order (`job/answer.order_of`) and gold is numbers, a pair of neighbouring
      rows with different gold is won if the form's answers put it into the right order more clearly.

    Args:
        form: Labels by ordinal.
        isolated: Labels of isolated answers by ordinal.
        gold: Known answers by ordinal.
        enum: The labels that the schema lists, in its order.
    """
    rows = [n for n in sorted(form) if n in isolated and gold.get(n, "").strip()]
    left, right = [form[n] for n in rows], [isolated[n] for n in rows]
    known = [value for n in rows if (value := number_of(gold[n])) is not None]
    if not rows or len(known) < len(rows):
        hits = [_same(f, gold[n]) - _same(i, gold[n]) for n, f, i in zip(rows, left, right, strict=True)]
        return _count(hits, "rows answered right")
    numbers = [value for answer in (*left, *right) if (value := number_of(answer)) is not None]
    if len(numbers) == 2 * len(rows):
        off = [abs(value - g) for value, g in zip(numbers, known * 2, strict=True)]
        nearer = [i - f for f, i in zip(off[: len(rows)], off[len(rows) :], strict=True)]
        return _count(nearer, "rows whose number is nearer")
    answers = [_folded(answer) for answer in (*left, *right)]
    order = order_of(answers, None if enum is None else [_folded(label) for label in enum])
    if order is None:
        return PairedCounts(0, 0, 0, "labels without an order cannot be compared with numbers")
    ranks = [order[0][answer] for answer in answers]
    return _ordered(ranks[: len(rows)], ranks[len(rows) :], known)


def _count(gains: Sequence[float], how: str) -> PairedCounts:
    return PairedCounts(sum(g > 0 for g in gains), sum(g < 0 for g in gains), len(gains), how)


def _ordered(form: Sequence[float], isolated: Sequence[float], gold: Sequence[float]) -> PairedCounts:
    gains = []
    for one in range(0, len(gold) - 1, 2):
        two = one + 1
        if gold[one] != gold[two]:
            true = 1 if gold[one] < gold[two] else -1
            gains.append(true * (_sign(form[two] - form[one]) - _sign(isolated[two] - isolated[one])))
    return _count(gains, "pairs of rows put into the right order")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _same(answer: str, gold: str) -> int:
    return int(_folded(answer) == _folded(gold))


def _folded(text: str) -> str:
    return text.strip().casefold()


def _words(text: str) -> list[str]:
    return text[:_CHARACTERS].casefold().split()[:_WORDS]
