"""The simulated jobs, with and without harm."""

from __future__ import annotations

from dataclasses import replace

from bench.effect.jobs import MARGIN, Scenario
from spoolama.compare.audit import budget_of, smallest_harm
from support.effects import Better, Drifts, FollowsMajority, FollowsPrevious, Ignores, Labels, Noisy, Scores

_L, _S = Labels(), Scores()

SCENARIOS = (
    Scenario("ignores the conversation", Ignores(), _L),
    Scenario("ignores it, file sorted by outcome", Ignores(), _L, order="sorted"),
    Scenario("ignores it, scores", Ignores(), _S),
    Scenario("ignores it, temperature 1", Noisy(Ignores(), 0.15, _L), _L, noisy=True),
    Scenario("ignores it, sorted, temperature 1", Noisy(Ignores(), 0.15, _L), _L, noisy=True, order="sorted"),
    Scenario("follows the previous answer in half as many rows as allowed", FollowsPrevious(0.036), _L),
    Scenario("follows the previous answer, mild", FollowsPrevious(0.17), _L),
    Scenario("follows the previous answer, strong", FollowsPrevious(0.6), _L),
    Scenario("follows the previous answer, mild, sorted", FollowsPrevious(0.17), _L, order="sorted"),
    Scenario("follows the majority, mild", FollowsMajority(0.2, _L), _L),
    Scenario("follows the majority, strong", FollowsMajority(0.8, _L), _L),
    Scenario("drifts with depth", Drifts(0.00115, _L), _L),
    Scenario("drifts with depth, scores", Drifts(0.0032, _S), _S),
    Scenario("one conversation in four locks onto an answer", Ignores(), _L, locks=0.25),
    Scenario("follows the previous answer, in the second half", FollowsPrevious(0.34), _L, begins=0.5),
    Scenario(
        "follows the majority, mild, temperature 1",
        Noisy(FollowsMajority(0.32, _L), 0.15, _L),
        _L,
        noisy=True,
    ),
    Scenario(
        "follows the majority, strong, temperature 1",
        Noisy(FollowsMajority(0.8, _L), 0.15, _L),
        _L,
        noisy=True,
    ),
    Scenario(
        "follows the previous answer, mild, temperature 1",
        Noisy(FollowsPrevious(0.28), 0.15, _L),
        _L,
        noisy=True,
    ),
    # With gold: the cost of the pilot, and the result of the audit.
    Scenario("gold: ignores the conversation", Ignores(), _L, gold=True),
    Scenario("gold: better with examples", Better(0.75), _L, gold=True, right=0.45),
    Scenario("gold: better with examples, a little", Better(0.5), _L, gold=True, right=0.6),
    Scenario("gold: follows the majority, strong", FollowsMajority(0.8, _L), _L, gold=True),
    Scenario("gold: follows the previous answer, mild", FollowsPrevious(0.17), _L, gold=True),
)

SMALL = (300, 1_000, 3_000)
"""Rows of smaller jobs, for which the smallest harm is computed and tried."""


def of_size(scenario: Scenario, rows: int) -> Scenario:
    """Return the same kind of job with this many rows."""
    return replace(scenario, rows=rows)


def small(rows: int) -> tuple[Scenario, float]:
    """Return a small job with the smallest harm that its audit detects, and that harm."""
    share = smallest_harm(budget_of(None, rows, noisy=False).random, MARGIN, noisy=False)
    assert share is not None
    # A share of the rows that repeat the previous answer has it anyway.
    same = sum(p * p for p in _L.shares)
    return Scenario(
        f"smallest harm, {rows:,} rows", FollowsPrevious(share / (1 - same)), _L, rows=rows
    ), share


def by_name(*names: str) -> list[Scenario]:
    """Return the scenarios with these names, in this order."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    return [known[name] for name in names]
