"""Checks whether the first line of a data file is an OpenAI batch request, which needs no sidecar.

The result only decides how long a drop without a sidecar waits. The job itself reads the rows properly.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from pathlib import Path
from typing import Protocol

import zstandard

from spoolama.spool.names import data_name

__all__ = ["looks_like_openai"]


class _Reads(Protocol):
    def read(self, size: int = ..., /) -> bytes | None: ...


_BOUND = 256 * 1024
"""Maximum bytes of the first line that are read, after decompression."""


def looks_like_openai(path: Path) -> bool:
    """Whether the first line that is not blank has the keys `custom_id` and `body`.

    False if the file cannot be read; the intake reports that error later.
    """
    name = data_name(path.name)
    if name is None or name.ending not in (".jsonl", ".ndjson"):
        return False
    try:
        head = _head(path, name.compression)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        return False
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line, newline, _ = text.partition(b"\n")
    if not newline and len(head) >= _BOUND:
        # The line is longer than the limit. A long `body` may hide `custom_id`; such a drop waits longer.
        return line.startswith(b"{") and b'"custom_id"' in line and b'"body"' in line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "custom_id" in value and "body" in value


def _head(path: Path, compression: str | None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with io.FileIO(fd) as raw:
        if compression == "gzip":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return unpacked.read(_BOUND)
        if compression == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                return _fill(stream)
        return _fill(raw)


def _fill(stream: _Reads) -> bytes:
    parts, left = [], _BOUND
    while left > 0 and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
