"""Formats a gold value like an answer of the model, for anchors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json

__all__ = ["gold_answers"]


def gold_answers(sidecar: Sidecar, fields: Mapping[str, Any], answer: str) -> list[str]:
    """Return the row's answer with its gold value in it, in each spelling that `format` may accept.

    The caller takes the first valid one. The list is empty if the row has no gold value.

    Args:
        sidecar: Provides `gold`, `answer_key` and `format`.
        fields: The row's fields.
        answer: The model's answer, which provides the other keys of an object.
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
    """Return the value as text and, for a CSV cell, as number or boolean, which the schema may require."""
    found = [gold]
    if isinstance(gold, str):
        text = gold.strip()
        try:
            found.append(parse_json(text.lower() if text.lower() in ("true", "false") else text))
        except BadJson:
            found.append(text)
    return found
