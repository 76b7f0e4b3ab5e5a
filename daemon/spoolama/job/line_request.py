"""Defines an OpenAI batch line in the terms of a sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LineRequest"]


@dataclass(frozen=True, slots=True)
class LineRequest:
    """An OpenAI batch line in the terms of a sidecar."""

    custom_id: str
    """The id of the row."""
    model: str | None
    """The model that the line requests; None: the sidecar's."""
    messages: tuple[tuple[str, str], ...]
    """Role and text of each message."""
    num_predict: int | None
    """Maximum tokens of the answer; None: the sidecar's `num_predict`, or its default."""
    sampling: Mapping[str, Any]
    """With Ollama's names; only the options that the line sets."""
    format: Mapping[str, Any] | Literal["json"] | None
    """JSON Schema (or "json") of the answer."""
    has_format: bool
    """Whether the line sets the format; if not, the sidecar's applies."""
    think: bool | str | None
    """Whether a thinking model thinks; None: the sidecar's value."""
    shape: str | None
    """Digest of model, system message and parameters if the messages are one user message after at most one
    system message; None: the line has its own history and shares no conversation."""
