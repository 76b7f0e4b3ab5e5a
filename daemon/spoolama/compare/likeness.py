"""How alike two answers to one row are, from 0 to 1."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Indel

from spoolama.job.answer import number_of

__all__ = ["TEXTS", "Kind", "Likeness", "likeness_of"]

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
