"""What is told of the guard: harm comes first, and what to do about it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from spoolama.effect.guard import NO_REFERENCE
from spoolama.report.analysis import analyze_job
from spoolama.report.compare import compare_jobs
from spoolama.report.merge import merge_jobs
from spoolama.spool.job_ledger import JobLedger
from support.published import answered
from unit.report import effect_jobs
from unit.report.effect_jobs import (
    SEGMENT,
    again,
    decision,
    judged,
    line_of,
    own,
    publish,
    records_of,
    top_of,
    verdict,
)

WINDOW = "trim: {strategy: window}\n"


def table_of(job: Path, column: str) -> list[str]:
    with (job / "results.csv").open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


async def looked(ledger: JobLedger, *harmed: int, calm: int | None = None) -> None:
    """All ten segments of 30 rows were looked at."""
    for segment in range(10):
        if segment in harmed:
            await ledger.guarded(segment, verdict(segment))
        elif segment == calm:
            await ledger.guarded(segment, verdict(segment, 0.0, harm=False))
            again(ledger, "guard", range(segment * SEGMENT + 1, segment * SEGMENT + 9), own)
        else:
            await ledger.guarded(segment, None)


def test_harm_is_said_before_all_else(tmp_path: Path) -> None:
    """Right under name and books: where, how surely, and what to do, with `report`."""
    summary = publish(tmp_path / "j", WINDOW, fill=lambda ledger: looked(ledger, 2, 9))

    assert top_of(summary) == (
        "Warning: the conversation changed the answers in 2 of 10 segments (rows 61 to 90:"
        ' 29 of 29 answers are "positive"; rows 271 to 300: 29 of 29 answers are "positive").'
        " Of 16 such rows asked again alone, without other rows before them, 12 got another answer."
        " Their answers stand in the results as they came. What to do: do not rely on them; drop the job"
        " again with `mode: isolated`, or with `on_collapse: redo`, which asks such rows again alone."
    )
    assert summary.text.splitlines()[1].startswith("300 rows in")
    assert line_of(summary, "Guard") == "Harm in 2 of 10 segments: see the top."
    told = summary.metrics["guard"]
    assert [(v["segment"], v["first_row"], v["last_row"]) for v in told["verdicts"]] == [
        (2, 61, 90),
        (9, 271, 300),
    ]
    assert (told["looked_at"], told["suspicions"], told["harmed"], told["replaced"]) == (10, 2, 2, 0)
    assert told["on_collapse"] == "report"


def test_status_and_log_hear_of_harm_in_one_line(tmp_path: Path) -> None:
    """Behind the books, or behind why the job ended early; once only where that is the reason."""
    summary = publish(tmp_path / "j", WINDOW, fill=lambda ledger: looked(ledger, 2, 9))
    harm = "Warning: the conversation changed the answers in 2 of 10 segments; see summary.txt"
    assert summary.outcome() == f"300 rows in = 300 ok + 0 failed + 0 skipped. {harm}"
    assert summary.outcome("cancelled by j.cancel") == f"cancelled by j.cancel. {harm}"
    calm = publish(tmp_path / "calm", WINDOW, fill=looked)
    assert calm.outcome() == "300 rows in = 300 ok + 0 failed + 0 skipped"
    collapsed = replace(summary, metrics={**summary.metrics, "ended_early": {"code": "collapsed"}})
    assert collapsed.outcome("the conversation changed the answers") == "the conversation changed the answers"


def test_what_was_not_odd_is_not_told_as_a_reason(tmp_path: Path) -> None:
    """A segment that was looked into for want of a reference has its rows in the warning, and no more."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.guarded(3, {**verdict(3), "suspicion": NO_REFERENCE})

    assert "in 1 of 1 segment (rows 91 to 120). Of 8" in top_of(publish(tmp_path / "j", WINDOW, fill=fill))


