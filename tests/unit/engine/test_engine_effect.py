"""Pilot, guard and audit in a running job: what is asked, what follows, and what a restart repeats."""

from __future__ import annotations

import json
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
from unit.engine.engine_bench import HELD, Bench, meta_of, plans_of, seen_by

WORDS = "format: {type: string, enum: [a, b, c]}\n"
LONG_PREFIX = "Judge " + "with great care " * 60
SIDE = (
    f"model: m\nsystem: {LONG_PREFIX}\nprompt: '{{{{ text }}}}'\n"
    "options: {num_ctx: 4096, num_predict: 16}\nprime: never\n" + WORDS
)
COLD: dict[str, Any] = {"caches": True, "sliding": 4, "times": lambda n, _, o: (n * 0.01, o * 0.01)}
"""A server that evaluates the prefix again for each row alone, so that conversations are faster."""
WARM: dict[str, Any] = {"caches": True, "times": COLD["times"]}
"""One that takes it from its cache."""


def text_of(number: int) -> str:
    return f"{'abc'[number * 7 % 3]} row {number}"


def own(request: ChatRequest) -> str:
    return json.dumps(request.messages[-1].content[0])


def follows(request: ChatRequest) -> str:
    """Each row is answered as the one before it was."""
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
    server: dict[str, Any] = COLD,
) -> Bench:
    return Bench(path, [text_of(n) for n in range(rows)], SIDE + side, answer=answer, **server)


class Killed(Exception):
    """The service ends."""


def dies(bench: Bench, at: int) -> None:
    """A run in which the service ends with this request."""

    def fault(call: Call) -> Reply | None:
        del call
        if len(bench.backend.calls) == at:
            raise Killed
        return None

    bench.backend.fault = fault
    with pytest.raises(BaseExceptionGroup):
        bench.run()


def phases_of(bench: Bench) -> list[str]:
    """What was shown while each request was on its way."""
    shown: list[str] = []

    def fault(call: Call) -> Reply | None:
        del call
        shown.append(bench.progress.snapshot().phase)
        return None

    bench.backend.fault = fault
    return shown


def test_a_pilot_says_how_many_of_its_answers_it_has(tmp_path: Path) -> None:
    """After a restart with those that count already; then rows have the word."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\n", server=WARM)
    dies(bench, 23)  # amid the four rows that are asked alone twice
    shown = phases_of(bench)
    assert bench.run().finished
    assert shown[:5] == [*(f"pilot: {n} of at most 400 answers" for n in range(20, 24)), "answering"]


def test_a_look_at_a_segment_and_an_audit_are_shown(tmp_path: Path) -> None:
    """While eight rows are asked again, while a segment is asked anew, and at the end during the audit."""

    def follows_at_first(request: ChatRequest) -> str:
        return follows(request) if int(request.messages[-1].content.split()[-1]) < 60 else own(request)

    side = COLLAPSE + "on_collapse: redo\naudit: 20\n"
    bench = bench_of(tmp_path, side, rows=120, answer=follows_at_first)
    shown = phases_of(bench)
    assert bench.run().finished
    assert shown == [
        *["answering"] * 60,
        *["answering; looking again at segment 1"] * 8,
        *["answering; asking segment 1 again, each row alone"] * 59,
        *["answering"] * 60,
        *(f"audit: {n} of 25 answers" for n in range(25)),
    ]
    assert bench.progress.snapshot().phase == "answering"


def test_without_a_gain_each_row_stands_alone_and_little_is_asked_for_it(tmp_path: Path) -> None:
    """Where the prefix comes from the cache no conversation is faster: 20 rows show it, 4 of them twice."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\n", server=WARM)
    assert bench.run(2).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"], pilot["asked"]) == ("alone", "none_faster", 24)
    assert all(not seen_by(outcome) for outcome in bench.outcomes)
    assert len(bench.backend.calls) == 624, "pilot rows are answered again in their place"


def test_a_conversation_that_does_no_harm_is_chosen_where_it_is_faster(tmp_path: Path) -> None:
    """Proved on some 80 rows of the job; from then on rows stand in sight of earlier ones."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\nsegment: 60\n")
    assert bench.run(3).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"]) == ("tail-20", "no_harm")
    (tried,) = pilot["tried"]
    assert tried["proof"]
    assert tried["agreement"] == 1
    assert tried["rows"] >= 65
    assert pilot["asked"] <= 400
    plan = plans_of(bench)[-1]
    assert (plan["strategy"], plan["every"], plan["from_segment"]) == ("reset", 21, 0)
    assert max(len(seen_by(outcome)) for outcome in bench.outcomes) == 20
    assert [o.state for o in bench.outcomes] == ["ok"] * 600


def test_a_conversation_that_changes_the_answers_is_not_chosen(tmp_path: Path) -> None:
    """However much faster it is."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\n", answer=follows)
    assert bench.run(3).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"]) == ("alone", "no_proof")
    assert [t["harm"] for t in pilot["tried"]] == [True]
    assert [o.answer for o in bench.outcomes] == [json.dumps(text_of(n)[0]) for n in range(600)]


