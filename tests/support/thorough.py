"""Which cases a test tries: those that show each kind by default, all of them with SPOOLAMA_THOROUGH=1."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def cases(usual: T, thorough: T) -> T:
    """The cases to try, or how many random ones.

    Args:
        usual: In `make test`.
        thorough: With the environment variable SPOOLAMA_THOROUGH set, as before a release.
    """
    return thorough if os.environ.get("SPOOLAMA_THOROUGH") else usual
