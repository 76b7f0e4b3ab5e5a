"""Fixtures that several modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemons import fake_ollama
from integration.hostile_service import fake_arguments


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A fake Ollama for all tests."""
    with fake_ollama(None, *fake_arguments()) as address:
        yield address
