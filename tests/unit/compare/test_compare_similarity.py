"""How similar two answers are, and which of two agrees better with gold."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.compare.similarity import PairedCounts, Similarity, compare, similarity_of

TEXTS = [f"the parcel came {n} days late and nobody answered" for n in range(12)]

KINDS = [
    (["a", "b", "a", "A "], False, "labels"),
    (["a"] * 10, False, "labels"),
    ([], False, "labels"),
    ([""] * 5, False, "labels"),
    (TEXTS, False, "texts"),
    (TEXTS, True, "labels"),
    (["x" * 61] * 9, False, "texts"),
    (["1", "2", "3.5", "4"], False, "numbers"),
    (["1", "2", "3"], True, "numbers"),
    (["1", "0", "1"], False, "labels"),
    (["1", "0", "1"], True, "labels"),
    (["7"] * 6, False, "labels"),
    (["1", "2", "3", "none"] * 3, False, "labels"),
    (["1", "2", "3", "NaN"] * 3, False, "labels"),
    (["1e308", "-1e308", "0"], False, "numbers"),
]


@pytest.mark.parametrize(("alone", "listed", "kind"), KINDS)
def test_the_isolated_answers_decide_what_is_compared(alone: list[str], listed: bool, kind: str) -> None:
    """The isolated answers decide whether labels, numbers or texts are compared, also if some are empty or
    mixed.
    """
    found = similarity_of(alone, listed=listed)
    assert found.kind == kind
    assert found.words


@given(st.lists(st.text(max_size=20), max_size=12), st.text(max_size=80), st.text(max_size=80), st.booleans())
def test_similarity_is_symmetric_and_between_0_and_1(
    alone: list[str], left: str, right: str, listed: bool
) -> None:
    """Similarity is symmetric, lies between 0 and 1, and is 1 for equal answers."""
    like = similarity_of(alone, listed=listed)
    assert 0 <= like.of(left, right) <= 1
    assert like.of(left, right) == like.of(right, left)
    assert like.of(left, left) == 1


def test_labels_are_equal_regardless_of_case() -> None:
    """Labels are equal or different, regardless of case."""
    like = Similarity("labels")
    assert like.of("Positive ", "positive") == 1
    assert like.of("positive", "very positive") == 0


def test_the_distance_of_numbers_is_the_larger_of_value_and_rank() -> None:
    """A step of one among 0 to 10 costs about a tenth, and a step over most of the answers
    costs nearly all.
    """
    like = similarity_of([str(n) for n in range(11)])
    assert like.of("4", "5") == pytest.approx(1 - 1 / 10)
    assert like.of("5", "5.0") == 1
    assert like.of("0", "10") == 0
    crowded = similarity_of(["0", *["5"] * 18, "6", "100"])
    assert crowded.of("4", "6.5") < 0.2, "nearly all answers lie between the two"


def test_three_spellings_of_one_number_are_numbers_of_no_spread() -> None:
    """Three spellings of one number are equal, others are different, and nothing is divided by zero."""
    like = similarity_of(["1", "1.0", "1.00"])
    assert like.kind == "numbers"
    assert (like.of("1", "1.000"), like.of("1", "2")) == (1, 0)


def test_huge_numbers_are_compared_by_rank() -> None:
    """Numbers that no float holds are compared by rank."""
    like = similarity_of(["-1.7e308", "-1e308", "0", "1e308", "1.7e308"])
    assert like.of("1e308", "-1.7e308") == pytest.approx(1 - 3 / 5)
    assert like.of("1e308", "1.7e308") == pytest.approx(1 - 1 / 5)


def test_among_numbers_other_answers_equal_only_themselves() -> None:
    """`NaN` and words equal only themselves and differ from every number."""
    like = similarity_of(["1", "2", "3"])
    assert like.of("NaN", "nan") == 1
    assert like.of("NaN", "2") == 0
    assert like.of("", "2") == 0


def test_the_similarity_of_texts_counts_common_words_in_order() -> None:
    """Texts with two of three words in common have a similarity of two thirds, and two empty
    texts are equal.
    """
    like = Similarity("texts")
    assert like.of("late and broken", "LATE and cheap") == pytest.approx(2 / 3)
    assert like.of("", "") == 1
    assert like.of("", "late") == 0


def test_of_long_texts_only_the_beginning_is_compared() -> None:
    """Only the beginning of long texts is compared, because 100,000 words would stop the service for 12 s."""
    like = Similarity("texts")
    words = [f"w{n}" for n in range(100_000)]
    assert like.of(" ".join(words), " ".join([*words[:2000], *reversed(words[2000:])])) == 1
    assert like.of(" ".join(words), " ".join(reversed(words))) < 0.01
    assert like.of("a" * 40_000 + "b", "a" * 40_000 + "c") == 1


@given(st.lists(st.integers(-50, 50).map(str), min_size=4, max_size=30, unique=True))
def test_the_distance_of_numbers_fulfils_the_triangle_inequality(alone: list[str]) -> None:
    """The distance fulfils the triangle inequality, which the test above temperature 0 needs
    (`trials.odds`).
    """
    like = similarity_of(alone)
    for a, b, c in itertools.permutations(alone[:4], 3):
        assert (1 - like.of(a, c)) <= (1 - like.of(a, b)) + (1 - like.of(b, c)) + 1e-9
    assert not math.isnan(like.of(alone[0], alone[1]))


def test_a_label_wins_where_only_the_form_is_right() -> None:
    """Each label counts as a win only where the form alone is right, and as a loss only where
    isolation is.
    """
    gold = {0: "Yes", 1: "no", 2: "no", 3: "yes"}
    form = {0: "yes", 1: "yes", 2: "no ", 3: "no"}
    alone = {0: "no", 1: "no", 2: "no", 3: "no"}
    assert compare(form, alone, gold) == PairedCounts(1, 1, 4, "rows answered right")


def test_rows_without_gold_or_isolated_answer_are_left_out() -> None:
    """Rows without gold, also with blank gold, and rows without an isolated answer are left out."""
    pairs = compare({0: "a", 1: "a", 2: "a"}, {0: "b", 1: "b"}, {0: "a", 1: " ", 2: "a"})
    assert (pairs.wins, pairs.losses, pairs.compared) == (1, 0, 1)
    assert compare({}, {}, {}).compared == 0


def test_numbers_are_won_where_the_form_is_nearer() -> None:
    """The nearer number wins, an equal distance is neither, and the spelling does not count."""
    pairs = compare({0: "4", 1: "1", 2: "3.0"}, {0: "2", 1: "5", 2: "3"}, {0: "5", 1: "5", 2: "9"})
    assert (pairs.wins, pairs.losses, pairs.compared) == (1, 1, 3)


def test_ordered_words_are_compared_with_ratings_by_pairs() -> None:
    """Of two rows the better rated one must get the better word; equal ratings are no pair."""
    gold = {0: "1", 1: "5", 2: "4", 3: "2", 4: "3", 5: "3"}
    right = {0: "negative", 1: "positive", 2: "positive", 3: "neutral", 4: "neutral", 5: "negative"}
    flat = dict.fromkeys(gold, "positive")
    pairs = compare(right, flat, gold)
    assert (pairs.wins, pairs.losses, pairs.compared) == (2, 0, 2)
    turned = compare(flat, right, gold)
    assert (turned.wins, turned.losses) == (0, 2)


def test_a_schema_gives_an_order_to_words_that_have_none() -> None:
    """Without an order from a schema words are not compared with ratings, and the reason is given."""
    gold, form, alone = {0: "1", 1: "2"}, {0: "small", 1: "big"}, {0: "big", 1: "small"}
    assert compare(form, alone, gold, enum=["Small", "Big"]).wins == 1
    without = compare(form, alone, gold)
    assert without.compared == 0
    assert "without an order" in without.how
