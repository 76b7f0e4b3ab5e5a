"""OpenAI batch lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LineRequest", "read_body"]


@dataclass(frozen=True, slots=True)
class LineRequest:
    """An OpenAI batch line, in our words."""

    messages: tuple[tuple[str, str], ...]
    """(role, text) of each message."""
    num_predict: int | None
    """Upper bound of the answer; None: not given."""
    sampling: Mapping[str, Any]
    """By Ollama's names; only what the line sets."""
    format: Mapping[str, Any] | Literal["json"] | None
    """What constrains the answer."""
    has_format: bool
    """Whether the line says anything about it."""
    think: bool | str | None
    """From `reasoning_effort`; None: not given."""


def read_body(line: Mapping[str, Any]) -> LineRequest:
    """What the line asks."""
    raise NotImplementedError
