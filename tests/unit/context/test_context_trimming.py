"""Trimming: properties of every strategy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.backends.base import Message
from spoolama.context.budget import Budget
from spoolama.context.conversation import Conversation, prepare
from spoolama.context.selection import Candidate, best, candidates, choose, spread
from spoolama.context.trimming import STRATEGIES, Turn, trimmer_of
from spoolama.evaluation.asking import RowMessages
from spoolama.job.plan import Plan

sizes = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def plan(strategy: str, high: float, low: float, keep: int, every: int, important: int) -> Plan:
    """A plan with these thresholds."""
    score = {0: None, 1: "spread", 2: "uncertain"}[every % 3]
    tokens = 50 * every if strategy == "budget" and every % 2 else None
    return Plan(
        1,
        0,
        200,
        strategy,
        high,
        low,
        every=every,
        keep=keep,
        important=important,
        score=score,
        tokens=tokens,
    )


def turns_of(tokens: list[int], first: int = 0) -> tuple[Turn, ...]:
    """One turn a number, each with a user's and an assistant's message and one of three labels."""
    return tuple(
        Turn(
            first + i,
            (Message("user", f"u{i}"), Message("assistant", f"a{i}")),
            n,
            label="abc"[n % 3],
            score=n % 7,
        )
        for i, n in enumerate(tokens)
    )


plans = st.builds(
    plan,
    st.sampled_from(sorted(STRATEGIES)),
    st.floats(0.5, 1.0),
    st.floats(0.05, 0.45),
    st.integers(1, 30),
    st.integers(0, 30),
    st.integers(0, 8),
)


@given(plans, sizes, st.integers(256, 4096), st.integers(0, 300), st.integers(1, 300))
def test_a_trim_frees_something_and_keeps_whole_turns_in_order(
    rules: Plan, tokens: list[int], num_ctx: int, prefix: int, own: int
) -> None:
    """A trim keeps fewer, whole turns in order below the low threshold, and depends only on its input."""
    turns = turns_of(tokens)
    budget = Budget(num_ctx, 32, prefix, own)
    kept = trimmer_of(rules).trim(turns, budget)
    assert len(kept) < len(turns)
    assert set(kept) <= set(turns)
    assert [t.ordinal for t in kept] == sorted({t.ordinal for t in kept})
    assert kept == trimmer_of(rules).trim(turns, budget)
    if kept:
        assert prefix + own + sum(t.tokens for t in kept) <= budget.room * rules.low
    if rules.strategy in ("window", "important", "hybrid"):
        assert len(kept) <= rules.keep + rules.important


@given(plans, sizes, st.integers(256, 100_000), st.integers(1, 300))
def test_after_a_trim_none_is_due(rules: Plan, tokens: list[int], num_ctx: int, own: int) -> None:
    """Right after a trim none is due by rows or tokens."""
    turns = turns_of(tokens)
    trimmer = trimmer_of(rules)
    if not trimmer.due(turns):
        return
    kept = trimmer.trim(turns, Budget(num_ctx, 32, 0, own))
    assert not trimmer.due(kept)


@given(
    plans,
    sizes,
    st.lists(st.integers(1, 200), max_size=6),
    st.integers(300, 3000),
    st.text(max_size=200),
    st.text(max_size=200),
)
def test_a_prepared_prompt_keeps_prefix_anchors_pairs_and_order_and_stays_in_its_window(
    rules: Plan, tokens: list[int], fixed: list[int], num_ctx: int, system: str, text: str
) -> None:
    """A prompt is the prefix, all anchors or none, whole pairs in order, then the row; it reports if it is
    over budget.
    """
    ask = RowMessages((Message("system", system),), (Message("user", text),), 32, {}, None, None)
    anchors = turns_of(fixed, 1000)
    conversation = Conversation(
        anchors, turns_of(tokens), used=sum(tokens) + 50, last_prompt=sum(tokens), front_seen=60 + sum(fixed)
    )
    prompt = prepare(conversation, ask, rules, num_ctx)
    assert prompt.messages[0] == ask.prefix[0]
    assert prompt.messages[-1] == ask.own[0]
    assert prompt.anchors in (anchors, ())
    assert prompt.messages[1 : prompt.front] == tuple(m for t in prompt.anchors for m in t.messages)
    assert [m.role for m in prompt.messages[1:-1]] == ["user", "assistant"] * len(
        prompt.anchors + prompt.tail
    )
    ordinals = [t.ordinal for t in prompt.tail]
    assert ordinals == sorted(ordinals)
    if prompt.tail:
        assert prompt.tokens <= prompt.budget.room * rules.high
        assert not trimmer_of(rules).due(prompt.tail)
    if prompt.fits:
        assert prompt.tokens + 32 < num_ctx
    assert prompt.trimmed == (len(prompt.tail) < len(tokens))
    assert prompt.prefix_only == (not prompt.anchors and not prompt.tail)


@pytest.mark.parametrize(
    ("labels", "number", "chosen"),
    [
        ("aaaabaaac", 3, "abc"),
        ("aaaaaa", 2, "aa"),
        ("ab", 5, "ab"),
        (["1", "2", "3", "4", "50", "6", "7"], 3, ["1", "4", "50"]),
        (["x", "1", "2", "3"], 2, None),
    ],
)
def test_a_spread_choice_has_as_many_different_answers_as_possible(
    labels: list[str] | str, number: int, chosen: list[str] | str | None
) -> None:
    """Labels are chosen in turn, the rarest first, and numbers at even distances over their ranks."""
    places = spread([Candidate(i, label) for i, label in enumerate(labels)], number)
    assert places == sorted(set(places))
    assert len(places) == min(number, len(labels))
    if chosen is not None:
        assert sorted(labels[place] for place in places) == sorted(chosen)


def test_the_best_are_those_with_the_highest_scores_and_among_equals_the_latest() -> None:
    """Scores decide, not labels, and of equal scores the latest row wins."""
    choices = [Candidate(i, "same", score) for i, score in enumerate((1.0, 5.0, 1.0, 3.0, 1.0))]
    assert best(choices, 3) == [1, 3, 4]


def test_candidates_are_spread_over_the_file_and_the_seed_decides() -> None:
    """One candidate is drawn from each equal part of the file, and a seed gives the same candidates."""
    found = candidates(2400, 24, 7)
    assert [n // 100 for n in found] == list(range(24))
    assert found == candidates(2400, 24, 7)
    assert found != candidates(2400, 24, 8)
    assert candidates(3, 24, 7) == [0, 1, 2]


def test_the_order_of_anchors_is_seeded() -> None:
    """A seed gives the same order of the same rows."""
    rows = [Candidate(i, "ab"[i % 2]) for i in range(24)]
    one, other = choose(rows, 6, "spread", 1), choose(rows, 6, "spread", 2)
    assert sorted(one) == sorted(other)
    assert one != other
    assert one == choose(rows, 6, "spread", 1)