def test_rows_that_were_redone_are_told_and_marked(tmp_path: Path) -> None:
    """With `redo` the results hold the new answers; those rows, and no others, carry `redone`."""

    async def fill(ledger: JobLedger) -> None:
        await looked(ledger, calm=1)
        assert await ledger.redo(2, verdict(2)) == 29
        for n in range(61, 90):
            ledger.answered(answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT))

    summary = publish(tmp_path / "j", "on_collapse: redo\ntrim: {strategy: auto}\n", fill=fill)

    told, top = summary.metrics["guard"], top_of(summary)
    assert (told["replaced"], told["answered_again"], told["harmed"]) == (29, 29, 1)
    assert "in 1 of 10 segments (rows 61 to 90: " in top
    assert summary.outcome().endswith(
        "Warning: the conversation changed the answers in 1 of 10 segments; 29 rows were asked again, alone;"
        " see summary.txt"
    )
    assert (
        "29 rows were therefore asked again, each alone; the results hold those answers, marked `redone`."
        " What came after them was asked alone. What to do: nothing for these rows; `audit: 200` tells about"
        " the others."
    ) in top
    rows = records_of(tmp_path / "j")
    assert [row["row"] for row in rows if row.get("redone")] == list(range(62, 91))
    assert all("redone" not in row for row in rows[:61])
    cells = table_of(tmp_path / "j", "redone")
    assert [n for n, cell in enumerate(cells, 1) if cell == "true"] == list(range(62, 91))
    assert set(cells) == {"", "true"}
    publish(tmp_path / "retry", rows=0)
    merge_jobs(tmp_path / "j", tmp_path / "retry", tmp_path / "whole")
    assert table_of(tmp_path / "whole", "redone") == cells


def test_a_table_without_redone_rows_has_no_column_for_them(tmp_path: Path) -> None:
    """A job whose answers stand as they came has the columns that it always had."""
    publish(tmp_path / "j", WINDOW, fill=looked)
    assert (tmp_path / "j" / "results.csv").read_bytes().startswith(b"text,gold,answer,status,error\n")


def test_a_job_that_was_to_fail_says_how_to_go_on(tmp_path: Path) -> None:
    """With `fail` the end is explained, and what to drop instead."""
    summary = publish(tmp_path / "j", WINDOW + "on_collapse: fail\n", fill=lambda ledger: looked(ledger, 0))
    assert "in 1 of 10 segments (rows 1 to 30: " in top_of(summary)
    assert "The job ended there, as `on_collapse: fail` asks. What to do: drop it again" in top_of(summary)


def test_numbers_and_noise_are_told_as_shares(tmp_path: Path) -> None:
    """Where answers differ by degrees, or alone differs from alone, shares say it."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.guarded(3, verdict(3, 4.4, floor=0.4))

    top = top_of(publish(tmp_path / "j", WINDOW, fill=fill))
    assert "The answers of 8 such rows asked again alone, without other rows before them, are 55 %" in top
    assert "different (alone, asked twice, 5 %)." in top


def test_a_form_chosen_by_gold_is_held_against_gold(tmp_path: Path) -> None:
    """That it differs from alone was the aim: harm is what agrees worse with the known answers."""

    async def fill(ledger: JobLedger) -> None:
        tried = judged(wins=20, losses=2, compared=60, how="rows answered right")
        await ledger.note(pilot=decision("tail-5", "better", tried))
        await ledger.guarded(3, {**verdict(3, 14.0, floor=1.0), "rows": 24})

    top = top_of(publish(tmp_path / "j", "gold: gold\ntrim: {strategy: auto}\n", fill=fill))
    assert top.startswith("Warning: the conversation spoiled the answers in 1 of 1 segment (rows 91 to 120: ")
    assert (
        "Held against gold beside the same rows asked again alone, 14 of 24 came out worse and 1 better."
        in top
    )


@pytest.mark.parametrize(
    ("calm", "reference", "said"),
    [
        (
            None,
            0,
            "10 segments looked at, no sign of harm. With hardly any answers given alone to compare, only a"
            " segment that nearly always says the same would be noticed.",
        ),
        (None, 40, "10 segments looked at, no sign of harm."),
        (
            4,
            40,
            "10 segments looked at, 1 of them closely: 8 rows answered again alone show no harm.",
        ),
    ],
)
def test_no_harm_raises_no_alarm(tmp_path: Path, calm: int | None, reference: int, said: str) -> None:
    """A watched job without harm has no warning, and the line says how much could have been noticed."""

    async def fill(ledger: JobLedger) -> None:
        await looked(ledger, calm=calm)
        again(ledger, "alone", range(reference), own)

    summary = publish(tmp_path / "j", WINDOW, fill=fill)
    assert line_of(summary, "Guard") == said
    assert top_of(summary) == ""
    assert summary.metrics["guard"]["warning"] is None


def test_short_segments_are_not_said_to_be_sound(tmp_path: Path) -> None:
    """A segment with too few answers in sight of others was looked at by nobody."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.guarded(0, None)

    summary = publish(tmp_path / "j", WINDOW, rows=10, fill=fill)
    told = summary.metrics["guard"]
    assert (told["looked_at"], told["too_short"]) == (0, 1)
    assert line_of(summary, "Guard").startswith("Nothing to judge: no segment has 15 answers")


