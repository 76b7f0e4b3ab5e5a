"""The report of the audit: harm and what to do, or how certain it is that there is none."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.jobtools.analysis import analyze_job
from spoolama.jobtools.comparison import compare_jobs
from spoolama.jobtools.merge import merge_jobs
from spoolama.publish.audit_report import AuditResult, falling, part_of
from spoolama.publish.metrics import EndedEarly
from spoolama.publish.summary import Summary, agreement_sentences, context_sentences
from spoolama.spool.job_ledger import JobLedger
from support.published import Fill, answered, publish_job
from unit.publish.effect_jobs import (
    BUDGET,
    SEGMENT,
    Says,
    decision,
    harm,
    line_of,
    own,
    publish,
    records_of,
    store_answers,
    top_of,
    tried,
    verdict,
)

WINDOW = "trim: {strategy: window}\naudit: 100\n"
ROWS = [n for n in range(300) if n % 30 in (1, 4, 7, 10, 13, 16, 19, 22, 25, 28)]


def audited(
    says: Says = own,
    twice: Says | None = None,
    *,
    rows: list[int] = ROWS,
    text: bool = False,
    harmed: Mapping[int, dict[str, Any]] | None = None,
    **meta: Any,
) -> Fill:
    """100 rows were asked again in isolation, differing ones twice, and these segments have verdicts."""

    async def fill(ledger: JobLedger) -> None:
        for segment in range(10):
            await ledger.audited(segment, (harmed or {}).get(segment))
        store_answers(ledger, "audit", rows, says, text=text)
        store_answers(
            ledger, "audit-again", [n for n in rows if twice or says(n) != own(n)], twice or says, text=text
        )
        await ledger.note(**{"audit": BUDGET, "audited": True, **meta})

    return fill


def audit_of(summary: Summary) -> AuditResult:
    assert summary.metrics.audit is not None
    return summary.metrics.audit


def test_unchanged_answers_are_reported_with_the_smallest_harm(tmp_path: Path) -> None:
    """If none of 100 rows differs, there is no warning, and the report gives the smallest harm
    that it detects.
    """
    summary = publish(tmp_path / "j", WINDOW, fill=audited())
    line = line_of(summary, "Audit")
    assert line.startswith("100 % of 100 rows got the same answer in isolation (95 % interval 96 to 100 %)")
    assert "No harm was found" in line
    assert "a change of 12 % of the answers" in line
    found = audit_of(summary)
    assert (found.rows, found.asked, found.random, found.harm) == (100, 100, 100, None)
    assert (found.changed, found.repeatability, found.not_repeated, found.smallest_harm) == (0, None, 0, 0.12)
    assert (top_of(summary), found.warning()) == ("", None)
    assert [part.rows for part in found.by_depth] == [34, 34, 32]
    assert found.by_depth[0].where == "after 1 to 10 rows"
    assert found.along_job[-1].where.startswith("rows ")


def test_few_rows_give_their_smallest_detectable_harm(tmp_path: Path) -> None:
    """Seven rows detect a change of half of the answers, and one row detects none."""

    def one_differs(n: int) -> str:
        return own(n + (n == ROWS[3]))

    cases: tuple[tuple[str, int, Says, str], ...] = (
        ("seven", 7, own, "a change of 53 % of the answers"),
        ("one", 1, own, "too small to show harm"),
        (
            "above",
            7,
            one_differs,
            "14 % changed answers, above the 5 % of `margin`, but the sample is too small",
        ),
    )
    for name, rows, says, words in cases:
        summary = publish(tmp_path / name, WINDOW, fill=audited(says, rows=ROWS[:rows]))
        assert words in line_of(summary, "Audit")


def test_harm_comes_first(tmp_path: Path) -> None:
    """The harm follows the name and the counts: the figures of the whole sample, and what to do."""

    def deep(n: int) -> str:
        return own(n + 1) if n % 30 > 15 else own(n)

    summary = publish(tmp_path / "j", WINDOW, fill=audited(deep, harm=harm()))
    top = top_of(summary)
    assert top.startswith(
        "Warning: the conversation changes about 50 % of the answers, by 100 rows that were asked again in"
        " isolation (first known after 120 rows)."
    )
    assert "The results keep these answers unchanged." in top
    assert "What to do: upload the job again with `mode: isolated`" in top
    assert summary.text.splitlines()[1].startswith("300 rows in")
    line = line_of(summary, "Audit")
    assert "50 % of 100 rows" in line
    assert "95 % interval 40 to 60 %" in line
    assert "Harm was found after 120 rows" in line
    assert "falls with the number of earlier rows" in line
    found = audit_of(summary)
    assert (found.known_after, found.falls_along) == (120, "depth")
    assert found.harm is not None
    assert found.harm.startswith("the conversation changes about 50 % of the answers, by 100 rows")


def test_harmed_segments_are_listed(tmp_path: Path) -> None:
    """Three harmed segments are listed with their rows and what was odd, and metrics.json has the others."""
    harmed = {2: verdict(2), 4: {**verdict(4, 3.0), "suspicion": ""}, 7: verdict(7), 9: verdict(9)}
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harmed=harmed, harm=harm()))
    top = top_of(summary)
    assert 'rows 61 to 90, where 29 of 29 answers are "positive" (6 of 8 audited answers changed)' in top
    assert "rows 121 to 150 (3 of 8 audited answers changed)" in top
    assert "1 more segment in metrics.json." in top
    found = audit_of(summary)
    assert (found.harmed[0].segment, found.harmed[0].first_row, found.harmed[0].last_row) == (2, 61, 90)
    assert (found.segments, found.odd_segments, found.harmed_segments) == (10, 3, 4)


def test_status_and_log_report_harm_in_one_line(tmp_path: Path) -> None:
    """Status and log have the harm once, after the counts or after the reason of an early end."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harm=harm()))
    short = "Warning: the conversation changes about 30 % of the answers; see summary.txt"
    assert summary.outcome() == f"300 rows in = 300 ok + 0 failed + 0 skipped. {short}"
    assert summary.outcome("cancelled by j.cancel") == f"cancelled by j.cancel. {short}"
    calm = publish(tmp_path / "calm", WINDOW, fill=audited())
    assert calm.outcome() == "300 rows in = 300 ok + 0 failed + 0 skipped"
    ended = replace(summary, metrics=replace(summary.metrics, ended_early=EndedEarly("harm")))
    assert ended.outcome("the conversation harms") == "the conversation harms"


