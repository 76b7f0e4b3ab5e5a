"""What is reported of the audit: harm first, with what to do; else how sure it is that there is none."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.jobtools.analysis import analyze_job
from spoolama.jobtools.compare import compare_jobs
from spoolama.jobtools.merge import merge_jobs
from spoolama.publish.audit import falling, parts_of
from spoolama.spool.job_ledger import JobLedger
from support.published import Fill, answered, publish_job
from unit.publish.effect_jobs import (
    BUDGET,
    SEGMENT,
    Says,
    again,
    decision,
    harm,
    line_of,
    own,
    publish,
    records_of,
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
    """100 rows were asked again in isolation, and those that differ twice; these segments were judged."""

    async def fill(ledger: JobLedger) -> None:
        for segment in range(10):
            await ledger.audited(segment, (harmed or {}).get(segment))
        again(ledger, "audit", rows, says, text=text)
        again(
            ledger, "audit-again", [n for n in rows if twice or says(n) != own(n)], twice or says, text=text
        )
        await ledger.note(**{"audit": BUDGET, "audited": True, **meta})

    return fill


def test_answers_that_stay_the_same_are_said_to_with_the_smallest_harm(tmp_path: Path) -> None:
    """No row of 100 differs: nothing is warned of, and what such a sample would have found is told."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited())
    assert line_of(summary, "Audit") == (
        "Asked again in isolation, 100 % of 100 rows got the same answer (95 % interval 96 to 100 %)."
        " No harm found; a change of 12 % of the answers would be found with 95 % probability."
    )
    found = summary.metrics["audit"]
    assert (found["rows"], found["asked"], found["random"], found["harm"]) == (100, 100, 100, False)
    assert (found["changed"], found["floor"], found["not_repeated"], found["smallest_harm"]) == (
        0,
        None,
        0,
        0.12,
    )
    assert (top_of(summary), found["warning"]) == ("", None)
    assert [part["rows"] for part in found["by_depth"]] == [34, 34, 32]
    assert found["by_depth"][0]["where"] == "after 1 to 10 rows"
    assert found["along_job"][-1]["where"].startswith("rows ")


def test_few_rows_say_what_they_cannot_show(tmp_path: Path) -> None:
    """Seven rows find a change of half of the answers, one row none; beyond the margin it is no all-clear."""
    for rows, says, end in (
        (7, own, "a change of 53 % of the answers would be found with 95 % probability."),
        (1, own, "So few rows cannot show harm."),
        (
            7,
            lambda n: own(n + (n == ROWS[3])),
            "The best estimate is 14 % changed, more than the 5 % that `margin` allows,"
            " but so few rows do not"
            " prove it.",
        ),
    ):
        name = tmp_path / f"j{rows}{end[:3]}"
        line = line_of(publish(name, WINDOW, fill=audited(says, rows=ROWS[:rows])), "Audit")
        assert line.endswith(end)


def test_harm_is_said_before_all_else(tmp_path: Path) -> None:
    """Right under name and books: what was found, after how many rows, and what to do."""

    def deep(n: int) -> str:
        return own(n + 1) if n % 30 > 15 else own(n)

    summary = publish(tmp_path / "j", WINDOW, fill=audited(deep, harm=harm()))
    assert top_of(summary) == (
        "Warning: the conversation changes about 30 % of the answers (known after 120"
        " rows). The answers stand"
        " in the results as they came. What to do: nothing, if earlier rows are meant to count; else drop the"
        " job again with `mode: isolated`."
    )
    assert summary.text.splitlines()[1].startswith("300 rows in")
    assert line_of(summary, "Audit") == (
        "Asked again in isolation, 50 % of 100 rows got the same answer (95 % interval 40 to 60 %). Harm was"
        " found after 120 rows: see the top. The more rows stood before a row, the less its answers agree."
    )
    found = summary.metrics["audit"]
    assert (found["harm"], found["known_after"], found["drift"]) == (True, 120, "depth")


def test_harmed_segments_are_named(tmp_path: Path) -> None:
    """Three of them with their rows and what was odd; the others are in metrics.json."""
    harmed = {2: verdict(2), 4: {**verdict(4, 3.0), "suspicion": ""}, 7: verdict(7), 9: verdict(9)}
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harmed=harmed, harm=harm()))
    assert (
        'Harmed by themselves: rows 61 to 90, where 29 of 29 answers are "positive" (6 of 8 audited answers'
        " changed); rows 121 to 150 (3 of 8 audited answers changed); rows 211 to 240, where"
    ) in top_of(summary)
    assert "1 segment more in metrics.json." in top_of(summary)
    found = summary.metrics["audit"]
    assert next((v["segment"], v["first_row"], v["last_row"]) for v in found["harmed"]) == (2, 61, 90)
    assert (found["segments"], found["odd"], len(found["harmed"])) == (10, 3, 4)


