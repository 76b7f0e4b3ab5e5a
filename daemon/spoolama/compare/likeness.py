"""How alike two answers to one row are, from 0 to 1."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Indel

from spoolama.job.labels import number_of, order_of
from spoolama.job.record import StoredRow

__all__ = ["TEXTS", "Kind", "Likeness", "Pairs", "compare", "gold_of", "likeness_of"]

TEXTS = "words in common"
"""What is compared of texts, for people."""

Kind = Literal["labels", "numbers", "texts"]

_FEW = 0.5
"""Answers count as labels if at most this share of them are different ones, ..."""
_SHORT = 60
"""... and none is longer than this, in characters."""
_WORDS, _CHARACTERS = 2000, 40_000
"""How much of a text is compared. The time grows with the square: 3 ms for two texts of 2,000 words, 2 s for
50,000, in which the service would do nothing else."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What being alike means for the answers of a job."""

    kind: Kind
    numbers: tuple[float, ...] = ()
    """Answers given alone, ascending: what is near and what is far."""

    def of(self, left: str, right: str) -> float:
        """1: the same. Labels are equal or not, whatever their case.

        Numbers: one less the larger of two distances, that of the values as a share of the middle nine tenths
        of the answers given alone, and that of their ranks among these. Texts: the share of words that both
        have in one order (normalised insertions and deletions over the first 2,000 words).
        """
        if self.kind == "numbers":
            first, second = number_of(left), number_of(right)
            if first is not None and second is not None:
                return self._near(first, second)
        elif self.kind == "texts":
            return float(Indel.normalized_similarity(_words(left), _words(right)))
        return float(left.strip().casefold() == right.strip().casefold())

    def _near(self, first: float, second: float) -> float:
        if first == second:
            return 1.0
        last = len(self.numbers) - 1
        middle = self.numbers[last - last // 20] - self.numbers[last // 20]
        by_value = abs(first - second) / middle if middle > 0 else 1.0
        if math.isnan(by_value):  # both too large for a float: ranks tell all the same
            by_value = 0.0
        by_rank = abs(self._rank(first) - self._rank(second))
        return max(0.0, 1.0 - max(by_value, by_rank))

    def _rank(self, value: float) -> float:
        """Share of the answers below it, those equal to it by half."""
        below, upto = bisect.bisect_left(self.numbers, value), bisect.bisect_right(self.numbers, value)
        return (below + upto) / 2 / len(self.numbers)

    @property
    def words(self) -> str:
        """What is compared, for people."""
        return {
            "labels": "equal answers",
            "numbers": "nearness of the numbers",
            "texts": TEXTS,
        }[self.kind]


def _words(text: str) -> list[str]:
    return text[:_CHARACTERS].casefold().split()[:_WORDS]


def likeness_of(alone: Sequence[str], *, listed: bool = False) -> Likeness:
    """What being alike means, by the answers given alone.

    Args:
        alone: These answers, as CSV cells would spell them.
        listed: Whether the schema lists the answers that there are.
    """
    values = {answer: number_of(answer) for answer in set(alone)}
    numbers = sorted(value for answer in alone if (value := values[answer]) is not None)
    different = {answer.strip().casefold() for answer in alone}
    if alone and len(numbers) == len(alone) and (len(different) > 2 or not listed):
        if len(different) > 2:
            return Likeness("numbers", tuple(numbers))
        return Likeness("labels")
    few = len(different) <= max(2, _FEW * len(alone)) and all(len(answer) <= _SHORT for answer in alone)
    return Likeness("labels" if listed or few else "texts")


@dataclass(frozen=True, slots=True)
class Pairs:
    """How often one way of asking agreed better than the other."""

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
    alone: Mapping[int, str],
    gold: Mapping[int, str],
    *,
    enum: Sequence[str] | None = None,
) -> Pairs:
    """Where a form's answers agree better with the known ones than those given alone, and where worse.

    - Gold is spelled as the answers are: a row is won that only the form answers right.
    - Both are numbers: a row is won where the form's is nearer.
    - Answers are labels with an order (`job/labels.order_of`) and gold is numbers: of two neighbouring rows
      with different gold, a pair is won that the form puts into the right order more clearly.

    Args:
        form: Labels by ordinal.
        alone: Likewise, given alone.
        gold: Known answers by ordinal.
        enum: The labels that the schema lists, in its order.
    """
    rows = [n for n in sorted(form) if n in alone and gold.get(n, "").strip()]
    golds = [number_of(gold[n]) for n in rows]
    left, right = [form[n] for n in rows], [alone[n] for n in rows]
    if rows and all(value is not None for value in golds):
        known = [value for value in golds if value is not None]
        numbers = [number_of(answer) for answer in (*left, *right)]
        if all(value is not None for value in numbers):
            values = [value for value in numbers if value is not None]
            off = [abs(value - g) for value, g in zip(values, known * 2, strict=True)]
            return _count(
                [a - f for f, a in zip(off[: len(rows)], off[len(rows) :], strict=True)],
                "rows whose number is nearer",
            )
        order = order_of([answer.strip().casefold() for answer in (*left, *right)], _folded(enum))
        if order is None:
            return Pairs(0, 0, 0, "labels without an order cannot be compared with numbers")
        ranks = [order[0][answer.strip().casefold()] for answer in (*left, *right)]
        return _ordered(ranks[: len(rows)], ranks[len(rows) :], known)
    hits = [(_same(f, gold[n]) - _same(a, gold[n])) for n, f, a in zip(rows, left, right, strict=True)]
    return _count(hits, "rows answered right")


def _count(gains: Sequence[float], how: str) -> Pairs:
    return Pairs(sum(g > 0 for g in gains), sum(g < 0 for g in gains), len(gains), how)


def _ordered(form: Sequence[float], alone: Sequence[float], gold: Sequence[float]) -> Pairs:
    gains = []
    for one in range(0, len(gold) - 1, 2):
        two = one + 1
        if gold[one] != gold[two]:
            true = 1 if gold[one] < gold[two] else -1
            gains.append(true * (_sign(form[two] - form[one]) - _sign(alone[two] - alone[one])))
    return _count(gains, "pairs of rows put into the right order")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _same(answer: str, gold: str) -> int:
    return int(answer.strip().casefold() == gold.strip().casefold())


def _folded(enum: Sequence[str] | None) -> list[str] | None:
    return None if enum is None else [label.strip().casefold() for label in enum]
