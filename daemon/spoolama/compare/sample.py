"""The sample of a pilot: its rules, its rows, what it has answered, and what was decided."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BLOCK", "Decision", "PilotAnswers", "PilotRules", "Step", "TriedForm", "blocks_of"]

BLOCK = 20
"""Rows of a block: one conversation of the sample."""


@dataclass(frozen=True, slots=True)
class PilotRules:
    """What is known before the first row is asked."""

    blocks: tuple[tuple[int, ...], ...]
    """Ordinals of each block that may be asked."""
    asks: int
    """Answers that the sample may take."""
    enum: tuple[str, ...] | None = None
    """The labels that the schema lists, in its order."""
    longest: int | None = None
    """Rows of a segment at most; forms for which that is too short are not tried. None: any number."""


@dataclass(frozen=True, slots=True)
class PilotAnswers:
    """What the sample has answered so far."""

    labels: Mapping[str, Mapping[int, str]]
    """By form (or `ISOLATED`), by ordinal."""
    gold: Mapping[int, str]
    """Known answers by ordinal."""
    done: frozenset[tuple[int, str]] = frozenset()
    """Blocks that were answered, with the form."""
    left: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Rows by form that could not be answered in the conversation at the first attempt: they were answered
    outside it, or after a repair, or not at all. They count against the form, whatever answer they have."""
    no_anchors: bool = False
    """Whether the candidates gave no row that fits in front: forms with anchors are then not tried."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to ask next."""

    block: int
    kinds: tuple[str, ...]
    """In this order."""


@dataclass(frozen=True, slots=True)
class TriedForm:
    """A form that was tried, compared with isolated answers by gold."""

    form: str
    words: str
    rows: int
    """Rows that were asked in both ways."""
    conversations: int
    """Blocks that they come from: rows of one conversation depend on one another."""
    wins: int
    losses: int
    compared: int
    how: str
    """What was compared with gold, on rows that had no part in the form's selection."""
    better: bool
    """Whether it was proved to agree better with gold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How the pilot ended."""

    form: str
    """A form's name, or `ISOLATED`."""
    why: str
    """`better`, `no_proof`, `none_fits` or `too_small`; ledgers of earlier versions have others as well."""
    asked: int
    """Answers it took."""
    tried: tuple[TriedForm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the ledger and metrics.json."""
        return {**asdict(self), "tried": [asdict(tried) for tried in self.tried]}


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
