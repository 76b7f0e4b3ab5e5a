"""Keys that are right by themselves and do not fit together."""

from __future__ import annotations

import pytest

from spoolama.errors import SidecarError
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from unit.evaluation.sidecar_problems import OK, problems


@pytest.mark.parametrize(
    ("trim", "said"),
    [
        ("{strategy: anchors, choose: important}", "needs a score: uncertain"),
        (
            "{strategy: anchors, choose: important, score: spread}",
            "needs a score: uncertain",
        ),
        (
            "{strategy: anchors, score: answer.score}",
            "score means nothing here; with strategy anchors",
        ),
        ("{strategy: hybrid, score: uncertain}", "score means nothing here; with strategy hybrid"),
        ("{strategy: window, score: uncertain}", "score means nothing with strategy window"),
        ("{strategy: hybrid, important: 3, score: uncertain}", None),
        ("{strategy: anchors, choose: important, score: uncertain}", None),
    ],
)
def test_a_score_must_have_something_to_choose(trim: str, said: str | None) -> None:
    """What would be ignored in silence is refused, with what to write instead."""
    if said is None:
        assert parse_sidecar(OK + f"trim: {trim}\n", "a.yaml")
        return
    with pytest.raises(SidecarError, match=said):
        parse_sidecar(OK + f"trim: {trim}\n", "a.yaml")


@pytest.mark.parametrize(
    ("side", "fine"),
    [
        ("mode: isolated\n", False),
        ("trim: {pilot: 0}\n", False),
        ("trim: {strategy: reset, every: 1}\n", False),
        ("trim: {strategy: window}\nsegment: 1\n", False),
        ("trim: {strategy: hybrid, important: 3}\nsegment: 1\n", False),
        ("trim: {strategy: anchors}\nsegment: 1\n", True),
        ("trim: {pilot: 300}\n", True),
        ("", True),
    ],
)
def test_an_audit_needs_rows_that_see_others(side: str, fine: bool) -> None:
    """Where none ever can, it is an error at its key; where a pilot may yet let them, it is not."""
    if fine:
        assert parse_sidecar(OK + side + "audit: 50\non_collapse: redo\n", "a.yaml").audit == 50
    else:
        found = problems(OK + side + "audit: 50\n")
        assert [key for _, _, key, _, _ in found] == ["audit"]
        assert "no row has others in sight" in found[0][3]
        assert parse_sidecar(OK + side + "on_collapse: redo\n", "a.yaml").audit == 0


def test_a_high_mark_is_not_above_the_critical_one() -> None:
    """Two shares, or two numbers of GB, are compared; a share and GB only when the card is known."""
    found = problems(OK + "vram: {high: 0.9, critical: 0.8}\n")
    assert [(key, message) for _, _, key, message, _ in found] == [
        ("vram.high", "0.9 is above vram.critical 0.8")
    ]
    assert parse_sidecar(OK + "vram: {high: 14, critical: 0.8}\n", "a.yaml").vram is not None
