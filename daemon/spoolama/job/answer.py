"""An answer as its text has it, before any schema."""

from __future__ import annotations

from spoolama.errors import RowError
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["parse_answer"]


def parse_answer(text: str, *, json: bool) -> object | None:
    """The answer's value where JSON was asked for; None for free text.

    Raises:
        RowError: `answer_empty`, or `answer_invalid` where the text is not JSON.
    """
    if not text.strip():
        raise RowError("answer_empty", "the model answered nothing", answer=text)
    if not json:
        return None
    try:
        value: object = parse_json(text)
    except BadJson as error:
        at = "" if error.column is None else f" (character {error.column})"
        raise RowError("answer_invalid", f"not JSON: {error.message}{at}", answer=text) from None
    return value