def test_with_gold_a_form_that_answers_better_is_chosen_though_nothing_is_faster(tmp_path: Path) -> None:
    """A third of the sample finds the form, fresh rows prove it."""

    def better(request: ChatRequest) -> str:
        shown = sum(m.role == "assistant" for m in request.messages)
        text = request.messages[-1].content
        return text if shown >= 6 or int(text.split()[-1]) % 2 else "something else"

    side = "trim: {strategy: auto, pilot: 900}\ngold: text\nsegment: 60\n"
    bench = bench_of(tmp_path, side, rows=900, answer=better, server=WARM)
    bench.sidecar = bench.sidecar.model_copy(update={"format": None})
    assert bench.run(2).finished
    pilot = meta_of(bench, "pilot")
    assert (pilot["form"], pilot["why"]) == ("anchors", "better")
    chosen = next(t for t in pilot["tried"] if t["form"] == "anchors")
    assert chosen["wins"] > 6
    assert chosen["losses"] == 0
    assert {t["form"] for t in pilot["tried"]} >= {"anchors", "tail-1", "tail-5"}
    assert pilot["asked"] <= 900
    assert plans_of(bench)[-1]["gold"], "the rows in front carry their known answers"
    assert sum(o.answer == text_of(o.ordinal) for o in bench.outcomes) >= 894


def test_a_small_job_has_no_pilot_and_stands_alone(tmp_path: Path) -> None:
    """Under 5,000 rows 2 % prove nothing: nothing is asked beforehand, and every lane has work."""
    bench = bench_of(tmp_path, "trim: {strategy: auto}\n", rows=40)
    assert bench.run(4).finished
    assert meta_of(bench, "pilot") is None
    assert len(bench.backend.calls) == 40
    assert bench.backend.most_in_flight == 4


@pytest.mark.parametrize("kill_at", [3, 22, 30, 90, 140])
def test_a_restart_in_the_pilot_makes_the_same_choice_once(tmp_path: Path, kill_at: int) -> None:
    """Wherever the service ends: the books balance, each row has one result, and there is one choice."""

    side = "trim: {strategy: auto, pilot: 400}\nsegment: 60\n"
    whole = bench_of(tmp_path / "whole", side)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole.run()
    bench = bench_of(tmp_path / "killed", side)
    dies(bench, kill_at)
    assert bench.run().finished
    assert meta_of(bench, "pilot")["form"] == meta_of(whole, "pilot")["form"] == "tail-20"
    assert [p["version"] for p in plans_of(bench)].count(2) == 1
    assert [(o.state, o.answer, o.sight) for o in bench.outcomes] == [
        (o.state, o.answer, o.sight) for o in whole.outcomes
    ]


COLLAPSE = "trim: {strategy: window, keep: 5, every: 5}\nsegment: 60\n"


def test_a_collapsed_segment_is_seen_and_reported(tmp_path: Path) -> None:
    """Sixty rows with one answer: eight of them asked alone say otherwise."""
    bench = bench_of(tmp_path, COLLAPSE, rows=120, answer=follows)
    assert bench.run(2).finished
    verdicts = [json.loads(v) for (v,) in rows_of(bench, "SELECT verdict FROM guarded ORDER BY segment")]
    assert [v["harm"] for v in verdicts] == [True, True]
    assert [v["rows"] for v in verdicts] == [8, 8]
    assert len({o.answer for o in bench.outcomes}) < 3, "the answers stay as they are"


def test_a_collapsed_segment_is_asked_again_alone(tmp_path: Path) -> None:
    """`on_collapse: redo`: each row ends with the answer it gets alone, and what stood there is kept."""
    bench = bench_of(tmp_path, COLLAPSE + "on_collapse: redo\n", rows=120, answer=follows)
    assert bench.run(2).finished
    assert [o.answer for o in bench.outcomes] == [json.dumps(text_of(n)[0]) for n in range(120)]
    assert rows_of(bench, "SELECT count(*) FROM replaced") == [(118,)], "the first of each saw no other"
    assert bench.progress.ok == 120


def test_a_collapsed_segment_can_end_the_job(tmp_path: Path) -> None:
    """`on_collapse: fail`: in words, with what to do."""
    bench = bench_of(tmp_path, COLLAPSE + "on_collapse: fail\n", rows=120, answer=follows)
    with pytest.raises(
        JobError, match=r"the conversation changed the answers: in segment 1 60 of 60|59 of 59"
    ):
        bench.run()