def test_rows_that_were_asked_again_are_marked(tmp_path: Path) -> None:
    """With `isolate` exactly the redone rows have `asked_again` and the new answers."""

    async def fill(ledger: JobLedger) -> None:
        await audited(harm=harm())(ledger)
        assert await ledger.withdraw_answers(2, verdict(2)) == 29
        for n in range(61, 90):
            ledger.answered(answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT))
        first = (await ledger.plans())[0]
        await ledger.add_plan(2, {**first, "version": 2, "from_segment": 5, "strategy": "reset", "every": 1})

    summary = publish(tmp_path / "j", WINDOW + "on_harm: isolate\n", fill=fill)

    found, top = audit_of(summary), top_of(summary)
    assert (found.withdrawn, found.answered_again, found.isolated_from) == (29, 29, 151)
    assert "From row 151 on, rows were isolated." in top
    assert "29 rows were asked again in isolation" in top
    assert "marked `asked_again`" in top
    assert summary.outcome().endswith("; 29 rows asked again in isolation; see summary.txt")
    rows = records_of(tmp_path / "j")
    assert [row["row"] for row in rows if row.get("asked_again")] == list(range(62, 91))
    assert all("asked_again" not in row for row in rows[:61])
    cells = table_of(tmp_path / "j", "asked_again")
    assert [n for n, cell in enumerate(cells, 1) if cell == "true"] == list(range(62, 91))
    assert set(cells) == {"", "true"}
    publish(tmp_path / "retry", rows=0)
    merge_jobs(tmp_path / "j", tmp_path / "retry", tmp_path / "whole")
    assert table_of(tmp_path / "whole", "asked_again") == cells


def table_of(job: Path, column: str) -> list[str]:
    with (job / "results.csv").open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


def test_replaced_answers_of_the_conversation_are_compared(tmp_path: Path) -> None:
    """Answers of a segment that was asked again still count in the comparison."""

    async def fill(ledger: JobLedger) -> None:
        await audited(lambda n: own(n + (60 < n < 90)))(ledger)
        await ledger.withdraw_answers(2, verdict(2))
        for n in range(61, 90):
            ledger.answered(answered(n, json.dumps(own(n + 1)), alone=True, segment=SEGMENT))

    found = audit_of(publish(tmp_path / "j", WINDOW, fill=fill))
    assert (found.rows, found.changed) == (100, 0.1)


