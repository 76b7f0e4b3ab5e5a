"""What a GGUF file says of its model in its header, without loading it.

The format (ggml-org/ggml, docs/gguf.md), little-endian: magic `GGUF`, u32 version, u64 tensor count, u64
count of key-value pairs, then the pairs: a string (u64 length, bytes), a u32 type, the value; an array is a
u32 type of its items, a u64 count, the items. Version 1 had u32 where later ones have u64, and is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

__all__ = ["GgufFacts", "read_gguf_facts"]

MAGIC = b"GGUF"
VERSIONS = {2, 3}
MOST_PAIRS = 4096
"""Real files have some dozens."""
MOST_ITEMS = 1 << 24
"""Of all arrays together; the largest vocabularies have some 300 000 tokens, in three arrays."""
MOST_NAME = 1024
"""Bytes of a key, and of a text that is kept; longer ones (chat templates) are stepped over."""
MOST_HEADER = 1 << 28
"""Bytes: a header that claims to be longer is none."""

_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What is read of a header; None: not there."""

    architecture: str | None = None
    """`general.architecture`: `llama`, `gemma3`, ..."""
    trained_ctx: int | None = None
    """`<architecture>.context_length`: the longest window in tokens that the model was made for."""
    sliding_window: int | None = None
    """`<architecture>.attention.sliding_window`, in tokens."""
    kv_bytes: int | None = None
    """Bytes of keys and values that one token takes in all layers, at 16 bits a number."""


class _Foreign(Exception):
    """Not what the format promises."""


def read_gguf_facts(path: Path) -> GgufFacts:
    """The header of a file. One that is none, or ends early, leaves everything unknown."""
    try:
        with path.open("rb") as file:
            pairs = _Reader(file).pairs()
    except (OSError, _Foreign):
        return GgufFacts()
    architecture = pairs.get("general.architecture")
    if not isinstance(architecture, str):
        return GgufFacts()
    return GgufFacts(
        architecture=architecture,
        trained_ctx=_tokens(pairs, f"{architecture}.context_length"),
        sliding_window=_tokens(pairs, f"{architecture}.attention.sliding_window"),
        kv_bytes=_kv_bytes(pairs, architecture),
    )


def _kv_bytes(pairs: Mapping[str, Any], architecture: str) -> int | None:
    """Layers x key-value heads x (length of a key + length of a value) x 2 bytes (llama.cpp's f16 cache)."""

    def number(name: str) -> int | None:
        return _tokens(pairs, f"{architecture}.{name}")

    heads, layers = number("attention.head_count"), number("block_count")
    kv_heads = number("attention.head_count_kv") or heads
    whole = number("embedding_length")
    each = whole // heads if whole and heads else None
    key, value = number("attention.key_length") or each, number("attention.value_length") or each
    if layers is None or kv_heads is None or key is None or value is None:
        return None
    return layers * kv_heads * (key + value) * 2


def _tokens(pairs: Mapping[str, Any], key: str) -> int | None:
    """A count of tokens; 0 stands for: none."""
    value = pairs.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class _Reader:
    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._left = MOST_HEADER
        self._items = MOST_ITEMS

    def pairs(self) -> dict[str, Any]:
        """Every pair whose value is a number or a short text."""
        if self._take(4) != MAGIC:
            raise _Foreign("no GGUF")
        if self._number("<I") not in VERSIONS:
            raise _Foreign("a version that we do not know")
        self._number("<Q")  # tensors
        count = self._number("<Q")
        if count > MOST_PAIRS:
            raise _Foreign("more pairs than any model has")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._text()
            if key is None:
                raise _Foreign("a key of no sane length")
            value = self._value(self._number("<I"))
            if value is not None:
                found[key] = value
        return found

    def _value(self, kind: int) -> Any:
        """A number or a short text; None for what is stepped over."""
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _Foreign("a type that we do not know")
        inner, count = self._number("<I"), self._number("<Q")
        self._items -= count
        if self._items < 0:
            raise _Foreign("more items than any model has")
        if inner in _NUMBERS:
            self._skip(count * struct.calcsize(_NUMBERS[inner]))
        elif inner == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            raise _Foreign("an array of what we do not know")
        return None

    def _text(self) -> str | None:
        size = self._number("<Q")
        if size > MOST_NAME:
            self._skip(size)
            return None
        return self._take(size).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise _Foreign("longer than any header")
        found = self._file.read(size)
        if len(found) < size:
            raise _Foreign("the file ends inside its header")
        return found

    def _skip(self, size: int) -> None:
        # Read, not sought: so the end of the file is noticed, and short strings stay in the buffer.
        while size > 0:
            size -= len(self._take(min(size, 1 << 16)))
