"""Fake answerers: what a conversation does to answers, made to order, for simulated jobs.

No server and no text: a row is what it would be answered alone, and a behaviour says what it is answered in
sight of others. At temperature 0 an answer is a function of the row and of what is in sight, as a model's is:
whether a row gives way is decided once by its `luck`. Only `Noisy` rolls dice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from spoolama.job.answer import number_of

LABELS = ("negative", "neutral", "positive")


class Scale(Protocol):
    """What answers there are."""

    def draw(self, rng: random.Random) -> str:
        """An answer, as often as rows alone give it."""

    def push(self, answer: str) -> str:
        """The answer that a pull in one direction makes of this one."""

    def middle(self, answers: Sequence[str]) -> str:
        """What most of these say."""

    def jitter(self, answer: str, rng: random.Random) -> str:
        """Another answer that the model might as well have given."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Three words."""

    shares: tuple[float, float, float] = (0.35, 0.25, 0.4)
    """How often each is given alone."""

    def draw(self, rng: random.Random) -> str:
        value = rng.random()
        return LABELS[0 if value < self.shares[0] else 1 if value < self.shares[0] + self.shares[1] else 2]

    def push(self, answer: str) -> str:
        """The next one up, and from the last one to the first: the spread stays, which is hard to see."""
        return LABELS[(LABELS.index(answer) + 1) % 3]

    def middle(self, answers: Sequence[str]) -> str:
        """The most frequent; of several the last in `LABELS`."""
        return max(LABELS, key=lambda label: (answers.count(label), LABELS.index(label)))

    def jitter(self, answer: str, rng: random.Random) -> str:
        """One of the other two, as often as they are given."""
        while (other := self.draw(rng)) == answer:
            pass
        return other


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers from 0 to 10 in steps of a half, most of them in the middle."""

    def draw(self, rng: random.Random) -> str:
        return _half(rng.gauss(5.0, 2.2))

    def push(self, answer: str) -> str:
        """Three points up, at the upper end three down."""
        value = float(answer)
        return _half(value + 3.0 if value <= 7 else value - 3.0)

    def middle(self, answers: Sequence[str]) -> str:
        """The median."""
        return sorted(answers, key=float)[len(answers) // 2]

    def jitter(self, answer: str, rng: random.Random) -> str:
        """Off by a point or so."""
        return _half(float(answer) + rng.gauss(0.0, 1.0))


def _half(value: float) -> str:
    return f"{min(10.0, max(0.0, round(value * 2) / 2)):g}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a simulated job."""

    alone: str
    """Its answer alone, at temperature 0."""
    gold: str
    """Its known answer."""
    luck: float
    """From 0 to 1: it gives way to a pull of at least this strength."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What stands before a row."""

    answers: Sequence[str]
    """Those of the anchors and of the earlier rows in sight, in their order."""
    depth: int
    """Rows answered since the conversation began, in sight or trimmed away."""


class Behaviour(Protocol):
    """How a model answers."""

    def alone(self, row: Row, rng: random.Random) -> str:
        """The answer with nothing in sight."""

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        """The answer in a conversation; the one given alone where nothing is in sight."""


class _Plain:
    """Alone it gives the row's answer."""

    __slots__ = ()

    def alone(self, row: Row, rng: random.Random) -> str:
        return row.alone


@dataclass(frozen=True, slots=True)
class Ignores(_Plain):
    """Answers as if it stood alone."""

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        return row.alone


@dataclass(frozen=True, slots=True)
class FollowsPrevious(_Plain):
    """Some rows repeat the answer just before them: the spread of the answers stays what it was."""

    strength: float
    """Share of the rows that do."""

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        return sight.answers[-1] if row.luck < self.strength and sight.answers else row.alone


@dataclass(frozen=True, slots=True)
class FollowsMajority(_Plain):
    """Some rows say what most rows in sight say; strong enough, every answer is soon the same."""

    strength: float
    """Share of the rows that do."""
    scale: Scale

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        return self.scale.middle(sight.answers) if row.luck < self.strength and sight.answers else row.alone


@dataclass(frozen=True, slots=True)
class Drifts(_Plain):
    """Answers are pushed off, the more of them the longer the conversation is."""

    rate: float
    """Share of the rows more for each row answered before."""
    scale: Scale

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        pushed = bool(sight.answers) and row.luck < self.rate * sight.depth
        return self.scale.push(row.alone) if pushed else row.alone


@dataclass(frozen=True, slots=True)
class Better(_Plain):
    """Learns from examples: in sight of three answers or more that differ, more rows are answered right."""

    gain: float
    """Share of the rows that are then answered as gold says, whatever they would be alone."""

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        taught = len(sight.answers) >= 3 and len(set(sight.answers)) >= 2
        return row.gold if taught and row.luck < self.gain else row.alone


@dataclass(frozen=True, slots=True)
class Noisy:
    """Temperature 1: whatever another behaviour says, every so often something else comes out."""

    inner: Behaviour
    chance: float
    """That it does, each time, alone or not."""
    scale: Scale

    def alone(self, row: Row, rng: random.Random) -> str:
        return self._rolled(self.inner.alone(row, rng), rng)

    def answer(self, row: Row, sight: Sight, rng: random.Random) -> str:
        return self._rolled(self.inner.answer(row, sight, rng), rng)

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
    """A file of so many rows.

    Args:
        scale: What answers there are.
        rows: How many rows.
        seed: Decides all of it.
        order: `sorted`: by the answer given alone, as a file is that somebody sorted by outcome.
        right: Share of the rows that are answered as gold says when alone.
    """
    rng = random.Random(f"file {seed}")
    answers = [scale.draw(rng) for _ in range(rows)]
    if order == "sorted":
        answers.sort(key=lambda answer: (number_of(answer) or 0.0, answer))
    return [
        Row(answer, answer if rng.random() < right else scale.jitter(answer, rng), rng.random())
        for answer in answers
    ]
