"""What is said of answers and known answers: spread, agreement, and agreement along the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "MAX_LABELS",
    "Agreement",
    "Spread",
    "Third",
    "along_sentence",
    "interval_words",
    "percent",
    "short",
    "span",
    "strength_words",
    "weakness",
]

MAX_LABELS = 1000
"""Past so many different answers they are free text."""

_STRENGTHS = ((0.2, "very weak"), (0.4, "weak"), (0.6, "moderate"), (0.8, "strong"), (1.01, "very strong"))
"""Bounds of a correlation's size and its name (J. D. Evans 1996, Straightforward Statistics for the
Behavioral Sciences)."""

_WEAK = 0.4
"""Below it `_STRENGTHS` has weak and very weak."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Which answers there were, and how often."""

    rows: int
    """Answered rows that have a label."""
    counts: dict[str, int] | None
    """Rows by answer, most first; None: too many different ones to count (free text)."""
    entropy_bits: float | None
    """0: one answer for everything. 1: as uncertain as a coin."""
    never: tuple[str, ...] = ()
    """Labels that the schema lists, and that no row was answered."""

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)

    def sentence(self, most: int = 8) -> str:
        """`positive 137 (98 %), negative 3 (2 %); never given: neutral`."""
        given = self._given(most)
        if not self.never:
            return given
        named = [short(label) for label in self.never[:most]]
        if len(self.never) > most:
            named.append(f"{len(self.never) - most} more")
        return f"{given}; never given: {', '.join(named)}"

    def _given(self, most: int) -> str:
        if not self.rows:
            return "no answers to count"
        if self.counts is None:
            return f"over {MAX_LABELS} different answers in {self.rows} rows: free text is not counted"
        listed = list(self.counts.items())
        if len(listed) == 1:
            return f'every one of the {self.rows} answers is "{short(listed[0][0])}"'
        parts = [f"{short(label)} {count} ({percent(count / self.rows)})" for label, count in listed[:most]]
        if len(listed) > most:
            parts.append(f"{len(listed) - most} more different answers")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the answers agree with the known ones. What does not apply is None."""

    gold: str
    """The column of known answers."""
    rows: int
    """Rows that have both an answer and a known one."""
    kind: str
    """`labels`, `numbers`, `scale` (labels against numbers), or `none`."""
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    kappa: float | None = None
    kappa_interval: tuple[float, float] | None = None
    correlation: float | None = None
    correlation_interval: tuple[float, float] | None = None
    mean_absolute_error: float | None = None
    scale: str | None = None
    """The order that was given to labels, in words."""
    left_out: int = 0
    """Rows whose known answers were used to choose what stands before the rows."""
    notes: list[str] = field(default_factory=list)
    """What could not be said, and why."""
    how: dict[str, str] = field(default_factory=dict)
    """How each measure was made."""

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)

    def sentences(self, choosers: Sequence[str] = ()) -> list[str]:
        """What a person wants to know, a sentence each.

        Args:
            choosers: The jobs by whose choice rows were left out, where it may be another than this one.
        """
        over = f"over {self.rows} rows"
        out: list[str] = []
        if self.accuracy is not None:
            interval = interval_words(self.accuracy_interval, True)
            out.append(f"{percent(self.accuracy)} equal to {self.gold}{interval}, {over}.")
        if self.kappa is not None:
            interval = interval_words(self.kappa_interval)
            out.append(f"Cohen's kappa (agreement beyond chance) {self.kappa:.2f}{interval}.")
        if self.correlation is not None:
            value = f"{self.correlation:.2f}{interval_words(self.correlation_interval)}"
            words = strength_words(self.correlation, self.correlation_interval)
            out.append(f"Rank correlation (Spearman) with {self.gold} {value}, {over}: {words}.")
            out.append("(1: the same order; 0: no relation; weak is below 0.4, strong from 0.6; Evans 1996.)")
        if self.mean_absolute_error is not None:
            out.append(f"On average {self.mean_absolute_error:.3g} away from {self.gold}.")
        if self.scale is not None:
            out.append(f"Answers ranked as {self.scale}.")
        if self.left_out:
            rows = "1 row" if self.left_out == 1 else f"{self.left_out:,} rows"
            whose = f" of {' and '.join(choosers)}" if choosers else ""
            out.append(
                f"Not counted: {rows} whose known answers helped to choose what each row{whose} is asked in"
                " sight of, which would flatter the result."
            )
        return out + self.notes


@dataclass(frozen=True, slots=True)
class Third:
    """A third of the rows that can be compared with gold, in the order of the file."""

    first: int
    """Its first row, from 1."""
    last: int
    rows: int
    """Rows that could be compared."""
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    correlation: float | None = None
    correlation_interval: tuple[float, float] | None = None
    undefined: str | None = None
    """Why there is no correlation."""

    def words(self) -> str:
        """`71 % (64 to 77)`."""
        if self.accuracy is not None:
            low, high = self.accuracy_interval or (0.0, 1.0)
            return f"{percent(self.accuracy)} ({low * 100:.0f} to {high * 100:.0f})"
        if self.correlation is None:
            return f"undefined ({self.undefined})" if self.undefined else "undefined"
        if self.correlation_interval is None:
            return f"{self.correlation:.2f}"
        low, high = self.correlation_interval
        return f"{self.correlation:.2f} ({low:.2f} to {high:.2f})"


def along_sentence(thirds: Sequence[Third]) -> str | None:
    """The agreement of each third; None where there are none."""
    if not thirds:
        return None
    return f"In the first, middle and last third of the rows: {', '.join(third.words() for third in thirds)}."


def strength_words(correlation: float, interval: tuple[float, float] | None) -> str:
    """How strong a correlation is, which way round, and whether it may as well be none."""
    name = next(name for bound, name in _STRENGTHS if abs(correlation) < bound)
    words = name if correlation >= 0 else f"{name}, but the other way round"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        words += "; it may as well be none"
    return words


def weakness(agreement: Mapping[str, Any] | None) -> str | None:
    """What to try where the answers hardly follow the known ones, or not at all; None: nothing to say.

    Args:
        agreement: `agreement` of metrics.json.
    """
    correlation = (agreement or {}).get("correlation")
    # Of a handful of rows it may be anything.
    if agreement is None or correlation is None or agreement["correlation_interval"] is None:
        return None
    gold = agreement["gold"]
    if correlation <= -_WEAK:
        return f"The answers run against {gold}: see whether both count the same way up."
    if correlation < 0:
        return f"The answers do not agree with {gold}: a larger model or a clearer prompt may help."
    if correlation < _WEAK:
        return f"The answers agree only weakly with {gold}: a larger model or a clearer prompt may help."
    return None


def short(text: str, most: int = 40) -> str:
    """The text on one line, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def span(low: float, high: float) -> str:
    """`88 to 96 %`."""
    return f"{low * 100:.0f} to {high * 100:.0f} %"


def percent(share: float) -> str:
    """`93 %`; near the ends with one place more."""
    return f"{share * 100:.0f} %" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{share * 100:.1f} %"


def interval_words(interval: tuple[float, float] | None, shares: bool = False) -> str:
    """` (95 % interval 0.41 to 0.57)`, or nothing."""
    if interval is None:
        return ""
    low, high = interval
    shown = f"{low * 100:.0f} to {high * 100:.0f} %" if shares else f"{low:.2f} to {high:.2f}"
    return f" (95 % interval {shown})"
