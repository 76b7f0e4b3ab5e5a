"""How many tokens a prompt takes, before it is sent.

Always: prompt + num_predict < num_ctx. What the server counted is used as it is; what nobody counted yet is
bounded from above by bytes (`Plan.tokens_per_byte`, 1.0 until learned: no byte makes more than one token).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spoolama.backends.base import Message
from spoolama.job.plan import Plan

__all__ = ["Budget", "bound", "message_bytes"]


def message_bytes(messages: Iterable[Message]) -> int:
    """UTF-8 bytes of the texts."""
    return sum(len(m.content.encode("utf-8", "surrogatepass")) for m in messages)


def bound(plan: Plan, messages: tuple[Message, ...]) -> int:
    """Upper bound of the tokens these messages add to a prompt."""
    return int(message_bytes(messages) * plan.tokens_per_byte + 1) + plan.overhead_tokens * len(messages)


@dataclass(frozen=True, slots=True)
class Budget:
    """The window and who takes how much of it, in tokens."""

    num_ctx: int
    num_predict: int
    prefix: int
    """The shared prefix, at most."""
    own: int
    """The row's own messages, at most."""

    @property
    def room(self) -> int:
        """Longest prompt that leaves place for the answer: prompt + num_predict < num_ctx."""
        return self.num_ctx - self.num_predict - 1

    def fits(self, prompt_tokens: int, share: float = 1.0) -> bool:
        """Whether a prompt of this length stays within that share of the room."""
        return prompt_tokens <= int(self.room * share)
