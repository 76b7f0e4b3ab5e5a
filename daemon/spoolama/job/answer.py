"""Whether an answer is what the sidecar asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import jsonschema
import referencing

from spoolama.errors import RowError
from spoolama.job.strict_json import BadJson, canonical, parse_json

__all__ = ["AnswerCheck", "label_of"]

_REASON_CHARS = 300


class AnswerCheck:
    """Checks answers against `format`; the schema is compiled once.

    Args:
        format: A valid JSON Schema, "json" for any JSON, or None for free text.
    """

    def __init__(self, format: Mapping[str, Any] | Literal["json"] | None) -> None:
        self._format = format
        self._validator: Any = None
        if isinstance(format, Mapping):
            kind = jsonschema.validators.validator_for(format, default=jsonschema.Draft202012Validator)
            # A registry that retrieves nothing: an answer must never make the service open a connection.
            self._validator = kind(format, registry=referencing.Registry())

    def check(self, text: str) -> object | None:
        """The parsed answer; None for free text.

        Raises:
            RowError: `answer_empty`, or `answer_invalid` with the place and the reason.
        """
        if not text.strip():
            raise RowError("answer_empty", "the model answered nothing", answer=text)
        if self._format is None:
            return None
        try:
            value: object = parse_json(text)
        except BadJson as error:
            at = "" if error.column is None else f" (character {error.column})"
            raise RowError("answer_invalid", f"not JSON: {error.message}{at}", answer=text) from None
        if self._validator is not None:
            try:
                worst = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
            except Exception as error:  # a reference to nowhere, a number too large for a float, an odd `$id`
                reason = _short(str(error) or type(error).__name__)
                message = f"the schema cannot be followed: {reason}"
                raise RowError("answer_invalid", message, answer=text) from None
            if worst is not None:
                message = f"{worst.json_path}: {_short(worst.message)}"
                raise RowError("answer_invalid", message, answer=text)
        return value


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS] + "…"


def label_of(parsed: object | None, text: str, answer_key: str | None) -> str | None:
    """What of an answer is compared with `gold`, as a CSV cell would spell it.

    Args:
        parsed: What `AnswerCheck.check` returned.
        text: The answer as the model wrote it.
        answer_key: The sidecar's; None: the only key of an object.

    Returns:
        None if the answer has no such key, or null there.
    """
    value = parsed
    if parsed is None:
        return text.strip()
    if isinstance(parsed, dict):
        if answer_key is not None:
            value = parsed.get(answer_key)
        elif len(parsed) == 1:
            value = next(iter(parsed.values()))
        else:
            return None
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict | list):
        return canonical(value)
    return json.dumps(value)
