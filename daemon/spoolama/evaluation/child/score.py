"""The importance of a row: an expression of the sidecar over the row's fields and its answer."""

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
    """The expression cannot be compiled; the message says why."""


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
        """The score of a row: a number, larger is more important; true counts 1.

        An expression that fails on this row, or gives no number, gives minus infinity: such a row is dropped
        first, and nothing else happens to it.

        Args:
            fields: The row's fields, under their names and as `row`.
            answer: The answer's text; `answer` in the expression is the parsed value where it is JSON.
        """
        try:
            value: Any = parse_json(answer)
        except BadJson:
            value = answer
        try:
            number = float(self._run({**fields, "row": dict(fields), "answer": value}))
        except MemoryError:  # the process is at its limit, which its caller reports
            raise
        except Exception:  # an expression may raise anything on a row
            return -math.inf
        return -math.inf if math.isnan(number) else number
