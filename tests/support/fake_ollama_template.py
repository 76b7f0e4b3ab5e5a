"""Chat templates of the fake: from messages to the model's prompt, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from support.fake_ollama_engine import Prompt, Segment

_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_GEMMA = re.compile(r"<start_of_turn>(\w+)\n(.*?)<end_of_turn>\n", re.DOTALL)
_CHATML_CUT = re.compile(r"<\|im_start\|>(\w+)\n(.*)\Z", re.DOTALL)
_GEMMA_CUT = re.compile(r"<start_of_turn>(\w+)\n(.*)\Z", re.DOTALL)
"""A turn in which the text ends."""
_GEMMA_ROLES = {"assistant": "model", "system": "user"}


def render(segments: Sequence[Segment], template: Literal["chatml", "gemma"]) -> str:
    """Render the prompt as in the recorded replies of these two models."""
    if template == "chatml":
        turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in segments)
        return turns + "<|im_start|>assistant\n"
    turns = "".join(
        f"<start_of_turn>{_GEMMA_ROLES.get(role, role)}\n{text}<end_of_turn>\n" for role, text in segments
    )
    return turns + "<start_of_turn>model\n"


def parse_raw(text: str, template: Literal["chatml", "gemma"]) -> Prompt:
    """Parse a raw prompt as messages if it follows the template, so that it shares a prefix with a chat."""
    if template == "chatml":
        form, begun, opened = _CHATML, _CHATML_CUT, "<|im_start|>assistant\n"
    else:
        form, begun, opened = _GEMMA, _GEMMA_CUT, "<start_of_turn>model\n"
    segments: list[Segment] = []
    place = 0
    while match := form.match(text, place):
        segments.append((_role(match[1]), match[2]))
        place = match.end()
    rest = text[place:]
    cut = None if rest == opened else begun.match(rest)
    if cut is not None:
        segments.append((_role(cut[1]), cut[2]))
    if template == "gemma" and segments and segments[0][0] == "user":
        # A system message is rendered as a user's turn: two in a row, or a single one, show it.
        alone = len(segments) == 1 and cut is None and not rest
        if alone or (len(segments) > 1 and segments[1][0] == "user"):
            segments[0] = ("system", segments[0][1])
    if rest and rest != opened and cut is None:
        segments.append(("raw", rest))
    return Prompt(tuple(segments), opened=rest == opened, cut=cut is not None)


def _role(spelled: str) -> str:
    return "assistant" if spelled == "model" else spelled
