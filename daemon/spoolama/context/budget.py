"""Computes an upper bound of the tokens of a prompt before it is sent.

A prompt must satisfy prompt + num_predict < num_ctx. Counts of the server are used as they are. Texts without
a count are bounded by their bytes (`Plan.tokens_per_byte`; 1.0 until learned: one byte is at most one token).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spoolama.backends.base import Message
from spoolama.job.plan import Plan


def message_bytes(messages: Iterable[Message]) -> int:
    """Return the UTF-8 bytes of the texts."""
    return sum(len(m.content.encode("utf-8", "surrogatepass")) for m in messages)


def bound(plan: Plan, messages: tuple[Message, ...]) -> int:
    """Return an upper bound of the tokens that these messages add to a prompt."""
    return int(message_bytes(messages) * plan.tokens_per_byte + 1) + plan.overhead_tokens * len(messages)


@dataclass(frozen=True, slots=True)
class Budget:
    """The context window and the parts of it, in tokens."""

    num_ctx: int
    num_predict: int
    prefix: int
    """Upper bound of the shared prefix."""
    own: int
    """Upper bound of the row's own messages."""

    @property
    def room(self) -> int:
        """Longest prompt that leaves room for the answer: prompt + num_predict < num_ctx."""
        return self.num_ctx - self.num_predict - 1

    def fits(self, prompt_tokens: int, share: float = 1.0) -> bool:
        """Whether a prompt of this length fits into this share of the room."""
        return prompt_tokens <= int(self.room * share)
