"""The sample of a pilot: its rules, its rows, what it has answered, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spoolama.effect.forms import AloneCosts

__all__ = ["BLOCK", "Decision", "Judged", "Rules", "Seen", "Step", "again_rows", "blocks_of"]

BLOCK = 20
"""Rows of a block: one conversation of the sample."""
_AGAIN_EVERY = 5
"""At temperature 0 one row in so many is answered alone twice."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is known before the first row is asked."""

    blocks: tuple[tuple[int, ...], ...]
    """Ordinals of each block that may be asked."""
    asks: int
    """Answers that the sample may take."""
    margin: float
    """Share of rows that may be answered differently than alone would."""
    noisy: bool
    """Whether alone is expected to differ from alone: the temperature is above 0."""
    gold: bool
    """Whether known answers are there."""
    enum: tuple[str, ...] | None = None
    """The labels that the schema lists, in its order."""
    listed: bool = False
    """Whether the schema lists what answers there are."""
    longest: int | None = None
    """Rows of a segment at most; forms for which that is too short are not tried. None: any number."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the sample has answered so far."""

    labels: Mapping[str, Mapping[int, str]]
    """By form (or `ALONE`, `AGAIN`), by ordinal."""
    gold: Mapping[int, str]
    """Known answers by ordinal."""
    done: frozenset[tuple[int, str]] = frozenset()
    """Blocks that were answered, with the form."""
    costs: AloneCosts | None = None
    """What rows cost that were asked alone; None where counts are missing. Always of the same rows, those of
    the first block: which forms are tried follows from it, and may not change while they are."""
    left: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Rows by form that could not be answered in the conversation at the first try: they were answered apart,
    or after a repair, or not at all. They count against the form, whatever answer they have."""
    no_anchors: bool = False
    """Whether the candidates gave no row that fits in front: forms with anchors are then not tried."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to ask next."""

    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    """In this order within a block."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A form that was on trial."""

    form: str
    words: str
    rows: int
    """Rows that were asked in both ways."""
    conversations: int
    """Blocks that they come from: rows of one lean on one another."""
    agreement: float
    """Mean likeness with the answers given alone, from 0 to 1."""
    low: float
    high: float
    """Its 95 % interval."""
    speed: float | None
    """Times as fast as alone, as reckoned; None: unknown."""
    proof: bool
    """Whether it was shown to do no harm."""
    harm: bool
    """Whether its answers are surely further from those given alone than the margin allows."""
    wins: int = 0
    losses: int = 0
    compared: int = 0
    how: str = ""
    """What was compared with gold, on rows that had no part in its selection."""
    better: bool = False
    """Whether it was shown to agree better with gold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How the pilot ended."""

    form: str
    """A form's name, or `ALONE`."""
    why: str
    """`better`, `no_harm`, `no_proof`, `none_faster`, `none_fits`, `costs_unknown` or `too_small`."""
    asked: int
    """Answers it took."""
    floor: float | None
    """How far alone agrees with alone; None: not measured."""
    floor_rows: int
    compared: str
    """What likeness means for these answers."""
    tried: tuple[Judged, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """For the ledger and metrics.json."""
        return {**asdict(self), "tried": [asdict(judged) for judged in self.tried], "notes": list(self.notes)}


def blocks_of(total: int, asks: int, seed: int, *, least: int = 1) -> tuple[tuple[int, ...], ...]:
    """Blocks of consecutive rows, one at a random place of each equal part of the file, in random order.

    Args:
        total: Rows of the job.
        asks: Answers that the sample may take.
        seed: Decides the places and the order.
        least: Blocks to take in any case.
    """
    rng = random.Random(f"pilot {seed}")  # noqa: S311 - a choice of rows, no secret
    number = max(least, min(total // BLOCK, asks // (2 * BLOCK)))
    size = min(BLOCK, total)
    found = []
    for part in range(number):
        first, last = total * part // number, total * (part + 1) // number - size
        start = rng.randint(first, last) if last > first else max(0, min(first, total - size))
        found.append(tuple(range(start, start + size)))
    rng.shuffle(found)
    return tuple(found)


def again_rows(block: Sequence[int], rules: Rules) -> list[int]:
    """The rows of a block that are answered alone twice."""
    return list(block) if rules.noisy else [n for i, n in enumerate(block) if i % _AGAIN_EVERY == 1]
