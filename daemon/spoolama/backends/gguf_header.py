"""Reads the header of a GGUF file without loading the model.

The format (ggml-org/ggml, docs/gguf.md), little-endian: magic `GGUF`, u32 version, u64 tensor count, u64
count of key-value pairs, then the pairs: a string (u64 length, bytes), a u32 type, the value; an array is a
u32 type of its items, a u64 count, the items. After the pairs follows each tensor: name, u32 count of
dimensions, a u64 for each, u32 type, u64 offset. Version 1 has u32 where later ones have u64; it is not
supported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from spoolama.regular import open_regular

MAGIC = b"GGUF"
VERSIONS = {2, 3}
MOST_PAIRS = 4096
"""Maximum number of key-value pairs; real files have some dozens."""
MOST_ITEMS = 1 << 24
"""Maximum items of all arrays together; large vocabularies have about 300 000 tokens, in three arrays."""
MOST_KEPT = 1024
"""Longest array of numbers that is kept, such as one number per layer; longer arrays are skipped."""
MOST_TENSORS = 1 << 16
MOST_DIMENSIONS = 8
MOST_NAME = 1024
"""Longest key, and longest text that is kept, in bytes; longer texts (chat templates) are skipped."""
MOST_HEADER = 1 << 28
"""Maximum size of a header in bytes; a longer one is rejected."""

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
_TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}
"""Tensor types: type number, values per block, bytes per block (llama.cpp, gguf-py/gguf/constants.py)."""
_KINDS = {number: kind for kind, (number, _, _) in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, as described by a header or `/api/show`."""

    name: str
    kind: str | None
    """Its type with llama.cpp's name, such as `Q4_K`; None: unknown."""
    shape: tuple[int, ...]

    @property
    def items(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int | None:
        """Size in bytes; None for an unknown type."""
        if self.kind not in _TYPES:
            return None
        _, block, size = _TYPES[self.kind]
        return -(-self.items // block) * size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A header; empty if the file has none."""

    pairs: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, short texts and short lists of numbers. `<architecture>.vocab_size` is added."""
    tensors: tuple[Tensor, ...] = ()

    @property
    def architecture(self) -> str | None:
        """`general.architecture`: `llama`, `gemma3`, ..."""
        found = self.pairs.get("general.architecture")
        return found if isinstance(found, str) else None

    @property
    def trained_ctx(self) -> int | None:
        """The trained context length in tokens; None: not in the file."""
        return self._tokens("context_length")

    @property
    def sliding_window(self) -> int | None:
        """The window of sliding-window layers in tokens; None: not in the file."""
        return self._tokens("attention.sliding_window")

    def _tokens(self, name: str) -> int | None:
        """Return a count of tokens of this architecture; None if it is 0 or missing."""
        value = self.pairs.get(f"{self.architecture}.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class _Foreign(Exception):
    """The file does not follow the format."""


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a file; an invalid or truncated header gives an empty result."""
    try:
        with open_regular(path) as file:
            reader = _Reader(file)
            pairs = reader.pairs()
            return GgufHeader(pairs, reader.tensors())
    except (OSError, _Foreign):
        return GgufHeader()


class _Reader:
    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._left = MOST_HEADER
        self._items = MOST_ITEMS
        self._tensors = 0
        self._tokens: int | None = None
        self._last_count: int | None = None
        """Number of items of the last array."""

    def pairs(self) -> dict[str, Any]:
        """Read every pair whose value is a number, a short text or a short list of numbers."""
        if self._take(4) != MAGIC:
            raise _Foreign("not a GGUF file")
        if self._number("<I") not in VERSIONS:
            raise _Foreign("unsupported version")
        self._tensors = self._number("<Q")
        count = self._number("<Q")
        if count > MOST_PAIRS:
            raise _Foreign("too many key-value pairs")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._text()
            if key is None:
                raise _Foreign("key too long")
            self._last_count = None
            value = self._value(self._number("<I"))
            if key == "tokenizer.ggml.tokens":
                self._tokens = self._last_count
            if value is not None:
                found[key] = value
        architecture = found.get("general.architecture")
        if isinstance(architecture, str) and self._tokens is not None:
            found.setdefault(f"{architecture}.vocab_size", self._tokens)
        return found

    def tensors(self) -> tuple[Tensor, ...]:
        """Read the tensor descriptions after the pairs."""
        if self._tensors > MOST_TENSORS:
            raise _Foreign("too many tensors")
        return tuple(self._tensor() for _ in range(self._tensors))

    def _tensor(self) -> Tensor:
        name, dimensions = self._text(), self._number("<I")
        if name is None or dimensions > MOST_DIMENSIONS:
            raise _Foreign("invalid tensor description")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        kind = _KINDS.get(self._number("<I"))
        self._number("<Q")  # offset
        return Tensor(name, kind, shape)

    def _value(self, kind: int) -> Any:
        """Read a number, a short text or a short list of numbers; None for values that are skipped."""
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _Foreign("unknown value type")
        inner, count = self._number("<I"), self._number("<Q")
        self._last_count = count
        self._items -= count
        if self._items < 0:
            raise _Foreign("too many array items")
        if inner in _NUMBERS and count <= MOST_KEPT:
            return [self._number(_NUMBERS[inner]) for _ in range(count)]
        if inner in _NUMBERS:
            self._skip(count * struct.calcsize(_NUMBERS[inner]))
        elif inner == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            raise _Foreign("unknown array type")
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
            raise _Foreign("header too long")
        found = self._file.read(size)
        if len(found) < size:
            raise _Foreign("the file ends inside its header")
        return found

    def _skip(self, size: int) -> None:
        # Read instead of seek, to notice the end of the file and to keep short strings in the buffer.
        while size > 0:
            size -= len(self._take(min(size, 1 << 16)))
