"""What a settled file's content says about its completeness."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from spoolama.regular import open_regular
from spoolama.spool.names import data_name

__all__ = ["Content", "read_content", "sha256_of"]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """A file as a whole."""

    bytes: int
    """Its length."""
    sha256: str
    """Of the bytes as they stand on disk, in hex."""
    final_newline: bool | None
    """Whether the last byte is a newline: a cut upload nearly never ends so. None for a compressed file,
    whose format has an end of its own, and for an empty one."""


def read_content(path: Path) -> Content:
    """Read a file once, in pieces, and say what it is. Blocks as long as the disk takes."""
    digest, size, last = hashlib.sha256(), 0, b""
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            last = chunk[-1:]
    name = data_name(path.name)
    packed = name is not None and name.compression is not None
    return Content(size, digest.hexdigest(), None if packed or not last else last == b"\n")


def sha256_of(path: Path) -> str:
    """A file's sha256 in hex, read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
