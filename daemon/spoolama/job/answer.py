"""Parses the text of an answer, before any schema validation."""

from __future__ import annotations

from spoolama.errors import RowError
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["parse_answer"]


def parse_answer(text: str, *, json: bool) -> object | None:
    """Return the value of an answer if JSON was requested; None for free text.

    Raises:
        RowError: `answer_empty`, or `answer_invalid` if the text is not JSON.
    """
    if not text.strip():
        raise RowError("answer_empty", "the answer is empty", answer=text)
    if not json:
        return None
    try:
        value: object = parse_json(text)
    except BadJson as error:
        at = "" if error.column is None else f" (character {error.column})"
        raise RowError("answer_invalid", f"not JSON: {error.message}{at}", answer=text) from None
    return value
