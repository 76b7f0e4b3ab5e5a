"""How important a row is: an expression of the sidecar over the row's fields and its answer, sandboxed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError

from spoolama.job.sandbox import SandboxEnvironment, budget
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["ScoreProblem", "check_score", "score_of"]

_BUDGET = 64 * 1024
"""Characters and loop turns that one score may cost."""

_MOST_CHARACTERS = 2000
_ENVIRONMENT = SandboxEnvironment()
_COMPILED: dict[str, Callable[..., Any]] = {}
_MOST_COMPILED = 64


class ScoreProblem(ValueError):
    """The expression cannot be compiled; the message says why."""


def check_score(expression: str) -> None:
    """See that an expression can be compiled.

    Raises:
        ScoreProblem: it cannot.
    """
    _compiled(expression)


def score_of(expression: str, fields: Mapping[str, Any], answer: str) -> float:
    """The score of a row: a number, larger is more important; true counts 1.

    An expression that fails on this row, or gives no number, gives minus infinity: such a row is dropped
    first, and nothing else happens to it.

    Args:
        expression: Of the sidecar.
        fields: The row's fields, under their names and as `row`.
        answer: The answer's text; `answer` in the expression is the parsed value where it is JSON.
    """
    try:
        value: Any = parse_json(answer)
    except BadJson:
        value = answer
    try:
        with budget(_BUDGET):
            result = _compiled(expression)({**fields, "row": dict(fields), "answer": value})
        number = float(result)
    except Exception:  # an expression may raise whatever it likes on somebody's row
        return -math.inf
    return -math.inf if math.isnan(number) else number


def _compiled(expression: str) -> Callable[..., Any]:
    found = _COMPILED.get(expression)
    if found is None:
        if len(expression) > _MOST_CHARACTERS:
            raise ScoreProblem(f"is longer than {_MOST_CHARACTERS} characters")
        try:
            found = _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)
        except (TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise ScoreProblem(f"cannot be read as an expression: {error}") from None
        if len(_COMPILED) >= _MOST_COMPILED:
            _COMPILED.clear()
        _COMPILED[expression] = found
    return found
