"""What is compared of an answer: its label, and the order of labels where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from spoolama.job.answer import label_of
from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json
from spoolama.report.record import Record
from spoolama.report.text import csv_cell

__all__ = ["enum_of", "label_of_record", "number_of", "order_of", "word_of"]

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
"""Words whose order everybody knows; words of one place count as equal."""


def label_of_record(record: Record, *, parsed: bool, key: str | None) -> str | None:
    """What of an answered row is compared with `gold`.

    Args:
        record: An answered row.
        parsed: Whether its answer is a parsed JSON value; otherwise text, looked into where it is JSON.
        key: The sidecar's `answer_key`.
    """
    answer = record.answer
    if not parsed and isinstance(answer, str) and answer.lstrip().startswith("{"):
        try:
            return label_of(parse_json(answer), answer, key)
        except BadJson:
            return answer.strip()
    return label_of(answer, "null", key) if parsed else label_of(None, str(answer), key)


def word_of(value: Any) -> str:
    """A label as it is counted: texts without space around, everything else as JSON."""
    return csv_cell(value).strip()


def number_of(value: Any) -> float | None:
    """The number a value is or spells; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def enum_of(sidecar: Sidecar) -> list[str] | None:
    """The labels that the schema lists for the compared key, in its order."""
    schema: Any = sidecar.format
    if not isinstance(schema, Mapping):
        return None
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        keys = [sidecar.answer_key] if sidecar.answer_key else list(properties)
        schema = properties.get(keys[0]) if len(keys) == 1 else None
    listed = schema.get("enum") if isinstance(schema, Mapping) else None
    return [word_of(value) for value in listed] if isinstance(listed, list) else None


def order_of(labels: Iterable[str], enum: list[str] | None) -> tuple[dict[str, float], str] | None:
    """Ranks for labels, and where the order comes from; None where nothing gives one.

    The rule: words of one well-known scale (negative < neutral < positive, low < medium < high, ...) have
    that order, whatever their case; otherwise labels of the schema's `enum` have the order of the list.
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
    if enum and all(label in enum for label in labels):
        places = {label: float(enum.index(label)) for label in labels}
        return places, "the order of the schema's enum, " + " < ".join(enum)
    return None
