"""The report of the pilot: the chosen form, the reason, and the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spoolama.compare.pilot import TriedForm
from spoolama.spool.job_ledger import JobLedger
from unit.publish.effect_jobs import decision, line_of, own, publish, records_of, store_answers, tried

AUTO = "trim: {strategy: auto}\n"
GOLD = "gold: gold\n" + AUTO
FRONT = "the same rows before each row"


ISOLATED_CHOSEN = "Chosen: each row in isolation."
EARLIER_VERSION = "An earlier version made this choice without known answers"


@pytest.mark.parametrize(
    ("side", "form", "why", "forms", "expected"),
    [
        (
            GOLD,
            "anchors",
            "better",
            [tried("anchors", FRONT, wins=31, losses=9, compared=120, better=True)],
            [
                "Chosen: the same rows before each row.",
                "agrees better with gold than isolated rows. In 120 comparisons it was better in 31",
            ],
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT, wins=5, losses=9, compared=40), tried(wins=8, losses=7, compared=40)],
            [
                ISOLATED_CHOSEN,
                "The best of 2 other forms showed up to 5 earlier rows. In 40 comparisons"
                " it was better in 8 and worse in 7.",
            ],
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT), tried(wins=9, losses=9, compared=29)],
            [
                ISOLATED_CHOSEN,
                "No form was shown to agree better with gold.",
                "In 29 comparisons it was better in 9 and worse in 9.",
            ],
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT, wins=1, losses=9, compared=40)],
            [
                ISOLATED_CHOSEN,
                "The only other form showed the same rows. In 40 comparisons it was",
            ],
        ),
        (GOLD, "isolated", "none_fits", [], [ISOLATED_CHOSEN, "No other form was possible"]),
        (GOLD, "isolated", "too_small", [], [ISOLATED_CHOSEN, "too small to show a difference"]),
        (AUTO, "tail-5", "no_harm", [tried()], ["Chosen: up to 5 earlier rows", EARLIER_VERSION]),
        (GOLD, "isolated", "none_faster", [], [ISOLATED_CHOSEN, EARLIER_VERSION]),
    ],
)
def test_each_result_is_described(
    tmp_path: Path, side: str, form: str, why: str, forms: list[TriedForm], expected: list[str]
) -> None:
    """The choice comes first, then the reason, then the cost, also for decisions of earlier versions."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.note(pilot=decision(form, why, *forms))
        store_answers(ledger, "isolated", range(40), own)
        store_answers(ledger, "tail-5", range(40), own)

    summary = publish(tmp_path / "j", side, fill=fill)

    line, found = line_of(summary, "Pilot"), summary.metrics.pilot
    assert found is not None
    assert line.startswith(expected[0])
    assert [words for words in expected if words not in line] == []
    assert "The pilot used 118 answers." in line
    assert (found.form, found.why, found.asked) == (form, why, 118)
    assert found.tried == tuple(forms)


@pytest.mark.parametrize(
    ("pilot", "why", "isolated", "expected"),
    [
        (
            600,
            "no_proof",
            40,
            "600 allowed answers. It stopped because more would not have changed the result.",
        ),
        (600, "better", 40, "600 allowed answers. It stopped because the result was clear."),
        (9000, "no_proof", 300, "9,000 allowed answers. It stopped because no rows were left."),
        (130, "no_proof", 40, "130 allowed answers."),
    ],
)
def test_the_reason_of_an_early_stop_is_reported(
    tmp_path: Path, pilot: int, why: str, isolated: int, expected: str
) -> None:
    """The report gives the reason of an early stop: proof, no prospect of one, or no more rows."""

    async def fill(ledger: JobLedger) -> None:
        store_answers(ledger, "isolated", range(isolated), own)
        form = "isolated" if why == "no_proof" else "tail-5"
        await ledger.note(pilot=decision(form, why, tried()))

    side = f"gold: gold\ntrim: {{strategy: auto, pilot: {pilot}}}\n"
    line = line_of(publish(tmp_path / "j", side, fill=fill), "Pilot")
    assert line.endswith(f"The pilot used 118 of {expected}")


