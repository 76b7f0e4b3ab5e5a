"""Counts answers, and compares them with known answers (the sidecar's `gold`).

The comparison depends on both sides:

- labels and labels: accuracy with Wilson's interval, and Cohen's kappa with an interval
- numbers and numbers: Spearman's rank correlation with an interval, and the mean absolute error
- labels as answers, numbers as gold: Spearman's correlation, if the labels have an order (`job/answer.py`)

Everything else is not compared, and a note says why.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from spoolama.compare.evidence import wilson
from spoolama.job.answer import number_of, order_of
from spoolama.publish import statistics
from spoolama.publish.result_row import counted_label
from spoolama.publish.words import counted, interval_words, percent, short

MAX_LABELS = 1000
"""More different answers than this are free text."""
LEAST_ALONG = 30
"""Least number of compared rows for the agreement along the job."""

_STRENGTHS = ((0.2, "very weak"), (0.4, "weak"), (0.6, "moderate"), (0.8, "strong"), (1.01, "very strong"))
"""Upper bounds of the absolute correlation and their names (J. D. Evans 1996, Straightforward Statistics for
the Behavioral Sciences)."""
_WEAK = 0.4
"""Below this correlation `_STRENGTHS` says weak or very weak."""

_SPEARMAN = (
    "Spearman's rank correlation with mean ranks for ties; 95 % interval by Fisher's z with the standard "
    "error of Bonett and Wright (approximate if there are many ties)"
)
_ACCURACY = "share of equal labels, without regard to case and surrounding space; 95 % interval by Wilson"
_KAPPA = "Cohen's kappa; 95 % interval with the standard error of Fleiss, Cohen and Everitt"
_ERROR = "mean of |answer - gold|"


@dataclass(frozen=True, slots=True)
class AnswerDistribution:
    """Which answers there are, and how often."""

    rows: int = 0
    """Answered rows with a label."""
    counts: Mapping[str, int] | None = None
    """Rows by answer, most frequent first; None: too many different answers to count (free text)."""
    entropy_bits: float | None = None
    """0 if all answers are the same, 1 if two answers are equally frequent."""
    never: tuple[str, ...] = ()
    """Labels of the schema that are the answer of no row."""

    def sentence(self, most: int = 8) -> str:
        """`positive 137 (98 %), negative 3 (2 %); never: neutral`."""
        given = self._given(most)
        if not self.never:
            return given
        named = [short(label) for label in self.never[:most]]
        if len(self.never) > most:
            named.append(f"{len(self.never) - most} more")
        return f"{given}; never: {', '.join(named)}"

    def _given(self, most: int) -> str:
        if not self.rows:
            return "no answers to count"
        if self.counts is None:
            return f"free text: more than {MAX_LABELS:,} different answers in {self.rows:,} rows"
        listed = list(self.counts.items())
        if len(listed) == 1:
            start = "the only answer is" if self.rows == 1 else f"all {self.rows:,} answers are"
            return f'{start} "{short(listed[0][0])}"'
        parts = [f"{short(label)} {rows:,} ({percent(rows / self.rows)})" for label, rows in listed[:most]]
        if len(listed) > most:
            parts.append(f"{len(listed) - most} more different answers")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the answers agree with the known ones. Measures that do not apply are None."""

    gold: str = ""
    """The column of known answers."""
    rows: int = 0
    """Rows with an answer and a known one."""
    kind: str = "none"
    """`labels`, `numbers`, `scale` (labels compared with numbers), or `none`."""
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    kappa: float | None = None
    kappa_interval: tuple[float, float] | None = None
    correlation: float | None = None
    correlation_interval: tuple[float, float] | None = None
    mean_absolute_error: float | None = None
    scale: str | None = None
    """The order of the labels, in words."""
    left_out: int = 0
    """Rows that do not count, because their known answers helped to choose the form of the prompt."""
    notes: tuple[str, ...] = ()
    """What could not be compared, and why."""
    how: Mapping[str, str] = field(default_factory=dict)
    """How each measure is computed."""

    def sentences(self, choosers: Sequence[str] = ()) -> list[str]:
        """The measures in words, one sentence each.

        Args:
            choosers: The jobs for which the rows in `left_out` chose the form; empty: this job.
        """
        over = f"over {counted(self.rows, 'row')}"
        out: list[str] = []
        if self.accuracy is not None:
            interval = interval_words(self.accuracy_interval, percent=True)
            out.append(f"{percent(self.accuracy)} equal to {self.gold}{interval}, {over}.")
        if self.kappa is not None:
            interval = interval_words(self.kappa_interval)
            out.append(f"Cohen's kappa (agreement beyond chance): {self.kappa:.2f}{interval}.")
        if self.correlation is not None:
            value = f"{self.correlation:.2f}{interval_words(self.correlation_interval)}"
            out.append(f"Rank correlation (Spearman) with {self.gold}: {value}, {over}, {self.strength()}.")
        if self.mean_absolute_error is not None:
            out.append(f"Mean absolute error: {self.mean_absolute_error:.3g}.")
        if self.scale is not None:
            out.append(f"Answers ranked as {self.scale}.")
        if self.left_out:
            whose = f" of {' and '.join(choosers)}" if choosers else ""
            out.append(
                f"Not counted: {counted(self.left_out, 'row')} whose known answers helped to choose the form "
                f"of the prompts{whose}."
            )
        return [*out, *self.notes]

    def strength(self) -> str:
        """`a weak correlation that may be chance`: strength, direction, and whether it differs from 0."""
        assert self.correlation is not None
        words = next(name for bound, name in _STRENGTHS if abs(self.correlation) < bound)
        negative = " negative" if self.correlation < 0 else ""
        low, high = self.correlation_interval or (1.0, 1.0)
        chance = " that may be chance" if low <= 0 <= high else ""
        return f"a {words}{negative} correlation{chance}"

    def advice(self) -> str | None:
        """What may help if the answers hardly agree with the known ones; None otherwise."""
        if self.correlation is None or self.correlation_interval is None:
            return None
        if self.correlation <= -_WEAK:
            return f"The answers are opposite to {self.gold}. Check that both use the same direction."
        if self.correlation < _WEAK:
            how = "do not agree" if self.correlation < 0 else "agree only weakly"
            return f"The answers {how} with {self.gold}. A larger model or a clearer prompt may help."
        return None


