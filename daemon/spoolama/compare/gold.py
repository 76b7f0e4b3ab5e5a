"""Which of two answers to a row agrees better with its known answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spoolama.job.answer import number_of, order_of

__all__ = ["Pairs", "compare"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """How often one way of asking agreed better than the other."""

    wins: int
    losses: int
    compared: int
    """Rows, or pairs of rows, that could be compared."""
    how: str
    """What was compared, for people."""


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
