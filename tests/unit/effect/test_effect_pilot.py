"""Pilot: what it asks, what it decides, and that neither budget nor interruptions change it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.effect.forms import AGAIN, ALONE, FORMS, AloneCosts
from spoolama.effect.pilot import next_step
from spoolama.effect.sample import Decision, Rules, Seen, Step, again_rows
from unit.effect.pilot_bench import CACHED, FORGOTTEN, WORDS, Run, Says, plain, rules_of, run


def follows(share: float) -> Says:
    """In every form so many rows are answered otherwise than alone; which ones follows from the row."""

    def says(kind: str, n: int) -> str:
        moved = kind not in (ALONE, AGAIN) and random.Random(f"{kind} {n}").random() < share
        return WORDS[(n * 7 + 1) % 3] if moved else plain(kind, n)

    return says


def test_a_faster_form_that_changes_nothing_is_chosen_on_proof() -> None:
    """The fastest one, within the 200 answers that a job of 10,000 rows has."""
    decision = run(rules_of())
    assert (decision.form, decision.why) == ("tail-20", "no_harm")
    assert decision.asked <= 200
    (tried,) = decision.tried
    assert (tried.proof, tried.harm, tried.agreement, tried.rows) == (True, False, 1.0, 76)
    assert tried.conversations == 4
    assert decision.floor == 1.0
    assert decision.floor_rows == 16


def test_a_form_that_changes_answers_is_refused_and_the_pilot_ends_early() -> None:
    """One block tells; the rest of the answers is saved."""
    decision = run(rules_of(), follows(0.5))
    assert (decision.form, decision.why, decision.asked) == (ALONE, "no_proof", 44)
    assert decision.tried[0].harm


def test_where_no_proof_can_come_any_more_no_more_is_asked() -> None:
    """A single row that differs is too many for 200 answers, but not for 400."""

    def one(kind: str, n: int) -> str:
        other = kind == "tail-20" and n in odd
        return "else" if other else plain(kind, n)

    odd = {rules_of().blocks[0][5]}
    assert (run(rules_of(), one).why, run(rules_of(), one).asked) == ("no_proof", 44)
    odd = {rules_of(400).blocks[0][5]}
    decision = run(rules_of(400), one)
    assert (decision.why, decision.tried[0].agreement < 1) == ("no_harm", True)


def test_where_nothing_is_faster_nothing_is_tried() -> None:
    """Without gold the only thing to gain is speed; that costs are unknown is told apart."""
    slow = run(rules_of(), costs=CACHED)
    unknown = run(rules_of(), costs=None)
    assert (slow.form, slow.why, slow.asked, slow.tried) == (ALONE, "none_faster", 24, ())
    assert (unknown.form, unknown.why) == (ALONE, "costs_unknown")


@pytest.mark.parametrize("asks", [0, 20, 43])
def test_a_sample_too_small_for_one_block_asks_nothing(asks: int) -> None:
    """24 answers alone and 20 in a form are the least."""
    decision = run(rules_of(asks))
    assert (decision.why, decision.asked) == ("too_small", 0)


def test_at_a_temperature_above_0_a_small_sample_tries_no_form_in_vain() -> None:
    """Noise takes more rows than it has: it says so after the block that told the costs."""
    decision = run(rules_of(noisy=True))
    assert (decision.form, decision.why, decision.asked, decision.tried) == (ALONE, "too_small", 40, ())


def rolled(kind: str, n: int) -> str:
    """One answer of six is another one, alone or not."""
    rng = random.Random(f"{kind} {n}")
    return rng.choice(WORDS) if rng.random() < 0.25 else plain(kind, n)


def test_at_a_temperature_above_0_a_large_sample_proves_what_changes_nothing() -> None:
    """Agreement with alone is no better than that of alone with itself, and that is enough."""
    decision = run(rules_of(4000, total=200_000, noisy=True), rolled)
    assert decision.why == "no_harm"
    assert decision.floor is not None
    assert decision.floor < 0.9
    chosen = next(one for one in decision.tried if one.form == decision.form)
    assert chosen.agreement < 0.9
    assert chosen.proof


def test_at_a_temperature_above_0_harm_beyond_the_noise_is_refused() -> None:
    """20 points below the floor are not taken for noise."""

    def worse(kind: str, n: int) -> str:
        moved = kind not in (ALONE, AGAIN) and random.Random(f"more {n}").random() < 0.3
        return "positive" if moved else rolled(kind, n)

    decision = run(rules_of(4000, total=200_000, noisy=True), worse)
    assert (decision.form, decision.why) == (ALONE, "no_proof")


@pytest.mark.parametrize("share", [0.05, 0.10])
def test_harm_at_the_margin_or_beyond_is_accepted_in_at_most_five_percent(share: float) -> None:
    """200 jobs with 900 answers each, three forms on trial at once; at 10 points hardly one."""
    wrong = sum(
        run(rules_of(900, total=45_000, seed=seed), follows(share)).why == "no_harm" for seed in range(200)
    )
    assert wrong <= (200 * 0.05 if share == 0.05 else 2)


def test_larger_samples_try_more_forms_and_correct_for_their_number() -> None:
    """Three at 900 answers; each then needs odds three times as high, so 65 rows are not enough."""
    decision = run(rules_of(900, total=45_000))
    assert {one.form for one in decision.tried} == {"tail-20", "tail-5", "anchors-tail-5"}
    assert decision.form == "tail-20"
    assert decision.tried[0].rows > 80


def test_where_the_fastest_does_harm_the_next_one_is_chosen() -> None:
    """Only the long tail changes answers."""

    def says(kind: str, n: int) -> str:
        return "positive" if kind == "tail-20" else plain(kind, n)

    decision = run(rules_of(900, total=45_000), says)
    assert (decision.form, decision.why) == ("tail-5", "no_harm")
    assert {one.form: one.harm for one in decision.tried}["tail-20"]


def right(n: int) -> str:
    """Known answers: alone gives them in two rows of three."""
    return WORDS[(n * 7 + (n % 3 == 0)) % 3]


def test_with_gold_a_form_that_agrees_better_is_chosen_though_it_is_slower() -> None:
    """Anchors that teach, on a server where nothing is faster than alone."""

    def says(kind: str, n: int) -> str:
        return right(n) if kind == "anchors" else plain(kind, n)

    decision = run(rules_of(gold=True), says, gold=right, costs=CACHED)
    assert (decision.form, decision.why) == ("anchors", "better")
    (tried,) = decision.tried
    assert tried.better
    assert tried.wins > tried.losses == 0
    assert tried.how == "rows answered right"


def test_with_gold_the_best_of_all_forms_has_to_prove_itself_on_fresh_rows() -> None:
    """A large sample looks at all five; what it selected by is not counted as proof."""

    def says(kind: str, n: int) -> str:
        return right(n) if kind in ("anchors", "tail-1") and (kind == "anchors" or n % 2) else plain(kind, n)

    pilot = Run(rules_of(1200, total=60_000, gold=True), says, right, CACHED)
    decision = pilot.to_end()
    assert (decision.form, decision.why) == ("anchors", "better")
    assert {one.form for one in decision.tried} == {form.name for form in FORMS}
    looked = sum(any(kind == "tail-20" for kind in step.kinds) for step in pilot.steps)
    chosen = next(one for one in decision.tried if one.form == "anchors")
    assert chosen.compared <= len(pilot.labels["anchors"]) - 20 * looked


def test_with_gold_a_faster_form_that_does_no_harm_is_chosen_as_well() -> None:
    """Known answers take nothing from what could be proved without them."""
    decision = run(rules_of(gold=True), gold=right)
    assert (decision.form, decision.why) == ("tail-20", "no_harm")


def test_with_gold_a_form_that_is_no_better_and_no_faster_is_given_up() -> None:
    """After some 40 rows, with answers left."""
    decision = run(rules_of(gold=True), gold=right, costs=CACHED)
    assert (decision.form, decision.why) == (ALONE, "no_proof")
    assert decision.asked < 150


def test_forms_that_are_no_better_on_gold_are_accepted_in_at_most_five_percent() -> None:
    """200 jobs in which every form answers at random, as alone does: it wins as often as it loses."""

    def says(seed: int) -> Says:
        return lambda kind, n: random.Random(f"{seed} {kind if kind != AGAIN else ALONE} {n}").choice(WORDS)

    wrong = 0
    for seed in range(200):
        rules = rules_of(1200, total=60_000, gold=True, seed=seed)
        wrong += run(rules, says(seed), gold=right, costs=CACHED).why == "better"
    assert wrong <= 10


def test_gold_that_is_blank_spends_no_answers_in_vain() -> None:
    """Nothing can be compared, so the form is given up like one that is no better."""
    decision = run(rules_of(2000, total=100_000, gold=True), gold=lambda n: "", costs=CACHED)
    assert decision.why == "no_proof"
    assert decision.asked < 900


jobs = st.fixed_dictionaries(
    {
        "asks": st.integers(0, 700),
        "total": st.integers(1, 40_000),
        "noisy": st.booleans(),
        "gold": st.booleans(),
        "seed": st.integers(0, 5),
        "left": st.booleans(),
        "barren": st.booleans(),
        "longest": st.sampled_from([0, 0, 1, 2, 6, 20]),
    }
)


def random_pilot(job: dict[str, int], share: float, flip: int) -> Run:
    """A pilot whose answers change here and there, on a server of either kind."""
    rules = rules_of(
        job["asks"],
        total=job["total"],
        noisy=bool(job["noisy"]),
        gold=bool(job["gold"]),
        seed=job["seed"],
        longest=job["longest"] or None,
    )
    costs = (None, CACHED, FORGOTTEN)[flip]
    left = strays(rules, "tail-5", 7) if job["left"] else {}
    known = right if job["gold"] else None
    return Run(rules, follows(share), known, costs, left=left, barren=bool(job["barren"]))


@settings(max_examples=60, deadline=None)
@given(jobs, st.sampled_from([0.0, 0.01, 0.1, 0.6]), st.integers(0, 2))
def test_a_pilot_ends_and_never_takes_more_answers_than_it_may(
    job: dict[str, int], share: float, flip: int
) -> None:
    """Whatever the job, the server and the answers; and what it says it took is what it took."""
    pilot = random_pilot(job, share, flip)
    decision = pilot.to_end()
    assert pilot.asked <= job["asks"]
    assert decision.asked == pilot.asked
    assert decision.form == ALONE or decision.why in ("no_harm", "better")


@settings(max_examples=40, deadline=None)
@given(jobs, st.sampled_from([0.0, 0.01, 0.1]), st.integers(1, 2), st.integers(0, 99))
def test_a_pilot_that_is_interrupted_anywhere_decides_the_same(
    job: dict[str, int], share: float, flip: int, seed: int
) -> None:
    """In the middle of a block, between its forms, again and again: the same decision."""
    whole = random_pilot(job, share, flip).to_end()
    again = random_pilot(job, share, flip).to_end(random.Random(seed))
    assert again == whole


@pytest.mark.parametrize("costs", [CACHED, FORGOTTEN])
def test_no_budget_is_too_small_to_be_kept(costs: AloneCosts) -> None:
    """The answers of which anchors are chosen are counted before they are asked."""
    for asks in range(40, 150):
        pilot = Run(rules_of(asks, gold=True), follows(0.01), right, costs)
        assert pilot.to_end().asked == pilot.asked <= asks


def test_several_forms_on_trial_are_finished_before_one_is_chosen() -> None:
    """The service dies between two forms of a block that proves one of them: the block is finished first."""
    for seed in range(12):
        pilots = [Run(rules_of(900, total=45_000, seed=seed), follows(0.002)) for _ in range(2)]
        assert pilots[0].to_end() == pilots[1].to_end(random.Random(seed))


def test_what_a_begun_block_says_does_not_change_how_it_goes_on() -> None:
    """Half of a form's answers are there when the service dies: the whole block is asked all the same."""
    pilot = Run(rules_of(), plain)
    pilot.ask(0, ALONE)
    pilot.ask(0, AGAIN)
    pilot.ask(0, "tail-20")
    pilot.ask(1, ALONE)
    pilot.ask(1, AGAIN)
    pilot.says = lambda kind, n: "else"
    pilot.ask(1, "tail-20", 12)
    assert pilot.next() == Step((1,), ("tail-20",))


