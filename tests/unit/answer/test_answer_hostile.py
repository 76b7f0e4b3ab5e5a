"""Regression tests: unusual jobs, servers and cells, long outages, and rows without token counts."""

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
    texts,
    visible_to,
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
def test_a_primer_that_fails_fails_no_row(tmp_path: Path, error: Exception) -> None:
    """When priming fails, the job stops priming and answers every row."""
    bench = primed(tmp_path)

    def fail(_text: str, _slot: int | None) -> None:
        raise error

    bench.backend.prime_fault = fail
    assert bench.run().finished
    assert {o.state for o in bench.outcomes} == {"ok"}
    assert len(bench.backend.primes) == 1
    assert "given up" in primer_of(bench)["state"]


def test_anchors_are_used_behind_a_long_prefix(tmp_path: Path) -> None:
    """If the bound of one token per byte says that the anchors may not fit, they are counted, not dropped."""
    side = ANCHORS.replace("512", "1024").replace("Judge.", "Judge " + "with great care " * 50)
    bench = Bench(tmp_path, texts(60), side)
    assert bench.run().finished
    assert {len(visible_to(o)) for o in bench.outcomes} == {0, 4}
    assert sum(bool(visible_to(o)) for o in bench.outcomes) == 56


def test_a_row_refused_in_the_first_pass_keeps_its_attempts_for_the_second(tmp_path: Path) -> None:
    """A refusal in the first window does not use up the attempts of the second pass."""
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
    """Ten failures at the start end the job only if no row was answered."""
    side = ANCHORS + "retries: 0\n"
    bench = Bench(tmp_path, texts(60), side)
    bench.backend.fault = lambda call: (
        Reply(" ", "stop", 30, None, 1) if int(call.text.split()[1]) % 2 else None
    )
    assert bench.run().finished
    assert sum(o.state == "ok" for o in bench.outcomes) == 30


def test_one_reading_of_a_smaller_window_changes_nothing(tmp_path: Path) -> None:
    """A single reading of a smaller window, which another client can cause, does not change the plan."""
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


def test_a_trim_of_a_long_tail_is_fast() -> None:
    """Trimming a long tail of which few rows fit takes few decisions, not one for each row."""
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
def test_an_invalid_gold_cell_is_not_used_for_an_anchor(gold: str) -> None:
    """A gold cell that cannot be an answer is replaced by the model's own answer."""

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


def test_a_score_accepts_columns_of_any_name_and_never_raises() -> None:
    """A score accepts columns of any name, such as `self`, and returns minus infinity when it fails."""
    assert Score("row.self | int + 1").of({"self": "3"}, "x") == 4
    assert Score("answer.score").of({}, '{"score": 7}') == 7
    assert Score("nosuch > 3").of({}, "x") == -math.inf
    with pytest.raises(ScoreProblem):
        Score("-" * 250 + "x")
    with pytest.raises(ScoreProblem):
        Score("1 + " * 600 + "1")


def test_another_clients_larger_window_is_ignored(tmp_path: Path) -> None:
    """A larger window that another client loaded for a moment does not make ours look smaller afterwards."""
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


def test_thinking_does_not_count_in_the_conversation(tmp_path: Path) -> None:
    """Thinking tokens, which servers count but which are not sent again, do not count as part of the
    conversation.
    """
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
    # The count of the second of two runs includes the thinking, so a later prompt may seem shorter.
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
    # A turn is counted by its bytes, not by the hundred tokens of thinking.
    assert all(turn < 100 for _, turn, _ in found)


def test_a_counted_prompt_is_recorded_as_one_request(tmp_path: Path) -> None:
    """The request that counts a prompt also evaluates it, so its cached tokens and time belong to the row."""
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


def test_a_job_without_anchors_has_none_after_a_restart(tmp_path: Path) -> None:
    """After a restart the job still has no anchors, even if a learned bound would now let them fit."""
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
    """The token bound is also learned behind anchors, from the rows that are asked in isolation."""
    bench = Bench(tmp_path, texts(300), ANCHORS + "segment: 5\n")
    bench.run()
    assert plans_of(bench)[-1]["tokens_per_byte"] < 1.0


