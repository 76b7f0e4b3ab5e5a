"""What is told of the pilot: what was chosen, why, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spoolama.compare.pilot import TriedForm
from spoolama.spool.job_ledger import JobLedger
from unit.publish.effect_jobs import again, decision, line_of, own, publish, records_of, tried

AUTO = "trim: {strategy: auto}\n"
GOLD = "gold: gold\n" + AUTO
FRONT = "the same rows before each row"


@pytest.mark.parametrize(
    ("side", "form", "why", "forms", "said"),
    [
        (
            GOLD,
            "anchors",
            "better",
            [tried("anchors", FRONT, wins=31, losses=9, compared=120, better=True)],
            "Chosen: the same rows before each row. Proved in the sample to agree better with gold than"
            " isolated rows: 31 better, 9 worse, the rest equal (120 compared: rows answered right).",
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT, wins=5, losses=9, compared=40), tried(wins=8, losses=7, compared=40)],
            "Chosen: each row in isolation. No form was proved to agree better with gold."
            " The best of 2 was up"
            " to 5 earlier rows (tail-5): 8 better, 7 worse, the rest equal (40 compared:"
            " rows answered right).",
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT), tried(wins=9, losses=9, compared=29)],
            "Chosen: each row in isolation. No form was proved to agree better with gold. None was ahead; the"
            " nearest of 2 was up to 5 earlier rows (tail-5): 9 better, 9 worse, the rest"
            " equal (29 compared:",
        ),
        (
            GOLD,
            "isolated",
            "no_proof",
            [tried("anchors", FRONT, wins=1, losses=9, compared=40)],
            "Chosen: each row in isolation. No form was proved to agree better with gold."
            " Tried: the same rows"
            " (anchors): 1 better, 9 worse, the rest equal (40 compared: rows answered right).",
        ),
        (
            GOLD,
            "isolated",
            "none_fits",
            [],
            "Chosen: each row in isolation. Nothing else can be tried: segments are too short for it, or no"
            " rows fit in front of the others.",
        ),
        (
            GOLD,
            "isolated",
            "too_small",
            [],
            "Chosen: each row in isolation. The answers that the pilot may take are too"
            " few to prove anything.",
        ),
        (
            AUTO,
            "tail-5",
            "no_harm",
            [tried()],
            "Chosen: up to 5 earlier rows before each row. An earlier version decided this, not by known"
            " answers; this version goes on with it.",
        ),
        (
            GOLD,
            "isolated",
            "none_faster",
            [],
            "Chosen: each row in isolation. An earlier version decided this, not by known"
            " answers; this version"
            " goes on with it.",
        ),
    ],
)
def test_each_ending_is_said_in_words(
    tmp_path: Path, side: str, form: str, why: str, forms: list[TriedForm], said: str
) -> None:
    """What was chosen comes first, then why, then what it cost; decisions of earlier versions are read."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.note(pilot=decision(form, why, *forms))
        again(ledger, "isolated", range(40), own)
        again(ledger, "tail-5", range(40), own)

    summary = publish(tmp_path / "j", side, fill=fill)

    line, found = line_of(summary, "Pilot"), summary.metrics["pilot"]
    assert line.startswith(said)
    assert "It cost 118 additional answers (39 % of the rows)" in line
    assert (found["form"], found["why"], found["asked"]) == (form, why, 118)
    assert line == found["sentence"]
    assert len(found["tried"]) == len(forms)


