"""Which kind of data file it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from spoolama.errors import InputError
from spoolama.job.row import RowFault
from spoolama.job.rows.json_rows import parse_line
from spoolama.job.rows.limits import Limits
from spoolama.job.rows.lines import Lines, content
from spoolama.job.rows.reader import broken
from spoolama.job.rows.stream import BrokenStream, chunks, refuse_foreign

__all__ = ["InputKind", "detect"]

_FORMATS: dict[str, Literal["csv", "tsv", "jsonl"]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

_OPENAI_KEYS = {"custom_id", "method", "url", "body"}

_LOOK_AT_LINES = 100
"""How many lines may be unreadable before a file is no longer taken for OpenAI batch requests."""


_LOOK_AT_BYTES = 64 * 1024 * 1024
"""... and how many bytes."""


@dataclass(frozen=True, slots=True)
class InputKind:
    """What a data file is."""

    format: Literal["csv", "tsv", "jsonl", "openai"]
    """`openai`: JSONL whose lines are OpenAI batch requests."""
    compression: Literal["gz", "zst"] | None
    """By the name's last ending."""


def detect(path: Path, name: str) -> InputKind:
    """Which kind of data file this is, by its name and, for JSONL, by its first readable line.

    Args:
        path: Where the file is.
        name: Its name as the person knows it.

    Raises:
        InputError: the name has none of the known endings, the stream is damaged, or it is not UTF-8 text.
    """
    lower = name.lower()
    compression: Literal["gz", "zst"] | None = None
    if lower.endswith(".gz"):
        compression, lower = "gz", lower[:-3]
    elif lower.endswith(".zst"):
        compression, lower = "zst", lower[:-4]
    form = next((form for ending, form in _FORMATS.items() if lower.endswith(ending)), None)
    if form is None:
        raise InputError(
            f"{name} is not a kind of file that spoolama reads.",
            mend="Use .csv, .tsv, .jsonl or .ndjson, plain or with .gz or .zst behind it.",
            code="unknown_format",
        )
    stream = chunks(path, compression)
    with closing(stream):
        try:
            head = next(stream, b"")
            refuse_foreign(head, name)
            if form == "jsonl" and _is_openai(head, stream):
                return InputKind("openai", compression)
        except BrokenStream as error:
            raise broken(name, error, 0) from None
    return InputKind(form, compression)


def _is_openai(head: bytes, rest: Iterator[bytes]) -> bool:
    def again() -> Iterator[bytes]:
        yield head
        looked_at = 0
        for chunk in rest:
            yield chunk
            looked_at += len(chunk)
            if looked_at > _LOOK_AT_BYTES:
                return

    limit = Limits().max_line_bytes
    for line in islice(Lines(again(), limit), _LOOK_AT_LINES):
        if not content(line).strip() or len(line) > limit:
            continue
        fields = parse_line(content(line))
        if not isinstance(fields, RowFault):
            return fields.keys() >= _OPENAI_KEYS
    return False