def test_a_table_without_redone_rows_has_no_column_for_them(tmp_path: Path) -> None:
    """Without rows that were asked again, results.csv has no column `asked_again`."""
    publish(tmp_path / "j", WINDOW, fill=audited())
    assert (tmp_path / "j" / "results.csv").read_bytes().startswith(b"text,gold,answer,status,error\n")


def test_a_job_that_fails_by_harm_says_what_to_do(tmp_path: Path) -> None:
    """With `fail` the report explains the end and says what to drop instead."""
    summary = publish(tmp_path / "j", WINDOW + "on_harm: fail\n", fill=audited(harm=harm()))
    top = top_of(summary)
    assert "ended there because of `on_harm: fail`" in top
    assert top.endswith("What to do: upload the job again with `mode: isolated` or `on_harm: isolate`.")


def test_a_change_for_the_better_is_no_warning(tmp_path: Path) -> None:
    """If the pilot chose a form by gold, different answers are intended and give no warning."""
    pilot = decision("tail-5", "better", tried(wins=20, losses=2, compared=60))
    side = "gold: gold\ntrim: {strategy: auto}\naudit: 100\n"
    summary = publish(tmp_path / "j", side, fill=audited(lambda n: own(n + 1), pilot=pilot))
    assert (
        "Different answers are intended: the pilot chose the form that agrees better with gold."
        in line_of(summary, "Audit")
    )
    assert top_of(summary) == ""


def test_noise_is_reported_with_the_agreement(tmp_path: Path) -> None:
    """The report says how far isolated answers agree above temperature 0, and how many do not repeat at 0."""

    def noisy(n: int) -> str:
        return own(n + 1) if n % 20 == 1 else own(n)

    side = WINDOW + "options: {temperature: 1.0}\n"
    warm = publish(tmp_path / "warm", side, fill=audited(noisy, own))
    assert audit_of(warm).repeatability == 0.95
    assert "two isolated answers are 95 % alike. No harm was found." in line_of(warm, "Audit")
    cold = publish(tmp_path / "cold", WINDOW, fill=audited(noisy, own))
    assert audit_of(cold).not_repeated == 5
    assert "in 5 rows the isolated answer did not repeat. No harm was found." in line_of(cold, "Audit")
    assert (top_of(warm), top_of(cold)) == ("", "")


def test_one_depth_is_reported_once(tmp_path: Path) -> None:
    """If every row has the same number of visible rows, there is one part instead of three thirds."""
    found = audit_of(publish(tmp_path / "j", WINDOW, fill=audited(rows=ROWS[::10])))
    assert [(part.where, part.rows) for part in found.by_depth] == [("after 1 rows", 10)]


def test_free_text_is_compared_by_similarity(tmp_path: Path) -> None:
    """Texts are compared by the words they share, and the line says so."""

    def says(n: int) -> str:
        return f"row {n} is about a thing of number {n * 7}"

    summary = publish(tmp_path / "j", WINDOW, says=says, text=True, fill=audited(says, text=True))
    line = line_of(summary, "Audit")
    assert "100 rows got answers in isolation that are 100 % alike (words in common;" in line
    assert line.endswith("this does not show harm.")
    assert audit_of(summary).smallest_harm is None


def test_falling_agreement_is_reported_if_it_is_significant() -> None:
    """Falling agreement along depth or job is reported from 20 rows on, and by chance in at most one sample
    of fifty.
    """
    import random

    depth = {n: 1 + n % 40 for n in range(200)}
    assert falling({n: float(not (depth[n] > 25 and n % 2)) for n in range(200)}, depth) == "depth"
    same = dict.fromkeys(range(150), 6)
    assert falling({n: float(n < 100 or n % 2) for n in range(150)}, same) == "job"
    assert falling({n: float(n >= 50 or n % 2) for n in range(150)}, same) is None
    assert falling({n: float(n < 10) for n in range(19)}, same) is None
    warned = 0
    for seed in range(400):
        rng = random.Random(seed)
        values = {n: float(rng.random() > 0.1) for n in range(200)}
        warned += falling(values, {n: rng.randrange(1, 50) for n in values}) is not None
    assert warned <= 8