def test_status_and_log_hear_of_harm_in_one_line(tmp_path: Path) -> None:
    """Behind the books, or behind why the job ended early; once only where that is the reason."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harm=harm()))
    short = "Warning: the conversation changes about 30 % of the answers; see summary.txt"
    assert summary.outcome() == f"300 rows in = 300 ok + 0 failed + 0 skipped. {short}"
    assert summary.outcome("cancelled by j.cancel") == f"cancelled by j.cancel. {short}"
    calm = publish(tmp_path / "calm", WINDOW, fill=audited())
    assert calm.outcome() == "300 rows in = 300 ok + 0 failed + 0 skipped"
    ended = replace(summary, metrics={**summary.metrics, "ended_early": {"code": "harm"}})
    assert ended.outcome("the conversation harms") == "the conversation harms"


def test_isolated_rows_are_told_and_marked(tmp_path: Path) -> None:
    """With `isolate` the results hold the new answers; those rows, and no others, carry `redone`."""

    async def fill(ledger: JobLedger) -> None:
        await audited(harm=harm())(ledger)
        assert await ledger.withdraw_answers(2, verdict(2)) == 29
        for n in range(61, 90):
            ledger.answered(answered(n, json.dumps(own(n)), alone=True, segment=SEGMENT))
        first = (await ledger.plans())[0]
        await ledger.add_plan(2, {**first, "version": 2, "from_segment": 5, "strategy": "reset", "every": 1})

    summary = publish(tmp_path / "j", WINDOW + "on_harm: isolate\n", fill=fill)

    found, top = summary.metrics["audit"], top_of(summary)
    assert (found["replaced"], found["answered_again"], found["isolated_from"]) == (29, 29, 151)
    assert (
        "From row 151 on, rows were asked in isolation. 29 rows were asked again in"
        " isolation; the results hold"
        " those answers, marked `redone`. The other answers stand in the results as they came."
    ) in top
    assert summary.outcome().endswith("; 29 rows were asked again in isolation; see summary.txt")
    rows = records_of(tmp_path / "j")
    assert [row["row"] for row in rows if row.get("redone")] == list(range(62, 91))
    assert all("redone" not in row for row in rows[:61])
    cells = table_of(tmp_path / "j", "redone")
    assert [n for n, cell in enumerate(cells, 1) if cell == "true"] == list(range(62, 91))
    assert set(cells) == {"", "true"}
    publish(tmp_path / "retry", rows=0)
    merge_jobs(tmp_path / "j", tmp_path / "retry", tmp_path / "whole")
    assert table_of(tmp_path / "whole", "redone") == cells


def table_of(job: Path, column: str) -> list[str]:
    with (job / "results.csv").open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


def test_what_the_conversation_answered_is_compared_though_it_was_taken_back(tmp_path: Path) -> None:
    """Rows of a segment that was asked again still say what the conversation did."""

    async def fill(ledger: JobLedger) -> None:
        await audited(lambda n: own(n + (60 < n < 90)))(ledger)
        await ledger.withdraw_answers(2, verdict(2))
        for n in range(61, 90):
            ledger.answered(answered(n, json.dumps(own(n + 1)), alone=True, segment=SEGMENT))

    found = publish(tmp_path / "j", WINDOW, fill=fill).metrics["audit"]
    assert (found["rows"], found["changed"]) == (100, 0.1)


def test_a_table_without_redone_rows_has_no_column_for_them(tmp_path: Path) -> None:
    """A job whose answers stand as they came has the columns that it always had."""
    publish(tmp_path / "j", WINDOW, fill=audited())
    assert (tmp_path / "j" / "results.csv").read_bytes().startswith(b"text,gold,answer,status,error\n")


def test_a_job_that_was_to_fail_says_how_to_go_on(tmp_path: Path) -> None:
    """With `fail` the end is explained, and what to drop instead."""
    summary = publish(tmp_path / "j", WINDOW + "on_harm: fail\n", fill=audited(harm=harm()))
    assert top_of(summary).endswith(
        "The job ended there, as `on_harm: fail` asks. What to do: drop it again with"
        " `mode: isolated`, or with"
        " `on_harm: isolate`."
    )


def test_a_change_for_the_better_is_no_warning(tmp_path: Path) -> None:
    """Where the pilot chose a form for agreeing better with gold, other answers are what was wanted."""
    pilot = decision("tail-5", "better", tried(wins=20, losses=2, compared=60))
    side = "gold: gold\ntrim: {strategy: auto}\naudit: 100\n"
    summary = publish(tmp_path / "j", side, fill=audited(lambda n: own(n + 1), pilot=pilot))
    assert "meant to differ: the pilot chose what agrees better with gold." in line_of(summary, "Audit")
    assert top_of(summary) == ""


def test_noise_is_told_beside_the_agreement(tmp_path: Path) -> None:
    """Above temperature 0 by how far isolated answers agree; at 0, in how many rows they did not repeat."""

    def noisy(n: int) -> str:
        return own(n + 1) if n % 20 == 1 else own(n)

    side = WINDOW + "options: {temperature: 1.0}\n"
    warm = publish(tmp_path / "warm", side, fill=audited(noisy, own))
    assert warm.metrics["audit"]["floor"] == 0.95
    assert "; two isolated answers are 95 % alike. No harm found;" in line_of(warm, "Audit")
    cold = publish(tmp_path / "cold", WINDOW, fill=audited(noisy, own))
    assert cold.metrics["audit"]["not_repeated"] == 5
    assert "; in 5 of them isolated answers did not repeat. No harm found;" in line_of(cold, "Audit")
    assert (top_of(warm), top_of(cold)) == ("", "")


def test_one_depth_is_told_once(tmp_path: Path) -> None:
    """Behind anchors every row sees as many others: thirds by depth would tell them apart by nothing."""
    found = publish(tmp_path / "j", WINDOW, fill=audited(rows=ROWS[::10])).metrics["audit"]
    assert [(part["where"], part["rows"]) for part in found["by_depth"]] == [("after 1 rows", 10)]


def test_free_text_is_alike_not_equal(tmp_path: Path) -> None:
    """Texts are compared by the words they share, and the line says so."""

    def says(n: int) -> str:
        return f"row {n} is about a thing of number {n * 7}"

    summary = publish(tmp_path / "j", WINDOW, says=says, text=True, fill=audited(says, text=True))
    assert line_of(summary, "Audit").startswith(
        "Asked again in isolation, 100 rows were answered 100 % alike (words in common; 95 % interval 96 to"
    )
    assert line_of(summary, "Audit").endswith("so no harm is concluded from that.")
    assert summary.metrics["audit"]["smallest_harm"] is None


def test_falling_agreement_is_told_where_it_surely_falls() -> None:
    """Along depth or job, from 20 rows on, and by chance in at most one sample of fifty."""
    import random

    depth = {n: 1 + n % 40 for n in range(200)}
    assert falling({n: float(not (depth[n] > 25 and n % 2)) for n in range(200)}, depth) == "depth"
    same = dict.fromkeys(range(150), 6)
    assert falling({n: float(n < 100 or n % 2) for n in range(150)}, same) == "job"
    assert falling({n: float(n >= 50 or n % 2) for n in range(150)}, same) is None
    assert falling({n: float(n < 10) for n in range(19)}, same) is None
    said = 0
    for seed in range(400):
        rng = random.Random(seed)
        values = {n: float(rng.random() > 0.1) for n in range(200)}
        said += falling(values, {n: rng.randrange(1, 50) for n in values}) is not None
    assert said <= 8


def test_a_part_without_rows_says_nothing() -> None:
    """Its interval is everything."""
    assert (parts_of("x", []).rows, parts_of("x", []).low, parts_of("x", []).high) == (0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("side", "meta", "why", "shown"),
    [
        ("mode: isolated\n", {}, "rows were asked in isolation", ""),
        (
            "trim: {strategy: window}\naudit: off\n",
            {},
            "the sidecar says `audit: off`",
            "The sidecar says `audit: off`.",
        ),
        (
            WINDOW,
            {},
            "the job ended before a segment was done",
            "The job ended before a segment was done.",
        ),
        (
            WINDOW,
            {"own_requests": True},
            "the rows bring their own requests or models, and are not audited",
            "The rows bring their own requests or models, and are not audited.",
        ),
    ],
)
def test_a_job_without_an_audit_says_why(
    tmp_path: Path, side: str, meta: dict[str, Any], why: str, shown: str
) -> None:
    """null with the reason; where there was a conversation, the summary says it as well."""
    summary = publish(tmp_path / "j", side, **meta)
    assert summary.metrics["audit"] is None
    assert summary.metrics["how"]["audit"] == f"null: {why}"
    assert line_of(summary, "Audit") == shown


def test_an_audit_that_was_asked_for_and_had_nothing_to_look_at_is_told(tmp_path: Path) -> None:
    """A pilot may isolate every row: whoever asked for an audit is told why there is none."""
    summary = publish_job(
        tmp_path / "j",
        data_name="d.csv",
        data=b"text,g\n" + b"x,1\n" * 20,
        sidecar='model: m\nprompt: "{{ text }}"\ngold: g\ntrim: {strategy: auto, pilot: 50}\naudit: 50\n',
        answer=lambda row: str(row.ordinal),
        segment=1,
    )
    assert summary.metrics["audit"] is None
    assert (
        line_of(summary, "Audit") == "No row was answered in sight of others, so there was nothing to audit."
    )


def test_a_job_of_an_earlier_version_says_how_it_went_on(tmp_path: Path) -> None:
    """The guard's checks go on; with `audit` rows are asked as segments end; harm that was seen is told."""
    before = {**BUDGET, "begun_before": True}
    checks = publish(tmp_path / "a", WINDOW, fill=audited(rows=[], audit={**before, "random": 0}))
    assert line_of(checks, "Audit") == (
        "An earlier version began this job: only segments that look odd are checked, as its guard did."
        " No harm seen in 10 segments; no row was asked at random."
    )
    asked = publish(tmp_path / "b", WINDOW, fill=audited(audit=before))
    assert line_of(asked, "Audit").startswith(
        "An earlier version began this job: its audit is made as segments end. Asked again"
        " in isolation, 100 %"
    )
    old = {**verdict(2), "floor": 0.0, "odd": 0, "told": 0}
    guarded = publish(tmp_path / "c", WINDOW, fill=audited(rows=[], harmed={2: old}, audit=before))
    assert top_of(guarded).startswith(
        "Warning: the conversation changed the answers in 1 of 10 segments. Harmed by"
        " themselves: rows 61 to 90"
    )


