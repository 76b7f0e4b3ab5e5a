"""Parses answers, extracts their labels, and formats known answers like answers of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from spoolama.errors import RowError, shortened
from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, canonical, parse_json


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


_SCALES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("very negative", "strongly negative"),
        ("negative",),
        ("slightly negative", "somewhat negative"),
        ("neutral", "mixed"),
        ("slightly positive", "somewhat positive"),
        ("positive",),
        ("very positive", "strongly positive"),
    ),
    (
        ("terrible", "very bad", "very poor"),
        ("bad", "poor"),
        ("fair", "average", "ok", "okay"),
        ("good",),
        ("very good",),
        ("excellent",),
    ),
    (("none",), ("very low",), ("low",), ("medium", "moderate"), ("high",), ("very high",)),
    (("strongly disagree",), ("disagree",), ("neutral",), ("agree",), ("strongly agree",)),
    (("no",), ("maybe", "partly", "unsure"), ("yes",)),
    (("false",), ("true",)),
)
"""Well-known scales; words at the same position count as equal."""


_MOST_OF_ORDER = 500
"""Maximum characters of an enum in the summary."""


def label_of(parsed: object | None, text: str, answer_key: str | None) -> str | None:
    """Return the part of an answer that is compared with `gold`, formatted as in a CSV cell.

    Args:
        parsed: The value of a JSON answer; None: the answer is text.
        text: The answer as the model wrote it.
        answer_key: The sidecar's; None: the only key of an object.

    Returns:
        None if the answer lacks the key or its value is null.
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


def label_of_answer(answer: str, sidecar: Sidecar) -> str:
    """Return the part of an answer that is compared with other answers to the same row.

    Args:
        answer: As the model wrote it.
        sidecar: The sidecar of the job.
    """
    parsed: object | None = None
    if sidecar.format is not None:
        try:
            parsed = parse_json(answer)
        except BadJson:
            parsed = None
    label = label_of(parsed, answer, sidecar.answer_key)
    return json.dumps(parsed, sort_keys=True) if label is None else label


def number_of(value: Any) -> float | None:
    """Return the number that a value is or contains as text; None if there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def order_of(labels: Iterable[str], enum: list[str] | None) -> tuple[dict[str, float], str] | None:
    """Return ranks for labels and the source of the order; None if there is no order.

    Words of one well-known scale (negative < neutral < positive, low < medium < high, ...) have that order,
    regardless of case. Otherwise labels of the schema's `enum` have the order of the list.
    """
    labels = list(labels)
    plain = {
        label: " ".join(label.casefold().replace("_", " ").replace("-", " ").split()) for label in labels
    }
    for scale in _SCALES:
        ranks = {word: float(place) for place, words in enumerate(scale) for word in words}
        if all(word in ranks for word in plain.values()):
            ordered = sorted(set(labels), key=lambda label: ranks[plain[label]])
            return {label: ranks[plain[label]] for label in labels}, " < ".join(ordered)
    places = {label: float(place) for place, label in reversed([*enumerate(enum or ())])}
    if enum and all(label in places for label in labels):
        ranks = {label: places[label] for label in labels}
        return ranks, f"the order of the schema's enum, {shortened(' < '.join(enum), _MOST_OF_ORDER)}"
    return None


def enum_of(sidecar: Sidecar) -> list[str] | None:
    """Return the labels that the schema lists for the compared key, in its order."""
    schema: Any = sidecar.format
    if not isinstance(schema, Mapping):
        return None
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        keys = [sidecar.answer_key] if sidecar.answer_key else list(properties)
        schema = properties.get(keys[0]) if len(keys) == 1 else None
    listed = schema.get("enum") if isinstance(schema, Mapping) else None
    return [_word(value) for value in listed] if isinstance(listed, list) else None


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value)


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