def test_rows_that_got_no_answer_are_left_out() -> None:
    """A block counts as done though some of its rows failed."""
    rules = rules_of()
    lost = {block[3] for block in rules.blocks}
    pilot = Run(rules, plain)
    while isinstance(step := pilot.next(), Step):
        for kind in step.kinds:
            pilot.ask(step.blocks[0], kind)
            for n in lost:
                pilot.labels[kind].pop(n, None)
    assert isinstance(step, Decision)
    assert step.why == "no_harm"
    assert step.tried[0].rows == 72


def strays(rules: Rules, kind: str, place: int) -> dict[str, frozenset[int]]:
    """In each block one row leaves its conversation."""
    return {kind: frozenset(block[place % len(block)] for block in rules.blocks)}


@pytest.mark.parametrize("answered", [True, False])
def test_rows_that_left_their_conversation_count_against_the_form(answered: bool) -> None:
    """Answered apart they are as alone would have them, which says nothing of the conversation."""
    rules = rules_of(400)
    left = strays(rules, "tail-20", 5)
    pilot = Run(rules, plain, left=left)
    while isinstance(step := pilot.next(), Step):
        for kind in step.kinds:
            pilot.ask(step.blocks[0], kind)
            for n in left.get(kind, ()) if not answered else ():
                pilot.labels[kind].pop(n, None)
    decision = step
    assert (decision.form, decision.why) == (ALONE, "no_proof")
    assert decision.tried[0].agreement == pytest.approx(18 / 19, abs=1e-4)


