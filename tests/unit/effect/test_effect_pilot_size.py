"""How large a pilot must be, held against pilots that are run."""

from __future__ import annotations

import pytest

from spoolama.effect.forms import ALONE, FORMS
from spoolama.effect.pilot_size import pilot_size
from unit.effect.pilot_bench import CACHED, FORGOTTEN, WORDS, Run, plain, rules_of, run


@pytest.mark.parametrize(
    ("margin", "noisy", "total", "least"),
    [(0.05, False, 10_000, 176), (0.2, False, 10_000, 44), (0.1, False, 10_000, 88), (0.05, False, 80, 176)],
)
def test_with_the_least_answers_a_form_can_be_proved_and_with_one_less_it_cannot(
    margin: float, noisy: bool, total: int, least: int
) -> None:
    """Where no answer differs at all: nobody is told to spend more than may do, or less than can."""
    assert pilot_size(total, margin=margin, noisy=noisy, gold=False, longest=None).least == least
    enough = run(rules_of(least, total=total, margin=margin, noisy=noisy))
    short = run(rules_of(least - 1, total=total, margin=margin, noisy=noisy))
    assert (enough.why, enough.asked) == ("no_harm", least)
    assert short.form == ALONE


def test_at_a_temperature_above_0_less_than_the_least_proves_nothing() -> None:
    """There every row is answered alone twice; the least is that of the cheapest form, not of the fastest."""
    least = pilot_size(10_000, margin=0.05, noisy=True, gold=False, longest=None).least
    assert least == 264
    assert run(rules_of(least - 1, noisy=True)).form == ALONE
    assert run(rules_of(300, noisy=True)).why == "no_harm"


def test_known_answers_may_decide_with_one_block() -> None:
    """Seven that only the form meets are proof; with one answer less no block is asked at all."""

    def better(kind: str, n: int) -> str:
        return WORDS[1] if kind in {form.name for form in FORMS} else WORDS[0]

    def decided(asks: int) -> str:
        return Run(rules_of(asks, gold=True), better, gold=lambda n: WORDS[1]).to_end().why

    assert pilot_size(10_000, margin=0.05, noisy=False, gold=True, longest=None).least == 44
    assert (decided(44), decided(43)) == ("better", "too_small")


@pytest.mark.parametrize("total", [1, 5, 60])
def test_a_few_rows_prove_nothing_whatever_is_spent(total: int) -> None:
    """No number is named where none would do."""
    size = pilot_size(total, margin=0.05, noisy=False, gold=False, longest=None)
    assert size.least is None
    assert run(rules_of(size.most, total=total)).form == ALONE


@pytest.mark.parametrize("costs", [CACHED, FORGOTTEN])
@pytest.mark.parametrize("longest", [None, 1, 6])
def test_no_pilot_asks_more_than_the_most(costs: object, longest: int | None) -> None:
    """Whatever it is allowed: there are only so many rows and forms."""
    most = pilot_size(100, margin=0.05, noisy=False, gold=True, longest=longest).most
    decision = run(
        rules_of(100_000, total=100, gold=True, longest=longest),
        lambda kind, n: plain(kind, n) if n % 5 else kind,  # undecided to the end
        gold=lambda n: WORDS[n % 2],
        costs=costs,
    )
    assert decision.asked <= most
