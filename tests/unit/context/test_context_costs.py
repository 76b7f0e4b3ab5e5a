"""Learned costs and marks: on machines whose true costs are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.context.costs import MIN_SAMPLES, CostModel, Sample, fit_costs
from spoolama.context.marks import MAX_EVERY, best_every, cost_per_row
from support.costed import MACHINES, Machine, around, compare, learn, simulate, sweep

machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)

costs = st.builds(
    CostModel,
    a=st.floats(0, 1),
    b=st.floats(0, 1e-2),
    c=st.floats(0, 1e-5),
    d=st.floats(0, 1e-1),
    e=st.floats(0, 1e-4),
)


def run(
    machine: Machine,
    rows: int = 64,
    keep: int = 20,
    every: int = 30,
    tokens: int = 200,
    seed: int = 1,
    sliding: bool = False,
) -> tuple[float, list[Sample]]:
    """One conversation behind 220 tokens, answers of 16."""
    return simulate(
        machine,
        rows=rows,
        keep=keep,
        every=every,
        turn_tokens=around(tokens, 16),
        answer_tokens=16,
        prefix=220,
        seed=seed,
        sliding=sliding,
    )


@machines
def test_without_noise_the_fit_finds_the_costs_themselves(machine: Machine) -> None:
    """Each of the five costs that makes up a part of the times is found within a tenth."""
    model = fit_costs(run(machine.quiet)[1]).model
    assert model is not None
    assert model.error < 0.005
    assert model.samples == 64
    for name in ("a", "b", "c", "d", "e"):
        assert getattr(model, name) == pytest.approx(getattr(machine.costs, name), rel=0.1), name


@machines
@pytest.mark.parametrize("seed", range(3))
def test_noise_and_stalls_hardly_move_the_fit(machine: Machine, seed: int) -> None:
    """At 20 % noise and 5 % stalls of tenfold time, 400 rows tell the cost of a token within a fifth."""
    model = fit_costs(run(machine, rows=400, seed=seed)[1]).model
    assert model is not None
    assert model.error < 0.2
    true = machine.costs
    for context in (500, 6000):
        assert model.b + model.c * context == pytest.approx(true.b + true.c * context, rel=0.2)
        assert model.answer_seconds(16, context) == pytest.approx(true.answer_seconds(16, context), rel=0.2)


@machines
@pytest.mark.parametrize("seed", range(3))
def test_few_noisy_rows_tell_what_a_row_takes(machine: Machine, seed: int) -> None:
    """From 64 rows, which leave single costs uncertain, the seconds a row takes are known within a tenth."""
    model = fit_costs(run(machine, seed=seed)[1]).model
    assert model is not None
    found, true = (cost_per_row(costs, 20, 30, 200, 16, 220) for costs in (model, machine.costs))
    assert found == pytest.approx(true, rel=0.1)


@machines
@pytest.mark.parametrize("keep", [5, 20, 50])
@pytest.mark.parametrize("tokens", [60, 400])
def test_learned_marks_cost_within_a_tenth_of_the_best_fixed_ones(
    machine: Machine, keep: int, tokens: int
) -> None:
    """What is learned from 64 noisy rows with safe marks costs at most 10 % more than the best of a sweep."""
    found = compare(machine, keep=keep, tokens=tokens, tried=sweep(1.5), rows=1280)
    assert found.ratio <= 1.10, found


def test_marks_are_learned_and_not_the_safe_ones() -> None:
    """Where the safe marks cost half as much again, the learned ones do not."""
    found = compare(MACHINES[0], keep=5, tokens=400, tried=sweep(1.5), rows=1280)
    assert found.safe > 1.3
    assert found.ratio < 1.05


@pytest.mark.parametrize("machine", MACHINES[1:], ids=lambda m: m.name)
def test_noise_that_hides_the_price_of_context_does_not_make_it_free(machine: Machine) -> None:
    """With these times the likeliest price is nothing, which would let the window grow for 1000 rows."""
    every, fit = learn(machine, rows=64, keep=20, tokens=60, answer_tokens=16, prefix=220, seed=6)
    assert fit.model is not None
    assert every < 100
    best = min(cost_per_row(machine.costs, 20, m, 60, 16, 220) for m in sweep(1.1))
    assert cost_per_row(machine.costs, 20, every, 60, 16, 220) <= 1.1 * best


def sample(evaluated: int, cached: int, seconds: float = 0.1) -> Sample:
    """A request with an answer of 16 tokens."""
    return Sample(evaluated, cached, 16, seconds, 0.2)


chance = random.Random(7)
POOR = {
    f"only {MIN_SAMPLES - 1} requests could be measured": [
        sample(40 + n, 100 * n) for n in range(MIN_SAMPLES - 1)
    ],
    "only 0 requests could be measured": [sample(40 + n, 100 * n, 0.0) for n in range(64)],
    "evaluated about the same number of tokens": [sample(40 + n % 3, 100 * n) for n in range(64)],
    "about the same number of tokens before": [sample(20 + n, 9000 - n) for n in range(64)],
    "the times are off by": [
        sample(20 + n, 100 * n, 10 ** chance.uniform(-2, 3)) for n in range(64)
    ],  # nothing of the counts is in them
}


@pytest.mark.parametrize(("words", "samples"), POOR.items(), ids=POOR)
def test_poor_data_gives_no_model_but_a_reason_in_words(words: str, samples: list[Sample]) -> None:
    """Nothing is learned where the data cannot tell, and the reason says what was missing."""
    fit = fit_costs(samples)
    assert fit.model is None
    assert words in fit.reason


def test_a_model_comes_back_from_json_as_it_was() -> None:
    """What is written down is read again, and anything else is refused."""
    model = replace(MACHINES[0].costs, samples=64, error=0.1)
    assert CostModel.from_json(model.to_json()) == model
    with pytest.raises(ValueError, match="error"):
        CostModel.from_json({k: v for k, v in model.to_json().items() if k != "error"})


@given(
    costs, st.integers(0, 200), st.integers(0, 200), st.floats(1, 2000), st.floats(0, 1), st.floats(0, 1e4)
)
def test_best_marks_are_in_bounds_and_grow_with_what_is_kept(
    model: CostModel, keep: int, more: int, turn: float, share: float, prefix: float
) -> None:
    """From 1 to 1000 rows, never fewer where a trim keeps more rows."""

    def best(kept: int) -> int:
        return best_every(
            model, keep=kept, turn_tokens=turn, answer_tokens=share * turn, prefix_tokens=prefix
        )

    assert 1 <= best(keep) <= best(keep + more) <= MAX_EVERY


@given(costs, st.integers(1, 200), st.floats(20, 2000), st.floats(0, 1), st.floats(0, 1e4))
def test_best_marks_cost_less_than_rarer_and_more_frequent_trims(
    model: CostModel, keep: int, turn: float, share: float, prefix: float
) -> None:
    """A fifth more or fewer rows between two trims never cost less a row."""
    answer = share * turn
    best = best_every(model, keep=keep, turn_tokens=turn, answer_tokens=answer, prefix_tokens=prefix)
    if not 10 <= best < MAX_EVERY:
        return  # one row is more than a fifth, or the bound decides
    at_best = cost_per_row(model, keep, best, turn, answer, prefix)
    for other in (round(best / 1.2), round(best * 1.2)):
        assert at_best <= cost_per_row(model, keep, other, turn, answer, prefix) * (1 + 1e-9)


def test_where_context_is_free_trims_are_as_rare_as_can_be() -> None:
    """With c and e at 0 nothing speaks for a trim."""
    free = CostModel(a=0.01, b=1e-3, c=0.0, d=1e-2, e=0.0)
    assert best_every(free, keep=20, turn_tokens=60, answer_tokens=16, prefix_tokens=200) == MAX_EVERY


@machines
def test_the_reckoned_cost_is_what_the_simulation_takes(machine: Machine) -> None:
    """Over whole periods of rows of one length the formula and the simulated server agree."""

    def seconds(rows: int) -> float:
        return simulate(
            machine.quiet,
            rows=rows,
            keep=20,
            every=30,
            turn_tokens=lambda _: 200,
            answer_tokens=16,
            prefix=220,
            seed=1,
        )[0]

    periods = (seconds(50 + 10 * 30) - seconds(50)) / 300  # the first trim comes before the 51st row
    assert periods == pytest.approx(cost_per_row(machine.costs, 20, 30, 200, 16, 220), rel=1e-6)


@pytest.mark.parametrize("sliding", [False, True])
def test_the_simulated_cache_keeps_the_longest_beginning(sliding: bool) -> None:
    """A row evaluates its own tokens, after a trim the kept rows too; with sliding attention everything."""
    _, samples = simulate(
        MACHINES[0],
        rows=9,
        keep=2,
        every=3,
        turn_tokens=lambda _: 50,
        answer_tokens=10,
        prefix=100,
        seed=1,
        sliding=sliding,
    )
    after = (240, 0) if sliding else (140, 100)
    own = [(40, 100 + 50 * n) for n in range(1, 5)]
    assert [(s.evaluated, s.cached) for s in samples] == [(140, 0), *own, after, *own[2:], after]


def test_the_same_seed_gives_the_same_rows_whatever_the_noise() -> None:
    """Noise moves the times alone, so that a quiet run judges the same rows."""
    noisy, quiet = run(MACHINES[0])[1], run(MACHINES[0].quiet)[1]
    assert [s.evaluated for s in noisy] == [s.evaluated for s in quiet]
    assert run(MACHINES[0])[1] == noisy
    assert noisy != quiet
