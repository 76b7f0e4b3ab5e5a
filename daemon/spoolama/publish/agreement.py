"""How the answers are spread, and how well they agree with known ones (the sidecar's `gold`).

What is compared depends on what both sides are:

- both labels: accuracy with Wilson's interval; Cohen's kappa with an interval;
- both numbers: Spearman's rank correlation with an interval, and the mean absolute error;
- answers labels, gold numbers: Spearman's, if the labels have an order (`job/labels.order_of` has the rule).

Anything else is not compared, and the report says why.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from spoolama.job.answer import number_of, order_of
from spoolama.publish import statistics
from spoolama.publish.agreed import MAX_LABELS, Agreement, Spread, Third, short
from spoolama.publish.labels import word_of

__all__ = ["LEAST_ALONG", "Agreement", "AnswerTally", "Spread", "Third"]

LEAST_ALONG = 30
"""With fewer rows nothing is said of the agreement along the job."""

_SPEARMAN = (
    "Spearman's rank correlation, mean ranks for ties; 95 % interval by Fisher's z with the standard"
    " error of Bonett and Wright (approximate where there are many ties)"
)
_ACCURACY = "share of equal labels (case and space around do not count); 95 % interval by Wilson"
_KAPPA = "Cohen's kappa; 95 % interval by the standard error of Fleiss, Cohen and Everitt"
_MAE = "mean of |answer - gold|"


class AnswerTally:
    """Takes answers one by one and tells spread and agreement at the end; 32 bytes a row with gold.

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
        self._numbers_of_rows = array("q")
        self._left_out = 0

    def add(self, label: Any, gold: Any, *, row: int = 0, used: bool = False) -> None:
        """The next answered row.

        Args:
            label: Its label; None: it has none.
            gold: Its known answer; None: not known.
            row: Its number, from 1.
            used: Whether the known answer was used to choose what stands before the rows: it does not count.
        """
        if label is None:
            return
        word = word_of(label)
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
        self._gold_names.append(self._name(word_of(gold)))
        self._answer_numbers.append(_or_nan(number_of(label)))
        self._gold_numbers.append(_or_nan(number_of(gold)))

    def _name(self, word: str) -> int:
        folded = word.casefold()
        if folded not in self._names and len(self._names) >= 2 * MAX_LABELS:
            return -1
        return self._names.setdefault(folded, len(self._names))

    def spread(self) -> Spread:
        """The spread of the answers."""
        if self._counts is None:
            return Spread(self._rows, None, None)
        shares = [count / self._rows for count in self._counts.values()]
        entropy = sum(-share * math.log2(share) for share in shares)
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        given = {word.casefold() for word in self._counts}
        never = [label for label in self._enum or () if label.casefold() not in given] if self._rows else []
        return Spread(self._rows, dict(ordered), round(entropy, 4) if self._rows else None, tuple(never))

    def agreement(self) -> Agreement | None:
        """The agreement with gold; None where no gold was named."""
        if self._gold is None:
            return None
        return replace(self._agreement(), left_out=self._left_out)

    def along_job(self) -> list[Third]:
        """Agreement in thirds of the rows that can be compared; none where these are under `LEAST_ALONG`."""
        whole = self.agreement()
        rows = len(self._gold_names)
        if whole is None or whole.kind == "none" or rows < LEAST_ALONG:
            return []
        ends = [rows * part // 3 for part in range(4)]
        return [self._third(whole.kind, *part) for part in pairwise(ends)]

    def _third(self, kind: str, first: int, end: int) -> Third:
        rows, where = end - first, slice(first, end)
        names = self._numbers_of_rows[first], self._numbers_of_rows[end - 1], rows
        if kind == "labels":
            pairs = zip(self._answer_names[where], self._gold_names[where], strict=True)
            hits = sum(answer == gold for answer, gold in pairs)
            return Third(*names, accuracy=hits / rows, accuracy_interval=statistics.wilson(hits, rows))
        values = self._answer_numbers if kind == "numbers" else self._ranks()
        value = statistics.spearman(values[where], self._gold_numbers[where])
        if value is None:
            return Third(*names, undefined=_why_undefined(values[where]))
        interval = statistics.spearman_interval(value, rows)
        return Third(*names, correlation=value, correlation_interval=interval)

    def _agreement(self) -> Agreement:
        if not self._gold_names:
            return self._none(f"No row has both an answer and a value in {self._gold}.")
        gold_is_number = not any(math.isnan(value) for value in self._gold_numbers)
        answer_is_number = not any(math.isnan(value) for value in self._answer_numbers)
        if gold_is_number and answer_is_number:
            return self._numbers()
        if self._counts is None or -1 in self._answer_names or -1 in self._gold_names:
            return self._none(
                f"The answers are free text (over {MAX_LABELS} different ones):"
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
        order = self._order()
        if order is None:
            return self._none(
                f"The answers are labels without a known order and {self._gold} has numbers:"
                " they cannot be compared."
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


def _why_undefined(answers: Sequence[float]) -> str:
    """In few words."""
    if len(answers) < 2:
        return "too few rows"
    return "all answers alike" if statistics.is_constant(answers) else "all known answers alike"


def _undefined(rows: int, gold: str, constant: bool, word: str | None) -> str:
    if rows == 1:
        return f"The rank correlation with {gold} is undefined: only one row can be compared."
    if constant:
        same = f'"{short(word)}"' if word is not None else "the same"
        return f"The rank correlation with {gold} is undefined: every answer was {same}."
    return f"The rank correlation is undefined: every value in {gold} is the same."


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number