@dataclass(frozen=True, slots=True)
class Third:
    """The agreement of a third of the compared rows, in the order of the file."""

    first: int = 0
    """Number of its first row, from 1."""
    last: int = 0
    rows: int = 0
    """Rows that were compared."""
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


def along_sentence(thirds: Sequence[Third] | None) -> str | None:
    """The agreement of each third in words; None without thirds."""
    if not thirds:
        return None
    return f"In the first, middle and last third of the rows: {', '.join(third.words() for third in thirds)}."


class AnswerCounts:
    """Counts answers one by one, and compares them with gold; 32 bytes a row with gold.

    Args:
        gold: The column of known answers; None: answers are only counted.
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
        self._numbers_of_rows = array("q")
        self._left_out = 0

    def add(self, label: Any, gold: Any, *, row: int = 0, used: bool = False) -> None:
        """Add an answered row.

        Args:
            label: The label of its answer; None: it has none.
            gold: Its known answer; None: unknown.
            row: Its number, from 1.
            used: Whether the known answer helped to choose the form of the prompt, so that it does not count.
        """
        if label is None:
            return
        word = counted_label(label)
        self._rows += 1
        if self._counts is not None:
            self._counts[word] += 1
            if len(self._counts) > MAX_LABELS:
                self._counts = None
        if self._gold is None or gold is None:
            return
        if used:
            self._left_out += 1
            return
        self._numbers_of_rows.append(row)
        self._answer_names.append(self._name(word))
        self._gold_names.append(self._name(counted_label(gold)))
        self._answer_numbers.append(_or_nan(number_of(label)))
        self._gold_numbers.append(_or_nan(number_of(gold)))

    def _name(self, word: str) -> int:
        folded = word.casefold()
        if folded not in self._names and len(self._names) >= 2 * MAX_LABELS:
            return -1
        return self._names.setdefault(folded, len(self._names))

    def distribution(self) -> AnswerDistribution:
        """The distribution of the answers."""
        if self._counts is None:
            return AnswerDistribution(self._rows)
        shares = [rows / self._rows for rows in self._counts.values()]
        entropy = round(sum(-share * math.log2(share) for share in shares), 4) if self._rows else None
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        given = {word.casefold() for word in self._counts}
        never = [label for label in self._enum or () if label.casefold() not in given] if self._rows else []
        return AnswerDistribution(self._rows, dict(ordered), entropy, tuple(never))

    def agreement(self) -> Agreement | None:
        """The agreement with gold; None without a gold column."""
        return None if self._gold is None else replace(self._agreement(), left_out=self._left_out)

    def along_job(self) -> tuple[Third, ...]:
        """The agreement in thirds of the compared rows; empty with fewer than `LEAST_ALONG` rows."""
        whole = self.agreement()
        rows = len(self._gold_names)
        if whole is None or whole.kind == "none" or rows < LEAST_ALONG:
            return ()
        ends = [rows * part // 3 for part in range(4)]
        return tuple(self._third(whole.kind, *part) for part in pairwise(ends))

    def _third(self, kind: str, first: int, end: int) -> Third:
        rows, where = end - first, slice(first, end)
        names = self._numbers_of_rows[first], self._numbers_of_rows[end - 1], rows
        if kind == "labels":
            pairs = zip(self._answer_names[where], self._gold_names[where], strict=True)
            hits = sum(answer == gold for answer, gold in pairs)
            return Third(*names, accuracy=hits / rows, accuracy_interval=wilson(hits, rows))
        values = (self._answer_numbers if kind == "numbers" else self._ranks())[where]
        value = statistics.spearman(values, self._gold_numbers[where])
        if value is None:
            constant = statistics.is_constant(values)
            return Third(*names, undefined=f"all {'' if constant else 'known '}answers are the same")
        interval = statistics.spearman_interval(value, rows)
        return Third(*names, correlation=value, correlation_interval=interval)

    def _agreement(self) -> Agreement:
        if not self._gold_names:
            return self._none(f"No row has both an answer and a value in {self._gold}.")
        gold_is_number = not any(math.isnan(value) for value in self._gold_numbers)
        answer_is_number = not any(math.isnan(value) for value in self._answer_numbers)
        if gold_is_number and answer_is_number:
            pairs = zip(self._answer_numbers, self._gold_numbers, strict=True)
            error = sum(abs(answer - gold) for answer, gold in pairs) / len(self._gold_numbers)
            return self._ranked(self._answer_numbers, "numbers", error=error)
        if self._counts is None or -1 in self._answer_names or -1 in self._gold_names:
            return self._none(
                f"The answers cannot be compared with {self._gold}: they are free text (more than "
                f"{MAX_LABELS:,} different ones)."
            )
        return self._scale() if gold_is_number else self._labels()

    def _none(self, note: str) -> Agreement:
        assert self._gold is not None
        return Agreement(self._gold, len(self._gold_names), notes=(note,))

    def _labels(self) -> Agreement:
        assert self._gold is not None
        rows = len(self._gold_names)
        cells = Counter(zip(self._answer_names, self._gold_names, strict=True))
        hits = sum(same for (answer, gold), same in cells.items() if answer == gold)
        kappa = statistics.kappa(cells)
        notes = []
        if not self._words_in_common():
            notes.append(
                f"No answer is one of the words in {self._gold}. Check that both use the same words."
            )
        if kappa is None:
            notes.append("Kappa is undefined: all answers and all known answers are the same.")
        return Agreement(
            self._gold,
            rows,
            "labels",
            accuracy=hits / rows,
            accuracy_interval=wilson(hits, rows),
            kappa=kappa,
            kappa_interval=None if kappa is None else statistics.kappa_interval(cells),
            notes=tuple(notes),
            how={"accuracy": _ACCURACY, "kappa": _KAPPA},
        )

    def _words_in_common(self) -> bool:
        """Whether a known answer is a possible answer: of the schema's enum, or else a given one."""
        names = list(self._names)
        known = {names[name] for name in set(self._gold_names)}
        given = {names[name] for name in set(self._answer_names)}
        possible = {counted_label(label).casefold() for label in self._enum or ()}
        return not known.isdisjoint(given | possible)

    def _scale(self) -> Agreement:
        order = self._order()
        if order is None:
            return self._none(
                f"The answers cannot be compared with {self._gold}: they are labels without a known order, "
                f"and {self._gold} has numbers."
            )
        ranks, words_of_order = order
        return self._ranked(self._ranks(), "scale", scale=words_of_order if len(ranks) > 1 else None)

    def _order(self) -> tuple[dict[str, float], str] | None:
        words = list(self._names)
        labels = {words[name] for name in set(self._answer_names)}
        enum = [label.casefold() for label in self._enum] if self._enum else None
        return order_of(sorted(labels), enum)

    def _ranks(self) -> array[float]:
        order, words = self._order(), list(self._names)
        assert order is not None
        return array("d", (order[0][words[name]] for name in self._answer_names))

    def _ranked(
        self, values: array[float], kind: str, *, error: float | None = None, scale: str | None = None
    ) -> Agreement:
        assert self._gold is not None
        rows = len(values)
        correlation = statistics.spearman(values, self._gold_numbers)
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
            notes=(self._undefined(values),) if correlation is None else (),
            how={"correlation": _SPEARMAN} | ({} if error is None else {"mean_absolute_error": _ERROR}),
        )

    def _undefined(self, values: array[float]) -> str:
        """Why the correlation is undefined."""
        start = f"The rank correlation with {self._gold} is undefined"
        if len(values) == 1:
            return f"{start}: only one row can be compared."
        if not statistics.is_constant(values):
            return f"{start}: every value in {self._gold} is the same."
        only = next(iter(self._counts)) if self._counts is not None and len(self._counts) == 1 else None
        same = "the same" if only is None else f'"{short(only)}"'
        return f"{start}: every answer is {same}."


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number
