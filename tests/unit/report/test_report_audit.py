"""What is told of the audit: whether the conversation changed the answers, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spoolama.spool.job_ledger import JobLedger
from support.published import Fill, publish_job
from unit.report.effect_jobs import Says, again, decision, judged, line_of, own, publish, top_of, verdict

WINDOW = "trim: {strategy: window}\naudit: 100\n"
ROWS = [n for n in range(300) if n % 30 in (1, 4, 7, 10, 13, 16, 19, 22, 25, 28)]


def audited(says: Says, twice: Says | None = None, *, text: bool = False, pilot: Any = None) -> Fill:
    """100 rows were answered again alone, and some of them twice."""

    async def fill(ledger: JobLedger) -> None:
        for segment in range(10):
            await ledger.guarded(segment, None)
        again(ledger, "audit", ROWS, says, text=text)
        again(ledger, "audit-again", ROWS if twice else ROWS[::4], twice or says, text=text)
        if pilot is not None:
            await ledger.note(pilot=pilot)

    return fill


def test_answers_that_stay_the_same_are_said_to(tmp_path: Path) -> None:
    """No row of 100 differs: less than the margin is changed, surely, and nothing is warned of."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited(own))
    assert line_of(summary, "Audit") == (
        "Asked again alone, 100 % of 100 rows got the same answer (95 % interval 96 to 100 %)."
        " No sign that the conversation changed the answers: 10 % or more can be ruled out."
    )
    told = summary.metrics["audit"]
    assert (told["rows"], told["asked"], told["changed"], told["floor"]) == (100, 100, False, 1.0)
    assert (top_of(summary), told["warning"]) == ("", None)
    assert [part["rows"] for part in told["by_depth"]] == [34, 34, 32]
    assert told["by_depth"][0]["where"] == "after 1 to 10 rows"
    assert told["along_job"][-1]["where"].startswith("rows ")


def test_a_change_within_the_margin_is_said_to_be_one(tmp_path: Path) -> None:
    """Alone repeats itself and 4 rows of 100 differ: that is not "no sign", bounded or not."""

    def some(n: int) -> str:
        return own(n + 1) if n in ROWS[3:100:25] else own(n)

    told = publish(tmp_path / "a", WINDOW, fill=audited(some)).metrics["audit"]
    assert (told["lost"], told["certain"], told["changed"]) == (0.04, True, False)
    assert told["sentence"].endswith(
        "The conversation changed 4 % of the answers, within the 5 % that `margin` allows; "
        + (
            "10 % or more can be ruled out."
            if told["clear"]
            else "so few rows cannot rule a change of 10 % out."
        )
    )


def test_a_best_guess_beyond_the_margin_is_never_cleared(tmp_path: Path) -> None:
    """Seven rows of which one differs: too few to tell, and said so."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "audit", ROWS[:7], lambda n: own(n + 1) if n == ROWS[3] else own(n))

    line = line_of(publish(tmp_path / "j", WINDOW, fill=fill), "Audit")
    assert line.endswith(
        "By the best guess more changed than the 5 % that `margin` allows, but so few rows cannot tell."
    )


def test_changed_answers_are_warned_of(tmp_path: Path) -> None:
    """Deep in each conversation the answers are others: that is said first, and that depth does it."""

    def deep(n: int) -> str:
        return own(n + 1) if n % 30 > 15 else own(n)

    summary = publish(tmp_path / "j", WINDOW, fill=audited(deep))
    line = line_of(summary, "Audit")
    assert "50 % of 100 rows got the same answer (95 % interval 40 to 60 %)" in line
    assert "by more than the 5 % that `margin` allows" in line
    assert line.endswith("The more rows stood before a row, the less its answers agree.")
    assert top_of(summary) == (
        "Warning: the audit shows that the conversation changed about 50 % of the answers (see Audit)."
        " What to do: nothing, if earlier rows were meant to count; else drop the job again with"
        " `mode: isolated`."
    )


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_change_of_all_rows_is_said_before_that_of_some_segments(tmp_path: Path, elsewhere: bool) -> None:
    """The audit's comes first and its advice alone: `redo` would leave the other rows as they are."""

    def says(n: int) -> str:
        return own(n + 1) if n < 90 and (elsewhere or n >= 60) else own(n)

    async def fill(ledger: JobLedger) -> None:
        await audited(says)(ledger)
        await ledger.guarded(2, verdict(2))

    summary = publish(tmp_path / "j", WINDOW, fill=fill)
    top = top_of(summary)
    assert top.startswith(
        "Warning: the audit shows that the conversation changed about 30 % of the answers, not only in the"
        " segments below (see Audit). What to do: nothing, if earlier rows were meant to count; else"
        if elsewhere
        else "Warning: the audit shows that the conversation changed about 10 % of the answers (see Audit)."
    )
    assert "Warning: the conversation changed the answers in 1 of 10 segments (rows 61 to 90: " in top
    assert top.endswith("Their answers stand in the results as they came.")
    assert top.count("What to do: ") == 1
    assert "redo" not in top
    share = "30 %" if elsewhere else "10 %"
    assert summary.outcome().endswith(
        f"Warning: the audit shows that the conversation changed about {share} of the answers;"
        " the conversation changed the answers in 1 of 10 segments; see summary.txt"
    )
    assert summary.metrics["audit"]["lost_elsewhere"] == pytest.approx(20 / 90 if elsewhere else 0, abs=1e-4)