@pytest.mark.parametrize(
    ("lanes", "said"),
    [(1, "40 s of answering (9.2 s of it for the pilot)"), (4, " % of all request time for the pilot)")],
)
def test_the_speed_says_how_long_the_pilot_took(tmp_path: Path, lanes: int, said: str) -> None:
    """With several lanes its requests overlap: then as a share of all requests."""

    async def fill(ledger: JobLedger) -> None:
        store_answers(ledger, "isolated", range(20), own)
        store_answers(ledger, "tail-5", range(4), own)
        await ledger.note(pilot=decision("isolated", "no_proof", tried()))

    summary = publish(tmp_path / "j", GOLD, fill=fill, lanes=lanes, active_s=40.0)
    assert said in line_of(summary, "Speed")


@pytest.mark.parametrize(
    ("side", "meta", "why"),
    [
        ("mode: isolated\n", {}, "the sidecar says `mode: isolated`"),
        ("trim: {strategy: window}\n", {}, "the sidecar says `strategy: window`"),
        (AUTO, {}, "a pilot needs known answers (`gold`); each row was asked in isolation"),
        (AUTO, {"pilot_done": [[0, "isolated"]]}, "an earlier version began a pilot without `gold`"),
        (
            GOLD,
            {},
            "the job has fewer than 5,000 rows, so each row was isolated. `trim: {pilot: N}`",
        ),
        ("gold: gold\ntrim: {strategy: auto, pilot: 0}\n", {}, "the sidecar says `pilot: 0`"),
        ("gold: gold\ntrim: {strategy: auto, pilot: 90}\n", {}, "the job ended before the pilot did"),
        (AUTO, {"own_requests": True}, "each row was asked in isolation"),
    ],
)
def test_a_job_without_a_pilot_has_a_reason(
    tmp_path: Path, side: str, meta: dict[str, Any], why: str
) -> None:
    """The value is null with the reason; the summary gives it if a pilot could have chosen the form."""
    summary = publish(tmp_path / "j", side, **meta)
    assert summary.metrics.pilot is None
    assert why in summary.metrics.how()["pilot"]
    line = line_of(summary, "Pilot")
    if "strategy: auto" in side:
        assert line.startswith("None: ")
        assert why in line
    else:
        assert line == ""


def test_rows_that_chose_do_not_count_for_agreement(tmp_path: Path) -> None:
    """Agreement leaves out the rows of the pilot, and the report gives their number."""

    async def fill(ledger: JobLedger) -> None:
        store_answers(ledger, "isolated", range(40), own)
        store_answers(ledger, "tail-5", range(40), own)
        store_answers(ledger, "audit", range(100, 120), own)

    def says(n: int) -> str:
        return own(n + 1) if n < 40 else own(n)  # wrong in every row of the sample

    summary = publish(tmp_path / "j", GOLD, says=says, fill=fill)
    agreement = summary.metrics.agreement
    assert agreement is not None
    assert (agreement.rows, agreement.left_out) == (260, 40)
    assert agreement.correlation == pytest.approx(1)
    used = [record.get("gold_used") for record in records_of(tmp_path / "j")]
    assert used == [True] * 40 + [None] * 260
    assert "Not counted: 40 rows whose known answers helped" in line_of(summary, "Agreement")


def test_only_conversations_have_segments_and_trims(tmp_path: Path) -> None:
    """The report of an isolated job does not mention segments and trims."""
    for name, side in (("isolated", "mode: isolated\n"), ("auto", AUTO)):
        line = line_of(publish(tmp_path / name, side), "Context")
        assert line.endswith(" tokens")
    line = line_of(publish(tmp_path / "window", "trim: {strategy: window}\n"), "Context")
    assert line.endswith(" tokens; 0 trims in 10 segments")


def test_the_next_steps_mention_weak_agreement(tmp_path: Path) -> None:
    """The next steps mention weak agreement, and say "nothing" only without it."""

    def says(n: int) -> str:
        return own(n + n % 7)

    weak, good = (publish(tmp_path / name, GOLD, says=s) for name, s in (("weak", says), ("good", own)))
    assert line_of(weak, "Next").startswith("Every row has an answer. The answers ")
    assert line_of(weak, "Next").endswith("A larger model or a clearer prompt may help.")
    assert line_of(good, "Next") == "Nothing: every row has an answer."
