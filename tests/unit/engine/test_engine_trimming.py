"""Trimming: properties that hold for every strategy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolama.backends.base import Message
from spoolama.engine.budget import Budget
from spoolama.engine.conversation import Conversation, prepare
from spoolama.engine.trimming import STRATEGIES, Turn, trimmer_of
from spoolama.job.asking import Ask
from spoolama.job.plan import Plan

sizes = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def plan(strategy: str, high: float, low: float, keep: int | None) -> Plan:
    """A plan with these marks."""
    return Plan(1, 0, 200, strategy, high, low, keep, 1.0, 16)


def turns_of(tokens: list[int]) -> tuple[Turn, ...]:
    """One turn a number, each of a user's and an assistant's message."""
    return tuple(
        Turn(i, (Message("user", f"u{i}"), Message("assistant", f"a{i}")), n) for i, n in enumerate(tokens)
    )


plans = st.builds(
    plan,
    st.sampled_from(sorted(STRATEGIES)),
    st.floats(0.5, 1.0),
    st.floats(0.05, 0.45),
    st.none() | st.integers(1, 30),
)


@given(plans, sizes, st.integers(256, 4096), st.integers(0, 300), st.integers(1, 300))
def test_a_trim_frees_something_and_keeps_the_latest_turns_whole(
    rules: Plan, tokens: list[int], num_ctx: int, prefix: int, own: int
) -> None:
    """What is kept is a proper end of what was there; the same input gives the same output."""
    turns = turns_of(tokens)
    budget = Budget(num_ctx, 32, prefix, own)
    kept = trimmer_of(rules).trim(turns, budget)
    assert len(kept) < len(turns)
    assert kept == turns[len(turns) - len(kept) :]
    assert kept == trimmer_of(rules).trim(turns, budget)
    if kept:
        assert prefix + own + sum(t.tokens for t in kept) <= budget.room * rules.low
        assert rules.keep is None or len(kept) <= rules.keep


@given(plans, sizes, st.integers(300, 3000), st.text(max_size=200), st.text(max_size=200))
def test_a_prepared_prompt_keeps_prefix_pairs_and_order_and_stays_in_its_window(
    rules: Plan, tokens: list[int], num_ctx: int, system: str, text: str
) -> None:
    """Prefix, whole pairs in order, then the row; never over budget unless it says so."""
    ask = Ask((Message("system", system),), (Message("user", text),), 32, {}, None, None)
    conversation = Conversation(
        turns_of(tokens), used=sum(tokens) + 50, last_prompt=sum(tokens), prefix_seen=60
    )
    prompt = prepare(conversation, ask, rules, num_ctx)
    assert prompt.messages[0] == ask.prefix[0]
    assert prompt.messages[-1] == ask.own[0]
    assert [m.role for m in prompt.messages[1:-1]] == ["user", "assistant"] * len(prompt.turns)
    ordinals = [t.ordinal for t in prompt.turns]
    assert ordinals == sorted(ordinals)
    if prompt.turns:
        assert prompt.tokens <= prompt.budget.room * rules.high
    if prompt.fits:
        assert prompt.tokens + 32 < num_ctx
    assert prompt.trimmed == (len(prompt.turns) < len(tokens))