def test_a_file_sorted_by_outcome_raises_no_alarm(tmp_path: Path) -> None:
    """Sixty rows that really have one answer are suspicious, and cleared by eight of them."""
    bench = bench_of(tmp_path, COLLAPSE, rows=180)
    bench.texts = [f"{'abc'[n // 60]} row {n}" for n in range(180)]
    assert bench.run().finished
    verdicts = [json.loads(v) for (v,) in rows_of(bench, "SELECT verdict FROM guarded ORDER BY segment")]
    assert [v["harm"] for v in verdicts if v] == [False] * 3


@pytest.mark.parametrize("kill_at", [61, 65, 69, 80, 100])
def test_a_restart_around_a_redo_balances_the_books(tmp_path: Path, kill_at: int) -> None:
    """While eight rows are asked again, right after the verdict, and while the segment is done again."""

    bench = bench_of(tmp_path, COLLAPSE + "on_collapse: redo\n", rows=120, answer=follows)
    dies(bench, kill_at)
    assert bench.run().finished
    assert [(o.state, o.answer) for o in bench.outcomes] == [
        ("ok", json.dumps(text_of(n)[0])) for n in range(120)
    ]


def test_a_pilots_choice_that_turns_out_harmful_is_left(tmp_path: Path) -> None:
    """Harm that comes only later than the pilot looks: from the next segment on rows stand alone."""
    decided: list[bool] = []

    def turns(request: ChatRequest) -> str:
        return follows(request) if decided else own(request)

    def fault(call: Call) -> Reply | None:
        del call
        if not decided and rows_of(bench, "SELECT 1 FROM plan WHERE version=2"):
            decided.append(True)
        return None

    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\nsegment: 60\n", answer=turns)
    bench.backend.fault = fault
    assert bench.run().finished
    plan = plans_of(bench)[-1]
    assert (plan["strategy"], plan["every"]) == ("reset", 1)
    assert 0 < plan["from_segment"] < 4
    assert not seen_by(bench.outcomes[-1])


def test_a_form_chosen_by_gold_is_held_against_gold(tmp_path: Path) -> None:
    """It is to differ from alone; harm is where alone would have been right more often."""
    decided: list[bool] = []

    def turns(request: ChatRequest) -> str:
        shown = sum(m.role == "assistant" for m in request.messages)
        text = request.messages[-1].content
        if decided and shown:
            return "gone wrong"
        return text if shown >= 6 or int(text.split()[-1]) % 2 else "something else"

    def fault(call: Call) -> Reply | None:
        del call
        if not decided and rows_of(bench, "SELECT 1 FROM plan WHERE version=2"):
            decided.append(True)
        return None

    side = "trim: {strategy: auto, pilot: 900}\ngold: text\nsegment: 60\non_collapse: redo\n"
    bench = bench_of(tmp_path, side, rows=900, answer=turns, server=WARM)
    bench.sidecar = bench.sidecar.model_copy(update={"format": None})
    bench.backend.fault = fault
    assert bench.run().finished
    assert meta_of(bench, "pilot")["why"] == "better"
    (verdict, *_) = [json.loads(v) for (v,) in rows_of(bench, "SELECT verdict FROM guarded ORDER BY segment")]
    assert verdict["harm"]
    assert (verdict["rows"], verdict["floor"]) == (24, 0)
    assert verdict["differ"] >= 7
    assert not any(o.answer == "gone wrong" for o in bench.outcomes)


def test_audited_rows_are_answered_again_alone(tmp_path: Path) -> None:
    """As many as were asked for, of those that had others in sight; their results stay as they were."""
    bench = bench_of(tmp_path, COLLAPSE + "audit: 20\n", rows=120)
    assert bench.run(2).finished
    audited = rows_of(bench, "SELECT ordinal, sight FROM trials WHERE kind='audit'")
    assert len(audited) == 20
    assert {sight for _, sight in audited} == {"[]"}
    assert all(seen_by(bench.outcomes[ordinal]) for ordinal, _ in audited)
    assert len(rows_of(bench, "SELECT 1 FROM trials WHERE kind='audit-again'")) == 5
    assert bench.progress.ok == 120


def test_rows_that_fail_when_audited_keep_their_results(tmp_path: Path) -> None:
    """An audit cannot take an answer away."""
    asked: set[str] = set()

    def second(request: ChatRequest) -> str:
        text = request.messages[-1].content
        again = text in asked
        asked.add(text)
        return "no json" if again else own(request)

    bench = bench_of(tmp_path, COLLAPSE + "audit: 20\nretries: 1\n", rows=120, answer=second)
    assert bench.run().finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 120
    assert rows_of(bench, "SELECT count(*) FROM attempts") == [(0,)]