@pytest.mark.parametrize(
    ("pilot", "why", "isolated", "said"),
    [
        (600, "no_proof", 40, " of at most 600: no proof was to be expected of more."),
        (600, "better", 40, " of at most 600: the proof was complete."),
        (9000, "no_proof", 300, " of at most 9,000: there were no more rows to take."),
        (130, "no_proof", 40, "."),
    ],
)
def test_why_a_pilot_stopped_early_is_said(
    tmp_path: Path, pilot: int, why: str, isolated: int, said: str
) -> None:
    """Beside what it cost: a proof, no prospect of one, or no more rows; nothing where too few were left."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "isolated", range(isolated), own)
        form = "isolated" if why == "no_proof" else "tail-5"
        await ledger.note(pilot=decision(form, why, tried()))

    side = f"gold: gold\ntrim: {{strategy: auto, pilot: {pilot}}}\n"
    line = line_of(publish(tmp_path / "j", side, fill=fill), "Pilot")
    assert line.endswith(f"It cost 118 additional answers (39 % of the rows){said}")


@pytest.mark.parametrize(
    ("side", "meta", "why"),
    [
        ("mode: isolated\n", {}, "the sidecar says `mode: isolated`"),
        ("trim: {strategy: window}\n", {}, "the sidecar names the strategy `window`"),
        (AUTO, {}, "without known answers (`gold`) there is nothing to try; each row was asked in isolation"),
        (
            AUTO,
            {"pilot_done": [[0, "isolated"]]},
            "an earlier version began this job and its pilot without `gold`",
        ),
        (GOLD, {}, "below 5,000 rows a sample of 2 % proves little, so each row was asked in isolation."),
        (
            "gold: gold\ntrim: {strategy: auto, pilot: 0}\n",
            {},
            "`pilot: 0`, so each row was asked in isolation",
        ),
        ("gold: gold\ntrim: {strategy: auto, pilot: 90}\n", {}, "the job ended before its pilot did"),
        (AUTO, {"asked_models": ["a", None]}, "each row was asked in isolation"),
    ],
)
def test_a_job_without_a_pilot_says_why(tmp_path: Path, side: str, meta: dict[str, Any], why: str) -> None:
    """null, the reason beside it, and the same reason in the summary."""
    summary = publish(tmp_path / "j", side, **meta)
    assert summary.metrics["pilot"] is None
    assert why in summary.metrics["how"]["pilot"]
    assert line_of(summary, "Pilot").startswith("None: ")
    assert why in line_of(summary, "Pilot")


def test_rows_that_chose_do_not_count_for_agreement(tmp_path: Path) -> None:
    """Known answers of the pilot's rows are left out of the agreement, and how many is said."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "isolated", range(40), own)
        again(ledger, "tail-5", range(40), own)
        again(ledger, "audit", range(100, 120), own)

    def says(n: int) -> str:
        return own(n + 1) if n < 40 else own(n)  # wrong in every row of the sample

    summary = publish(tmp_path / "j", GOLD, says=says, fill=fill)
    agreement = summary.metrics["agreement"]
    assert (agreement["rows"], agreement["left_out"]) == (260, 40)
    assert agreement["correlation"] == pytest.approx(1)
    used = [record.get("gold_used") for record in records_of(tmp_path / "j")]
    assert used == [True] * 40 + [None] * 260
    assert "Not counted: 40 rows whose known answers helped" in line_of(summary, "Agreement")


def test_segments_are_told_of_conversations_alone(tmp_path: Path) -> None:
    """Where each row stands alone, how the file was cut says nothing of the context."""
    for name, side in (("isolated", "mode: isolated\n"), ("auto", AUTO)):
        line = line_of(publish(tmp_path / name, side), "Context")
        assert line.endswith(" tokens")
    line = line_of(publish(tmp_path / "window", "trim: {strategy: window}\n"), "Context")
    assert line.endswith(" tokens; 0 trims; 10 segments")


def test_what_comes_next_has_weak_agreement_in_it(tmp_path: Path) -> None:
    """Not "nothing" where the answers hardly follow the known ones; but where they do."""

    def says(n: int) -> str:
        return own(n + n % 7)

    weak, good = (publish(tmp_path / name, GOLD, says=s) for name, s in (("weak", says), ("good", own)))
    assert line_of(weak, "Next").startswith("Every row has its answer. The answers ")
    assert line_of(weak, "Next").endswith("a larger model or a clearer prompt may help.")
    assert line_of(good, "Next") == "Nothing: every row has its answer."
