"""The hash of a file's content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spoolama.regular import open_regular

__all__ = ["sha256_of"]


def sha256_of(path: Path) -> str:
    """A file's sha256 in hex, read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
