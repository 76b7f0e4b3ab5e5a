"""Scripted answerers for simulated jobs: defined effects of a conversation on answers.

They need no server and no text: a row is its isolated answer, and a behaviour gives its answer with visible
rows. At temperature 0 an answer depends only on the row and the visible rows, as a model's does: the row's
`luck` decides whether it changes. Only `Noisy` is random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from spoolama.job.answer import number_of

LABELS = ("negative", "neutral", "positive")


class Scale(Protocol):
    """The possible answers."""

    def draw(self, rng: random.Random) -> str:
        """Draw an answer with the distribution of isolated rows."""

    def push(self, answer: str) -> str:
        """Shift this answer in one direction."""

    def middle(self, answers: Sequence[str]) -> str:
        """Return the most typical of these answers."""

    def jitter(self, answer: str, rng: random.Random) -> str:
        """Return another plausible answer."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Three words."""

    shares: tuple[float, float, float] = (0.35, 0.25, 0.4)
    """The frequency of each in isolation."""

    def draw(self, rng: random.Random) -> str:
        value = rng.random()
        return LABELS[0 if value < self.shares[0] else 1 if value < self.shares[0] + self.shares[1] else 2]

    def push(self, answer: str) -> str:
        """Return the next label, cyclically, which keeps the distribution and is hard to detect."""
        return LABELS[(LABELS.index(answer) + 1) % 3]

    def middle(self, answers: Sequence[str]) -> str:
        """Return the most frequent; of several the last in `LABELS`."""
        return max(LABELS, key=lambda label: (answers.count(label), LABELS.index(label)))

    def jitter(self, answer: str, rng: random.Random) -> str:
        """Return one of the other two, by their frequency."""
        while (other := self.draw(rng)) == answer:
            pass
        return other


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers from 0 to 10 in steps of a half, most of them in the middle."""

    def draw(self, rng: random.Random) -> str:
        return _half(rng.gauss(5.0, 2.2))

    def push(self, answer: str) -> str:
        """Add three points, or subtract them at the upper end."""
        value = float(answer)
        return _half(value + 3.0 if value <= 7 else value - 3.0)

    def middle(self, answers: Sequence[str]) -> str:
        """Return the median."""
        return sorted(answers, key=float)[len(answers) // 2]

    def jitter(self, answer: str, rng: random.Random) -> str:
        """Change by about a point."""
        return _half(float(answer) + rng.gauss(0.0, 1.0))


def _half(value: float) -> str:
    return f"{min(10.0, max(0.0, round(value * 2) / 2)):g}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a simulated job."""

    alone: str
    """Its isolated answer at temperature 0."""
    gold: str
    """Its gold answer."""
    luck: float
    """From 0 to 1: an effect of at least this strength changes its answer."""


@dataclass(frozen=True, slots=True)
class VisibleRows:
    """What precedes a row in its prompt."""

    answers: Sequence[str]
    """Answers of the anchors and of the visible earlier rows, in order."""
    depth: int
    """Rows answered since the conversation began, visible or trimmed."""


class Behaviour(Protocol):
    """How a model answers."""

    def alone(self, row: Row, rng: random.Random) -> str:
        """Return the answer without visible rows."""

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        """Return the answer in a conversation; the isolated one without visible rows."""


class _Plain:
    """In isolation it gives the row's own answer."""

    __slots__ = ()

    def alone(self, row: Row, rng: random.Random) -> str:
        return row.alone


@dataclass(frozen=True, slots=True)
class Ignores(_Plain):
    """Always answers as in isolation."""

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        return row.alone


@dataclass(frozen=True, slots=True)
class FollowsPrevious(_Plain):
    """Some rows repeat the previous answer, which keeps the distribution of the answers."""

    strength: float
    """Share of the rows that do."""

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        return visible.answers[-1] if row.luck < self.strength and visible.answers else row.alone


@dataclass(frozen=True, slots=True)
class FollowsMajority(_Plain):
    """Some rows repeat the most frequent visible answer; at high strength all answers soon agree."""

    strength: float
    """Share of the rows that do."""
    scale: Scale

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        return (
            self.scale.middle(visible.answers) if row.luck < self.strength and visible.answers else row.alone
        )


@dataclass(frozen=True, slots=True)
class Drifts(_Plain):
    """The share of shifted answers grows with the length of the conversation."""

    rate: float
    """Growth of the share for each row answered before."""
    scale: Scale

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        pushed = bool(visible.answers) and row.luck < self.rate * visible.depth
        return self.scale.push(row.alone) if pushed else row.alone


@dataclass(frozen=True, slots=True)
class Better(_Plain):
    """With three or more different visible answers, more rows are answered right."""

    gain: float
    """Share of the rows that are then answered as gold, regardless of their isolated answer."""

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        taught = len(visible.answers) >= 3 and len(set(visible.answers)) >= 2
        return row.gold if taught and row.luck < self.gain else row.alone


@dataclass(frozen=True, slots=True)
class Noisy:
    """Temperature 1: another behaviour, with random changes."""

    inner: Behaviour
    chance: float
    """Probability of a change, in isolation or not."""
    scale: Scale

    def alone(self, row: Row, rng: random.Random) -> str:
        return self._rolled(self.inner.alone(row, rng), rng)

    def answer(self, row: Row, visible: VisibleRows, rng: random.Random) -> str:
        return self._rolled(self.inner.answer(row, visible, rng), rng)

    def _rolled(self, answer: str, rng: random.Random) -> str:
        return self.scale.jitter(answer, rng) if rng.random() < self.chance else answer


def file_of(
    scale: Scale,
    rows: int,
    seed: int,
    *,
    order: Literal["shuffled", "sorted"] = "shuffled",
    right: float = 0.6,
) -> list[Row]:
    """Return the rows of a simulated file.

    Args:
        scale: The possible answers.
        rows: The number of rows.
        seed: Decides all of it.
        order: `sorted`: by the isolated answer, like a file sorted by outcome.
        right: Share of the rows whose isolated answer is the gold one.
    """
    rng = random.Random(f"file {seed}")
    answers = [scale.draw(rng) for _ in range(rows)]
    if order == "sorted":
        answers.sort(key=lambda answer: (number_of(answer) or 0.0, answer))
    return [
        Row(answer, answer if rng.random() < right else scale.jitter(answer, rng), rng.random())
        for answer in answers
    ]