def test_answered_anchors_do_not_begin_their_segments(tmp_path: Path) -> None:
    """The answers of anchors, which are spread over the file, do not mark their segments as begun."""
    bench = Bench(tmp_path, texts(200), ANCHORS + "segment: 5\n")
    asked = 0

    def stops(call: Call) -> None:
        nonlocal asked
        asked += len(call.request.messages) > 2  # behind anchors, not in isolation first
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
    """Two lanes that meet the same reload do not confirm it; only a reply without a load does."""
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


def test_a_job_without_a_prefix_reports_no_priming(tmp_path: Path) -> None:
    """A job without a prefix does not report priming."""
    bench = Bench(
        tmp_path, texts(10), SIDECAR.replace("system: Judge.\n", "") + "mode: isolated\n", copies=True
    )
    bench.run(2)
    notes = primer_of(bench)
    assert (notes["requests"], notes["copied"]) == (0, 0)
    assert notes["state"].endswith("no prompt has needed it yet")


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_server_that_refuses_chats_but_reports_healthy_fails_no_row(tmp_path: Path, lanes: int) -> None:
    """If a server refuses chats as busy but reports healthy, probes become rare and no row is blamed."""
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


def test_a_row_that_alone_takes_the_server_down_fails(tmp_path: Path) -> None:
    """A row that alone takes the server down fails, once a real generation shows that the server works."""
    bench = Bench(tmp_path, texts(12))

    def away(call: Call) -> None:
        if call.text.startswith("row 5 "):
            raise ServerAway("reset")

    bench.backend.fault = away
    assert bench.run().finished
    assert [(o.ordinal, o.code) for o in bench.outcomes if o.state != "ok"] == [(5, "server_away")]


def test_only_failures_of_a_working_server_count_against_a_row() -> None:
    """Only server failures with a working server in between count against a row, and none uses up its
    retries.
    """
    idle, away = Attempt("server_busy", counted=False), Attempt("server_away", counted=True)
    assert retry_state_of([away] + [idle] * 100, 0).over is None
    assert retry_state_of([away, idle] * (SERVER_LOSSES - 1), 0).over is None
    assert retry_state_of([away] * SERVER_LOSSES, 3).over == "server_away"


