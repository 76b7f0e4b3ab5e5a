"""The jobs that are simulated: what is there to be found, or not."""

from __future__ import annotations

from bench.effect.jobs import CACHED, Scenario
from support.effects import (
    Better,
    Drifts,
    FollowsMajority,
    FollowsPrevious,
    Ignores,
    Labels,
    Noisy,
    Scores,
)

__all__ = ["SCENARIOS", "by_name"]

_L, _S = Labels(), Scores()

SCENARIOS = (
    # A server on which conversations are faster, no gold: the pilot has a form on trial.
    Scenario("auto: ignores the conversation", Ignores(), _L),
    Scenario("auto: ignores, file sorted by outcome", Ignores(), _L, order="sorted"),
    Scenario("auto: ignores, temperature 1", Noisy(Ignores(), 0.15, _L), _L, noisy=True),
    Scenario("auto: ignores, scores", Ignores(), _S),
    Scenario("auto: follows the previous answer, mild", FollowsPrevious(0.17), _L),
    Scenario("auto: follows the previous answer, strong", FollowsPrevious(0.6), _L),
    Scenario("auto: follows the majority, mild", FollowsMajority(0.2, _L), _L),
    Scenario("auto: follows the majority, strong", FollowsMajority(0.8, _L), _L),
    Scenario("auto: drifts with depth", Drifts(0.0115, _L), _L),
    Scenario("auto: better with examples, no gold", Better(0.75), _L),
    Scenario(
        "auto: follows the majority, temperature 1", Noisy(FollowsMajority(0.8, _L), 0.15, _L), _L, noisy=True
    ),
    Scenario("auto: drifts with depth, scores", Drifts(0.03, _S), _S),
    # The same with gold.
    Scenario("gold: ignores the conversation", Ignores(), _L, gold=True),
    Scenario("gold: better with examples", Better(0.75), _L, gold=True, right=0.45),
    Scenario("gold: better with examples, a little", Better(0.5), _L, gold=True, right=0.6),
    Scenario("gold: better, no form is faster", Better(0.75), _L, gold=True, right=0.45, costs=CACHED),
    Scenario("gold: ignores, no form is faster", Ignores(), _L, gold=True, costs=CACHED),
    Scenario("gold: follows the majority, strong", FollowsMajority(0.8, _L), _L, gold=True),
    Scenario("gold: follows the previous answer, mild", FollowsPrevious(0.17), _L, gold=True),
    # A forced window: no pilot, guard and audit alone.
    Scenario("window: ignores the conversation", Ignores(), _L, "window"),
    Scenario("window: ignores, file sorted by outcome", Ignores(), _L, "window", order="sorted"),
    Scenario("window: ignores, temperature 1", Noisy(Ignores(), 0.15, _L), _L, "window", noisy=True),
    Scenario(
        "window: ignores, sorted, temperature 1",
        Noisy(Ignores(), 0.15, _L),
        _L,
        "window",
        noisy=True,
        order="sorted",
    ),
    Scenario("window: ignores, scores", Ignores(), _S, "window"),
    Scenario("window: follows the previous answer, mild", FollowsPrevious(0.17), _L, "window"),
    Scenario("window: follows the previous answer, strong", FollowsPrevious(0.6), _L, "window"),
    Scenario("window: follows the majority, mild", FollowsMajority(0.2, _L), _L, "window"),
    Scenario("window: follows the majority, strong", FollowsMajority(0.8, _L), _L, "window"),
    Scenario("window: drifts with depth", Drifts(0.00115, _L), _L, "window"),
    Scenario(
        "window: follows the majority, mild, temperature 1",
        Noisy(FollowsMajority(0.32, _L), 0.15, _L),
        _L,
        "window",
        noisy=True,
    ),
    Scenario(
        "window: follows the majority, strong, temperature 1",
        Noisy(FollowsMajority(0.8, _L), 0.15, _L),
        _L,
        "window",
        noisy=True,
    ),
    Scenario(
        "window: follows the majority, mild, temperature 1, 400 rows audited",
        Noisy(FollowsMajority(0.32, _L), 0.15, _L),
        _L,
        "window",
        noisy=True,
        audit=400,
    ),
    Scenario("window: drifts with depth, scores", Drifts(0.0032, _S), _S, "window"),
)


def by_name(*names: str) -> list[Scenario]:
    """These, in this order."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    return [known[name] for name in names]
