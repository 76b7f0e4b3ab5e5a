"""Choosing rows so that their answers are spread: for anchors, and for what an `important` trim keeps.

Earlier answers that are all alike pull later ones the same way; rows with different answers do it far less
(measured on small models). Labels are taken in turn, numbers at even distances over their ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Choice", "best", "spread"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A row that may be chosen."""

    place: int
    """Whatever the caller knows it by; later ones are preferred among equals."""
    label: str
    """Its answer, as a CSV cell would spell it."""
    score: float = 0.0
    """How important it is, where that is what counts."""


def spread(choices: Sequence[Choice], number: int) -> list[int]:
    """Places of so many choices whose labels are spread, ascending.

    Numbers are taken at even distances over their ranks; other labels in turn, the rarest first, the latest
    of each first. Where every label is different (free text) that is the latest ones.
    """
    if number >= len(choices):
        return sorted(c.place for c in choices)
    values = [_number(c.label) for c in choices]
    if len({c.label for c in choices}) > 2 and all(v is not None for v in values):
        ranked = sorted(choices, key=lambda c: (_number(c.label) or 0.0, c.place))
        step = (len(ranked) - 1) / max(1, number - 1)
        return sorted({ranked[round(i * step)].place for i in range(number)})
    groups: dict[str, list[Choice]] = {}
    for choice in sorted(choices, key=lambda c: c.place):
        groups.setdefault(choice.label, []).append(choice)
    order = sorted(groups.values(), key=lambda g: (len(g), -g[-1].place))
    chosen: list[int] = []
    while len(chosen) < number:
        for group in order:
            if group and len(chosen) < number:
                chosen.append(group.pop().place)
    return sorted(chosen)


def best(choices: Sequence[Choice], number: int) -> list[int]:
    """Places of the choices with the highest scores, ascending; among equals the latest."""
    ranked = sorted(choices, key=lambda c: (c.score, c.place), reverse=True)
    return sorted(c.place for c in ranked[:number])


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
