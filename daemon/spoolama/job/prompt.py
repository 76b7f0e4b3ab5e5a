"""Prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PromptTemplate"]


class PromptTemplate:
    """A prompt template over a row's fields."""

    def __init__(self, source: str) -> None:
        self._source = source

    def render(self, fields: Mapping[str, Any]) -> str:
        """The prompt of one row."""
        raise NotImplementedError