def test_a_row_that_sees_none_may_be_repaired() -> None:
    """The first of a conversation is asked as alone; what becomes of it says nothing of the form."""
    rules = rules_of()
    assert run(rules, left=strays(rules, "tail-20", 0)).why == "no_harm"


def test_rows_that_left_their_conversation_are_lost_on_gold() -> None:
    """A form that wins wherever it answers, and leaves as many rows, is not better."""

    def says(kind: str, n: int) -> str:
        return right(n) if kind == "anchors" else plain(kind, n)

    rules = rules_of(gold=True)
    left = {"anchors": frozenset(n for block in rules.blocks for n in block if n % 3 == 1)}
    decision = run(rules, says, gold=right, costs=CACHED, left=left)
    assert (decision.form, decision.why) == (ALONE, "no_proof")
    (tried,) = decision.tried
    assert abs(tried.wins - tried.losses) <= 3
    assert tried.compared == tried.rows


def test_forms_that_segments_are_too_short_for_are_not_tried() -> None:
    """A segment of 20 rows has 19 before its last one; where nothing is left that is faster, it is said."""
    assert run(rules_of(longest=21)).form == "tail-20"
    assert run(rules_of(longest=20)).form == "tail-5"
    assert run(rules_of(longest=2)).form == "tail-1"
    short = run(rules_of(longest=1))
    assert (short.form, short.why, short.tried) == (ALONE, "none_fits", ())
    assert run(rules_of(longest=1), costs=CACHED).why == "none_faster"
    assert run(rules_of(longest=1), costs=None).why == "costs_unknown"
    only = run(rules_of(longest=1, gold=True), gold=right)
    assert [one.form for one in only.tried] == ["anchors"]


