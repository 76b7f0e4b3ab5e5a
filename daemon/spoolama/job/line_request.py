"""What an OpenAI batch line asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LineRequest"]


@dataclass(frozen=True, slots=True)
class LineRequest:
    """An OpenAI batch line in the terms of a sidecar."""

    custom_id: str
    """The row's name."""
    model: str | None
    """The model the line asks for; None: the sidecar's."""
    messages: tuple[tuple[str, str], ...]
    """Role and text of each message."""
    num_predict: int | None
    """Upper bound of the answer in tokens; None: the sidecar's `num_predict`, or its default."""
    sampling: Mapping[str, Any]
    """By Ollama's names; only what the line sets."""
    format: Mapping[str, Any] | Literal["json"] | None
    """What constrains the answer."""
    has_format: bool
    """Whether the line says anything about it; if not, the sidecar's holds."""
    think: bool | str | None
    """Whether a thinking model thinks; None: the sidecar's."""
    shape: str | None
    """Digest of model, system message and parameters if the messages are one user's behind at most one system
    message; None: the line has a history of its own and stands alone."""