def test_a_suspicion_without_a_row_to_compare_is_not_settled(tmp_path: Path) -> None:
    """That nothing was found is not that there is nothing."""
    empty = {**verdict(4, 0.0, harm=False), "rows": 0}

    async def one(ledger: JobLedger) -> None:
        await ledger.guarded(4, empty)
        again(ledger, "alone", range(40), own)

    async def two(ledger: JobLedger) -> None:
        await looked(ledger, calm=1)
        await ledger.guarded(4, empty)
        again(ledger, "alone", range(40), own)

    alone = publish(tmp_path / "one", WINDOW, fill=one)
    assert line_of(alone, "Guard") == (
        "1 segment looked at, 1 of them closely. Not settled in 1 segment: no row answered again alone could"
        " be compared there."
    )
    assert (alone.metrics["guard"]["not_settled"], alone.metrics["guard"]["harmed"]) == (1, 0)
    line = line_of(publish(tmp_path / "two", WINDOW, fill=two), "Guard")
    assert "8 rows answered again alone show no harm. Not settled in 1 segment" in line


@pytest.mark.parametrize(
    ("models", "segment", "why"),
    [
        ([], 30, "the job ended before a segment was done"),
        (["a", None], 30, "the rows bring their own requests or models, and are not watched"),
        ([], 10, "segments are too short to be judged, which takes 15 answers given in sight of other rows"),
    ],
)
def test_why_nobody_looked_is_told_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str | None], segment: int, why: str
) -> None:
    """Rows with a model of their own are not watched; others were cut short, or in short segments."""
    monkeypatch.setattr(effect_jobs, "SEGMENT", segment)
    summary = publish(tmp_path / "j", WINDOW, asked_models=models)
    assert summary.metrics["guard"] is None
    assert summary.metrics["how"]["guard"] == f"null: {why}"


def test_without_a_conversation_there_is_nothing_to_guard(tmp_path: Path) -> None:
    """null with the reason, and no line about it."""
    summary = publish(tmp_path / "j", "mode: isolated\n")
    assert summary.metrics["guard"] is None
    assert summary.metrics["how"]["guard"] == "null: rows were asked alone"
    assert (line_of(summary, "Guard"), line_of(summary, "Audit")) == ("", "")


def test_a_warning_is_in_analyze_in_compare_and_in_what_comes_next(tmp_path: Path) -> None:
    """Whoever looks at the answers by another way than the summary hears of it too."""
    summary = publish(tmp_path / "j", WINDOW, fill=lambda ledger: looked(ledger, 0))
    assert "Mind the warning at the top." in summary.text
    (warning,) = analyze_job(tmp_path / "j").warnings
    assert warning.startswith("Warning: the conversation changed the answers")
    assert compare_jobs(tmp_path / "j", tmp_path / "j").left.cells["Mind"] == warning


def test_analyze_has_the_sentences_of_the_summary(tmp_path: Path) -> None:
    """What stood before the rows, pilot, guard, audit and the thirds, word for word."""
    summary = publish(tmp_path / "j", "gold: gold\n" + WINDOW, fill=looked)
    analysis = analyze_job(tmp_path / "j")
    assert [label for label, _ in analysis.effects] == ["Trims", "Pilot", "Guard", "Audit"]
    for label, sentence in analysis.effects:
        assert line_of(summary, label) == sentence
    assert "each row saw up to 29 earlier ones" in dict(analysis.effects)["Trims"]
    assert summary.metrics["sight_peak"] == 29
    assert analysis.along is not None
    assert line_of(summary, "Agreement").endswith(analysis.along)
    assert analysis.along in b"".join(analysis.csv()).decode()