def test_a_change_for_the_better_is_no_warning(tmp_path: Path) -> None:
    """Where the pilot chose a form for agreeing better with gold, other answers are what was wanted."""
    pilot = decision("tail-5", "better", judged(wins=20, losses=2, compared=60, how="rows answered right"))
    side = "gold: gold\ntrim: {strategy: auto}\naudit: 100\n"
    summary = publish(tmp_path / "j", side, fill=audited(lambda n: own(n + 1), pilot=pilot))
    assert "as it was to: it agrees better with gold" in line_of(summary, "Audit")
    assert top_of(summary) == ""


def test_noise_is_told_beside_the_agreement(tmp_path: Path) -> None:
    """Where alone differs from alone as often, nothing is laid at the conversation's door."""

    def noisy(n: int) -> str:
        return own(n + 1) if n % 20 == 1 else own(n)

    side = WINDOW + "options: {temperature: 1.0}\n"
    summary = publish(tmp_path / "j", side, fill=audited(noisy, own))
    told = summary.metrics["audit"]
    assert (told["changed"], told["floor"]) == (False, 0.95)
    assert "; alone, asked twice, 95 %" in line_of(summary, "Audit")
    assert top_of(summary) == ""


def test_few_rows_are_no_all_clear(tmp_path: Path) -> None:
    """Ten rows without a difference show no change, and rule none out."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "audit", ROWS[:10], own)

    line = line_of(publish(tmp_path / "j", WINDOW, fill=fill), "Audit")
    assert line.endswith(
        "A change beyond 5 % is not shown, but so few rows cannot rule a change of 10 % out."
    )


def test_one_depth_is_told_once(tmp_path: Path) -> None:
    """Behind anchors every row sees as many others: thirds by depth would tell them apart by nothing."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "audit", ROWS[::10], own)

    told = publish(tmp_path / "j", WINDOW, fill=fill).metrics["audit"]
    assert [(part["where"], part["rows"]) for part in told["by_depth"]] == [("after 1 rows", 10)]


def test_free_text_is_alike_not_equal(tmp_path: Path) -> None:
    """Texts are compared by the words they share, and the line says so."""

    def says(n: int) -> str:
        return f"row {n} is about a thing of number {n * 7}"

    summary = publish(tmp_path / "j", WINDOW, says=says, text=True, fill=audited(says, text=True))
    assert line_of(summary, "Audit").startswith(
        "Asked again alone, 100 rows are answered 100 % alike (words in common; 95 % interval 96 to 100 %)."
    )


@pytest.mark.parametrize(
    ("side", "guarded", "why", "shown"),
    [
        ("mode: isolated\n", False, "rows were asked alone", ""),
        (
            "trim: {strategy: window}\n",
            True,
            "not asked for; `audit: 200` has 200 rows answered again alone and compared",
            "Not asked for; `audit: 200` has 200 rows answered again alone and compared.",
        ),
        (WINDOW, True, "the job ended before its audit", "The job ended before its audit."),
    ],
)
def test_a_job_without_an_audit_says_why(
    tmp_path: Path, side: str, guarded: bool, why: str, shown: str
) -> None:
    """null with the reason; where there was a conversation, the summary says what would tell more."""

    async def fill(ledger: JobLedger) -> None:
        if guarded:
            await ledger.guarded(0, None)

    summary = publish(tmp_path / "j", side, fill=fill)
    assert summary.metrics["audit"] is None
    assert summary.metrics["how"]["audit"] == f"null: {why}"
    assert line_of(summary, "Audit") == shown


def test_an_audit_that_was_asked_for_and_had_nothing_to_look_at_is_told(tmp_path: Path) -> None:
    """A pilot may leave every row alone: whoever asked for an audit is told why there is none."""
    summary = publish_job(
        tmp_path / "j",
        data_name="d.csv",
        data=b"text\n" + b"x\n" * 20,
        sidecar='model: m\nprompt: "{{ text }}"\ntrim: {strategy: auto, pilot: 50}\naudit: 50\n',
        answer=lambda row: str(row.ordinal),
        segment=1,
    )
    assert summary.metrics["audit"] is None
    assert line_of(summary, "Audit") == (
        "No row was answered in sight of others, so there was nothing to audit."
    )
