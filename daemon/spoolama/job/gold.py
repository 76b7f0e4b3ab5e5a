"""A known answer, spelled as the model would have to give it: what an anchor carries where there is gold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["gold_answers"]


def gold_answers(sidecar: Sidecar, fields: Mapping[str, Any], answer: str) -> list[str]:
    """The row's answer with its gold value in it, in each spelling that may fit `format`.

    The caller takes the first one that does. Empty where the row has no gold.

    Args:
        sidecar: With `gold`, `answer_key` and `format`.
        fields: The row's fields.
        answer: What the model answered: other keys of an object are taken from it.
    """
    if sidecar.gold is None:
        return []
    gold = fields.get(sidecar.gold)
    if gold is None or (isinstance(gold, str) and not gold.strip()):
        return []
    if sidecar.format is None:
        return [str(gold).strip()]
    try:
        given = parse_json(answer)
    except BadJson:
        return []
    key = None
    if isinstance(given, dict):
        key = sidecar.answer_key or (next(iter(given)) if len(given) == 1 else None)
        if key is None:
            return []
    return [
        json.dumps(value if key is None else {**given, key: value}, ensure_ascii=False)
        for value in _spellings(gold)
    ]


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