@pytest.mark.parametrize("kill_at", [119, 121, 130, 141])
def test_a_restart_in_the_audit_finishes_it(tmp_path: Path, kill_at: int) -> None:
    """All rows have their end by then; what is left to be asked again is asked, and nothing else."""

    bench = bench_of(tmp_path, COLLAPSE + "audit: 20\n", rows=120)
    dies(bench, kill_at)
    assert bench.run().finished
    assert len(rows_of(bench, "SELECT 1 FROM trials WHERE kind='audit'")) == 20
    assert len(bench.backend.calls) == 120 + 20 + 5 + 1
    assert [o.state for o in bench.outcomes] == ["ok"] * 120
    calls = len(bench.backend.calls)
    assert bench.run().finished
    assert len(bench.backend.calls) == calls, "nothing is audited twice"


def test_answers_that_are_compared_do_not_share_their_dice(tmp_path: Path) -> None:
    """A seeded sampler repeats itself: with the same seed alone would always agree with alone."""
    side = COLLAPSE.replace("60", "120") + "audit: 20\n"
    bench = bench_of(tmp_path, side, rows=120, answer=follows)
    bench.sidecar = bench.sidecar.model_copy(
        update={"options": bench.sidecar.options.model_copy(update={"temperature": 1.0})}
    )
    bench.run()
    alone = [c.request for c in bench.backend.calls if len(c.request.messages) == 2][1:]
    seeds: dict[str, list[int]] = {}
    for request in alone:
        seeds.setdefault(request.messages[-1].content, []).append(int(request.sampling["seed"]))
    assert {7, *(n for given in seeds.values() for n in given)} == {7, 1007, 2007}
    assert all(len(set(given)) == len(given) for given in seeds.values() if len(given) == 2)


def test_a_form_whose_rows_leave_the_conversation_is_not_taken_for_harmless(tmp_path: Path) -> None:
    """Each row that is asked apart in the end agrees with alone, and says nothing for the conversation."""

    def breaks(request: ChatRequest) -> str:
        return own(request) if len(request.messages) == 2 else "no json"

    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\nretries: 3\n", answer=breaks)
    assert bench.run(2).finished
    assert meta_of(bench, "pilot")["form"] == "alone"
    assert [o.attempts for o in bench.outcomes] == [1] * 600


def test_rows_that_fail_on_trial_are_judged_in_their_own_place(tmp_path: Path) -> None:
    """What cannot be answered in a form that is not chosen may well be answered alone."""

    def breaks(request: ChatRequest) -> str:
        return own(request) if len(request.messages) == 2 else "no json"

    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\nretries: 0\n", answer=breaks)
    assert bench.run(2).finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 600


def test_a_window_that_shrinks_in_the_pilot_does_not_lose_its_choice(tmp_path: Path) -> None:
    """The plan of the smaller window comes first, and the choice after it keeps that window."""
    bench = bench_of(tmp_path, "trim: {strategy: auto, pilot: 400}\nsegment: 60\n")
    smaller = replace(HELD, num_ctx=2048)
    met: list[int] = []

    def fault(call: Call) -> Reply | None:
        if len(bench.backend.calls) >= 30 and len(met) < 2:
            met.append(1)
            bench.backend.held = smaller
            return replace(bench.backend._reply(call.request), load_s=0.4)
        return None

    bench.backend.fault = fault
    assert bench.run().finished
    assert meta_of(bench, "pilot")["form"] == "tail-20"
    plan = plans_of(bench)[-1]
    assert (plan["strategy"], plan["every"], plan["window"]) == ("reset", 21, 2048)
    assert max(len(seen_by(outcome)) for outcome in bench.outcomes) == 20


def test_a_verdict_that_ends_the_job_is_not_forgotten_by_a_restart(tmp_path: Path) -> None:
    """The service may die between the verdict and the end."""
    bench = bench_of(tmp_path, COLLAPSE + "on_collapse: fail\n", rows=120, answer=follows)
    for _ in range(2):
        with pytest.raises(JobError, match="the conversation changed the answers"):
            bench.run()


def test_a_model_that_is_gone_by_the_audit_takes_no_answer_away(tmp_path: Path) -> None:
    """Every row has its end by then."""

    def fault(call: Call) -> Reply | None:
        del call
        if len(bench.backend.calls) > 125:
            raise RequestRefused("model 'm' not found", status=404)
        return None

    bench = bench_of(tmp_path, COLLAPSE + "audit: 20\n", rows=120)
    bench.backend.fault = fault
    assert bench.run().finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 120
