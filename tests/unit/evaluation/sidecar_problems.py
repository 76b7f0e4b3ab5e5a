"""Helper for tests of sidecars: list all problems of one."""

from __future__ import annotations

import pytest

from spoolama.errors import SidecarError
from spoolama.evaluation.child.sidecar_file import parse_sidecar

OK = "model: m\nprompt: x\n"


def problems(
    text: str | bytes, *, openai: bool = False
) -> list[tuple[int | None, int | None, str, str, str | None]]:
    """Return line, column, key, message and hint of each problem."""
    with pytest.raises(SidecarError) as caught:
        parse_sidecar(text, "a.yaml", openai=openai)
    assert all(p.file == "a.yaml" for p in caught.value.problems)
    return [(p.line, p.column, p.key, p.message, p.hint) for p in caught.value.problems]
