"""Pilot and audit in a running job: which rows are asked, the result, and what a restart repeats."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.backends.base import ChatRequest, Reply
from spoolama.errors import JobError, RequestRefused
from support.backend import Call
from unit.answer.engine_bench import HELD, Bench, meta_of, plans_of, visible_to

pytestmark = pytest.mark.slow

WORDS = "format: {type: string, enum: [a, b, c]}\n"
LONG_PREFIX = "Judge " + "with great care " * 60
SIDE = (
    f"model: m\nsystem: {LONG_PREFIX}\nprompt: '{{{{ text }}}}'\n"
    "options: {num_ctx: 4096, num_predict: 16}\nprime: never\n" + WORDS
)
PILOT = "trim: {strategy: auto, pilot: 900}\ngold: text\nsegment: 60\n"
WINDOW = "trim: {strategy: window, keep: 5, every: 5}\nsegment: 60\n"


def text_of(number: int) -> str:
    return f"{'abc'[number * 7 % 3]} row {number}"


def own(request: ChatRequest) -> str:
    return json.dumps(request.messages[-1].content[0])


def follows(request: ChatRequest) -> str:
    """Answer each row as the one before it."""
    given = [m.content for m in request.messages if m.role == "assistant"]
    return given[-1] if given else own(request)


def rows_of(bench: Bench, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(bench.path)) as db:
        return db.execute(sql).fetchall()


def bench_of(
    path: Path,
    side: str,
    *,
    rows: int = 600,
    answer: Callable[[ChatRequest], str] = own,
    words: bool = True,
) -> Bench:
    """A job whose answers are words of a schema, or free text."""
    sidecar = SIDE if words else SIDE.replace(WORDS, "")
    return Bench(path, [text_of(n) for n in range(rows)], sidecar + side, answer=answer)


class Killed(Exception):
    """Stands for the end of the service."""


def dies(bench: Bench, at: int) -> None:
    """Run until this request, at which the service dies."""

    def fault(call: Call) -> Reply | None:
        del call
        if len(bench.backend.calls) == at:
            raise Killed
        return None

    bench.backend.fault = fault
    with pytest.raises(BaseExceptionGroup):
        bench.run()


def phases_of(bench: Bench) -> list[str]:
    """Return the phase that the status showed during each request."""
    shown: list[str] = []

    def fault(call: Call) -> Reply | None:
        del call
        shown.append(bench.progress.snapshot().phase)
        return None

    bench.backend.fault = fault
    return shown


def learns(request: ChatRequest) -> str:
    """Answer every row right with six visible examples, and every second row right in isolation."""
    shown = sum(m.role == "assistant" for m in request.messages)
    text = request.messages[-1].content
    return text if shown >= 6 or int(text.split()[-1]) % 2 else "something else"


# --- the pilot -----------------------------------------------------------------------------------------


def test_the_status_counts_the_answers_of_the_pilot(tmp_path: Path) -> None:
    """The status counts the pilot's answers, also those from before a restart."""
    bench = bench_of(tmp_path, PILOT, rows=900, answer=learns, words=False)
    dies(bench, 13)
    shown = phases_of(bench)
    assert bench.run().finished
    assert shown[0] == "pilot: 0 of at most 900 answers"
    assert shown[20] == "pilot: 20 of at most 900 answers"


def test_without_gold_there_is_no_pilot(tmp_path: Path) -> None:
    """Without gold each row is asked once in isolation, even in a large job."""
    bench = bench_of(tmp_path, "trim: {strategy: auto}\naudit: auto\n", rows=6000)
    assert bench.run(4).finished
    assert meta_of(bench, "pilot") is None
    assert len(bench.backend.calls) == 6000
    assert bench.backend.most_in_flight == 4


def test_with_gold_a_form_that_answers_better_is_chosen(tmp_path: Path) -> None:
    """A third of the sample finds the form, anchors first, and fresh rows confirm it."""
    bench = bench_of(tmp_path, PILOT, rows=900, answer=learns, words=False)
    assert bench.run(2).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"]) == ("anchors", "better")
    chosen = next(t for t in pilot["tried"] if t["form"] == "anchors")
    assert chosen["better"]
    assert chosen["wins"] > 6
    assert chosen["losses"] == 0
    assert {t["form"] for t in pilot["tried"]} >= {"anchors", "tail-1", "tail-5"}
    assert pilot["asked"] <= 900
    assert plans_of(bench)[-1]["gold"], "the rows in front carry their known answers"
    assert sum(o.answer == text_of(o.ordinal) for o in bench.outcomes) >= 894


