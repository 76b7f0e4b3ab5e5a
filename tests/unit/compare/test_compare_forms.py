"""Forms: what plan they come to."""

from __future__ import annotations

from spoolama.compare.pilot import FORMS, ISOLATED, form_named
from spoolama.job.plan import Plan


def test_each_form_is_found_by_its_name_and_isolated_is_none() -> None:
    """The names in a ledger lead back to the forms."""
    assert [form_named(form.name) for form in FORMS] == list(FORMS)
    assert form_named(ISOLATED) is None


def test_a_form_is_a_plan_in_which_a_row_sees_at_most_its_tail() -> None:
    """Tails begin anew after one row more than they show; anchors stand in front of all."""
    isolated = Plan(1, 0, 200, "reset", 0.8, 0.5, every=1, keep=0)
    tail, anchored = form_named("tail-5"), form_named("anchors-tail-5")
    assert tail is not None
    assert anchored is not None
    plan = tail.plan(isolated, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors) == ("reset", 6, ())
    plan = anchored.plan(isolated, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors, plan.gold) == ("anchors", 6, (1, 2), True)
    assert plan.prefix_tokens == 9
