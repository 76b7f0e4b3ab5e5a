"""What is compared of an answer: its label."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from spoolama.job.answer import label_of
from spoolama.job.sidecar import Sidecar
from spoolama.job.strict_json import BadJson, parse_json
from spoolama.publish.record import Record
from spoolama.publish.text import csv_cell

__all__ = ["label_of_answer", "label_of_record", "word_of"]

_MOST_CHARACTERS = 200
"""Longer labels are shortened."""


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


def label_of_answer(answer: str, sidecar: Sidecar) -> str:
    """What of an answer is compared with other answers to its row, as the engine compares it.

    Args:
        answer: As the model wrote it.
        sidecar: What was asked.
    """
    parsed: object | None = None
    if sidecar.format is not None:
        try:
            parsed = parse_json(answer)
        except BadJson:
            parsed = None
    label = label_of(parsed, answer, sidecar.answer_key)
    return json.dumps(parsed, sort_keys=True) if label is None else label


def word_of(value: Any) -> str:
    """A label as it is counted: texts without space around, everything else as JSON.

    Of long ones a beginning and a digest: a thousand different ones are kept, and written to metrics.json.
    """
    word = csv_cell(value).strip()
    if len(word) <= _MOST_CHARACTERS:
        return word
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{word[:_MOST_CHARACTERS]}… ({len(word):,} characters, {digest})"