def test_a_form_that_answers_no_better_is_not_chosen(tmp_path: Path) -> None:
    """A form that answers as well as isolated rows is not chosen."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\ngold: text\nsegment: 60\n")
    assert bench.run(3).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"]) == ("isolated", "no_proof")
    assert all(not visible_to(outcome) for outcome in bench.outcomes)
    assert len(bench.backend.calls) == 600 + pilot["asked"], "pilot rows are asked again in their place"


@pytest.mark.parametrize("kill_at", [3, 22, 44, 90, 140])
def test_a_restart_in_the_pilot_makes_the_same_choice_once(tmp_path: Path, kill_at: int) -> None:
    """Wherever the service dies in the pilot, every row has one result and there is one decision."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = bench_of(tmp_path / "whole", PILOT, rows=300, answer=learns, words=False)
    whole.run()
    bench = bench_of(tmp_path / "killed", PILOT, rows=300, answer=learns, words=False)
    dies(bench, kill_at)
    assert bench.run().finished
    assert meta_of(bench, "pilot")["form"] == meta_of(whole, "pilot")["form"] == "anchors"
    assert [p["version"] for p in plans_of(bench)].count(2) == 1
    assert [(o.state, o.answer, o.visible_rows) for o in bench.outcomes] == [
        (o.state, o.answer, o.visible_rows) for o in whole.outcomes
    ]


def test_rows_that_fail_in_the_pilot_are_asked_in_the_chosen_form(tmp_path: Path) -> None:
    """Rows that fail in a form that is not chosen are answered in isolation."""

    def breaks(request: ChatRequest) -> str:
        return own(request) if len(request.messages) == 2 else "no json"

    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\ngold: text\nretries: 0\n", answer=breaks)
    assert bench.run(2).finished
    assert meta_of(bench, "pilot")["form"] == "isolated"
    assert [o.state for o in bench.outcomes] == ["ok"] * 600


def test_a_window_that_shrinks_in_the_pilot_does_not_lose_its_choice(tmp_path: Path) -> None:
    """The plan of the smaller window comes first, and the pilot's choice keeps that window."""
    bench = bench_of(tmp_path, PILOT, rows=300, answer=learns, words=False)
    smaller = replace(HELD, num_ctx=2048)
    met: list[int] = []

    def fault(call: Call) -> Reply | None:
        if len(bench.backend.calls) >= 30 and len(met) < 2:
            met.append(1)
            bench.backend.held = smaller
            return replace(bench.backend.reply_to(call.request), load_s=0.4)
        return None

    bench.backend.fault = fault
    assert bench.run().finished
    assert meta_of(bench, "pilot")["form"] == "anchors"
    plan = plans_of(bench)[-1]
    assert (plan["strategy"], plan["every"], plan["window"]) == ("anchors", 1, 2048)
    assert min(len(visible_to(o)) for o in bench.outcomes if o.ordinal not in plan["anchors"]) == 6


# --- the audit -----------------------------------------------------------------------------------------


def verdicts_of(bench: Bench) -> list[dict[str, Any]]:
    return [
        json.loads(v)
        for (v,) in rows_of(
            bench, "SELECT verdict FROM audited_segments WHERE verdict != 'null' ORDER BY segment"
        )
    ]


def notices_of(bench: Bench) -> list[str]:
    """Return what the log says about harm."""
    heard: list[str] = []
    bench.on_notice = lambda kind, message: heard.append(message) if kind == "harm" else None
    return heard