def test_a_warning_is_in_analyze_in_compare_and_in_what_comes_next(tmp_path: Path) -> None:
    """Whoever looks at the answers by another way than the summary hears of it too."""
    summary = publish(tmp_path / "j", WINDOW, fill=audited(harm=harm()))
    assert "Mind the warning at the top." in summary.text
    (warning,) = analyze_job(tmp_path / "j").warnings
    assert warning.startswith("Warning: the conversation changes about 30 %")
    assert compare_jobs(tmp_path / "j", tmp_path / "j").left.cells["Mind"] == warning


def test_analyze_has_the_sentences_of_the_summary(tmp_path: Path) -> None:
    """What stood before the rows, pilot, audit and the thirds, word for word."""
    summary = publish(tmp_path / "j", "gold: gold\n" + WINDOW, fill=audited())
    analysis = analyze_job(tmp_path / "j")
    assert [label for label, _ in analysis.effects] == ["Trims", "Pilot", "Audit"]
    for label, sentence in analysis.effects:
        assert line_of(summary, label) == sentence
    assert "each row saw up to 29 earlier ones" in dict(analysis.effects)["Trims"]
    assert summary.metrics["sight_peak"] == 29
    assert analysis.along is not None
    assert line_of(summary, "Agreement").endswith(analysis.along)
    assert analysis.along in b"".join(analysis.csv()).decode()


def test_a_job_that_an_earlier_version_published_keeps_its_warning(tmp_path: Path) -> None:
    """Its metrics.json has a section `guard`, and its sidecar the keys of that version."""
    publish(tmp_path / "j", WINDOW, fill=audited())
    path = tmp_path / "j" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["guard"] = {"warning": "Warning: rows 1 to 30 went wrong.", "sentence": "Harm in 1 segment."}
    metrics["sidecar"]["on_collapse"] = "redo"
    path.write_text(json.dumps(metrics))
    analysis = analyze_job(tmp_path / "j")
    assert analysis.warnings == ["Warning: rows 1 to 30 went wrong."]
    assert dict(analysis.effects)["Guard"] == "Harm in 1 segment."
