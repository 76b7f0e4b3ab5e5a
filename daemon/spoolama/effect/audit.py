"""The audit: rows answered in conversation are answered again alone at the end, and the two compared.

The agreement is told overall, by depth in the conversation and along the job. Rows are drawn at random from
all that had others in sight, so the interval of the overall share holds for all of them. It does not say
which of two answers is right. At a temperature above 0 alone differs from alone as well: rows are then
answered alone twice, and that floor is told beside it.

Two verdicts, and a gap between them where rows are too few for either:
- `changed`: by the best guess more rows are answered otherwise than the margin allows, and it is no chance.
- `clear`: by the best guess no more than the margin, and twice the margin can be ruled out.

Beside them `certain`: whether any change at all is beyond chance, be it within the margin or not.

Where alone repeats itself, "no chance" is that more than half the margin differ (Clopper and Pearson,
one-sided 95 %). Where all rows were answered alone twice, it is a permutation test: if a conversation does
nothing, its answer and the two given alone to a row are alike, and any of the three is as likely to be the
odd one out (normal approximation, from 20 rows on; one-sided 1 %). Where only some were, and some of these
differ, the two shares are compared (Agresti and Caffo 2000, Am. Stat. 54, 280-288: two answers of each kind
added).
For free texts nearly every answer is worded otherwise: the share then says how far, not how wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spoolama.effect.evidence import share_interval
from spoolama.effect.likeness import Likeness

__all__ = ["Audit", "Part", "audit", "rows_to_audit"]

_DRIFT = 0.01
"""Probability, one-sided and of both that are looked at, below which falling agreement is called drift."""
_LEAST = 20
"""With fewer rows nothing is said of drift, and nothing of change where alone differs from alone."""
_FEW = 8
"""With fewer rows nothing is said of change at all: one that differs would do."""
_SURE_Z, _CLEAR_Z = 2.326, 1.645
"""Standard errors: one-sided 1 % for an alarm (the guard may raise false ones too), 5 % for an all-clear."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the rows that were audited."""

    where: str
    rows: int
    agreement: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    rows: int
    agreement: float
    """Mean likeness of the answers in conversation and alone, of both alone where there are two."""
    low: float
    high: float
    """Its 95 % interval."""
    floor: float | None
    """Mean likeness of alone and alone again; None: not measured."""
    changed: bool
    """Whether the conversation changed the answers: by more than the margin, and it is no chance."""
    clear: bool
    """Whether the best guess is within the margin, and a change of twice the margin can be ruled out. If
    neither: the rows are too few to tell."""
    certain: bool
    """Whether the conversation changed some of the answers, however few: where alone agrees with alone, each
    that differs; else beyond chance."""
    lost: float
    """Best guess of the share that it changed: what alone agrees with alone, less what it does with alone."""
    drift: str | None
    """`depth` or `job`, where agreement surely falls along it; None: not shown."""
    compared: str
    """What likeness means for these answers."""
    by_depth: tuple[Part, ...]
    along_job: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        found = asdict(self)
        return {**found, "by_depth": list(found["by_depth"]), "along_job": list(found["along_job"])}


def rows_to_audit(ordinals: Sequence[int], number: int, seed: int) -> list[int]:
    """So many of these rows, seeded."""
    rng = random.Random(f"audit {seed}")  # noqa: S311 - a choice of rows, no secret
    return sorted(rng.sample(list(ordinals), min(number, len(ordinals))))