def test_rows_are_asked_again_as_segments_end(tmp_path: Path) -> None:
    """By default 20 of 600 rows are audited, two in each segment of 60, and their results stay."""
    bench = bench_of(tmp_path, WINDOW + "audit: auto\n")
    shown = phases_of(bench)
    assert bench.run().finished
    audited = rows_of(bench, "SELECT ordinal, visible_rows FROM trials WHERE kind='audit' ORDER BY ordinal")
    assert [ordinal // 60 for ordinal, _ in audited] == [n // 2 for n in range(20)]
    assert {visible_rows for _, visible_rows in audited} == {"[]"}
    assert all(visible_to(bench.outcomes[ordinal]) for ordinal, _ in audited)
    assert shown == [
        phase
        for segment in range(10)
        for phase in [*["answering"] * 60, *[f"answering; auditing segment {segment + 1}"] * 2]
    ]
    assert meta_of(bench, "audit") == {"random": 20, "odd": 0, "begun_before": False}
    assert meta_of(bench, "audited")
    assert bench.progress.ok == 600


def test_audit_off_audits_no_row(tmp_path: Path) -> None:
    """`audit: off` audits no row, not even in a segment that looks odd."""
    bench = bench_of(tmp_path, WINDOW + "audit: off\n", rows=120, answer=follows)
    assert bench.run(2).finished
    assert len(bench.backend.calls) == 120


def test_harm_is_known_early_and_reported(tmp_path: Path) -> None:
    """`report` shows harm in log and status after the first of ten segments and keeps the answers."""
    bench = bench_of(tmp_path, WINDOW + "audit: auto\n", answer=follows)
    heard = notices_of(bench)
    assert bench.run().finished
    harm = meta_of(bench, "harm")
    assert harm["answered"] == 60
    assert heard == [harm["words"]] == [bench.progress.snapshot().harm]
    assert re.fullmatch(
        r"the conversation changes about \d+ % of the answers, by 2 rows that were asked again in isolation",
        heard[0],
    )
    assert len(plans_of(bench)) == 1
    assert rows_of(bench, "SELECT count(*) FROM replaced") == [(0,)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_harm_isolates_the_rest_and_the_harmed_segments(tmp_path: Path, lanes: int) -> None:
    """`isolate` asks harmed segments again and isolates the segments that have not begun."""
    bench = bench_of(tmp_path, WINDOW + "audit: 60\non_harm: isolate\n", answer=follows)
    assert bench.run(lanes).finished
    plan = plans_of(bench)[-1]
    assert (plan["strategy"], plan["every"], plan["version"]) == ("reset", 1, 2)
    assert plan["from_segment"] == 1 or lanes > 1
    assert [o.answer for o in bench.outcomes] == [json.dumps(text_of(n)[0]) for n in range(600)]
    harmed = [verdict["segment"] for verdict in verdicts_of(bench) if verdict["harm"]]
    assert harmed == list(range(plan["from_segment"]))
    assert rows_of(bench, "SELECT count(*) FROM replaced") == [(59 * len(harmed),)]
    assert bench.progress.ok == 600
    calls = len(bench.backend.calls)
    assert bench.run().finished
    assert len(bench.backend.calls) == calls, "a finished job asks nothing more"


def test_harm_can_end_the_job(tmp_path: Path) -> None:
    """`fail` ends the job with code `harm`, also if the service dies between the verdict and the end."""
    bench = bench_of(tmp_path, WINDOW + "audit: auto\non_harm: fail\n", answer=follows)
    for _ in range(2):
        with pytest.raises(JobError, match="the conversation changes about") as error:
            bench.run()
        assert error.value.code == "harm"
    assert bench.progress.harm


def test_only_the_segment_that_looks_odd_is_redone(tmp_path: Path) -> None:
    """If one conversation repeats one answer, eight of its rows show it, and only that segment is redone."""

    def locks(request: ChatRequest) -> str:
        number = int(request.messages[-1].content.split()[-1])
        return follows(request) if 1200 <= number < 1260 else own(request)

    side = WINDOW + "audit: 100\non_harm: isolate\n"
    bench = bench_of(tmp_path, side, rows=6000, answer=locks)
    assert bench.run().finished
    (verdict,) = verdicts_of(bench)
    assert (verdict["segment"], verdict["rows"], verdict["harm"]) == (20, 8, True)
    assert verdict["suspicion"].startswith("59 of 59 answers are")
    assert meta_of(bench, "harm")["segment"] == 20
    assert [o.answer for o in bench.outcomes] == [json.dumps(text_of(n)[0]) for n in range(6000)]
    assert next(plan for plan in plans_of(bench) if plan["every"] == 1)["from_segment"] == 21


def test_a_file_sorted_by_outcome_raises_no_alarm(tmp_path: Path) -> None:
    """Segments that really have one answer do not look odd beside their own isolated answers."""
    bench = bench_of(tmp_path, WINDOW + "audit: 90\n", rows=1800)
    bench.texts = [f"{'abc'[n // 600]} row {n}" for n in range(1800)]
    assert bench.run().finished
    assert verdicts_of(bench) == []
    assert len(bench.backend.calls) == 1800 + 81
    assert meta_of(bench, "harm") is None


def test_isolated_answers_that_do_not_repeat_are_no_harm(tmp_path: Path) -> None:
    """If batching changes tokens at temperature 0, a differing row is asked once more."""
    given: dict[str, int] = {}

    def flips(request: ChatRequest) -> str:
        text = request.messages[-1].content
        given[text] = given.get(text, 0) + 1
        return json.dumps("abc"[given[text] % 3]) if int(text.split()[-1]) % 3 == 0 else own(request)

    bench = bench_of(tmp_path, WINDOW + "audit: 60\n", answer=flips)
    assert bench.run().finished
    assert rows_of(bench, "SELECT count(*) FROM trials WHERE kind='audit-again'")[0][0] > 10
    assert meta_of(bench, "harm") is None


def test_free_texts_are_harmed_only_if_a_conversation_repeats_itself(tmp_path: Path) -> None:
    """Free texts are compared without a verdict, unless nearly all rows of a segment have one text."""

    def words(request: ChatRequest) -> str:
        number = int(request.messages[-1].content.split()[-1])
        given = [m.content for m in request.messages if m.role == "assistant"]
        if locked and 1200 <= number < 1260 and given:
            return given[-1]
        return f"row {number} is about {'something' if given else 'a thing'} with number {number}"

    for locked in (False, True):
        path = tmp_path / str(locked)
        path.mkdir()
        bench = bench_of(path, WINDOW + "audit: 100\n", rows=3000, answer=words, words=False)
        assert bench.run().finished
        harm = meta_of(bench, "harm")
        assert (harm is not None and harm["segment"]) == (20 if locked else False)


def test_rows_that_fail_when_audited_keep_their_results(tmp_path: Path) -> None:
    """A row that fails in the audit keeps its result."""
    asked: set[str] = set()

    def second(request: ChatRequest) -> str:
        text = request.messages[-1].content
        again = text in asked
        asked.add(text)
        return "no json" if again else own(request)

    bench = bench_of(tmp_path, WINDOW + "audit: 20\nretries: 1\n", rows=120, answer=second)
    assert bench.run().finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 120
    assert rows_of(bench, "SELECT count(*) FROM attempts") == [(0,)]


def test_a_model_that_is_gone_at_the_audit_removes_no_answer(tmp_path: Path) -> None:
    """If the model is gone at the audit, every row keeps its result."""

    def fault(call: Call) -> Reply | None:
        del call
        if len(bench.backend.calls) > 125:
            raise RequestRefused("model 'm' not found", status=404)
        return None

    bench = bench_of(tmp_path, WINDOW.replace("60", "120") + "audit: 20\n", rows=120)
    bench.backend.fault = fault
    assert bench.run().finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 120


@pytest.mark.parametrize("kill_at", [61, 65, 70, 80, 125, 130, 141])
def test_a_restart_around_an_audit_asks_the_same_rows_once(tmp_path: Path, kill_at: int) -> None:
    """A restart in a segment's audit, between two audits or after the last row asks the same rows once."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    side = WINDOW + "audit: 24\n"
    whole, bench = (bench_of(tmp_path / name, side, rows=120) for name in ("whole", "killed"))
    assert whole.run().finished
    dies(bench, kill_at)
    assert bench.run().finished
    same = "SELECT kind, ordinal FROM trials ORDER BY kind, ordinal"
    assert rows_of(bench, same) == rows_of(whole, same)
    assert len(bench.backend.calls) == len(whole.backend.calls) + 1
    assert [o.state for o in bench.outcomes] == ["ok"] * 120


@pytest.mark.parametrize("kill_at", [62, 66, 80, 126, 128, 140, 200])
def test_the_counts_add_up_after_a_restart_around_harm(tmp_path: Path, kill_at: int) -> None:
    """The counts add up after a restart while rows are asked again, after harm, and while segments are
    redone.
    """
    side = WINDOW + "audit: 24\non_harm: isolate\n"
    bench = bench_of(tmp_path, side, rows=180, answer=follows)
    dies(bench, kill_at)
    assert bench.run().finished
    assert [(o.state, o.answer) for o in bench.outcomes] == [
        ("ok", json.dumps(text_of(n)[0])) for n in range(180)
    ]


def test_a_form_chosen_by_gold_is_audited_by_gold(tmp_path: Path) -> None:
    """A form chosen by gold is dropped when isolated answers agree better with gold."""
    decided: list[bool] = []

    def turns(request: ChatRequest) -> str:
        shown = sum(m.role == "assistant" for m in request.messages)
        return "gone wrong" if decided and shown else learns(request)

    def fault(call: Call) -> Reply | None:
        del call
        if not decided and rows_of(bench, "SELECT 1 FROM plan WHERE version=2"):
            decided.append(True)
        return None

    bench = bench_of(tmp_path, PILOT + "audit: 90\n", rows=900, answer=turns, words=False)
    bench.backend.fault = fault
    assert bench.run().finished
    assert meta_of(bench, "pilot")["why"] == "better"
    assert meta_of(bench, "harm")["words"].startswith("the conversation makes answers agree less with text: ")
    assert plans_of(bench)[-1]["every"] == 1
    assert not visible_to(bench.outcomes[-1])


def test_a_form_chosen_by_gold_that_stays_better_is_no_harm(tmp_path: Path) -> None:
    """A form chosen by gold that still agrees better is no harm, although half of the answers differ."""
    bench = bench_of(tmp_path, PILOT + "audit: 90\n", rows=900, answer=learns, words=False)
    assert bench.run().finished
    assert meta_of(bench, "harm") is None
    assert meta_of(bench, "audited")


def test_answers_that_are_compared_do_not_share_their_seed(tmp_path: Path) -> None:
    """Isolated answers use different seeds, because a seeded sampler repeats itself."""
    side = WINDOW.replace("60", "120") + "audit: 20\n"
    bench = bench_of(tmp_path, side, rows=120, answer=follows)
    bench.sidecar = bench.sidecar.model_copy(
        update={"options": bench.sidecar.options.model_copy(update={"temperature": 1.0})}
    )
    bench.run()
    isolated = [c.request for c in bench.backend.calls if len(c.request.messages) == 2][1:]
    seeds: dict[str, list[int]] = {}
    for request in isolated:
        seeds.setdefault(request.messages[-1].content, []).append(int(request.sampling["seed"]))
    assert sorted(seeds.values()) == [[1007, 2007]] * 20


def shifts_from(first: int) -> Callable[[ChatRequest], str]:
    """From this row on the conversation changes the labels, and no segment looks odd."""

    def answer(request: ChatRequest) -> str:
        label = request.messages[-1].content[0]
        sees_others = any(m.role == "assistant" for m in request.messages)
        late = int(request.messages[-1].content.split()[-1]) >= first
        return json.dumps({"a": "b", "b": "c", "c": "a"}[label] if sees_others and late else label)

    return answer


def test_waiting_lanes_resume_when_answers_are_taken_back(tmp_path: Path) -> None:
    """Segment 36, which waits for segment 20, resumes although the harmed answers of 20 are
    asked again last.
    """
    side = "trim: {strategy: window, keep: 5, every: 5}\nsegment: 20\naudit: 400\non_harm: isolate\n"
    bench = bench_of(tmp_path, side, rows=800, answer=shifts_from(340))
    assert bench.run(2).finished
    harm = meta_of(bench, "harm")
    assert harm["segment"] is None
    assert 170 < harm["audited"] < 260
    taken_back = rows_of(bench, "SELECT DISTINCT segment FROM replaced")
    assert {segment for (segment,) in taken_back} & {17, 18, 19, 20}


@pytest.mark.slow
def test_harm_that_begins_late_is_found_in_a_large_sample(tmp_path: Path) -> None:
    """Beyond 1,000 audited rows the sample is evaluated each time it grows by 1 %."""
    side = WINDOW + "audit: 1600\non_harm: isolate\n"
    bench = bench_of(tmp_path, side, rows=3200, answer=shifts_from(2200))
    assert bench.run(2).finished
    harm = meta_of(bench, "harm")
    assert harm["segment"] is None
    assert 1000 < harm["audited"] < 1150
    assert plans_of(bench)[-1]["every"] == 1
