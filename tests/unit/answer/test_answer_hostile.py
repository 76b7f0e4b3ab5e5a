"""What an attack on the engine found: odd jobs, odd servers, odd cells. Each was a defect once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from spoolama.backends.base import LoadSpec, Message, Reply
from spoolama.context import trimming
from spoolama.context.budget import Budget
from spoolama.context.selection import Choice, spread
from spoolama.context.trimming import Turn
from spoolama.errors import (
    ContextOverflow,
    RequestRefused,
    RowError,
    Stalled,
    UnexpectedReply,
)
from spoolama.evaluation.child.score import Score, ScoreProblem
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.gold import gold_answers
from spoolama.job.record import StoredRow
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_schema import open_reader
from support.backend import Call
from support.evaluation import inline_job_evaluator
from unit.answer.engine_bench import (
    ANCHORS,
    HELD,
    LONG,
    SIDECAR,
    Bench,
    meta_of,
    plans_of,
    primed,
    primer_of,
    reloads,
    seen_by,
    texts,
)


@pytest.mark.parametrize(
    "error",
    [
        UnexpectedReply("no"),
        Stalled("slow"),
        ContextOverflow("long", prompt_tokens=9, num_ctx=8),
        RequestRefused("never"),
    ],
)
def test_a_primer_that_fails_costs_no_row(tmp_path: Path, error: Exception) -> None:
    """It is given up, and the rows go on without it."""
    bench = primed(tmp_path)

    def fail(_text: str, _slot: int | None) -> None:
        raise error

    bench.backend.prime_fault = fail
    assert bench.run().finished
    assert {o.state for o in bench.outcomes} == {"ok"}
    assert len(bench.backend.primes) == 1
    assert "given up" in primer_of(bench)["state"]


def test_anchors_are_used_behind_a_long_prefix(tmp_path: Path) -> None:
    """Its bound of a token a byte says that they may not fit; so they are counted instead of dropped."""
    side = ANCHORS.replace("512", "1024").replace("Judge.", "Judge " + "with great care " * 50)
    bench = Bench(tmp_path, texts(60), side)
    assert bench.run().finished
    assert {len(seen_by(o)) for o in bench.outcomes} == {0, 4}
    assert sum(bool(seen_by(o)) for o in bench.outcomes) == 56


def test_a_row_refused_in_the_first_pass_still_has_its_tries_in_the_second(tmp_path: Path) -> None:
    """Twice too long for the first window says nothing about the second."""
    rows = texts(40)
    rows[25] = "d" * 1500
    bench = Bench(tmp_path, rows, LONG + "segment: 10\n")
    first: list[Call] = []

    def fault(call: Call) -> None:
        if call.text.startswith("ddd") and not first:
            first.append(call)
            raise ContextOverflow("too long", prompt_tokens=300, num_ctx=256)

    bench.backend.fault = fault
    assert bench.run().finished
    assert bench.outcomes[25].state == "ok"


def test_failing_candidates_do_not_end_a_job_that_answers_others(tmp_path: Path) -> None:
    """The first ten failures mean the job only where nothing was answered."""
    side = ANCHORS + "retries: 0\n"
    bench = Bench(tmp_path, texts(60), side)
    bench.backend.fault = lambda call: (
        Reply(" ", "stop", 30, None, 1) if int(call.text.split()[1]) % 2 else None
    )
    assert bench.run().finished
    assert sum(o.state == "ok" for o in bench.outcomes) == 30


def test_one_look_at_a_smaller_window_is_not_believed(tmp_path: Path) -> None:
    """Another client's window may be seen for a moment; our next request brings ours back."""
    bench = Bench(tmp_path, texts(60), SIDECAR + "segment: 20\n")
    bench.backend.fault = reloads(bench, "row 5", replace(HELD, num_ctx=128))
    looks: list[LoadSpec] = []

    def look(spec: LoadSpec) -> None:
        looks.append(spec)
        if len(looks) == 2:
            bench.backend.held = HELD

    bench.backend.inspect_fault = look
    bench.run()
    assert len(looks) == 2
    assert plans_of(bench)[-1]["window"] is None


