"""Decides the audit: which rows are asked again in isolation, and whether the answers prove harm.

Two draws, kept apart:

- A random sample, spread evenly over the job (`AuditBudget.random`). Only these rows count for the test of
  the whole job and for the reported shares. It is evaluated after every segment, and once more at the end of
  the job by an exact test, which detects smaller harm.
- A few rows of segments that look odd: nearly all rows have one answer, and isolated rows do not
  (`AuditBudget.odd`). They decide about that segment alone.

At most one job in twenty has a false alarm: one in fifty by each evaluation of the sample, one in a hundred
by segments (`evidence.py` says for which rows that holds).

Harm is proved when the best estimate of changed answers exceeds the margin, and it is refuted that they are
at most half the margin:

- Temperature 0: isolated answers repeat, so a row with a different answer was changed. Such a row is asked in
  isolation once more. If isolated answers turn out not to repeat, the conversation's answer must also be the
  odd one out of three more often than an isolated one is.
- Above 0: every row is asked in isolation twice. If the conversation changes nothing, any of the three
  answers is equally likely to be the odd one out; the conversation's must be so more often than one time in
  three.
- If the pilot chose a form because it agrees better with gold, answers are meant to differ: harm means that
  the isolated ones agree better with gold.
- Free texts with the same meaning differ in their words, so the sample shows how much they differ, but no
  harm. Only segments that look odd are judged.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from spoolama.compare.evidence import binomial_at_most, odds_above, refuted_above
from spoolama.compare.similarity import Similarity, compare

SURE = 50.0
"""Odds that prove harm while the job runs: a false alarm in one job in fifty."""
_SURE_AT_END = 0.02
"""Probability that proves it at the end, by an exact test."""
_SURE_OF_SEGMENT = 100.0
CHECKS = 8
"""Audited rows that decide about a segment that looks odd."""
_SHARE, _LEAST, _MOST = 0.02, 20, 400
"""Share of the rows that `audit: auto` asks again, at least 20 and at most 400 rows, ..."""
_NOISY_SHARE = 0.04
"""... and the share above temperature 0, where a row proves less."""
_ODD_FROM, _ODD_SHARE = 80, 10
"""From 80 audited rows on, one in ten is reserved for segments that look odd."""
_LEAST_ODD = 15
"""A segment with fewer answers in a conversation does not look odd: few rows may well have one answer."""
_ONE_ANSWER, _ISOLATED_SO = 0.95, 0.8
"""A segment looks odd if one answer has the first share of its answers, but not the second of isolated
ones."""
_FOUND = 0.95
"""Probability with which the smallest harm is detected."""


@dataclass(frozen=True, slots=True)
class AuditBudget:
    """How many rows may be audited."""

    random: int
    """The random sample."""
    odd: int
    """Maximum number of other rows, of segments that look odd."""

    @property
    def rows(self) -> int:
        """Both together."""
        return self.random + self.odd


def budget_of(asked: int | None, total: int, *, noisy: bool) -> AuditBudget:
    """Return how many rows the audit of a job may ask.

    Args:
        asked: Rows that the sidecar sets; None: `auto`.
        total: Rows of the job.
        noisy: Whether the temperature is above 0.
    """
    rows = asked
    if rows is None:
        rows = max(_LEAST, min(_MOST, round(total * (_NOISY_SHARE if noisy else _SHARE))))
    rows = min(rows, total)
    odd = 0 if rows < _ODD_FROM else max(CHECKS, rows // _ODD_SHARE)
    return AuditBudget(rows - odd, odd)


def needed_in_segment(first: int, last: int, total: int, sample: int) -> int:
    """Return the rows of the random sample in a segment; the sample is spread evenly over the job.

    Args:
        first: Ordinal of its first row.
        last: Ordinal of its last row.
        total: Rows of the job.
        sample: Rows of the whole sample.
    """
    return (last + 1) * sample // total - first * sample // total


def rows_to_audit(
    ordinals: Sequence[int], done: Collection[int], number: int, segment: int, seed: int
) -> list[int]:
    """Return `number` random ones of these rows; rows that were audited before come first.

    A restart in the middle of a segment chooses the same rows.
    """
    rng = random.Random(f"audit {seed} {segment}")  # noqa: S311 - not security-relevant
    order = list(ordinals)
    rng.shuffle(order)
    order.sort(key=lambda n: n not in done)
    return sorted(order[:number])


@dataclass(frozen=True, slots=True)
class AuditedRow:
    """A row that was answered in a conversation, and again in isolation."""

    ordinal: int
    given: str
    """The label of the answer in the conversation."""
    isolated: str
    """The label in isolation."""
    again: str | None = None
    """The label in isolation a second time; None: not asked."""
    gold: str = ""
    """The known answer; empty: not known."""

    def changed(self, like: Similarity) -> float:
        """Return how much the conversation changed the answer; negative if isolated answers differ more."""
        once = like.of(self.given, self.isolated)
        if self.again is None:
            return 1 - once
        return like.of(self.isolated, self.again) - (once + like.of(self.given, self.again)) / 2

    def odd_one(self, like: Similarity, margin: float) -> int | None:
        """Return which of three answers is further from both others than these are from each other.

        0: the conversation's; None: none, or there are only two answers.
        """
        if self.again is None:
            return None
        similarity = (
            like.of(self.isolated, self.again),
            like.of(self.given, self.again),
            like.of(self.given, self.isolated),
        )
        for one in range(3):
            if similarity[one] > max(similarity[one - 1], similarity[one - 2]) + margin:
                return one
        return None

    def repeats(self, like: Similarity) -> bool:
        """Whether both isolated answers are the same; true if there is only one."""
        return self.again is None or like.of(self.isolated, self.again) == 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of audited rows."""

    rows: int
    changed: float
    """Best estimate of the share of answers that the conversation changed, or by gold: made worse."""
    odds: float
    """Odds against "it changed at most half the margin"; valid at any time."""
    chance: float
    """Probability of such rows if it changed half the margin; valid only once, at the end."""
    margin: float

    def shows(self, sure: float = SURE) -> bool:
        """Whether harm is proved at these odds."""
        return self.changed > self.margin and self.odds >= sure

    def shows_at_end(self) -> bool:
        """Whether harm is proved if no more rows follow."""
        return self.shows() or (self.changed > self.margin and self.chance <= _SURE_AT_END)