def sleeping(bench: Bench, seconds: float, dead: list[float]) -> Awaitable[None]:
    """Return how long a wait in the server lasts, and when it stops counting as a sign of life."""

    async def sleep() -> None:
        for _ in range(int(seconds) // 10):
            await bench.clock.sleep(10)
            if not bench.progress.pulse.alive():
                dead.append(bench.clock.monotonic())

    return sleep()


@pytest.mark.parametrize("died", [False, True])
def test_a_load_of_half_an_hour_is_a_known_wait(tmp_path: Path, died: bool) -> None:
    """A load of half an hour counts as a known wait, at the start and after the model process died."""
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


def test_a_server_that_hangs_while_priming_is_detected_by_the_learned_bound(tmp_path: Path) -> None:
    """A server that hangs while it primes is detected within the learned bound, and the watchdog accepts the
    wait.
    """
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
    """A server that never returns rendered prompts does not block a row beyond the bound."""
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


def test_an_uncounted_prompt_that_may_not_fit_is_not_sent(tmp_path: Path) -> None:
    """If the server reports no token counts, as Ollama 0.30.0 does, a prompt that may not fit is not sent."""
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
    """Refuse a row that does not fit the first window; the refusal has more tokens with more
    rows before it.
    """

    def fault(call: Call) -> None:
        if call.text.startswith(text) and call.request.load.num_ctx == 256:
            length = None if tokens is None else tokens + 10 * len(call.request.messages)
            raise ContextOverflow("too long", status=400, prompt_tokens=length, num_ctx=length and 256)

    return fault


@pytest.mark.parametrize("text", ["d" * 1500, "d" * 60])
def test_a_row_refused_without_sizes_gets_a_second_pass(tmp_path: Path, text: str) -> None:
    """A row refused without a token count, as by Ollama up to 0.24, gets a second pass sized by bytes."""
    rows = texts(40)
    rows[25] = text
    bench = Bench(tmp_path, rows, LONG + "segment: 10\n")
    bench.backend.fault = refuses(None, "ddd")
    assert bench.run().finished
    assert bench.outcomes[25].state == "ok"
    assert [spec.num_ctx > len(text) for _, spec in bench.backend.loads][1:] == [True]


def test_the_error_of_a_row_refused_without_sizes_gives_the_bound(
    tmp_path: Path,
) -> None:
    """The error of a row refused without a token count gives the bound and no measured length."""
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
    """Stands for the end of the process."""


def killed_at(bench: Bench, ledger: type, method: str, patch: pytest.MonkeyPatch) -> None:
    """Run until the text is about to be written, and stop before it is."""

    def killed(*_: object) -> None:
        raise Killed

    patch.setattr(ledger, method, killed)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group of one
        bench.run()
    assert "Killed" in repr(caught.value)


@pytest.mark.parametrize("length", [300, None])
def test_a_kill_between_the_last_refusal_and_the_deferral_loses_no_second_pass(
    tmp_path: Path, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the last refusal loses no second pass, because the ledger has the attempts
    and the sizes.
    """
    rows = texts(40)
    rows[25] = "d" * 60
    bench = Bench(tmp_path, rows, LONG + "segment: 10\n")
    bench.backend.fault = refuses(length, "ddd")
    with monkeypatch.context() as patch:
        killed_at(bench, JobLedger, "defer", patch)
    before = len(bench.prompts[rows[25]])
    assert bench.run().finished
    assert bench.outcomes[25].state == "ok"
    assert len(bench.prompts[rows[25]]) == before + 1, "it is not refused once more"


def test_a_kill_after_the_last_refusal_keeps_the_sizes_for_the_row_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second pass, the error of the row still gives its length after a kill and a restart."""
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
    """Behind a long prefix there are fewer anchors, so that not every row is refused once."""
    side = ANCHORS.replace("512", "1024").replace("anchors: 4", "anchors: 6")
    side = side.replace("Judge.", "Judge " + "with great care and attention " * words)
    bench = Bench(tmp_path, [f"{text} lorem ipsum dolor lorem ipsum dolor" for text in texts(100)], side)
    assert bench.run().finished
    anchors = len(plans_of(bench)[-1]["anchors"])
    assert len(meta_of(bench, "anchored")) == anchors
    assert {o.attempts for o in bench.outcomes} == {1}
    assert sum(len(visible_to(o)) == anchors for o in bench.outcomes) >= 100 - anchors
    if words >= 120:
        assert anchors == 0


def meets(kinds: tuple[str, ...], rows: Collection[int]) -> Callable[[str, Sequence[Any]], str | None]:
    """Make these kinds of tasks hit a limit at these rows."""

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
def test_a_row_that_hits_an_evaluation_limit_fails_alone(
    tmp_path: Path, lanes: int, kind: str, side: str, words: str
) -> None:
    """A row that hits an evaluation limit fails with its line in the error, and the other rows
    are answered.
    """
    answer = (lambda request: json.dumps(request.messages[-1].content)) if side else None
    bench = Bench(tmp_path, texts(20), SIDECAR + side, **({"answer": answer} if answer else {}))
    bench.runner.meets = meets((kind,), (3, 17))

    assert bench.run(lanes).finished
    failed = {o.ordinal: (o.code, o.message, o.attempts) for o in bench.outcomes if o.state != "ok"}
    assert failed == {
        row: ("evaluation_limit", f"{words} on line {row + 2}", int(kind == "check")) for row in (3, 17)
    }


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_third_row_that_hits_a_limit_ends_the_job_with_three_errors(tmp_path: Path, lanes: int) -> None:
    """The third row that hits an evaluation limit ends the job with the errors of all three."""
    bench = Bench(tmp_path, texts(40), SIDECAR + "mode: isolated\n")
    bench.runner.meets = meets(("render",), range(2, 40))

    with pytest.raises(JobError, match="3 rows exceeded a limit of the evaluation") as caught:
        bench.run(lanes)
    assert caught.value.code == "evaluation_limit"
    assert {o.line for o in bench.outcomes if o.state == "failed"} == {4, 5, 6}
    assert len(bench.backend.calls) <= 2


def test_a_score_that_hits_a_limit_gets_the_lowest_importance(tmp_path: Path) -> None:
    """A score that hits a limit gives its row the lowest importance; the row keeps its answer."""
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
    """At a stop, rows in flight get their answers, and rows that wait for their template have no error."""
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
