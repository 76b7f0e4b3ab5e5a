"""An empty spool and a manual clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolama.spool.layout import Spool
from support.hand_clock import HandClock


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    made = Spool(tmp_path / "spool")
    made.create()
    return made


@pytest.fixture
def clock() -> HandClock:
    """A manual clock."""
    return HandClock()
