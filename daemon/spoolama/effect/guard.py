"""The guard: whether a segment's answers look like those of a conversation that has gone its own way.

Two steps. A suspicion costs nothing: the segment's answers are spread otherwise than answers given alone. A
file that is sorted raises it rightly, so it decides nothing. Only rows of that segment that are answered
again alone do: three of eight that differ, where alone does not differ from alone. Where it does, they are
answered alone twice, and the conversation's answer has to be the odd one out of three far more often than one
time in three.

A job in which suspicion is raised again and again, as in a sorted file, would settle one wrongly some day:
after each that proves unfounded the next one needs more.

What the guard is for is a conversation that has gone its own way. A harm of a few points in every segment
leaves their spread nearly as it is: that is what pilot and audit find.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from spoolama.effect.evidence import HARM_STAKES, odds_above, paired_odds, refuted_above
from spoolama.effect.gold import Pairs
from spoolama.effect.likeness import Likeness
from spoolama.job.labels import number_of

__all__ = [
    "CHECKS",
    "GOLD_CHECKS",
    "LEAST",
    "NO_REFERENCE",
    "Settled",
    "rows_to_check",
    "settle",
    "settle_by_gold",
    "suspicion",
]

LEAST = 15
"""A segment with fewer answers in conversation is not looked at."""
CHECKS = 8
"""Rows answered again alone to settle a suspicion."""
GOLD_CHECKS = 24
"""Likewise in a job whose form was chosen for agreeing better with gold: there it is to differ from alone."""
NO_REFERENCE = "there were too few answers given alone to compare with"
"""Why a segment is looked into that shows nothing odd by itself."""
_SURE = 20.0
"""Odds that settle it: wrong at most once in so many times, where rows differ just as often as they may.
Times one more than the suspicions that were settled before and proved unfounded."""
_ONE_OF_THREE = 1 / 3
_LEANS = 2.0
"""Where alone differs from alone, eight rows seldom settle anything; those of all suspicions of a job do, at
twice the odds, for each segment whose own odds are at least these."""
_ONE_ANSWER = 0.95
"""A segment in which one answer has this share is suspicious, whatever alone gave, ..."""
_ALONE_SO = 0.8
"""... unless that answer has this share of those given alone."""
_UNLIKELY = 0.01
"""Or its spread is that of alone with at most this probability."""
_FEW_NUMBERS = 6
"""Up to so many different numbers are counted like labels; more are compared by their whole spread."""
_LEAST_ALONE = 20
"""With fewer answers given alone there is nothing to hold a spread against; ..."""
_LONG = 100
"""... a segment with so many answers is then looked into in any case: what is asked to settle it is the
beginning of what the next ones are held against."""


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
    odd: int = 0
    """Of rows answered alone twice, in how many the conversation's answer is the odd one out of three."""
    told: int = 0
    """In how many any of the three is."""

    def to_json(self) -> dict[str, Any]:
        """For the ledger and metrics.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settled:
        """What `to_json` gave; keys of others are left alone."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


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
        return NO_REFERENCE if len(labels) >= _LONG else None
    chance = _chance(folded, given)
    if chance is None or chance >= _UNLIKELY:
        return None
    return f"its answers are spread otherwise than those given alone (p = {chance:.1g})"


def _chance(segment: Sequence[str], alone: Sequence[str]) -> float | None:
    """Probability of two such samples from one population; None: texts, which all differ."""
    counts = Counter((*segment, *alone))
    numbers = {label: number_of(label) for label in counts}
    if len(set(numbers.values())) > _FEW_NUMBERS and None not in numbers.values():
        from scipy.stats import ks_2samp

        return float(ks_2samp([numbers[n] for n in segment], [numbers[n] for n in alone]).pvalue)
    if len(counts) < 2 or len(counts) > (len(segment) + len(alone)) / 3:
        return None
    from scipy.stats import chi2_contingency

    table = [[part[label] for label in counts] for part in (Counter(segment), Counter(alone))]
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
    earlier: Sequence[Settled] = (),
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
        earlier: Suspicions of this job that were settled before.
    """
    off = [1 - like.of(a, b) for a, b in zip(given, alone, strict=True)]
    noise = [1 - like.of(a, b) for a, b in zip(again, alone, strict=False)] if again else []
    sure = _sure(earlier)
    if not again:
        harm = refuted_above((1 - value for value in off), 1 - margin, HARM_STAKES) >= sure
        return Settled(segment, why, len(off), round(sum(off), 2), 0.0, harm)
    odds_out = [_odd(*answers, like, margin) for answers in zip(given, alone, again, strict=True)]
    odd, told = odds_out.count(0), len(odds_out) - odds_out.count(None)
    own = odds_above(odd, told - odd, _ONE_OF_THREE)
    all_odd, all_told = odd + sum(s.odd for s in earlier), told + sum(s.told for s in earlier)
    together = odds_above(all_odd, all_told - all_odd, _ONE_OF_THREE)
    harm = own >= sure or (together >= 2 * _SURE and own >= _LEANS)
    return Settled(segment, why, len(off), round(sum(off), 2), round(sum(noise), 2), harm, odd, told)


def settle_by_gold(segment: int, why: str, pairs: Pairs, earlier: Sequence[Settled] = ()) -> Settled:
    """Whether the conversation did harm where it was chosen for agreeing better with gold than alone does.

    Args:
        segment: 0-based.
        why: The suspicion; raised by what this form answered in the pilot, not by what alone did.
        pairs: The segment's answers against those given alone again (`gold.compare`).
        earlier: Suspicions of this job that were settled before.
    """
    harm = paired_odds(pairs.losses, pairs.wins) >= _sure(earlier)
    return Settled(segment, why, pairs.compared, float(pairs.losses), float(pairs.wins), harm)


def _sure(earlier: Sequence[Settled]) -> float:
    return _SURE * (1 + sum(not settled.harm for settled in earlier))


def _odd(given: str, alone: str, again: str, like: Likeness, margin: float) -> int | None:
    """Which of three answers is further from both others than these are from each other; None: none is."""
    apart = (like.of(alone, again), like.of(given, again), like.of(given, alone))
    for one in range(3):
        if apart[one] > max(apart[one - 1], apart[one - 2]) + margin:
            return one
    return None
