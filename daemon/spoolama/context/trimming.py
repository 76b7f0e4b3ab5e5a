"""Which earlier rows a conversation keeps when it grows too long: pure functions behind one interface.

What stands fixed in front (prefix, examples, anchors) is never handed to a trimmer: only the tail is.

| strategy    | a trim is due            | what is kept of the tail                    | evaluated again |
|-------------|--------------------------|---------------------------------------------|-----------------|
| `reset`     | `every` rows             | nothing                                     | nothing         |
| `anchors`   | `every` rows             | nothing; the anchors stand in front         | nothing         |
| `window`    | `keep` and `every` rows  | the latest `keep`                           | what is kept    |
| `important` | `keep` and `every` rows  | the `keep` with the highest score           | what is kept    |
| `hybrid`    | all kept and `every` rows| `important` by score, and the latest `keep` | what is kept    |
| `budget`    | more than `tokens`       | the latest within `low`/`high` of it        | what is kept    |

Whatever the strategy, a trim is due as well when the prompt would pass `high`, and keeps what fits `low`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spoolama.backends.base import Message
from spoolama.context.budget import Budget
from spoolama.context.spread import Choice, best, spread
from spoolama.job.plan import Plan

__all__ = ["STRATEGIES", "Trimmer", "Turn", "trimmer_of"]


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier row in a conversation: its messages, its answer and what both take."""

    ordinal: int
    messages: tuple[Message, ...]
    """The row's own messages and the answer, in order."""
    tokens: int
    """Measured where the server's counts allow it, else an upper bound."""
    label: str = ""
    """The answer as it counts for the spread."""
    score: float = 0.0
    """How important the row is, where the plan has a score."""


class Trimmer(Protocol):
    """Keeps the tail of a conversation short."""

    def due(self, tail: tuple[Turn, ...]) -> bool:
        """Whether a trim is due by rows or tokens, however much room there is."""
        ...

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        """The turns to keep: fewer than there were, in their order, whole. Same input, same output."""
        ...


@dataclass(frozen=True, slots=True)
class Reset:
    """Nothing is kept but what stands in front."""

    every: int

    def due(self, tail: tuple[Turn, ...]) -> bool:
        return bool(self.every) and len(tail) >= self.every

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:  # noqa: ARG002 - interface
        return ()


@dataclass(frozen=True, slots=True)
class Keep:
    """Some rows by their importance and the latest ones, as far as they fit below the low mark."""

    every: int
    latest: int
    """The latest rows to keep, at most."""
    important: int
    """Rows to keep by importance, of those before the latest."""
    score: str | None
    low: float

    def due(self, tail: tuple[Turn, ...]) -> bool:
        most = self.latest + self.important + self.every
        return bool(self.every) and len(tail) >= most

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        left = int(budget.room * self.low) - budget.prefix - budget.own
        spare = len(tail) - 1
        important = min(self.important, spare)
        recent = _latest(tail, min(self.latest, spare - important), left)
        left -= sum(turn.tokens for turn in recent)
        older = tail[: len(tail) - len(recent)]
        while important:
            chosen = _choose(older, important, self.score)
            total = sum(turn.tokens for turn in chosen)
            if total <= left:
                return (*chosen, *recent)
            # By share, not one by one: a long tail would take seconds.
            important = min(important - 1, max(0, important * left // total))
        return recent


@dataclass(frozen=True, slots=True)
class Within:
    """The latest rows within a number of tokens."""

    tokens: int | None
    share: float
    """Of `tokens`, what a trim keeps, so that trims are rare and deep."""
    low: float

    def due(self, tail: tuple[Turn, ...]) -> bool:
        return self.tokens is not None and sum(turn.tokens for turn in tail) > self.tokens

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        left = int(budget.room * self.low) - budget.prefix - budget.own
        if self.tokens is not None:
            left = min(left, int(self.tokens * self.share))
        return _latest(tail, len(tail) - 1, left)


def _latest(tail: tuple[Turn, ...], most: int, left: int) -> tuple[Turn, ...]:
    kept = 0
    while kept < most and tail[-1 - kept].tokens <= left:
        left -= tail[-1 - kept].tokens
        kept += 1
    return tail[len(tail) - kept :]


def _choose(turns: Sequence[Turn], number: int, score: str | None) -> tuple[Turn, ...]:
    choices = [Choice(place, turn.label, turn.score) for place, turn in enumerate(turns)]
    places = spread(choices, number) if score in (None, "spread") else best(choices, number)
    return tuple(turns[place] for place in places)


STRATEGIES: dict[str, Callable[[Plan], Trimmer]] = {
    "reset": lambda plan: Reset(plan.every),
    "anchors": lambda plan: Reset(plan.every),
    "window": lambda plan: Keep(plan.every, plan.keep, 0, None, plan.low),
    "important": lambda plan: Keep(plan.every, 0, plan.keep, plan.score, plan.low),
    "hybrid": lambda plan: Keep(plan.every, plan.keep, plan.important, plan.score, plan.low),
    "budget": lambda plan: Within(plan.tokens, plan.low / plan.high, plan.low),
}
"""Strategy name in the plan to what makes its trimmer."""


def trimmer_of(plan: Plan) -> Trimmer:
    """The trimmer that a plan names."""
    return STRATEGIES[plan.strategy](plan)