def test_a_trim_of_a_long_tail_takes_no_time_to_speak_of() -> None:
    """Thousands of rows of which few fit: the choice is made a few times, not once for each."""
    tail = tuple(
        Turn(n, (Message("user", "u"), Message("assistant", "a")), 50, label=str(n % 7)) for n in range(4000)
    )
    chosen = 0

    def counting(choices: Sequence[Choice], number: int) -> list[int]:
        nonlocal chosen
        chosen += 1
        return spread(choices, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimming, "spread", counting)
        kept = trimming.Keep(100, 0, 3000, None, 0.4).trim(tail, Budget(20_000, 10, 0, 10))
    assert 0 < sum(turn.tokens for turn in kept) <= 8000
    assert chosen < 10


@pytest.mark.parametrize("gold", ["[" * 5000, "1e999", "\ud800", ""])
def test_an_odd_gold_cell_is_no_anchor_answer_and_no_crash(gold: str) -> None:
    """What cannot be spelled as an answer leaves the model's own."""

    async def fits(text: str) -> bool:
        try:
            await inline_job_evaluator().check(sidecar.format, text, 2)
        except RowError:
            return False
        return True

    side = "model: m\nprompt: x\ngold: g\nformat: {type: object, properties: {s: {type: integer}}}\n"
    sidecar = parse_sidecar(side, "a.yaml")
    answers = gold_answers(sidecar, {"g": gold}, '{"s": 1}')
    assert not any(asyncio.run(fits(answer)) for answer in answers)


def test_a_score_sees_columns_of_any_name_and_never_raises() -> None:
    """A column may be called `self`; what fails gives minus infinity."""
    assert Score("row.self | int + 1").of({"self": "3"}, "x") == 4
    assert Score("answer.score").of({}, '{"score": 7}') == 7
    assert Score("nosuch > 3").of({}, "x") == -math.inf
    with pytest.raises(ScoreProblem):
        Score("-" * 250 + "x")
    with pytest.raises(ScoreProblem):
        Score("1 + " * 600 + "1")


def test_another_clients_larger_window_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Seen for a moment, it must not make our own look like a smaller one afterwards."""
    bench = Bench(tmp_path, texts(60), SIDECAR + "segment: 20\n")
    looks = iter([replace(HELD, num_ctx=4096), HELD, HELD])

    def fault(call: Call) -> Reply | None:
        if call.text.startswith(("row 5", "row 6")):
            bench.backend.held = next(looks)
            return replace(bench.backend._reply(call.request), load_s=0.4)
        return None

    bench.backend.fault = fault
    bench.texts[50:] = [f"late {n}" for n in range(10)]
    bench.run()
    (notes,) = meta_of(bench, "watch")
    assert set(notes["surprises"]["counts"]) == {"reloaded"}
    assert {p["window"] for p in plans_of(bench)} == {None}


def test_thinking_is_no_part_of_what_the_conversation_takes(tmp_path: Path) -> None:
    """Servers count it with the answer; it is not sent again, so lengths are not told by such counts."""
    bench = Bench(tmp_path, texts(30))

    def thinks(call: Call) -> Reply:
        reply = bench.backend._reply(call.request)
        return replace(
            reply,
            thinking="Hm. " * 50,
            prompt_tokens=(reply.prompt_tokens or 0) + (60 if len(bench.backend.calls) % 2 else 0),
            completion_tokens=(reply.completion_tokens or 0) + 100,
        )

    bench.backend.fault = thinks
    bench.run()
    # The prompt of the second of two runs counts the thinking too, so a later one may seem to be shorter.
    assert [o.attempts for o in bench.outcomes] == [1] * 30

    async def last() -> StoredRow | None:
        ledger = JobLedger(bench.path, bench.clock)
        try:
            return await ledger.last_turn(0)
        finally:
            await ledger.close()

    row = asyncio.run(last())
    assert row is not None
    assert (row.thought, row.answer_tokens) == (True, None)
    assert row.completion_tokens is not None
    with closing(open_reader(bench.path)) as db:
        found = db.execute("SELECT own_tokens, turn_tokens, own_bytes FROM results").fetchall()
    assert {own for own, _, _ in found} == {None}
    # What is reckoned for a turn is by its bytes, and not by the hundred tokens of thinking.
    assert all(turn < 100 for _, turn, _ in found)


def test_a_prompt_that_had_to_be_counted_is_one_request_to_the_books(tmp_path: Path) -> None:
    """The counting request evaluates it: its cached tokens are the row's, and its time counts."""
    rows = [f"{i} {'long ' * 100}{i}" for i in range(3)]
    bench = Bench(tmp_path, rows, SIDECAR + "mode: isolated\nprime: never\n", caches=True, latency_s=1.0)
    bench.run()
    assert len(bench.backend.calls) == 6
    first, second = bench.outcomes[:2]
    assert first.cached_tokens == 0
    assert first.latency_s == pytest.approx(2.0)
    assert second.cached_tokens is not None
    assert second.prompt_tokens is not None
    assert second.cached_tokens < second.prompt_tokens / 2


