"""Odd jobs, odd servers, odd cells, long outages, rows without counts. Each was a defect once."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoolama.answer.failures import SERVER_LOSSES, retry_state_of
from spoolama.backends import embedded, ollama
from spoolama.backends.base import LoadedModel, LoadSpec, Message, Reply
from spoolama.context import trimming
from spoolama.context.budget import Budget
from spoolama.context.selection import Candidate, spread
from spoolama.context.trimming import Turn
from spoolama.errors import (
    ContextOverflow,
    JobError,
    RequestRefused,
    RowError,
    ServerAway,
    ServerBusy,
    Stalled,
    UnexpectedReply,
)
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.evaluation.child.templates import Score, ScoreProblem
from spoolama.job.answer import gold_answers
from spoolama.job.row import Attempt, StoredRow
from spoolama.model.gate import LOAD_BOUND_S
from spoolama.model.primer import Primer
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_format import open_reader
from support.backend import Call, ScriptedBackend, count_tokens
from support.clock import VirtualClock
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

    def counting(choices: Sequence[Candidate], number: int) -> list[int]:
        nonlocal chosen
        chosen += 1
        return spread(choices, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimming, "spread", counting)
        kept = trimming.KeepRows(100, 0, 3000, None, 0.4).trim(tail, Budget(20_000, 10, 0, 10))
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
            return replace(bench.backend.reply_to(call.request), load_s=0.4)
        return None

    bench.backend.fault = fault
    bench.texts[50:] = [f"late {n}" for n in range(10)]
    bench.run()
    (notes,) = meta_of(bench, "watch")
    assert set(notes["external_changes"]["counts"]) == {"reloaded"}
    assert {p["window"] for p in plans_of(bench)} == {None}


def test_thinking_is_no_part_of_what_the_conversation_takes(tmp_path: Path) -> None:
    """Servers count it with the answer; it is not sent again, so lengths are not told by such counts."""
    bench = Bench(tmp_path, texts(30))

    def thinks(call: Call) -> Reply:
        reply = bench.backend.reply_to(call.request)
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
            return replace(bench.backend.reply_to(call.request), load_s=0.4)
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


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_server_that_is_busy_to_chats_but_looks_well_costs_no_row(tmp_path: Path, lanes: int) -> None:
    """It is loaded at once each time; that is no answer, so the looks grow rare and no row is to blame."""
    bench = Bench(tmp_path, texts(200), SIDECAR + "mode: isolated\n", latency_s=1.0)

    def busy(call: Call) -> None:
        if 20 <= call.at < 620:
            raise ServerBusy("too many requests", status=429)

    bench.backend.fault = busy
    assert bench.run(lanes).finished
    assert {o.state for o in bench.outcomes} == {"ok"}
    asked = [call for call in bench.backend.calls if 20 <= call.at < 620]
    assert len(asked) < 40, "as rare as to a server that is away"
    assert bench.clock.monotonic() < 20 + 600 + 60 + 200


def test_a_row_that_alone_drives_the_server_away_is_set_aside(tmp_path: Path) -> None:
    """No other row is answered meanwhile in a single lane; a real generation shows that it was the row."""
    bench = Bench(tmp_path, texts(12))

    def away(call: Call) -> None:
        if call.text.startswith("row 5 "):
            raise ServerAway("reset")

    bench.backend.fault = away
    assert bench.run().finished
    assert [(o.ordinal, o.code) for o in bench.outcomes if o.state != "ok"] == [(5, "server_away")]


def test_only_losses_between_which_the_server_worked_count_against_a_row() -> None:
    """Neither do any of them use up its retries."""
    idle, told = Attempt("server_busy", counted=False), Attempt("server_away", counted=True)
    assert retry_state_of([told] + [idle] * 100, 0).over is None
    assert retry_state_of([told, idle] * (SERVER_LOSSES - 1), 0).over is None
    assert retry_state_of([told] * SERVER_LOSSES, 3).over == "server_away"


def sleeping(bench: Bench, seconds: float, dead: list[float]) -> Awaitable[None]:
    """So long a wait in the server, and when it was no proof of life any more."""

    async def sleep() -> None:
        for _ in range(int(seconds) // 10):
            await bench.clock.sleep(10)
            if not bench.progress.pulse.alive():
                dead.append(bench.clock.monotonic())

    return sleep()


@pytest.mark.parametrize("died", [False, True])
def test_a_load_of_half_an_hour_is_a_known_wait(tmp_path: Path, died: bool) -> None:
    """At the start and after the model's death: a backend gives up before the watchdog does."""
    bench = Bench(tmp_path, texts(5))
    load, dead = bench.backend.load, list[float]()
    loads = 0

    async def slow(spec: LoadSpec) -> LoadedModel:
        nonlocal loads
        loads += 1
        if loads == 1 + died:
            await sleeping(bench, ollama.LOAD_TIMEOUT_S, dead)
        return await load(spec)

    def lost(call: Call) -> None:
        if died and loads == 1 and call.text.startswith("row 3"):
            raise ServerAway("gone")

    bench.backend.load, bench.backend.fault = slow, lost  # type: ignore[method-assign]  # it takes its time
    assert bench.run().finished
    assert loads == 1 + died
    assert not dead
    around = 2 * ollama.LEAST_LOAD_TIMEOUT_S + 3 * ollama.DESCRIBE_TIMEOUT_S + ollama.PROBE_TIMEOUT_S
    assert max(ollama.LOAD_TIMEOUT_S, embedded.LOAD_TIMEOUT_S) + around + 120 <= LOAD_BOUND_S


