"""How the answers are spread, and how well they agree with known ones (the sidecar's `gold`).

What is compared depends on what both sides are:

- both labels: accuracy with Wilson's interval; Cohen's kappa with a bootstrap interval;
- both numbers: Spearman's rank correlation with an interval, and the mean absolute error;
- answers labels, gold numbers: Spearman's, if the labels have an order (`job/labels.order_of` has the rule).

Anything else is not compared, and the report says why.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from spoolama.job.labels import number_of, order_of
from spoolama.report import statistics
from spoolama.report.labels import word_of

__all__ = ["Agreement", "AnswerTally", "Spread"]

_MAX_LABELS = 1000
_SPEARMAN = (
    "Spearman's rank correlation (scipy), mean ranks for ties; 95 % interval by Fisher's z with the standard"
    " error of Bonett and Wright (approximate where there are many ties)"
)
_ACCURACY = "share of equal labels (case and space around do not count); 95 % interval by Wilson"
_KAPPA = (
    f"Cohen's kappa; 95 % interval by bootstrap, {statistics.BOOTSTRAPS} resamples of the rows, fixed seed"
)
_MAE = "mean of |answer - gold|"


@dataclass(frozen=True, slots=True)
class Spread:
    """Which answers there were, and how often."""

    rows: int
    """Answered rows that have a label."""
    counts: dict[str, int] | None
    """Rows by answer, most first; None: too many different ones to count (free text)."""
    entropy_bits: float | None
    """0: one answer for everything. 1: as uncertain as a coin."""

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)

    def sentence(self, most: int = 8) -> str:
        """`positive 137 (98 %), negative 3 (2 %)`."""
        if not self.rows:
            return "no answers to count"
        if self.counts is None:
            return f"over {_MAX_LABELS} different answers in {self.rows} rows: free text is not counted"
        listed = list(self.counts.items())
        if len(listed) == 1:
            return f'every one of the {self.rows} answers is "{_short(listed[0][0])}"'
        parts = [f"{_short(label)} {count} ({_percent(count / self.rows)})" for label, count in listed[:most]]
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
    notes: list[str] = field(default_factory=list)
    """What could not be said, and why."""
    how: dict[str, str] = field(default_factory=dict)
    """How each measure was made."""

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """What a person wants to know, a sentence each."""
        over = f"over {self.rows} rows"
        out: list[str] = []
        if self.accuracy is not None:
            out.append(
                f"{_percent(self.accuracy)} equal to {self.gold}{_range(self.accuracy_interval, True)},"
                f" {over}."
            )
        if self.kappa is not None:
            out.append(
                f"Cohen's kappa (agreement beyond chance) {self.kappa:.2f}{_range(self.kappa_interval)}."
            )
        if self.correlation is not None:
            value = f"{self.correlation:.2f}{_range(self.correlation_interval)}"
            out.append(f"Rank correlation (Spearman) with {self.gold} {value}, {over}.")
        if self.mean_absolute_error is not None:
            out.append(f"On average {self.mean_absolute_error:.3g} away from {self.gold}.")
        if self.scale is not None:
            out.append(f"Answers ranked as {self.scale}.")
        return out + self.notes


class AnswerTally:
    """Takes answers one by one and tells spread and agreement at the end; 24 bytes a row with gold.

    Args:
        gold: The column of known answers; None: only the spread is told.
        enum: The labels that the schema lists, in its order.
    """

    def __init__(self, gold: str | None = None, enum: list[str] | None = None) -> None:
        self._gold = gold
        self._enum = enum
        self._counts: Counter[str] | None = Counter()
        self._rows = 0
        self._names: dict[str, int] = {}
        self._answer_names = array("i")
        self._gold_names = array("i")
        self._answer_numbers = array("d")
        self._gold_numbers = array("d")

    def add(self, label: Any, gold: Any) -> None:
        """An answered row: its label (None: it has none) and its known answer (None: not known)."""
        if label is None:
            return
        word = word_of(label)
        self._rows += 1
        if self._counts is not None:
            self._counts[word] += 1
            if len(self._counts) > _MAX_LABELS:
                self._counts = None
        if self._gold is None or gold is None:
            return
        self._answer_names.append(self._name(word))
        self._gold_names.append(self._name(word_of(gold)))
        self._answer_numbers.append(_or_nan(number_of(label)))
        self._gold_numbers.append(_or_nan(number_of(gold)))

    def _name(self, word: str) -> int:
        folded = word.casefold()
        if folded not in self._names and len(self._names) >= 2 * _MAX_LABELS:
            return -1
        return self._names.setdefault(folded, len(self._names))

    def spread(self) -> Spread:
        """The spread of the answers."""
        if self._counts is None:
            return Spread(self._rows, None, None)
        shares = [count / self._rows for count in self._counts.values()]
        entropy = sum(-share * math.log2(share) for share in shares)
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return Spread(self._rows, dict(ordered), round(entropy, 4) if self._rows else None)

    def agreement(self) -> Agreement | None:
        """The agreement with gold; None where no gold was named."""
        if self._gold is None:
            return None
        rows = len(self._gold_names)
        if not rows:
            return self._none(f"No row has both an answer and a value in {self._gold}.")
        gold_is_number = not any(math.isnan(value) for value in self._gold_numbers)
        answer_is_number = not any(math.isnan(value) for value in self._answer_numbers)
        if gold_is_number and answer_is_number:
            return self._numbers()
        if self._counts is None or -1 in self._answer_names or -1 in self._gold_names:
            return self._none(
                f"The answers are free text (over {_MAX_LABELS} different ones):"
                f" they cannot be compared with {self._gold}."
            )
        return self._scale() if gold_is_number else self._labels()

    def _none(self, note: str) -> Agreement:
        assert self._gold is not None
        return Agreement(self._gold, len(self._gold_names), "none", notes=[note])

    def _labels(self) -> Agreement:
        assert self._gold is not None
        rows = len(self._gold_names)
        cells = Counter(zip(self._answer_names, self._gold_names, strict=True))
        hits = sum(count for (answer, gold), count in cells.items() if answer == gold)
        beyond = statistics.kappa(cells)
        notes = []
        if not set(self._answer_names) & set(self._gold_names):
            notes.append(
                f"No answer is one of the words in {self._gold}: are they meant to be the same words?"
            )
        if beyond is None:
            notes.append("Kappa is undefined: all answers and all known answers are the same one.")
        return Agreement(
            self._gold,
            rows,
            "labels",
            accuracy=hits / rows,
            accuracy_interval=statistics.wilson(hits, rows),
            kappa=beyond,
            kappa_interval=None if beyond is None else statistics.kappa_interval(cells),
            notes=notes,
            how={"accuracy": _ACCURACY, "kappa": _KAPPA},
        )

    def _numbers(self) -> Agreement:
        pairs = zip(self._answer_numbers, self._gold_numbers, strict=True)
        error = sum(abs(answer - gold) for answer, gold in pairs) / len(self._gold_numbers)
        return self._ranked(self._answer_numbers, "numbers", error=error)

    def _scale(self) -> Agreement:
        words = list(self._names)
        labels = {words[name] for name in set(self._answer_names)}
        enum = [label.casefold() for label in self._enum] if self._enum else None
        order = order_of(sorted(labels), enum)
        if order is None:
            return self._none(
                f"The answers are labels without a known order and {self._gold} has numbers:"
                " they cannot be compared."
            )
        ranks, words_of_order = order
        values = array("d", (ranks[words[name]] for name in self._answer_names))
        return self._ranked(values, "scale", scale=words_of_order if len(labels) > 1 else None)

    def _ranked(
        self, values: array[float], kind: str, *, error: float | None = None, scale: str | None = None
    ) -> Agreement:
        assert self._gold is not None
        rows = len(values)
        correlation = statistics.spearman(values, self._gold_numbers)
        notes = []
        if correlation is None:
            notes.append(_undefined(rows, self._gold, statistics.is_constant(values), self._only_word()))
        how = {"correlation": _SPEARMAN}
        if error is not None:
            how["mean_absolute_error"] = _MAE
        return Agreement(
            self._gold,
            rows,
            kind,
            correlation=correlation,
            correlation_interval=None
            if correlation is None
            else statistics.spearman_interval(correlation, rows),
            mean_absolute_error=error,
            scale=scale,
            notes=notes,
            how=how,
        )

    def _only_word(self) -> str | None:
        return next(iter(self._counts)) if self._counts is not None and len(self._counts) == 1 else None


def _undefined(rows: int, gold: str, constant: bool, word: str | None) -> str:
    if rows == 1:
        return f"The rank correlation with {gold} is undefined: only one row can be compared."
    if constant:
        same = f'"{_short(word)}"' if word is not None else "the same"
        return f"The rank correlation with {gold} is undefined: every answer was {same}."
    return f"The rank correlation is undefined: every value in {gold} is the same."


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number


def _short(text: str, most: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{share * 100:.1f} %"


def _range(interval: tuple[float, float] | None, percent: bool = False) -> str:
    if interval is None:
        return ""
    low, high = interval
    shown = f"{low * 100:.0f} to {high * 100:.0f} %" if percent else f"{low:.2f} to {high:.2f}"
    return f" (95 % interval {shown})"
