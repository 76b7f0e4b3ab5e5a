"""Gold: which of two answers agrees better with a known one."""

from __future__ import annotations

from spoolama.compare.likeness import Pairs, compare


def test_labels_spelled_as_gold_are_won_where_only_the_form_is_right() -> None:
    """Right and wrong, wrong and right, both right, both wrong: one win, one loss, four compared."""
    gold = {0: "Yes", 1: "no", 2: "no", 3: "yes"}
    form = {0: "yes", 1: "yes", 2: "no ", 3: "no"}
    alone = {0: "no", 1: "no", 2: "no", 3: "no"}
    assert compare(form, alone, gold) == Pairs(1, 1, 4, "rows answered right")


def test_rows_without_gold_or_without_an_answer_alone_are_left_out() -> None:
    """Blank gold counts as none."""
    pairs = compare({0: "a", 1: "a", 2: "a"}, {0: "b", 1: "b"}, {0: "a", 1: " ", 2: "a"})
    assert (pairs.wins, pairs.losses, pairs.compared) == (1, 0, 1)
    assert compare({}, {}, {}).compared == 0


def test_numbers_are_won_where_the_form_is_nearer() -> None:
    """Equally far is neither; a number may be spelled in several ways."""
    pairs = compare({0: "4", 1: "1", 2: "3.0"}, {0: "2", 1: "5", 2: "3"}, {0: "5", 1: "5", 2: "9"})
    assert (pairs.wins, pairs.losses, pairs.compared) == (1, 1, 3)


def test_ordered_words_against_ratings_are_judged_by_the_order_of_neighbours() -> None:
    """Of two rows the better rated one has to get the better word; equal ratings are no pair."""
    gold = {0: "1", 1: "5", 2: "4", 3: "2", 4: "3", 5: "3"}
    right = {0: "negative", 1: "positive", 2: "positive", 3: "neutral", 4: "neutral", 5: "negative"}
    flat = dict.fromkeys(gold, "positive")
    pairs = compare(right, flat, gold)
    assert (pairs.wins, pairs.losses, pairs.compared) == (2, 0, 2)
    turned = compare(flat, right, gold)
    assert (turned.wins, turned.losses) == (0, 2)


def test_a_schema_gives_an_order_to_words_that_have_none() -> None:
    """Without one nothing is compared, and it says why."""
    gold, form, alone = {0: "1", 1: "2"}, {0: "small", 1: "big"}, {0: "big", 1: "small"}
    assert compare(form, alone, gold, enum=["Small", "Big"]).wins == 1
    without = compare(form, alone, gold)
    assert without.compared == 0
    assert "without an order" in without.how
