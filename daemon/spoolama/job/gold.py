"""A known answer, spelled as the model would have to give it: what an anchor carries where there is gold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spoolama.errors import RowError
from spoolama.job.answer import AnswerCheck
from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["gold_answer"]


def gold_answer(sidecar: Sidecar, fields: Mapping[str, Any], answer: str) -> str | None:
    """The row's answer with its gold value in it; None where gold is missing or does not fit `format`.

    Args:
        sidecar: With `gold`, `answer_key` and `format`.
        fields: The row's fields.
        answer: What the model answered: other keys of an object are taken from it.
    """
    if sidecar.gold is None:
        return None
    gold = fields.get(sidecar.gold)
    if gold is None or (isinstance(gold, str) and not gold.strip()):
        return None
    if sidecar.format is None:
        return str(gold).strip()
    try:
        given = parse_json(answer)
    except BadJson:
        return None
    check = AnswerCheck(sidecar.format)
    for value in _spellings(gold):
        whole: Any = value
        if isinstance(given, dict):
            key = sidecar.answer_key or (next(iter(given)) if len(given) == 1 else None)
            if key is None:
                return None
            whole = {**given, key: value}
        text = json.dumps(whole, ensure_ascii=False)
        try:
            check.check(text)
        except RowError:
            continue
        return text
    return None


def _spellings(gold: Any) -> list[Any]:
    """A CSV cell is a text; the schema may want a number or a truth value."""
    found = [gold]
    if isinstance(gold, str):
        text = gold.strip()
        try:
            found.append(parse_json(text.lower() if text.lower() in ("true", "false") else text))
        except BadJson:
            found.append(text)
    return found
