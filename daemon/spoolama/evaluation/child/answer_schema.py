"""Validates answers against the JSON Schema of the sidecar or of an OpenAI line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import referencing

from spoolama.errors import RowError
from spoolama.job.answer import parse_answer

__all__ = ["AnswerSchema"]

_REASON_CHARS = 300


class AnswerSchema:
    """Validates answers against a schema, which is compiled once.

    Args:
        schema: A valid JSON Schema.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        # The registry retrieves nothing, so validation never opens a connection.
        self._validator: Any = kind(schema, registry=referencing.Registry())

    def check(self, text: str) -> None:
        """Validate an answer.

        Raises:
            RowError: `answer_empty`, or `answer_invalid` with the location and the reason.
        """
        value = parse_answer(text, json=True)
        try:
            worst = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except MemoryError:  # reported by the caller
            raise
        except Exception as error:  # a missing reference, a number too large for a float, an odd `$id`
            reason = _short(str(error) or type(error).__name__)
            message = f"the schema cannot be applied: {reason}"
            raise RowError("answer_invalid", message, answer=text) from None
        if worst is not None:
            message = f"{worst.json_path}: {_short(worst.message)}"
            raise RowError("answer_invalid", message, answer=text)


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS] + "…"