def weigh(rows: Sequence[AuditedRow], like: Similarity, margin: float, *, noisy: bool) -> Evidence:
    """Weigh the evidence of these rows.

    Args:
        rows: In any order.
        like: How answers are compared.
        margin: Share of rows that may be answered differently.
        noisy: Whether the temperature is above 0.
    """
    if noisy:
        rows = [row for row in rows if row.again is not None]
    changed = [row.changed(like) for row in rows]
    odd = Counter(row.odd_one(like, margin) for row in rows)
    mean = sum(changed) / len(rows) if rows else 0.0
    if noisy:
        return Evidence(len(rows), mean, *_odd_above(odd[0], odd[1] + odd[2], 1 / 3), margin)
    kept = [1 - min(1.0, max(0.0, value)) for value in changed]
    odds = refuted_above(kept, 1 - margin / 2)
    chance = _at_least(math.floor(len(kept) - sum(kept) + 1e-9), len(kept), margin / 2)
    if not all(row.repeats(like) for row in rows):
        other_odds, other_chance = _odd_above(odd[0], odd[1], 1 / 2)
        odds, chance = min(odds, other_odds), max(chance, other_chance)
    return Evidence(len(rows), mean, odds, chance, margin)


def _odd_above(hits: int, misses: int, chance: float) -> tuple[float, float]:
    return odds_above(hits, misses, chance), _at_least(hits, hits + misses, chance)


def _at_least(hits: int, rows: int, chance: float) -> float:
    return 1 - binomial_at_most(hits - 1, rows, chance)


def weigh_by_gold(rows: Sequence[AuditedRow], enum: Sequence[str] | None) -> Evidence:
    """Weigh by known answers: whether the isolated answers agree better with them.

    Args:
        rows: In ascending order; those without a known answer do not count.
        enum: The labels that the schema lists, in its order.
    """
    pairs = compare(
        {row.ordinal: row.given for row in rows},
        {row.ordinal: row.isolated for row in rows},
        {row.ordinal: row.gold for row in rows},
        enum=enum,
    )
    worse = (pairs.losses - pairs.wins) / pairs.compared if pairs.compared else 0.0
    return Evidence(pairs.compared, worse, *_odd_above(pairs.losses, pairs.wins, 1 / 2), 0.0)


def looks_odd(labels: Sequence[str], own: Sequence[str], others: Sequence[str]) -> str | None:
    """Return what is odd about a segment's answers, as text; None: nothing.

    Args:
        labels: Its answers in the conversation.
        own: Isolated answers to rows of this segment.
        others: Isolated answers of other segments, used if `own` is empty.
    """
    if len(labels) < _LEAST_ODD:
        return None
    label, most = Counter(text.strip().casefold() for text in labels).most_common(1)[0]
    isolated = [text.strip().casefold() for text in own or others]
    if most < _ONE_ANSWER * len(labels):
        return None
    if isolated and isolated.count(label) >= (1.0 if own else _ISOLATED_SO) * len(isolated):
        return None
    return f'{most} of {len(labels)} answers are "{label[:40]}"'


def sure_of_segment(unfounded: int) -> float:
    """Return the odds that prove harm in a segment as long as the job shows none.

    There may be many segments that look odd: after each unharmed one the next needs higher odds, so that at
    most one job in a hundred has a false alarm (the sum of 1 / (k + 1) (k + 2) is 1).
    """
    return _SURE_OF_SEGMENT * (unfounded + 1) * (unfounded + 2)


@lru_cache(maxsize=256)
def smallest_harm(rows: int, margin: float, *, noisy: bool, floor: float = 1.0) -> float | None:
    """Return the smallest share of changed answers that `rows` audited rows prove with 95 % probability.

    It applies to labels. None: not even a change of all answers would be proved.

    Args:
        rows: Audited rows.
        margin: Share of rows that may be answered differently.
        noisy: Whether the temperature is above 0.
        floor: Share of rows in which two isolated answers are equal.
    """
    for hundredth in range(math.floor(margin * 100) + 1, 101):
        share = hundredth / 100
        chance, asked = share, rows
        if noisy:
            odd = (1 - floor) / 2  # share of rows in which one isolated answer is the odd one out
            asked = round(rows * min(1.0, share + 3 * odd))
            chance = min(1.0, (share + odd) / (share + 3 * odd))
        least = _least_changed(asked, margin, noisy=noisy)
        if least is None:
            continue
        if chance >= 1 or _at_least(least, asked, chance) >= _FOUND:
            return share
    return None


@lru_cache(maxsize=1024)
def _least_changed(rows: int, margin: float, *, noisy: bool) -> int | None:
    """Return how many rows must be changed (or the odd one out) to prove harm at the end of the job."""
    least = 1 if noisy else math.floor(rows * margin) + 1
    for changed in range(least, rows + 1):
        if _at_least(changed, rows, 1 / 3 if noisy else margin / 2) <= _SURE_AT_END:
            return changed
    return None