def test_where_no_anchors_fit_the_other_forms_are_tried() -> None:
    """The candidates were asked all the same, and are counted."""
    pilot = Run(rules_of(400, gold=True), plain, right, CACHED, barren=True)
    decision = pilot.to_end()
    assert pilot.no_anchors
    assert decision.tried
    assert not any(one.form.startswith("anchors") for one in decision.tried)
    assert decision.asked == pilot.asked <= 400
    nothing = Run(rules_of(gold=True, longest=1), plain, right, barren=True).to_end()
    assert (nothing.form, nothing.why) == (ALONE, "none_fits")


def test_one_conversation_in_ten_that_locks_is_often_called_harmless() -> None:
    """What no bound holds for, and the README says: rows of one conversation lean on one another."""

    def locks(seed: int) -> Says:
        starts: dict[int, int] = {}
        rules = rules_of(seed=seed)
        for block in rules.blocks:
            starts.update(dict.fromkeys(block, block[0]))

        def says(kind: str, n: int) -> str:
            lone = kind in (ALONE, AGAIN) or n == starts[n]
            locked = not lone and random.Random(f"{seed} {starts[n]}").random() < 0.1
            return WORDS[0] if locked else plain(kind, n)

        return says

    wrong = sum(run(rules_of(seed=seed), locks(seed)).why == "no_harm" for seed in range(100))
    assert 50 <= wrong <= 80


def test_a_decision_is_plain_json() -> None:
    """For the ledger and metrics.json."""
    import json

    told = json.loads(json.dumps(run(rules_of()).to_json()))
    assert told["form"] == "tail-20"
    assert told["tried"][0]["proof"] is True


def test_nothing_to_ask_is_decided_at_once() -> None:
    """A job without blocks has no pilot."""
    decision = next_step(Rules((), 0, 0.05, False, False), Seen({}, {}))
    assert isinstance(decision, Decision)
    assert decision.why == "too_small"
    assert again_rows(range(20), rules_of(noisy=True)) == list(range(20))
