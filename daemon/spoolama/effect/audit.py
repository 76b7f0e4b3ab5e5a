"""The audit: rows answered in conversation are answered again alone at the end, and the two compared.

The agreement is told overall, by depth in the conversation and along the job. Rows are drawn at random from
all that had others in sight, so the interval of the overall share holds for all of them. It does not say
which of two answers is right. At a temperature above 0 alone differs from alone as well: rows are then
answered alone twice, and that floor is told beside it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spoolama.effect.evidence import share_interval
from spoolama.effect.likeness import Likeness

__all__ = ["Audit", "Part", "audit", "rows_to_audit"]

_DRIFT = 0.025
"""Probability, one-sided, below which agreement that falls is called drift."""
_LEAST = 20
"""With fewer rows nothing is said of drift."""


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
    """Mean likeness of the answers in conversation and alone."""
    low: float
    high: float
    """Its 95 % interval."""
    floor: float | None
    """Mean likeness of alone and alone again; None: not measured."""
    changed: bool
    """Whether the conversation changed the answers: by more than the margin, beyond chance."""
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

    def sentence(self) -> str:
        """One line for people."""
        share = f"{self.agreement:.0%} of {self.rows} answers agree with those given alone again"
        text = f"{share} (95 % interval {self.low:.0%} to {self.high:.0%})"
        if self.floor is not None:
            text += f"; alone agrees with alone in {self.floor:.0%}"
        text += ": the conversation changed the answers" if self.changed else ": no change beyond the margin"
        if not self.changed and self.low < (self.floor or 1.0) - 0.1:
            text += ", but too few rows to be sure"
        if self.drift is not None:
            along = "the deeper in a conversation" if self.drift == "depth" else "the later in the job"
            text += f", the more so {along}"
        return text + "."


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
        depth: Rows in sight of each.
        like: What being alike means.
        margin: Share of rows that may be answered differently.
    """
    rows = [n for n in sorted(given) if n in alone]
    if not rows:
        return None
    values = {n: like.of(given[n], alone[n]) for n in rows}
    twice = [like.of(again[n], alone[n]) for n in rows if n in again]
    floor = sum(twice) / len(twice) if twice else None
    whole = _part("all", [values[n] for n in rows])
    changed = whole.high < (1.0 if floor is None else floor) - margin
    if twice and floor is not None and changed:
        changed = _surely_more([1 - values[n] for n in rows if n in again], [1 - v for v in twice])
    deep = sorted(rows, key=lambda n: (depth[n], n))
    return Audit(
        len(rows),
        whole.agreement,
        whole.low,
        whole.high,
        None if floor is None else round(floor, 4),
        changed,
        _drift(rows, values, depth),
        like.words,
        tuple(
            _part(f"{depth[part[0]]} to {depth[part[-1]]} rows in sight", [values[n] for n in part])
            for part in _thirds(deep)
        ),
        tuple(
            _part(f"rows {part[0] + 1} to {part[-1] + 1}", [values[n] for n in part])
            for part in _thirds(rows)
        ),
    )


def _surely_more(off: Sequence[float], noise: Sequence[float]) -> bool:
    from scipy.stats import wilcoxon

    if all(a == b for a, b in zip(off, noise, strict=True)):
        return False
    return float(wilcoxon(off, noise, alternative="greater").pvalue) < _DRIFT


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
