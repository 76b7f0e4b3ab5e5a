"""Computes the importance of a row with an expression of the sidecar over its fields and its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError

from spoolama.evaluation.child.sandbox import SandboxEnvironment
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["Score", "ScoreProblem"]

_MOST_CHARACTERS = 2000
_ENVIRONMENT = SandboxEnvironment()


class ScoreProblem(ValueError):
    """The expression cannot be compiled; the message has the reason."""


class Score:
    """An expression, compiled once.

    Raises:
        ScoreProblem: it cannot be compiled.
    """

    def __init__(self, expression: str) -> None:
        if len(expression) > _MOST_CHARACTERS:
            raise ScoreProblem(f"is longer than {_MOST_CHARACTERS} characters")
        self._run: Callable[..., Any]
        try:
            self._run = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)
        except (TemplateError, RecursionError, ValueError, SyntaxError) as error:
            raise ScoreProblem(f"cannot be read as an expression: {error}") from None

    def of(self, fields: Mapping[str, Any], answer: str) -> float:
        """Return the score of a row: a higher number is more important; true counts as 1.

        If the expression fails on this row or returns no number, the score is minus infinity: a trim drops
        such a row first.

        Args:
            fields: The row's fields, available by name and as `row`.
            answer: The text of the answer; if it is JSON, `answer` in the expression is the parsed value.
        """
        try:
            value: Any = parse_json(answer)
        except BadJson:
            value = answer
        try:
            number = float(self._run({**fields, "row": dict(fields), "answer": value}))
        except MemoryError:  # reported by the caller
            raise
        except Exception:  # an expression may raise anything on a row
            return -math.inf
        return -math.inf if math.isnan(number) else number
