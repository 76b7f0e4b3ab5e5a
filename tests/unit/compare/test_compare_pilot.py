"""The pilot: its forms, its sample, and which form it chooses."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.compare.pilot import (
    BLOCK,
    FORMS,
    ISOLATED,
    Decision,
    PilotAnswers,
    PilotRules,
    Step,
    blocks_of,
    form_named,
    least_answers,
    next_step,
)
from spoolama.job.plan import Plan
from unit.compare.pilot_bench import WORDS, Run, Says, plain, right, rules_of, run


def taught(*forms: str, share: float = 1.0) -> Says:
    """In these forms this share of the rows is answered as gold, chosen by the row."""

    def says(kind: str, n: int) -> str:
        learned = kind in forms and random.Random(f"{kind} {n}").random() < share
        return right(n) if learned else plain(kind, n)

    return says


def follows(share: float) -> Says:
    """In every form this share of the rows differs from isolation, whatever gold says."""

    def says(kind: str, n: int) -> str:
        moved = kind != ISOLATED and random.Random(f"{kind} {n}").random() < share
        return WORDS[(n * 7 + 1) % 3] if moved else plain(kind, n)

    return says


def test_a_form_that_agrees_better_is_chosen_on_proof() -> None:
    """Anchors are tried first; a small sample has room for no other form, and all its rows count as proof."""
    decision = run(rules_of(), taught("anchors"))
    assert (decision.form, decision.why) == ("anchors", "better")
    assert decision.asked <= 200
    (tried,) = decision.tried
    assert tried.better
    assert tried.wins > tried.losses == 0
    assert tried.how == "rows answered right"
    assert tried.compared == tried.rows


def test_the_best_of_all_forms_has_to_prove_itself_on_fresh_rows() -> None:
    """A large sample tries all five forms, and rows that selected the form do not count as proof."""

    def says(kind: str, n: int) -> str:
        return right(n) if kind == "anchors" or (kind == "tail-1" and n % 2) else plain(kind, n)

    pilot = Run(rules_of(1200, total=60_000), says)
    decision = pilot.to_end()
    assert (decision.form, decision.why) == ("anchors", "better")
    assert {one.form for one in decision.tried} == {form.name for form in FORMS}
    looked = sum(any(kind == "tail-20" for kind in step.kinds) for step in pilot.steps)
    chosen = next(one for one in decision.tried if one.form == "anchors")
    assert chosen.compared <= len(pilot.labels["anchors"]) - 20 * looked


def test_a_form_that_is_no_better_is_given_up() -> None:
    """A form that is no better is dropped after about 40 rows, with answers left."""
    decision = run(rules_of())
    assert (decision.form, decision.why) == (ISOLATED, "no_proof")
    assert decision.asked < 150


def test_forms_that_are_no_better_are_accepted_in_at_most_5_percent_of_jobs() -> None:
    """If every form answers at random like isolated rows, at most 5 % of 200 jobs accept one."""

    def says(seed: int) -> Says:
        return lambda kind, n: random.Random(f"{seed} {kind} {n}").choice(WORDS)

    wrong = sum(
        run(rules_of(1200, total=60_000, seed=seed), says(seed)).why == "better" for seed in range(200)
    )
    assert wrong <= 10


def test_blank_gold_wastes_no_answers() -> None:
    """If gold is blank, the form is dropped like one that is no better."""
    decision = run(rules_of(2000, total=100_000), gold=lambda n: "")
    assert decision.why == "no_proof"
    assert decision.asked < 900


@pytest.mark.parametrize("asks", [0, 20, 39])
def test_a_sample_too_small_for_one_block_asks_nothing(asks: int) -> None:
    """A pilot needs at least 20 isolated answers and 20 in a form."""
    decision = run(rules_of(asks))
    assert (decision.why, decision.asked) == ("too_small", 0)


def test_the_minimum_sample_is_reported() -> None:
    """The minimum is two blocks in a form without anchors, plus the candidates for segments of one row."""
    assert (least_answers(10_000, None), least_answers(10_000, 1)) == (40, 64)
    assert (least_answers(7, None), least_answers(6, None)) == (38, None)
    assert run(rules_of(64, longest=1), taught("anchors")).why == "better"


jobs = st.fixed_dictionaries(
    {
        "asks": st.integers(0, 700),
        "total": st.integers(1, 40_000),
        "seed": st.integers(0, 5),
        "left": st.booleans(),
        "barren": st.booleans(),
        "longest": st.sampled_from([0, 0, 1, 2, 6, 20]),
    }
)
answers = st.sampled_from([plain, follows(0.1), follows(0.6), taught("anchors"), taught("tail-5", share=0.5)])


def random_pilot(job: dict[str, int], says: Says) -> Run:
    """A pilot of random size whose answers change at random."""
    rules = rules_of(job["asks"], total=job["total"], seed=job["seed"], longest=job["longest"] or None)
    left = strays(rules, "tail-5", 7) if job["left"] else {}
    return Run(rules, says, left=left, barren=bool(job["barren"]))


@settings(max_examples=60, deadline=None)
@given(jobs, answers)
def test_a_pilot_ends_within_its_budget(job: dict[str, int], says: Says) -> None:
    """A pilot ends within its budget and reports the answers that it took."""
    pilot = random_pilot(job, says)
    decision = pilot.to_end()
    assert pilot.asked <= job["asks"]
    assert decision.asked == pilot.asked
    assert decision.form == ISOLATED or decision.why == "better"


@settings(max_examples=60, deadline=None)
@given(jobs, answers, st.integers(0, 99))
def test_a_pilot_that_is_interrupted_anywhere_decides_the_same(
    job: dict[str, int], says: Says, seed: int
) -> None:
    """A pilot interrupted in blocks and between forms makes the same decision."""
    whole = random_pilot(job, says).to_end()
    assert random_pilot(job, says).to_end(random.Random(seed)) == whole


def test_every_budget_is_kept() -> None:
    """Answers for the choice of anchors count against the budget before they are asked."""
    for asks in range(40, 150):
        pilot = Run(rules_of(asks), follows(0.01))
        assert pilot.to_end().asked == pilot.asked <= asks


def test_a_block_that_has_begun_is_asked_completely() -> None:
    """If the service dies inside a block, the whole block is asked after the restart."""
    pilot = Run(rules_of(), plain)
    for kind in (ISOLATED, "anchors"):
        pilot.ask(0, kind)
    pilot.ask(1, ISOLATED)
    pilot.says = lambda kind, n: right(n)
    pilot.ask(1, "anchors", 12)
    assert pilot.next() == Step(1, ("anchors",))


def test_answers_of_earlier_versions_are_ignored() -> None:
    """Answers that an earlier version asked twice in isolation are ignored."""
    pilot = Run(rules_of(), taught("anchors"))
    pilot.ask(0, ISOLATED)
    pilot.done.append((0, "again"))
    assert pilot.next() == Step(0, ("anchors",))
    assert pilot.to_end().form == "anchors"


def strays(rules: PilotRules, kind: str, place: int) -> dict[str, frozenset[int]]:
    """In each block one row leaves its conversation."""
    return {kind: frozenset(block[place % len(block)] for block in rules.blocks)}


def test_rows_that_left_their_conversation_are_lost() -> None:
    """A form that wins wherever it answers but loses as many rows is not better."""
    rules = rules_of()
    left = {"anchors": frozenset(n for block in rules.blocks for n in block if n % 3 == 1)}
    decision = run(rules, taught("anchors"), left=left)
    assert (decision.form, decision.why) == (ISOLATED, "no_proof")
    (tried,) = decision.tried
    assert abs(tried.wins - tried.losses) <= 3
    assert tried.compared == tried.rows


def test_a_failure_without_visible_rows_does_not_count_for_the_form() -> None:
    """The first row of a conversation is asked as in isolation, so its failure does not count
    for the form.
    """
    rules = rules_of(300, longest=2)
    says = taught("tail-1")
    assert run(rules, says, left=strays(rules, "tail-1", 0), barren=True).form == "tail-1"


def test_forms_that_segments_are_too_short_for_are_not_tried() -> None:
    """Segments of 20 rows have at most 19 visible rows, and segments of one row allow only anchors."""
    large = {"asks": 1200, "total": 60_000}
    for longest, forms in ((21, 5), (20, 4), (2, 2), (1, 1)):
        tried = run(rules_of(**large, longest=longest)).tried
        assert [one.form for one in tried] == [form.name for form in FORMS if form.tail < longest], longest
        assert len(tried) <= forms


def test_where_no_anchors_fit_the_other_forms_are_tried() -> None:
    """If no anchors fit, the other forms are tried, and the candidates count against the budget."""
    pilot = Run(rules_of(400), plain, barren=True)
    decision = pilot.to_end()
    assert pilot.no_anchors
    assert decision.tried
    assert not any(one.form.startswith("anchors") for one in decision.tried)
    assert decision.asked == pilot.asked <= 400
    nothing = Run(rules_of(longest=1), plain, barren=True).to_end()
    assert (nothing.form, nothing.why) == (ISOLATED, "none_fits")


def test_a_decision_is_plain_json() -> None:
    """A decision can be stored as JSON in the ledger and in metrics.json."""
    noted = json.loads(json.dumps(run(rules_of(), taught("anchors")).to_json()))
    assert noted["form"] == "anchors"
    assert noted["tried"][0]["better"] is True


def test_nothing_to_ask_is_decided_at_once() -> None:
    """A job without blocks has no pilot."""
    decision = next_step(PilotRules((), 0), PilotAnswers({}, {}))
    assert isinstance(decision, Decision)
    assert decision.why == "too_small"


def test_each_form_is_found_by_its_name_and_isolated_is_none() -> None:
    """Every name in a ledger leads back to its form, and isolated is not a form."""
    assert [form_named(form.name) for form in FORMS] == list(FORMS)
    assert form_named(ISOLATED) is None


def test_a_form_is_a_plan_in_which_a_row_sees_at_most_its_tail() -> None:
    """A tail restarts after one row more than it shows, and anchors precede every row."""
    isolated = Plan(1, 0, 200, "reset", 0.8, 0.5, every=1, keep=0)
    tail, anchored = form_named("tail-5"), form_named("anchors-tail-5")
    assert tail is not None
    assert anchored is not None
    plan = tail.plan(isolated, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors) == ("reset", 6, ())
    plan = anchored.plan(isolated, (1, 2), gold=True, prefix_tokens=9)
    assert (plan.strategy, plan.every, plan.anchors, plan.gold) == ("anchors", 6, (1, 2), True)
    assert plan.prefix_tokens == 9


@given(st.integers(1, 5000), st.integers(0, 2000), st.integers(0, 9))
def test_blocks_lie_within_the_file_and_share_no_row(total: int, asks: int, seed: int) -> None:
    """Blocks are up to 20 consecutive rows, disjoint, at least one, and as many as the budget allows."""
    blocks = blocks_of(total, asks, seed)
    rows = [n for block in blocks for n in block]
    assert len(set(rows)) == len(rows)
    assert min(rows) >= 0
    assert max(rows) < total
    assert all(b == a + 1 for block in blocks for a, b in pairwise(block))
    assert {len(block) for block in blocks} == {min(BLOCK, total)}
    assert 1 <= len(blocks) <= max(1, asks // (2 * BLOCK))
    assert blocks == blocks_of(total, asks, seed), "a resume has the same ones"


def test_blocks_are_spread_over_the_file_and_come_in_no_order() -> None:
    """Blocks lie in each fifth of the file in random order, so that an early end has not seen only the
    beginning.
    """
    blocks = blocks_of(10_000, 200, 4)
    assert sorted(block[0] // 2000 for block in blocks) == [0, 1, 2, 3, 4]
    orders = {tuple(block[0] // 2000 for block in blocks_of(10_000, 200, seed)) for seed in range(10)}
    assert len(orders) > 5
