"""Comparison of two published jobs, and analysis of one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from spoolama.errors import InputError, RowError
from spoolama.job.row import Row
from spoolama.jobtools.analysis import analyze_job
from spoolama.jobtools.comparison import compare_jobs
from spoolama.jobtools.merge import merge_jobs
from spoolama.publish.metrics import Metrics, TrimPlan
from spoolama.publish.summary import balance, context_sentences
from spoolama.spool.job_ledger import JobLedger
from support.published import answered, publish_job

SIDECAR = """
model: m
prompt: "{{ text }}"
gold: gold
mode: MODE
trim: {strategy: reset}
format: {type: object, properties: {s: {enum: [negative, positive]}}, required: [s]}
"""
DATA = b"text,gold\n" + b"".join(b"x,%d\n" % n for n in range(20))


def by_gold(row: Row) -> str:
    assert row.fields is not None
    return '{"s": "positive"}' if int(row.fields["gold"]) >= 10 else '{"s": "negative"}'


def test_the_same_rows_in_conversation_and_in_isolation(tmp_path: Path) -> None:
    """The report has agreement, distribution and changed answers of both, and says that an
    answer is constant.
    """
    for mode, answer in (("conversation", lambda _: '{"s": "positive"}'), ("isolated", by_gold)):
        sidecar = SIDECAR.replace("MODE", mode)
        publish_job(tmp_path / mode, data_name="d.csv", data=DATA, sidecar=sidecar, answer=answer)

    comparison = compare_jobs(tmp_path / "conversation", tmp_path / "isolated")

    left, right = comparison.left.cells, comparison.right.cells
    assert (comparison.both, comparison.different) == (20, 10)
    assert comparison.sentences()[0] == "10 of 20 rows (50 %) got different answers."
    assert len(comparison.sentences()) == 2
    assert left["Answers"] == ('all 20 answers are "positive"; never: negative')
    assert "undefined" in left["Agreement"]
    assert "Rank correlation (Spearman) with gold: 0.87 (95 % interval" in right["Agreement"]
    assert (left["Mode"], right["Mode"]) == ("conversation", "isolated")
    assert left["Tokens evaluated"] == "480"


def test_two_conversations_are_distinguished_by_names_and_trims(tmp_path: Path) -> None:
    """Two jobs in conversation are named by their trims, because "in conversation" names neither."""
    for name in ("first", "second"):
        sidecar = SIDECAR.replace("MODE", "conversation")
        publish_job(tmp_path / name, data_name="d.csv", data=DATA, sidecar=sidecar, answer=by_gold)

    comparison = compare_jobs(tmp_path / "first", tmp_path / "second")

    cost = comparison.sentences()[1]
    assert comparison.left.job in cost
    assert comparison.right.job in cost
    assert "strategy reset" in comparison.left.cells["Context"]


def test_auto_without_conversations_is_called_isolated(tmp_path: Path) -> None:
    """A job with `auto` and no other choice by a pilot is called isolated, whatever `mode` says."""
    for name, strategy in (("auto", "auto"), ("window", "window")):
        sidecar = SIDECAR.replace("MODE", "conversation").replace("reset", strategy)
        publish_job(tmp_path / name, data_name="d.csv", data=DATA, sidecar=sidecar, answer=by_gold)

    comparison = compare_jobs(tmp_path / "auto", tmp_path / "window")

    assert [side.cells["Mode"] for side in (comparison.left, comparison.right)] == [
        "isolated",
        "conversation",
    ]
    assert "each row was isolated" in comparison.left.cells["Context"]


def test_a_merged_directory_has_a_mode_and_a_name_but_no_costs(tmp_path: Path) -> None:
    """Isolated if both jobs were; speed and tokens are those of the merged jobs, and it says so."""
    sidecar = SIDECAR.replace("MODE", "isolated")

    def answer(row: Row) -> str | RowError:
        return RowError("answer_empty", "nothing") if row.ordinal == 3 else by_gold(row)

    publish_job(tmp_path / "job", data_name="d.csv", data=DATA, sidecar=sidecar, answer=answer)
    publish_job(
        tmp_path / "retry",
        data_name="errors.jsonl",
        data=(tmp_path / "job" / "errors.jsonl").read_bytes(),
        sidecar=sidecar,
        answer=by_gold,
    )
    merge_jobs(tmp_path / "job", tmp_path / "retry", tmp_path / "whole")

    comparison = compare_jobs(tmp_path / "job", tmp_path / "whole")

    assert [side.cells["Mode"] for side in (comparison.left, comparison.right)] == ["isolated", "isolated"]
    assert comparison.right.cells["Job"] == "whole"
    assert comparison.sentences()[1].endswith("whole: speed and tokens are those of the merged jobs.")


def test_both_are_compared_with_the_same_known_answers(tmp_path: Path) -> None:
    """Rows with which one job chose its form are left out of both agreements."""

    async def fill(ledger: JobLedger) -> None:
        for ordinal in range(5):
            ledger.add_trial("isolated", answered(ordinal, '{"s": "positive"}', alone=True))

    for name, filled in (("first", fill), ("second", None)):
        sidecar = SIDECAR.replace("MODE", "conversation")
        publish_job(
            tmp_path / name, data_name="d.csv", data=DATA, sidecar=sidecar, answer=by_gold, fill=filled
        )

    comparison = compare_jobs(tmp_path / "first", tmp_path / "second")

    for side in (comparison.left, comparison.right):
        assert "over 15 rows" in side.cells["Agreement"]
        assert "helped to choose the form of the prompts of first" in side.cells["Agreement"]


@pytest.mark.parametrize(
    ("trim", "more", "expected"),
    [
        (
            {"strategy": "window", "keep": 20, "every": 30},
            {},
            "strategy window; every 30 rows a trim keeps the latest 20",
        ),
        (
            {"strategy": "window", "keep": 20, "every": 30},
            {"visible_rows_peak": 49},
            "strategy window; every 30 rows a trim keeps the latest 20; up to 49 other rows in a prompt",
        ),
        (
            {"strategy": "anchors", "every": 1, "gold": True},
            {"anchors": (4, 9)},
            "strategy anchors; 2 anchors with their known answers; no earlier rows",
        ),
        (
            {"strategy": "important", "keep": 5, "every": 9, "score": "uncertain"},
            {"logprobs": 0},
            "strategy important; every 9 rows a trim keeps the latest 5;"
            " the server returned no log probabilities, so the latest rows were kept",
        ),
        (
            {"strategy": "important", "keep": 5, "every": 9, "score": "longest"},
            {},
            "strategy important; every 9 rows a trim keeps 5 rows, chosen by score",
        ),
        (
            {"strategy": "hybrid", "keep": 8, "important": 3},
            {},
            "strategy hybrid; a trim keeps 8 rows, 3 of them by score",
        ),
        ({"strategy": "budget", "tokens": 1500}, {}, "strategy budget; at most 1,500 tokens of earlier rows"),
    ],
)
def test_trims_are_described(trim: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    """The description gives the visible rows, the frequency of trims and the uncached tokens."""
    metrics = Metrics(trim=TrimPlan(asked=trim["strategy"], **trim), **more)
    assert dict(context_sentences(metrics))["Trims"] == expected


def test_an_isolated_job_has_no_trims() -> None:
    """An isolated job and a job without a plan have no trims."""
    assert dict(context_sentences(Metrics(isolated=True))) == {}


def test_jobs_about_other_data_are_refused(tmp_path: Path) -> None:
    """Jobs with other rows cannot be compared."""
    sidecar = SIDECAR.replace("MODE", "isolated")
    for name in "ab":
        publish_job(
            tmp_path / name,
            data_name="d.csv",
            data=DATA,
            sidecar=sidecar,
            answer=by_gold,
            data_sha256=name * 64,
        )
    with pytest.raises(InputError, match="different data"):
        compare_jobs(tmp_path / "a", tmp_path / "b")


def test_analysis_names_the_worst_rows(tmp_path: Path) -> None:
    """The CSV has failures by class with the first of each, and the slowest and longest rows, worst first."""

    def answer(row: Row) -> str | RowError:
        return RowError("context_overflow", "too long") if row.ordinal in (3, 4) else by_gold(row)

    sidecar = SIDECAR.replace("MODE", "conversation")
    publish_job(tmp_path / "j", data_name="d.csv", data=DATA, sidecar=sidecar, answer=answer)

    analysis = analyze_job(tmp_path / "j", most=3)

    assert balance(analysis.metrics) == "20 rows in = 18 ok + 2 failed + 0 skipped"
    assert [(f.code, f.rows, f.example.row) for f in analysis.failures] == [("context_overflow", 2, 4)]
    assert [record.row for _, record in analysis.extremes["slowest"]] == [20, 19, 18]
    assert [record.row for _, record in analysis.extremes["longest prompt"]] == [10, 20, 9]
    assert "most attempts" not in analysis.extremes
    table = list(csv.DictReader(io.StringIO(b"".join(analysis.csv()).decode())))
    assert {"rows", "answers", "agreement", "failures", "slowest"} <= {row["section"] for row in table}
    shares = [float(row["note"]) for row in table if row["section"] == "answers"]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_longest_answers_are_listed_for_free_text_only(tmp_path: Path) -> None:
    """Answers of a schema are left out of the longest rows, because each label has one length."""
    for name, sidecar in (
        ("labels", SIDECAR.replace("MODE", "isolated")),
        ("text", 'model: m\nprompt: "{{ text }}"\n'),
    ):
        publish_job(tmp_path / name, data_name="d.csv", data=DATA, sidecar=sidecar, answer=by_gold)
    assert "longest answer" not in analyze_job(tmp_path / "labels").extremes
    assert "longest answer" in analyze_job(tmp_path / "text").extremes


def test_a_directory_that_is_not_a_job_is_refused(tmp_path: Path) -> None:
    """The message for a directory that is not a job says what to name instead."""
    with pytest.raises(InputError, match="not a published job") as caught:
        analyze_job(tmp_path)
    assert "done/" in caught.value.fix