def audit(
    given: Mapping[int, str],
    alone: Mapping[int, str],
    again: Mapping[int, str],
    depth: Mapping[int, int],
    like: Likeness,
    *,
    margin: float,
) -> Audit | None:
    """What the comparison says; None without rows.

    Args:
        given: Labels in conversation by ordinal.
        alone: Likewise, answered alone at the end.
        again: Likewise, alone a second time; may be empty.
        depth: Rows that the conversation of each had before.
        like: What being alike means.
        margin: Share of rows that may be answered differently.
    """
    rows = [n for n in sorted(given) if n in alone]
    if not rows:
        return None
    both = {n: like.of(again[n], alone[n]) for n in rows if n in again}
    values = {n: _likeness(given[n], alone[n], again.get(n), like) for n in rows}
    floor = sum(both.values()) / len(both) if both else None
    whole = _part("all", list(values.values()))
    if floor is None or floor == 1.0:
        found = _against_itself(list(values.values()), margin)
    elif len(both) == len(rows):
        found = _odd_one_out(
            [(like.of(given[n], alone[n]), like.of(given[n], again[n]), both[n]) for n in rows], margin
        )
    else:
        found = _two_shares(list(values.values()), list(both.values()), margin)
    deep = sorted(rows, key=lambda n: (depth[n], n))
    return Audit(
        len(rows),
        whole.agreement,
        whole.low,
        whole.high,
        None if floor is None else round(floor, 4),
        found.changed,
        found.clear,
        found.certain,
        round(found.lost, 4),
        _drift(rows, values, depth),
        like.words,
        tuple(
            _part(f"after {depth[part[0]]} to {depth[part[-1]]} rows", [values[n] for n in part])
            for part in _thirds(deep)
        ),
        tuple(
            _part(f"rows {part[0] + 1} to {part[-1] + 1}", [values[n] for n in part])
            for part in _thirds(rows)
        ),
    )


def _likeness(given: str, alone: str, again: str | None, like: Likeness) -> float:
    once = like.of(given, alone)
    return once if again is None else (once + like.of(given, again)) / 2


@dataclass(frozen=True, slots=True)
class _Verdict:
    """As `Audit` has them."""

    changed: bool
    clear: bool
    certain: bool
    lost: float


def _against_itself(values: Sequence[float], margin: float) -> _Verdict:
    """Where alone agrees with alone."""
    low, high = share_interval(sum(values), len(values), level=0.9)
    mean = sum(values) / len(values)
    beyond = mean < 1 - margin
    changed = len(values) >= _FEW and beyond and high < 1 - margin / 2
    return _Verdict(changed, not beyond and low > 1 - 2 * margin, mean < 1, 1 - mean)


def _odd_one_out(likes: Sequence[tuple[float, float, float]], margin: float) -> _Verdict:
    """From rows answered thrice: (given and alone, given and again, alone and again)."""
    rows = len(likes)
    lost = [c - (a + b) / 2 for a, b, c in likes]
    mean = sum(lost) / rows
    if rows < _LEAST:
        return _Verdict(changed=False, clear=False, certain=False, lost=mean)
    # What it would be were the first, the second, the third answer the one of the conversation.
    chance = sum(
        ((c - (a + b) / 2) ** 2 + (b - (a + c) / 2) ** 2 + (a - (b + c) / 2) ** 2) / 3 for a, b, c in likes
    )
    certain = sum(lost) > _SURE_Z * math.sqrt(chance)
    error = math.sqrt(sum((value - mean) ** 2 for value in lost) / (rows - 1) / rows)
    clear = mean <= margin and mean + _CLEAR_Z * error < 2 * margin
    return _Verdict(mean > margin and certain, clear, certain, mean)


def _two_shares(values: Sequence[float], both: Sequence[float], margin: float) -> _Verdict:
    """Where only some rows were answered alone twice."""
    first, second = (sum(values) + 1) / (len(values) + 2), (sum(both) + 1) / (len(both) + 2)
    error = math.sqrt(first * (1 - first) / (len(values) + 2) + second * (1 - second) / (len(both) + 2))
    lost = sum(both) / len(both) - sum(values) / len(values)
    certain = second - first > _SURE_Z * error
    clear = lost <= margin and second - first + _CLEAR_Z * error < 2 * margin
    return _Verdict(lost > margin and certain, clear, certain, lost)


def _drift(rows: Sequence[int], values: Mapping[int, float], depth: Mapping[int, int]) -> str | None:
    """Spearman's correlation of likeness with depth, and with the place in the job."""
    shares = [values[n] for n in rows]
    if len(rows) < _LEAST or len(set(shares)) < 2:
        return None
    from scipy.stats import spearmanr

    for name, along in (("depth", [depth[n] for n in rows]), ("job", list(rows))):
        if len(set(along)) < 2:
            continue
        if float(spearmanr(along, shares, alternative="less").pvalue) < _DRIFT / 2:  # two are looked at
            return name
    return None


def _thirds(rows: Sequence[int]) -> list[Sequence[int]]:
    size = -(-len(rows) // 3)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _part(where: str, values: Sequence[float]) -> Part:
    low, high = share_interval(sum(values), len(values))
    return Part(where, len(values), round(sum(values) / len(values), 4), round(low, 4), round(high, 4))
