"""Which earlier rows a conversation keeps when it grows too long: pure functions behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from spoolama.backends.base import Message
from spoolama.engine.budget import Budget
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


class Trimmer(Protocol):
    """Keeps a conversation inside its window."""

    def trim(self, turns: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        """The turns to keep: fewer than there were, in their order, whole. Same input, same output."""
        ...


@dataclass(frozen=True, slots=True)
class Reset:
    """Nothing is kept but the shared prefix."""

    def trim(self, turns: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:  # noqa: ARG002 - interface
        return ()


@dataclass(frozen=True, slots=True)
class Window:
    """The latest rows that fit below the low mark are kept, so that trims are rare and deep."""

    low: float
    keep: int | None

    def trim(self, turns: tuple[Turn, ...], budget: Budget) -> tuple[Turn, ...]:
        left = int(budget.room * self.low) - budget.prefix - budget.own
        most = len(turns) - 1 if self.keep is None else min(self.keep, len(turns) - 1)
        kept = 0
        while kept < most and turns[-1 - kept].tokens <= left:
            left -= turns[-1 - kept].tokens
            kept += 1
        return turns[len(turns) - kept :]


STRATEGIES: dict[str, Callable[[Plan], Trimmer]] = {
    "reset": lambda _: Reset(),
    "window": lambda plan: Window(plan.low, plan.keep),
}
"""Strategy name in the plan to what makes its trimmer."""


def trimmer_of(plan: Plan) -> Trimmer:
    """The trimmer that a plan names."""
    return STRATEGIES[plan.strategy](plan)
