"""How many random cases a test tries: few by default, many with SPOOLAMA_THOROUGH=1."""

from __future__ import annotations

import os

__all__ = ["cases"]


def cases(usual: int, thorough: int) -> int:
    """The number of cases to try.

    Args:
        usual: In `make test`.
        thorough: With the environment variable SPOOLAMA_THOROUGH set, as before a release.
    """
    return thorough if os.environ.get("SPOOLAMA_THOROUGH") else usual
