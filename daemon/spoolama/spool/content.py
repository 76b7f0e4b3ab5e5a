"""Computes the SHA-256 hash of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spoolama.regular import open_regular

__all__ = ["sha256_of"]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex. Reads in chunks."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
