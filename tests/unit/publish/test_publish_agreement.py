"""Agreement with known answers, and the distribution of answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from spoolama.compare.evidence import wilson
from spoolama.publish import statistics
from spoolama.publish.agreement import Agreement, AnswerCounts, along_sentence


def agreement_of(pairs: Sequence[tuple[Any, Any]], enum: list[str] | None = None) -> Agreement:
    counts = AnswerCounts("gold", enum)
    for answer, gold in pairs:
        counts.add(answer, gold)
    agreement = counts.agreement()
    assert agreement is not None
    return agreement


def test_long_labels_are_shortened_and_stay_different() -> None:
    """A thousand long labels stay different in memory and in metrics.json, although they are shortened."""
    long, other = "word " * 100_000 + "a", "word " * 100_000 + "b"
    counts = AnswerCounts("gold", None)
    for answer, gold in ((long, long), (long, other), ("short", "short")):
        counts.add(answer, gold)
    answers = counts.distribution().counts
    assert answers is not None
    assert list(answers.values()) == [2, 1]
    assert max(map(len, answers)) < 250
    agreement = counts.agreement()
    assert agreement is not None
    assert agreement.rows == 3
    assert agreement.accuracy == pytest.approx(2 / 3)


def test_an_enum_of_any_length_is_named_in_a_line() -> None:
    """The summary gives the order of labels in one line, even for a schema of 1 MB."""
    names = ["bronze", "silver", "gold", "x" * 900_000]
    agreement = agreement_of([("bronze", 1), ("silver", 2), ("gold", 3)], names)
    assert agreement.scale is not None
    assert agreement.scale.startswith("the order of the schema's enum, bronze < silver < gold < xxx")
    assert len(agreement.scale) < 700


def test_wilson_interval() -> None:
    """The interval of 8 in 10 equals that of tables, and at the ends it stays within 0 and 1."""
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    low, high = wilson(0, 5)
    assert low == 0.0
    assert 0 < high < 0.5


def test_kappa_by_hand() -> None:
    """The textbook table 20, 5, 10, 15 gives kappa 0.4, and its interval contains it."""
    cells = {(0, 0): 20, (0, 1): 5, (1, 0): 10, (1, 1): 15}
    assert statistics.kappa(cells) == pytest.approx(0.4)
    interval = statistics.kappa_interval(cells)
    assert interval is not None
    assert interval == statistics.kappa_interval(cells)
    assert 0.05 < interval[0] < 0.4 < interval[1] < 0.75


def test_spearman_interval_by_hand() -> None:
    """The interval for r = 0.5 over 50 rows equals Fisher's z with Bonett and Wright's error,
    computed by hand.
    """
    error = math.sqrt((1 + 0.125) / 47) * 1.959964
    middle = math.atanh(0.5)
    expected = (math.tanh(middle - error), math.tanh(middle + error))
    assert statistics.spearman_interval(0.5, 50) == pytest.approx(expected)


def test_spearman_interval_covers() -> None:
    """About 95 % of the intervals of 200 samples contain the known correlation."""
    rng = random.Random(7)
    true = 6 / math.pi * math.asin(0.5 / 2)  # Spearman's correlation of a normal pair with Pearson's 0.5
    held = 0
    for _ in range(200):
        left = [rng.gauss(0, 1) for _ in range(60)]
        right = [0.5 * x + math.sqrt(0.75) * rng.gauss(0, 1) for x in left]
        value = statistics.spearman(left, right)
        assert value is not None
        interval = statistics.spearman_interval(value, 60)
        assert interval is not None
        held += interval[0] <= true <= interval[1]
    assert 180 <= held <= 200


def test_labels_against_labels() -> None:
    """Case and outer space do not count, and accuracy and kappa have intervals."""
    agreement = agreement_of([("Yes", "yes "), ("no", "no"), ("no", "yes"), ("no", "no")])
    assert (agreement.kind, agreement.rows, agreement.accuracy) == ("labels", 4, 0.75)
    assert agreement.kappa == pytest.approx(0.5)
    assert "75 % equal to gold" in agreement.sentences()[0]


def test_numbers_against_numbers() -> None:
    """Numbers may be text, and the report has rank correlation and mean absolute error."""
    agreement = agreement_of([(str(n), n + 0.5) for n in range(12)])
    assert agreement.kind == "numbers"
    assert agreement.correlation == pytest.approx(1.0)
    assert agreement.correlation_interval is None
    assert agreement.mean_absolute_error == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "enum", "scale"),
    [
        (("Positive", "negative", "neutral"), None, "negative < neutral < positive"),
        (
            ("positive", "negative", "neutral"),
            ["positive", "neutral", "negative"],
            "negative < neutral < positive",
        ),
        (("bronze", "gold", "silver"), ["bronze", "silver", "gold"], "the order of the schema's enum"),
        (("bronze", "gold", "silver"), None, None),
        (("bronze", "other", "silver"), ["bronze", "silver"], None),
        (("positive", "negative", "blue"), None, None),
    ],
)
def test_labels_against_numbers(
    labels: tuple[str, str, str], enum: list[str] | None, scale: str | None
) -> None:
    """Labels are ranked only if known words or the enum give an order, and else the report says so."""
    high, low, middle = labels if enum != ["bronze", "silver", "gold"] else (labels[1], labels[0], labels[2])
    pairs = [(high, 2.0), (low, -2.0), (middle, 0.1)] * 5
    agreement = agreement_of(pairs, enum)
    if scale is None:
        assert (agreement.kind, agreement.correlation) == ("none", None)
        assert "without a known order" in agreement.sentences()[0]
    else:
        assert agreement.correlation == pytest.approx(1.0)
        assert agreement.scale is not None
        assert agreement.scale.startswith(scale)


def test_a_constant_answer_is_reported() -> None:
    """A constant answer has no correlation, and the report says so."""
    agreement = agreement_of([("positive", n) for n in range(20)])
    assert agreement.correlation is None
    assert agreement.sentences() == [
        'The rank correlation with gold is undefined: every answer is "positive".'
    ]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "No row has both"),
        ([("positive", None)], "No row has both"),
        ([("positive", 1)], "only one row"),
        ([("positive", 1), ("negative", 1)], "every value in gold is the same"),
        ([("a", "b"), ("a", "b")], "No answer is one of the words"),
        ([("a", "a"), ("a", "a")], "Kappa is undefined"),
        ([(f"text {n}", n) for n in range(1100)], "free text"),
        ([(f"text {n}", f"word {n}") for n in range(1100)], "free text"),
    ],
)
def test_the_reason_is_given_if_answers_cannot_be_compared(pairs: list[tuple[Any, Any]], words: str) -> None:
    """If answers cannot be compared, the report gives the reason, without a number or an exception."""
    assert any(words in sentence for sentence in agreement_of(pairs).sentences())


def test_distribution() -> None:
    """The distribution has counts, most frequent first, entropy in bits, and a description."""
    counts = AnswerCounts()
    for label in ["a"] * 3 + ["b"]:
        counts.add(label, None)
    distribution = counts.distribution()
    assert distribution.counts == {"a": 3, "b": 1}
    assert distribution.entropy_bits == pytest.approx(0.8113)
    assert distribution.sentence() == "a 3 (75 %), b 1 (25 %)"
    assert counts.agreement() is None


def test_distribution_of_free_text_is_not_counted() -> None:
    """Beyond 1000 different answers counting stops, so that memory stays bounded."""
    counts = AnswerCounts()
    for n in range(1200):
        counts.add(f"text {n}", None)
    assert counts.distribution().counts is None
    assert "more than 1,000 different answers in 1,200 rows" in counts.distribution().sentence()


def test_agreement_along_the_job_is_reported_in_thirds() -> None:
    """Each third has its rows and its accuracy or rank correlation with an interval."""
    labels, numbers = AnswerCounts("gold"), AnswerCounts("gold")
    for n in range(90):
        labels.add("yes" if n < 60 or n % 2 else "no", "yes", row=2 * n + 1)
        numbers.add(n, n if n < 60 else -n, row=n + 1)
    first, _, last = labels.along_job()
    assert (first.first, first.last, first.rows, first.accuracy) == (1, 59, 30, 1.0)
    assert (last.first, last.last, last.accuracy) == (121, 179, 0.5)
    assert last.accuracy_interval == wilson(15, 30)
    assert along_sentence([first, last]) == (
        "In the first, middle and last third of the rows: 100 % (89 to 100), 50 % (33 to 67)."
    )
    assert [third.correlation for third in numbers.along_job()] == [
        pytest.approx(1),
        pytest.approx(1),
        pytest.approx(-1),
    ]


def test_a_third_without_a_correlation_has_a_reason() -> None:
    """A third in which all answers or all gold values are equal has that as its reason."""
    counts = AnswerCounts("gold")
    for n in range(90):
        counts.add(7 if n < 30 else n, 3 if 30 <= n < 60 else n, row=n + 1)
    thirds = counts.along_job()
    assert along_sentence(thirds) == (
        "In the first, middle and last third of the rows: undefined (all answers are the same), undefined"
        " (all known answers are the same), 1.00."
    )
    assert [third.undefined for third in thirds] == [
        "all answers are the same",
        "all known answers are the same",
        None,
    ]


@pytest.mark.parametrize(
    ("correlation", "interval", "words"),
    [
        (0.1, None, "a very weak correlation"),
        (0.39, (0.2, 0.55), "a weak correlation"),
        (0.4, None, "a moderate correlation"),
        (-0.7, (-0.8, -0.5), "a strong negative correlation"),
        (1.0, None, "a very strong correlation"),
        (0.3, (-0.1, 0.6), "a weak correlation that may be chance"),
    ],
)
def test_a_correlation_is_described(
    correlation: float, interval: tuple[float, float] | None, words: str
) -> None:
    """The description gives the strength by Evans, the direction, and whether chance explains it."""
    found = Agreement("gold", 20, "numbers", correlation=correlation, correlation_interval=interval)
    assert found.strength() == words
    (sentence,) = found.sentences()
    assert f"{correlation:.2f}" in sentence
    assert sentence.endswith(f"over 20 rows, {words}.")


@pytest.mark.parametrize(
    ("correlation", "rows", "hint"),
    [
        (0.27, 900, "agree only weakly with gold"),
        (-0.13, 900, "do not agree with gold"),
        (-0.5, 900, "are opposite to gold"),
        (0.4, 900, None),
        (0.27, 9, None),
        (None, 900, None),
    ],
)
def test_weak_agreement_says_what_may_help(correlation: float | None, rows: int, hint: str | None) -> None:
    """For weak agreement over enough rows the report says what may help."""
    interval = None if correlation is None else statistics.spearman_interval(correlation, rows)
    found = Agreement("gold", rows, "numbers", correlation=correlation, correlation_interval=interval)
    advice = found.advice()
    assert (advice is None) == (hint is None)
    assert (hint or "") in (advice or "")


def test_a_single_answer_is_called_the_only_one() -> None:
    """No "all 1 answers"."""
    counts = AnswerCounts()
    counts.add("yes", None)
    assert counts.distribution().sentence() == 'the only answer is "yes"'


@pytest.mark.parametrize(
    ("enum", "noted"), [(["ham", "SPAM "], False), (["good", "bad"], True), (None, True)]
)
def test_other_words_are_suspected_only_where_the_vocabulary_differs(
    enum: list[str] | None, noted: bool
) -> None:
    """Two wrong answers of a schema that lists the known words are wrong, and no more than that."""
    found = agreement_of([("ham", "spam"), ("ham", "spam")], enum)
    assert any("No answer is one of the words" in note for note in found.notes) == noted


def test_labels_that_were_never_given_are_listed() -> None:
    """Labels of the schema that no row was answered are listed, regardless of case, if any row
    was answered.
    """
    counts, empty = AnswerCounts("gold", ["Negative", "neutral", "positive"]), AnswerCounts(None, ["a"])
    for label in ("negative", "positive", "positive"):
        counts.add(label, None)
    assert counts.distribution().never == ("neutral",)
    assert counts.distribution().sentence() == "positive 2 (67 %), negative 1 (33 %); never: neutral"
    assert empty.distribution().sentence() == "no answers to count"


def test_too_few_rows_have_no_thirds() -> None:
    """With fewer than 30 rows, or without a comparison, there is no agreement along the job."""
    counts, text = AnswerCounts("gold"), AnswerCounts("gold")
    for n in range(29):
        counts.add("a", "a", row=n + 1)
    for n in range(60):
        text.add(f"word {n}", n, row=n + 1)
    assert (counts.along_job(), text.along_job()) == ((), ())
    assert along_sentence([]) is None


def test_rows_that_were_used_are_counted_and_left_out() -> None:
    """Rows that the choice used count only in the distribution of answers."""
    counts = AnswerCounts("gold")
    for n in range(10):
        counts.add("a", "b" if n < 4 else "a", row=n + 1, used=n < 4)
    agreement = counts.agreement()
    assert agreement is not None
    assert (agreement.rows, agreement.left_out, agreement.accuracy) == (6, 4, 1.0)
    assert counts.distribution().rows == 10
    assert any(
        "Not counted: 4 rows whose known answers helped" in sentence for sentence in agreement.sentences()
    )
