"""Forms: which are faster, and what plan they come to."""

from __future__ import annotations

import pytest

from spoolama.effect.forms import ALONE, FASTER, FORMS, AloneCosts, faster, form_named, speed_of
from spoolama.job.plan import Plan

CACHED = AloneCosts(270, 47, 47, 4, 0.05, 0.05)
FORGOTTEN = AloneCosts(270, 270, 47, 4, 0.27, 0.05)


def test_where_the_prefix_is_cached_no_form_is_faster() -> None:
    """A conversation can only add context to rows that evaluate nothing but themselves."""
    assert faster(CACHED) == []
    assert all(speed_of(form, CACHED) <= 1 for form in FORMS)


def test_where_each_row_evaluates_the_prefix_longer_tails_are_faster() -> None:
    """More rows share what is evaluated once; anchors alone, evaluated for each row as well, are slower."""
    names = [form.name for form in faster(FORGOTTEN)]
    assert names == ["tail-20", "tail-5", "anchors-tail-5", "tail-1"]


def test_the_speed_of_a_tail_is_what_a_sum_by_hand_gives() -> None:
    """One row of two evaluates the 223 tokens of the prefix, at a millisecond each, behind 25 tokens more."""
    tail = form_named("tail-1")
    assert tail is not None
    context = 1 + 5e-5 * 51 / 2
    by_hand = (0.27 + 0.05) / (((47 + 223 / 2) * 0.001 + 0.05) * context)
    assert speed_of(tail, FORGOTTEN) == pytest.approx(by_hand)


def test_anchors_are_evaluated_with_the_prefix_where_that_is_not_cached() -> None:
    """Six rows of 51 tokens stand behind the 223 of the prefix, and all of it is shared by six rows."""
    anchored = form_named("anchors-tail-5")
    assert anchored is not None
    context = 1 + 5e-5 * (6 * 51 + 5 / 2 * 51)
    by_hand = (0.27 + 0.05) / (((47 + (223 + 6 * 51) / 6) * 0.001 + 0.05) * context)
    assert speed_of(anchored, FORGOTTEN) == pytest.approx(by_hand)


def test_a_gain_of_less_than_a_tenth_is_no_reason_to_try() -> None:
    """The limit is `FASTER`, and every form that is told is above it."""
    slight = AloneCosts(60, 60, 50, 40, 0.06, 0.5)
    assert all(speed_of(form, slight) < FASTER for form in FORMS)
    assert faster(slight) == []
    assert all(speed_of(form, FORGOTTEN) >= FASTER for form in faster(FORGOTTEN))


def test_without_costs_nothing_is_said_to_be_faster() -> None:
    """Unknown is not the same as fast."""
    assert faster(None) == []
    assert speed_of(FORMS[0], AloneCosts(0, 0, 0, 0, 0.0, 0.0)) == 1.0


def test_each_form_is_found_by_its_name_and_alone_is_none() -> None:
    """The names in a ledger lead back to the forms."""
    assert [form_named(form.name) for form in FORMS] == list(FORMS)
    assert form_named(ALONE) is None


def test_a_form_is_a_plan_in_which_a_row_sees_at_most_its_tail() -> None:
    """Tails begin anew after one row more than they show; anchors stand in front of all."""
    alone = Plan(1, 0, 200, "reset", 0.8, 0.5, every=1, keep=0)
    tail, anchored = form_named("tail-5"), form_named("anchors-tail-5")
    assert tail is not None
    assert anchored is not None
    plan = tail.plan(alone, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors) == ("reset", 6, ())
    plan = anchored.plan(alone, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors, plan.gold) == ("anchors", 6, (1, 2), True)
    assert plan.prefix_tokens == 9