def test_a_server_that_wedges_while_a_slot_is_primed_is_known_by_the_learned_bound(tmp_path: Path) -> None:
    """Priming is given up when an answer would be, and the watchdog sees a known wait until then."""
    bench = primed(tmp_path)
    bench.texts += [f"{i} again a row longer than the window of attention" * 2 for i in range(40, 120)]
    prime, bounds, dead = bench.backend.prime, list[float](), list[float]()

    async def wedged(
        spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 600.0
    ) -> Reply | None:
        bounds.append(timeout_s)
        if len(bounds) == 2:
            await sleeping(bench, timeout_s, dead)
            raise Stalled(f"no answer within {timeout_s:g} s")
        return await prime(spec, text, slot=slot)

    def reloaded(call: Call) -> Reply | None:
        if not call.text.startswith("60 "):
            return None
        reply = bench.backend.reply_to(call.request)
        bench.backend.held = HELD
        return replace(reply, load_s=0.4)

    bench.backend.prime, bench.backend.fault = wedged, reloaded  # type: ignore[method-assign]
    assert bench.run().finished
    assert bounds[0] > bounds[1] == 60
    assert not dead
    assert {o.state for o in bench.outcomes} == {"ok"}
    assert "stalled" in primer_of(bench)["state"]


def test_renderings_that_never_come_are_given_up_within_the_bound() -> None:
    """Priming is an aid: a server that hangs over it must not hold a row for ever."""
    backend = ScriptedBackend(VirtualClock(), latency_s=0)

    async def hangs(spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        del spec, messages
        await asyncio.Event().wait()
        return None

    backend.render = hangs  # type: ignore[method-assign]
    rows = [(Message("user", text),) for text in texts(4)]
    primer = Primer(backend, LoadSpec("m", 512), mode="always", rows=rows)
    front = (Message("system", "Judge."),)

    async def main() -> bool:
        return await asyncio.wait_for(primer.before(0, front, branches=True, timeout_s=0.05), 5)

    assert asyncio.run(main()) is False
    assert "given up: priming took longer than 0.05 s" in primer.notes.state


def test_a_prompt_that_nobody_counts_is_not_sent_without_room(tmp_path: Path) -> None:
    """Ollama 0.30.0 tells no length, so that a cut would go unseen: such a row is too long for the window."""
    rows = texts(30)
    rows[12], rows[20] = "w" * 1700, "v" * 350
    side = SIDECAR.replace("num_predict: 16", "num_predict: 100")
    bench = Bench(tmp_path, rows, side, counts=False)
    assert bench.run().finished
    for call in bench.backend.calls:
        tokens = count_tokens(call.request.messages)
        assert call.request.num_predict == 1 or tokens + call.request.num_predict < 512
    assert {o.ordinal: o.code for o in bench.outcomes if o.state != "ok"} == {12: "context_overflow"}
    assert bench.outcomes[12].details["prompt_tokens"] is None
    assert int(str(bench.outcomes[12].details["prompt_tokens_at_most"])) > 1700
    assert bench.outcomes[20].state == "ok", "by its bytes it fits without the rows before it"


def refuses(tokens: int | None, text: str) -> Callable[[Call], None]:
    """A row that does not fit the first window; a refusal has more tokens with more rows before it."""

    def fault(call: Call) -> None:
        if call.text.startswith(text) and call.request.load.num_ctx == 256:
            told = None if tokens is None else tokens + 10 * len(call.request.messages)
            raise ContextOverflow("too long", status=400, prompt_tokens=told, num_ctx=told and 256)

    return fault


@pytest.mark.parametrize("text", ["d" * 1500, "d" * 60])
def test_a_row_refused_without_sizes_has_its_second_pass(tmp_path: Path, text: str) -> None:
    """Ollama up to 0.24 tells no length; the bound by bytes says which window is large enough."""
    rows = texts(40)
    rows[25] = text
    bench = Bench(tmp_path, rows, LONG + "segment: 10\n")
    bench.backend.fault = refuses(None, "ddd")
    assert bench.run().finished
    assert bench.outcomes[25].state == "ok"
    assert [spec.num_ctx > len(text) for _, spec in bench.backend.loads][1:] == [True]


def test_a_row_refused_without_sizes_and_without_a_second_pass_says_how_long_it_may_be(
    tmp_path: Path,
) -> None:
    """What was not measured is not given as measured."""
    rows = texts(20)
    rows[15] = "d" * 1500
    bench = Bench(tmp_path, rows, LONG.replace("long_rows: second_pass\n", ""))
    bench.backend.fault = refuses(None, "ddd")
    assert bench.run().finished
    failed = bench.outcomes[15]
    assert failed.details["prompt_tokens"] is None
    assert int(str(failed.details["prompt_tokens_at_most"])) > 1500
    assert "up to 1,5" in (failed.message or "")


class Killed(BaseException):
    """The end of the process."""


def killed_at(bench: Bench, ledger: type, method: str, patch: pytest.MonkeyPatch) -> None:
    """Run until this is to be written, which it is not."""

    def killed(*_: object) -> None:
        raise Killed

    patch.setattr(ledger, method, killed)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group of one
        bench.run()
    assert "Killed" in repr(caught.value)


@pytest.mark.parametrize("told", [300, None])
def test_a_kill_between_the_last_refusal_and_the_deferral_loses_no_second_pass(
    tmp_path: Path, told: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tries are in the ledger, and what they told is enough to defer the row then."""
    rows = texts(40)
    rows[25] = "d" * 60
    bench = Bench(tmp_path, rows, LONG + "segment: 10\n")
    bench.backend.fault = refuses(told, "ddd")
    with monkeypatch.context() as patch:
        killed_at(bench, JobLedger, "defer", patch)
    before = len(bench.prompts[rows[25]])
    assert bench.run().finished
    assert bench.outcomes[25].state == "ok"
    assert len(bench.prompts[rows[25]]) == before + 1, "it is not refused once more"


def test_a_kill_after_the_last_refusal_keeps_the_sizes_for_the_row_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no second pass the person reads how long the row is, not that a service restarted."""
    rows = texts(40)
    rows[25] = "d" * 60
    side = LONG.replace("long_rows: second_pass\n", "segment: 10\n")
    bench = Bench(tmp_path, rows, side)
    bench.backend.fault = refuses(300, "ddd")
    with monkeypatch.context() as patch:
        killed_at(bench, JobLedger, "failed", patch)
    assert bench.run().finished
    assert bench.outcomes[25].code == "context_overflow"
    assert bench.outcomes[25].details["prompt_tokens"] == 320


@pytest.mark.parametrize("words", [116, 118, 120, 124])
def test_anchors_leave_room_for_the_rows_behind_them(tmp_path: Path, words: int) -> None:
    """Behind a long prefix fewer stand in front, or none: not so many that each row is refused once."""
    side = ANCHORS.replace("512", "1024").replace("anchors: 4", "anchors: 6")
    side = side.replace("Judge.", "Judge " + "with great care and attention " * words)
    bench = Bench(tmp_path, [f"{text} lorem ipsum dolor lorem ipsum dolor" for text in texts(100)], side)
    assert bench.run().finished
    anchors = len(plans_of(bench)[-1]["anchors"])
    assert len(meta_of(bench, "anchored")) == anchors
    assert {o.attempts for o in bench.outcomes} == {1}
    assert sum(len(seen_by(o)) == anchors for o in bench.outcomes) >= 100 - anchors
    if words >= 120:
        assert anchors == 0


def meets(kinds: tuple[str, ...], rows: Collection[int]) -> Callable[[str, Sequence[Any]], str | None]:
    """These kinds of tasks meet a limit at these rows."""

    def limit(kind: str, arguments: Sequence[Any]) -> str | None:
        hostile = any(f"row {row} " in json.dumps(arguments) for row in rows)
        return "took longer than 2 s" if kind in kinds and hostile else None

    return limit


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    ("kind", "side", "words"),
    [
        ("render", "", "the template took longer than 2 s"),
        ("check", "format: {type: string}\n", "checking the answer against format took longer than 2 s"),
    ],
)
def test_a_row_that_meets_a_limit_of_evaluation_fails_by_itself(
    tmp_path: Path, lanes: int, kind: str, side: str, words: str
) -> None:
    """It is not asked again, its error names its line, and the others are answered."""
    answer = (lambda request: json.dumps(request.messages[-1].content)) if side else None
    bench = Bench(tmp_path, texts(20), SIDECAR + side, **({"answer": answer} if answer else {}))
    bench.runner.meets = meets((kind,), (3, 17))

    assert bench.run(lanes).finished
    failed = {o.ordinal: (o.code, o.message, o.attempts) for o in bench.outcomes if o.state != "ok"}
    assert failed == {
        row: ("evaluation_limit", f"{words} on line {row + 2}", int(kind == "check")) for row in (3, 17)
    }


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_third_row_that_meets_a_limit_ends_the_job_with_the_errors_of_all_three(
    tmp_path: Path, lanes: int
) -> None:
    """The rest is neither evaluated nor asked."""
    bench = Bench(tmp_path, texts(40), SIDECAR + "mode: isolated\n")
    bench.runner.meets = meets(("render",), range(2, 40))

    with pytest.raises(JobError, match="3 rows exceeded a limit of the evaluation") as caught:
        bench.run(lanes)
    assert caught.value.code == "evaluation_limit"
    assert {o.line for o in bench.outcomes if o.state == "failed"} == {4, 5, 6}
    assert len(bench.backend.calls) <= 2


def test_a_score_that_meets_a_limit_makes_its_row_the_least_important(tmp_path: Path) -> None:
    """The row keeps its answer; the third one ends the job."""
    side = SIDECAR + "trim: {strategy: important, keep: 3, every: 3, score: text}\n"
    bench = Bench(tmp_path, texts(20), side)
    bench.runner.meets = meets(("score",), (3, 9))
    assert bench.run().finished
    assert {o.state for o in bench.outcomes} == {"ok"}

    (tmp_path / "third").mkdir()
    bench = Bench(tmp_path / "third", texts(20), side)
    bench.runner.meets = meets(("score",), (3, 9, 11))
    with pytest.raises(
        JobError, match="3 rows exceeded a limit of the evaluation; the last: the score took longer"
    ):
        bench.run()


@pytest.mark.parametrize("lanes", [1, 4])
def test_rows_that_wait_for_their_template_are_left_at_a_stop(tmp_path: Path, lanes: int) -> None:
    """Those that are asked have their answer, the others are for the next start, and none has an error."""
    bench = Bench(tmp_path, texts(30), SIDECAR + "mode: isolated\n")

    def stop(_kind: str, arguments: Sequence[Any]) -> None:
        if "row 20 " in json.dumps(arguments):
            bench.stop.set()

    bench.runner.meets = stop
    assert not bench.run(lanes).finished
    states = [o.state for o in bench.outcomes]
    assert (set(states), states.count("ok") >= 20 - lanes) == ({"ok", "pending"}, True)
    bench.runner.meets = lambda _kind, _arguments: None
    assert bench.run(lanes).finished
    assert len(bench.backend.calls) == 30
