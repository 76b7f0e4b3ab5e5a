"""Implements the trimming strategies, which decide which earlier rows stay in a conversation.

A trimmer only gets the tail, never the fixed part (prefix, examples, anchors).

| strategy    | a trim is due after      | rows of the tail that stay                  | evaluated again |
|-------------|--------------------------|---------------------------------------------|-----------------|
| `reset`     | `every` rows             | none                                        | nothing         |
| `anchors`   | `every` rows             | none; the anchors are in the fixed part     | nothing         |
| `window`    | `keep` + `every` rows    | the latest `keep`                           | these rows      |
| `important` | `keep` + `every` rows    | the `keep` with the highest score           | these rows      |
| `hybrid`    | `keep` + `important` +   | `important` by score, and the latest `keep` | these rows      |
|             | `every` rows             |                                             |                 |
| `budget`    | more than `tokens`       | the latest within `low`/`high` of `tokens`  | these rows      |

With every strategy a trim is also due if the prompt would exceed `high`; the rows that stay fit into `low`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spoolama.backends.base import Message
from spoolama.context.budget import Budget
from spoolama.context.selection import Candidate, best, spread
from spoolama.job.plan import Plan


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier row in a conversation: its messages, its answer and their tokens."""

    ordinal: int
    messages: tuple[Message, ...]
    """The row's own messages and the answer, in order."""
    tokens: int
    """From the server's counts if possible, otherwise an upper bound."""
    label: str = ""
    """The label of the answer, for a selection with diverse labels."""
    score: float = 0.0
    """Importance of the row, if the plan has a score."""


class Trimmer(Protocol):
    """Shortens the tail of a conversation."""

    def due(self, tail: tuple[Turn, ...]) -> bool:
        """Whether a trim is due by rows or tokens, even if the prompt fits the window."""
        ...

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        """Return the turns to keep: fewer than before, whole, in the same order. Deterministic."""
        ...


@dataclass(frozen=True, slots=True)
class Reset:
    """Keeps no row of the tail."""

    every: int

    def due(self, tail: tuple[Turn, ...]) -> bool:
        return bool(self.every) and len(tail) >= self.every

    def trim(self, tail: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:  # noqa: ARG002 - interface
        return ()


@dataclass(frozen=True, slots=True)
class KeepRows:
    """Keeps important rows and the latest rows, as far as they fit below the low mark."""

    every: int
    latest: int
    """Maximum number of latest rows to keep."""
    important: int
    """Maximum number of rows before them to keep by importance."""
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
            # Reduce proportionally: one by one would take seconds for a long tail.
            important = min(important - 1, max(0, important * left // total))
        return recent


@dataclass(frozen=True, slots=True)
class KeepTokens:
    """Keeps the latest rows within a number of tokens."""

    tokens: int | None
    share: float
    """Share of `tokens` that a trim keeps; a low share makes trims rare."""
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
    choices = [Candidate(place, turn.label, turn.score) for place, turn in enumerate(turns)]
    places = spread(choices, number) if score in (None, "spread") else best(choices, number)
    return tuple(turns[place] for place in places)


STRATEGIES: dict[str, Callable[[Plan], Trimmer]] = {
    "reset": lambda plan: Reset(plan.every),
    "anchors": lambda plan: Reset(plan.every),
    "window": lambda plan: KeepRows(plan.every, plan.keep, 0, None, plan.low),
    "important": lambda plan: KeepRows(plan.every, 0, plan.keep, plan.score, plan.low),
    "hybrid": lambda plan: KeepRows(plan.every, plan.keep, plan.important, plan.score, plan.low),
    "budget": lambda plan: KeepTokens(plan.tokens, plan.low / plan.high, plan.low),
}
"""Name of each strategy and the factory of its trimmer."""


def trimmer_of(plan: Plan) -> Trimmer:
    """Return the trimmer for a plan."""
    return STRATEGIES[plan.strategy](plan)