def test_that_no_anchor_fits_stays_so_after_a_restart(tmp_path: Path) -> None:
    """A bound learned meanwhile would let them fit; half of the conversations would have been without."""
    side = (
        SIDECAR.replace("num_ctx: 512, num_predict: 16", "num_ctx: 1024, num_predict: 200")
        + "segment: 5\ngold: text\ntrim: {strategy: anchors, anchors: 4}\n"
    )
    bench = Bench(tmp_path, [f"{i} {'word ' * 60}" for i in range(260)], side)
    bench.backend.answer = lambda request: request.messages[-1].content
    bench.backend.fault = lambda call: bench.stop.set() if call.text.startswith("220 ") else None
    assert not bench.run().finished
    assert meta_of(bench, "anchored") == []
    assert plans_of(bench)[-1]["tokens_per_byte"] < 0.5, "now they would fit"
    bench.backend.fault = lambda _: None
    assert bench.run().finished
    assert {tuple(plan["anchors"]) for plan in plans_of(bench)} == {()}


def test_the_bound_is_learned_behind_anchors_as_well(tmp_path: Path) -> None:
    """No row there tells its own length; those that were asked alone do."""
    bench = Bench(tmp_path, texts(300), ANCHORS + "segment: 5\n")
    bench.run()
    assert plans_of(bench)[-1]["tokens_per_byte"] < 1.0


def test_settled_anchors_do_not_make_their_segments_begun(tmp_path: Path) -> None:
    """They are spread over the file; where a resume goes on is told by the rows that were asked in turn."""
    bench = Bench(tmp_path, texts(200), ANCHORS + "segment: 5\n")
    asked = 0

    def stops(call: Call) -> None:
        nonlocal asked
        asked += len(call.request.messages) > 2  # behind anchors, and not alone beforehand
        if asked == 8:
            bench.stop.set()

    bench.backend.fault = stops
    bench.run()

    async def begun() -> int:
        ledger = JobLedger(bench.path, bench.clock)
        try:
            return await ledger.last_segment()
        finally:
            await ledger.close()

    assert max(o.ordinal for o in bench.outcomes if o.state == "ok") > 100
    assert asyncio.run(begun()) == 1


def test_two_reloads_in_a_row_do_not_confirm_each_other(tmp_path: Path) -> None:
    """Two lanes may meet the same reload; only a reply for which nothing was loaded tells what is kept."""
    bench = Bench(tmp_path, texts(60), SIDECAR + "segment: 20\n")

    def fault(call: Call) -> Reply | None:
        if call.text.startswith(("row 5", "row 6")):
            bench.backend.held = replace(HELD, num_ctx=128)
            return replace(bench.backend._reply(call.request), load_s=0.4)
        bench.backend.held = HELD
        return None

    bench.backend.fault = fault
    bench.run()
    assert {plan["window"] for plan in plans_of(bench)} == {None}


def test_a_job_without_a_prefix_says_that_nothing_was_primed(tmp_path: Path) -> None:
    """What is not done is not said to be done."""
    bench = Bench(
        tmp_path, texts(10), SIDECAR.replace("system: Judge.\n", "") + "mode: isolated\n", copies=True
    )
    bench.run(2)
    notes = primer_of(bench)
    assert (notes["requests"], notes["copied"]) == (0, 0)
    assert notes["state"].endswith("no prompt has needed it yet")
