"""Which cases a test tries: one of each kind by default, all of them with SPOOLAMA_THOROUGH=1."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def cases(usual: T, thorough: T) -> T:
    """Return the cases to try, or the number of random ones.

    Args:
        usual: In `make test`.
        thorough: With the environment variable SPOOLAMA_THOROUGH set, as before a release.
    """
    return thorough if os.environ.get("SPOOLAMA_THOROUGH") else usual
