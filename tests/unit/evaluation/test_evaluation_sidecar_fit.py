"""Keys that are valid but do not fit together."""

from __future__ import annotations

import pytest

from spoolama.errors import SidecarError
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from unit.evaluation.sidecar_problems import OK, problems


@pytest.mark.parametrize(
    ("trim", "expected"),
    [
        ("{strategy: anchors, choose: important}", "choose important needs score: uncertain"),
        (
            "{strategy: anchors, choose: important, score: spread}",
            "choose important needs score: uncertain",
        ),
        (
            "{strategy: anchors, score: answer.score}",
            "score has no effect; with strategy anchors",
        ),
        ("{strategy: hybrid, score: uncertain}", "score has no effect; with strategy hybrid"),
        ("{strategy: window, score: uncertain}", "score is not a key of strategy window"),
        ("{strategy: hybrid, important: 3, score: uncertain}", None),
        ("{strategy: anchors, choose: important, score: uncertain}", None),
    ],
)
def test_a_score_must_have_something_to_choose(trim: str, expected: str | None) -> None:
    """A score without a strategy that uses it is refused, with what to write instead."""
    if expected is None:
        assert parse_sidecar(OK + f"trim: {trim}\n", "a.yaml")
        return
    with pytest.raises(SidecarError, match=expected):
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
        ("trim: {pilot: 300}\ngold: g\n", True),
        ("", True),
    ],
)
def test_an_audit_needs_rows_that_see_others(side: str, fine: bool) -> None:
    """An audit is an error if no row can ever see others, and not if the default applies."""
    if fine:
        assert parse_sidecar(OK + side + "audit: 50\non_harm: isolate\n", "a.yaml").audit == 50
    else:
        found = problems(OK + side + "audit: 50\n")
        assert [key for _, _, key, _, _ in found] == ["audit"]
        assert "each row is asked in isolation, so there is nothing to audit" in found[0][3]
        assert parse_sidecar(OK + side + "on_harm: isolate\n", "a.yaml").audit_rows is None


@pytest.mark.parametrize(
    ("written", "rows"), [("auto", None), ("off", 0), ("'off'", 0), ("0", 0), ("200", 200)]
)
def test_an_audit_is_auto_off_or_a_number(written: str, rows: int | None) -> None:
    """`audit: off` works, which YAML reads as false."""
    assert parse_sidecar(OK + f"audit: {written}\n", "a.yaml").audit_rows == rows


@pytest.mark.parametrize("written", ["on", "-1", "2.5", "some"])
def test_an_invalid_audit_is_refused(written: str) -> None:
    """The error for an invalid audit lists the valid values."""
    (found,) = problems(OK + f"audit: {written}\n")
    assert "is not auto, off, or a whole number of rows from 0 to 1000000" in found[3]


def test_a_pilot_needs_known_answers() -> None:
    """A pilot with a number of answers needs `gold`; none or the default does not."""
    (found,) = problems(OK + "trim: {pilot: 300}\n")
    assert found[2:] == (
        "trim.pilot",
        "a pilot needs gold; without gold each row is asked in isolation",
        "set gold to a column with known answers, or remove pilot",
    )
    for trim in ("{pilot: 0}", "{pilot: auto}", "{strategy: auto}"):
        assert parse_sidecar(OK + f"trim: {trim}\n", "a.yaml")


def test_a_job_that_has_begun_keeps_the_keys_of_its_version() -> None:
    """A job that has begun may use the old key, and for a new job the error gives the new name."""
    old = OK + "trim: {pilot: 300}\naudit: 9\non_collapse: "
    for before, now in (("redo", "isolate"), ("report", "report"), ("fail", "fail")):
        begun = parse_sidecar(f"{old}{before}\n", "a.yaml", begun=True)
        assert (begun.on_harm, begun.trim.pilot, begun.audit) == (now, 300, 9)
    found = problems(OK + "on_collapse: redo\n")
    assert found[0][2:] == (
        "on_collapse",
        "on_collapse is called on_harm now: report, isolate (was redo) or fail",
        "for example on_harm: isolate",
    )


def test_the_high_threshold_is_not_above_the_critical_one() -> None:
    """Two shares or two numbers of GB are compared, and a share with GB only when the card is known."""
    found = problems(OK + "vram: {high: 0.9, critical: 0.8}\n")
    assert [(key, message) for _, _, key, message, _ in found] == [
        ("vram.high", "0.9 is above vram.critical 0.8")
    ]
    assert parse_sidecar(OK + "vram: {high: 14, critical: 0.8}\n", "a.yaml").vram is not None
