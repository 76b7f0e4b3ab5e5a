"""Chat templates of the fake: messages to the text that a model would see, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from spoolama.testing.fake_ollama_engine import Prompt, Segment

__all__ = ["parse_raw", "render"]

_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_GEMMA = re.compile(r"<start_of_turn>(\w+)\n(.*?)<end_of_turn>\n", re.DOTALL)
_GEMMA_ROLES = {"assistant": "model", "system": "user"}


def render(segments: Sequence[Segment], template: Literal["chatml", "gemma"]) -> str:
    """The prompt, as the recorded replies show it for these two models."""
    if template == "chatml":
        turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in segments)
        return turns + "<|im_start|>assistant\n"
    turns = "".join(
        f"<start_of_turn>{_GEMMA_ROLES.get(role, role)}\n{text}<end_of_turn>\n" for role, text in segments
    )
    return turns + "<start_of_turn>model\n"


def parse_raw(text: str, template: Literal["chatml", "gemma"]) -> Prompt:
    """A raw prompt as messages where it is spelled like the template: so it shares a prefix with a chat."""
    form, opened = (
        (_CHATML, "<|im_start|>assistant\n") if template == "chatml" else (_GEMMA, "<start_of_turn>model\n")
    )
    segments: list[Segment] = []
    place = 0
    while match := form.match(text, place):
        role = "assistant" if match[1] == "model" else match[1]
        segments.append((role, match[2]))
        place = match.end()
    if template == "gemma" and segments and segments[0][0] == "user" and len(segments) > 1:
        # A system message is rendered as a user's turn; two of them in a row tell.
        if segments[1][0] == "user":
            segments[0] = ("system", segments[0][1])
    elif template == "gemma" and len(segments) == 1 and place == len(text):
        segments[0] = ("system", segments[0][1])
    rest = text[place:]
    if rest == opened:
        return Prompt(tuple(segments), True)
    if rest:
        segments.append(("raw", rest))
    return Prompt(tuple(segments), False)