def test_a_part_without_rows_has_the_full_interval() -> None:
    """A part without rows has an interval from 0 to 1."""
    assert (part_of("x", []).rows, part_of("x", []).interval) == (0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("side", "meta", "why", "shown"),
    [
        ("mode: isolated\n", {}, "the sidecar says `mode: isolated`", False),
        ("trim: {strategy: window}\naudit: off\n", {}, "the sidecar says `audit: off`", True),
        (WINDOW, {}, "the job ended before a segment did", True),
        (WINDOW, {"own_requests": True}, "the rows bring their own model or request", True),
    ],
)
def test_a_job_without_an_audit_has_a_reason(
    tmp_path: Path, side: str, meta: dict[str, Any], why: str, shown: bool
) -> None:
    """The value is null with the reason; the summary gives it if a conversation existed or the
    sidecar has `audit`.
    """
    summary = publish(tmp_path / "j", side, **meta)
    assert summary.metrics.audit is None
    assert summary.metrics.how()["audit"] == f"null: {why}"
    assert line_of(summary, "Audit") == (f"None: {why}." if shown else "")


def test_an_audit_without_a_conversation_has_a_reason(tmp_path: Path) -> None:
    """If the pilot isolated every row, the report says why the requested audit did not run."""
    summary = publish_job(
        tmp_path / "j",
        data_name="d.csv",
        data=b"text,g\n" + b"x,1\n" * 20,
        sidecar='model: m\nprompt: "{{ text }}"\ngold: g\ntrim: {strategy: auto, pilot: 50}\naudit: 50\n',
        answer=lambda row: str(row.ordinal),
        segment=1,
    )
    assert summary.metrics.audit is None
    assert line_of(summary, "Audit") == "None: every row was asked in isolation."


def test_a_job_of_an_earlier_version_reports_how_it_continued(tmp_path: Path) -> None:
    """Checks of odd segments continue, and with `audit` rows are asked again as segments end."""
    before = {**BUDGET, "begun_before": True}
    checks = publish(tmp_path / "a", WINDOW, fill=audited(rows=[], audit={**before, "random": 0}))
    assert "An earlier version began this job: only segments that look odd" in line_of(checks, "Audit")
    assert "No harm was found in 10 segments." in line_of(checks, "Audit")
    asked = publish(tmp_path / "b", WINDOW, fill=audited(audit=before))
    assert "An earlier version began this job: the audit runs as segments end." in line_of(asked, "Audit")
    assert "100 % of 100 rows" in line_of(asked, "Audit")
    old = {**verdict(2), "floor": 0.0, "odd": 0, "told": 0}
    guarded = publish(tmp_path / "c", WINDOW, fill=audited(rows=[], harmed={2: old}, audit=before))
    assert "Warning: the conversation changed the answers in 1 of 10 segments." in top_of(guarded)
    assert "rows 61 to 90" in top_of(guarded)


def test_a_warning_is_in_analyze_compare_and_next_steps(tmp_path: Path) -> None:
    """`analyze`, `compare` and the next steps show the warning of the summary."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harm=harm()))
    assert line_of(summary, "Next") == "Read the warning at the top."
    warning = analyze_job(tmp_path / "j").warning
    assert warning is not None
    assert warning.startswith("Warning: the conversation changes about 30 %")
    assert compare_jobs(tmp_path / "j", tmp_path / "j").left.cells["Warning"] == warning


def test_analyze_has_the_sentences_of_the_summary(tmp_path: Path) -> None:
    """Context, pilot, audit and the agreement along the job are read back from metrics.json."""
    summary = publish(tmp_path / "j", "gold: gold\n" + WINDOW, fill=audited())
    metrics = analyze_job(tmp_path / "j").metrics
    sentences = dict(context_sentences(metrics))
    assert list(sentences) == ["Trims", "Audit"]
    for label, sentence in sentences.items():
        assert line_of(summary, label) == sentence
    assert "up to 29 other rows in a prompt" in sentences["Trims"]
    assert summary.metrics.visible_rows_peak == 29
    *_, along = agreement_sentences(metrics)
    assert along.startswith("In the first, middle and last third")
    assert line_of(summary, "Agreement").endswith(along)
    assert along in b"".join(analyze_job(tmp_path / "j").csv()).decode()
