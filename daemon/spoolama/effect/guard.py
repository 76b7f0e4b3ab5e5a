"""The guard: whether a segment's answers look like those of a conversation that has gone its own way.

Two steps. A suspicion costs nothing: the segment's answers are spread otherwise than answers given alone. A
file that is sorted raises it rightly, so it decides nothing. Only rows of that segment that are answered
again alone do: three of eight that differ, where alone does not differ from alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spoolama.effect.evidence import HARM_STAKES, paired_odds, refuted_above
from spoolama.effect.likeness import Likeness
from spoolama.job.labels import number_of

__all__ = ["CHECKS", "LEAST", "Settled", "rows_to_check", "settle", "suspicion"]

LEAST = 20
"""A segment with fewer answers in conversation is not looked at."""
CHECKS = 8
"""Rows answered again alone to settle a suspicion."""
_SURE = 20.0
"""Odds that settle it: wrong at most once in so many times, where rows differ just as often as they may."""
_ONE_ANSWER = 0.95
"""A segment in which one answer has this share is suspicious, whatever alone gave, ..."""
_ALONE_SO = 0.8
"""... unless that answer has this share of those given alone."""
_UNLIKELY = 0.01
"""Or its spread is that of alone with at most this probability."""
_LEAST_ALONE = 20


@dataclass(frozen=True, slots=True)
class Settled:
    """How a suspicion was settled."""

    segment: int
    """0-based."""
    suspicion: str
    """What raised it, in words."""
    rows: int
    """Rows that were answered again."""
    differ: float
    """Of these, how many differ; a row of numbers or texts counts by how far."""
    floor: float
    """Of these, how many differ from themselves when answered alone twice."""
    harm: bool
    """Whether the conversation has changed this segment's answers, beyond the margin and beyond chance."""

    def to_json(self) -> dict[str, Any]:
        """For the ledger and metrics.json."""
        return asdict(self)


def suspicion(labels: Sequence[str], alone: Sequence[str]) -> str | None:
    """Why the answers of a segment are suspicious, in words; None: they are not.

    Args:
        labels: The segment's answers.
        alone: Answers given alone to rows from all over the job; may be empty.
    """
    if len(labels) < LEAST:
        return None
    folded = [label.strip().casefold() for label in labels]
    given = [label.strip().casefold() for label in alone]
    label, most = Counter(folded).most_common(1)[0]
    share = most / len(folded)
    if share >= _ONE_ANSWER and (not given or given.count(label) / len(given) < _ALONE_SO):
        return f'{most} of {len(folded)} answers are "{label[:40]}"'
    if len(given) < _LEAST_ALONE:
        return None
    chance = _chance(folded, given)
    if chance is None or chance >= _UNLIKELY:
        return None
    return f"its answers are spread otherwise than those given alone (p = {chance:.1g})"


def _chance(segment: Sequence[str], alone: Sequence[str]) -> float | None:
    """Probability of two such samples from one population; None: texts, which all differ."""
    values = [number_of(label) for label in (*segment, *alone)]
    if len(set(values)) > 6 and all(value is not None for value in values):
        from scipy.stats import ks_2samp

        return float(ks_2samp(values[: len(segment)], values[len(segment) :]).pvalue)
    counts = Counter((*segment, *alone))
    if len(counts) < 2 or len(counts) > (len(segment) + len(alone)) / 3:
        return None
    from scipy.stats import chi2_contingency

    table = [[part.count(label) for label in counts] for part in (list(segment), list(alone))]
    return float(chi2_contingency(table).pvalue)


def rows_to_check(ordinals: Sequence[int], segment: int, seed: int, number: int = CHECKS) -> list[int]:
    """So many of these rows, seeded; all of them where there are fewer."""
    rng = random.Random(f"guard {seed} {segment}")  # noqa: S311 - a choice of rows, no secret
    return sorted(rng.sample(list(ordinals), min(number, len(ordinals))))


def settle(
    segment: int,
    why: str,
    given: Sequence[str],
    alone: Sequence[str],
    again: Sequence[str],
    like: Likeness,
    margin: float,
) -> Settled:
    """Whether the conversation did it.

    Args:
        segment: 0-based.
        why: The suspicion.
        given: What the rows were answered in conversation.
        alone: What they were answered alone, in the same order.
        again: What they were answered alone a second time; empty at temperature 0, where they would be the
            same.
        like: What being alike means.
        margin: Share of rows that may be answered differently than alone would.
    """
    off = [1 - like.of(a, b) for a, b in zip(given, alone, strict=True)]
    if again:
        noise = [1 - like.of(a, b) for a, b in zip(again, alone, strict=True)]
        pairs = [(o > n + margin, n > o + margin) for o, n in zip(off, noise, strict=True)]
        odds = paired_odds(sum(worse for worse, _ in pairs), sum(better for _, better in pairs))
    else:
        noise = []
        odds = refuted_above((1 - value for value in off), 1 - margin, HARM_STAKES)
    return Settled(segment, why, len(off), round(sum(off), 2), round(sum(noise), 2), odds >= _SURE)
