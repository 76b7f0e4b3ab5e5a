"""What precedes a row: anchors, long rows, priming, and what other clients do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Reply
from spoolama.errors import (
    ContextOverflow,
    JobError,
    OutOfMemory,
    RequestRefused,
)
from support.backend import Call, count_tokens
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

# anchors


def test_every_row_sees_the_same_anchors(tmp_path: Path) -> None:
    """24 rows are asked in isolation, four of them become anchors, and all other rows see
    exactly these four.
    """
    bench = Bench(tmp_path, texts(100), ANCHORS)
    assert bench.run(2).finished
    (plan,) = [p for p in plans_of(bench) if p["anchors"]]
    anchors = list(plan["anchors"])
    assert len(anchors) == 4
    assert [len(c.request.messages) for c in bench.backend.calls[:24]] == [2] * 24
    rest = bench.backend.calls[24:]
    assert len(rest) == 96, "an anchor is not asked again"
    assert len({tuple(c.request.messages[:-1]) for c in rest}) == 1
    for outcome in bench.outcomes:
        assert outcome.state == "ok"
        assert visible_to(outcome) == ([] if outcome.ordinal in anchors else anchors)


def test_the_answers_of_anchors_are_spread(tmp_path: Path) -> None:
    """An answer that only one row in ten has is still among the anchors."""
    bench = Bench(
        tmp_path,
        texts(240),
        ANCHORS,
        answer=lambda r: "rare" if r.messages[-1].content.split()[1].endswith("7") else "common",
    )
    bench.run()
    front = bench.backend.calls[-1].request.messages[:-1]
    given = [m.content for m in front if m.role == "assistant"]
    assert {"rare", "common"} == set(given)


def test_anchors_carry_the_gold_answers(tmp_path: Path) -> None:
    """With a gold column, anchors show the gold answers, and their results keep the model's answers."""
    side = ANCHORS + "gold: text\nformat: {type: object, properties: {s: {type: string}}, required: [s]}\n"
    bench = Bench(tmp_path, texts(60), side, answer=lambda _: json.dumps({"s": "model"}))
    bench.run()
    front = bench.backend.calls[-1].request.messages[1:-1]
    pairs = list(zip(front[::2], front[1::2], strict=True))
    assert all(json.loads(answer.content) == {"s": question.content} for question, answer in pairs)
    assert {o.answer for o in bench.outcomes} == {json.dumps({"s": "model"})}


@pytest.mark.parametrize(
    ("golds", "answers", "used"),
    [
        (["yes", "no"], ["yes", "no"], True),
        (["1.5", "-2"], ["positive", "negative"], False),
        (["1.5", "-2"], ["3", "1"], True),
        (["gut", "schlecht"], ["good", "bad"], False),
    ],
)
def test_gold_of_another_form_than_the_answers_is_not_put_into_prompts(
    tmp_path: Path, golds: list[str], answers: list[str], used: bool
) -> None:
    """Gold in another form than the answers, such as ratings for words, does not go into prompts."""
    calls = iter(range(1000))
    bench = Bench(tmp_path, golds * 30, ANCHORS + "gold: text\n", answer=lambda _: answers[next(calls) % 2])
    bench.run()
    assert {p["gold"] for p in plans_of(bench) if p["anchors"]} == {used}
    front = bench.backend.calls[-1].request.messages[1:-1]
    assert {m.content for m in front if m.role == "assistant"} <= set(golds if used else answers)


def test_anchors_can_be_named(tmp_path: Path) -> None:
    """Anchors named by id keep the order in which they are named."""
    side = SIDECAR + "trim: {strategy: anchors, choose: [9, 3, '5']}\n"
    bench = Bench(tmp_path, texts(30), side)
    bench.run()
    assert plans_of(bench)[-1]["anchors"] == [8, 2, 4]
    assert len(bench.backend.calls) == 30, "no other candidates were asked"


def test_naming_a_missing_row_as_an_anchor_fails_the_job(tmp_path: Path) -> None:
    """Naming a missing row as an anchor fails the job before the first row is asked."""
    bench = Bench(tmp_path, texts(30), SIDECAR + "trim: {strategy: anchors, choose: [9, nosuch]}\n")
    with pytest.raises(JobError, match="nosuch"):
        bench.run()
    assert not bench.backend.calls


def test_a_row_that_does_not_fit_behind_the_anchors_is_isolated(
    tmp_path: Path,
) -> None:
    """A row that does not fit behind the anchors is asked in isolation, and the anchors stay."""
    rows = texts(60)
    rows[31] = "y" * 1700  # 425 tokens, in isolation in a window of 512
    bench = Bench(tmp_path, rows, ANCHORS)
    bench.run()
    long, after = bench.outcomes[31], bench.outcomes[32]
    assert long.state == "ok"
    assert visible_to(long) == []
    assert len(visible_to(after)) == 4


# rows too long for the window


def test_long_rows_are_answered_at_the_end_with_one_reload(tmp_path: Path) -> None:
    """Long rows wait for one window that fits them all; each is refused at most once."""
    rows = texts(40)
    rows[3], rows[20] = "y" * 4000, "z" * 2500
    bench = Bench(tmp_path, rows, LONG)
    assert bench.run(2).finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 40
    windows = [spec.num_ctx for _, spec in bench.backend.loads]
    assert windows == [256, 1280]
    assert [c.text[0] for c in bench.backend.calls[-2:]] == ["y", "z"]
    assert all(len(asked) == 2 for text, asked in bench.prompts.items() if text[0] in "yz")


def test_an_interrupted_second_pass_resumes_without_loading_the_first_window(tmp_path: Path) -> None:
    """A resumed second pass does not load the first window again."""
    rows = texts(10)
    rows[3], rows[7] = "y" * 4000, "z" * 2500
    bench = Bench(tmp_path, rows, LONG)

    def stop(call: Call) -> None:
        if call.request.load.num_ctx > 256:
            bench.stop.set()

    bench.backend.fault = stop
    assert not bench.run().finished
    bench.backend.fault = lambda _: None
    bench.backend.loads.clear()
    assert bench.run().finished
    assert [spec.num_ctx for _, spec in bench.backend.loads] == [768]


def test_rows_beyond_the_models_own_window_fail_with_their_sizes(tmp_path: Path) -> None:
    """A row longer than the model's own window fails without a request, and the other rows are answered."""
    rows = texts(10)
    rows[3], rows[7] = "y" * 4000, "z" * 2500
    bench = Bench(tmp_path, rows, LONG)
    bench.backend.trained_ctx = 700
    assert bench.run().finished
    long, fine = bench.outcomes[3], bench.outcomes[7]
    assert (long.state, long.code, fine.state) == ("failed", "context_overflow", "ok")
    assert "700" in (long.message or "")
    assert long.details["tokens"] == count_tokens(bench.backend.calls[0].request.messages[:1]) + 1004 + 16


def test_a_window_that_cannot_be_loaded_fails_only_the_long_rows(tmp_path: Path) -> None:
    """If the window of the second pass cannot be loaded, only the long rows fail."""
    rows = texts(10)
    rows[3] = "y" * 4000

    def short(spec: LoadSpec) -> None:
        if spec.num_ctx > 256:
            raise OutOfMemory("cudaMalloc failed: out of memory")

    bench = Bench(tmp_path, rows, LONG, load_fault=short)
    assert bench.run().finished
    assert [o.state for o in bench.outcomes].count("ok") == 9
    assert "out of memory" in (bench.outcomes[3].message or "")


def test_without_a_second_pass_a_long_row_fails_with_its_sizes(tmp_path: Path) -> None:
    """By default a long row fails with an error that says what to do."""
    rows = texts(5)
    rows[3] = "y" * 4000
    bench = Bench(tmp_path, rows, SIDECAR)
    bench.run()
    assert bench.outcomes[3].code == "context_overflow"
    assert "num_ctx" in (bench.outcomes[3].message or "")


# what other clients do to the model


def test_a_reload_by_another_client_is_recorded_with_its_row(tmp_path: Path) -> None:
    """A reload by another client is reported, counted and recorded with its row."""
    bench = Bench(tmp_path, texts(10))
    bench.backend.fault = reloads(bench, "row 5", HELD)
    events: list[tuple[str, str]] = []
    bench.on_notice = lambda kind, message: events.append((kind, message))
    bench.run()
    (notes,) = meta_of(bench, "watch")
    assert notes["external_changes"]["counts"] == {"reloaded": 1}
    assert notes["external_changes"]["first"][0]["ordinal"] == 5
    assert [kind for kind, _ in events] == ["reloaded"]


def test_a_smaller_window_is_planned_from_the_next_segment_on(tmp_path: Path) -> None:
    """When the server's window shrinks, prompts stay inside it from the next segment on."""
    side = SIDECAR + "segment: 20\ntrim: {strategy: reset, every: 1000}\n"
    bench = Bench(tmp_path, texts(60), side)
    bench.backend.fault = reloads(bench, "row 5", replace(HELD, num_ctx=200))
    bench.run()
    assert plans_of(bench)[-1]["window"] == 200
    assert plans_of(bench)[-1]["from_segment"] == 1
    later = [o.prompt_tokens or 0 for o in bench.outcomes if o.ordinal >= 20]
    assert max(later) + 16 < 200


def test_a_model_partly_on_the_cpu_is_detected(tmp_path: Path) -> None:
    """A model that is partly on the CPU is detected by the share that the server reports on the GPU."""
    bench = Bench(tmp_path, texts(20))
    calls = iter([HELD, replace(HELD, vram_bytes=400)])

    def fault(call: Call) -> Reply | None:
        if call.text.startswith(("row 5", "row 6")):
            bench.backend.held = next(calls)
            return replace(bench.backend.reply_to(call.request), load_s=0.4)
        return None

    bench.backend.fault = fault
    bench.run()
    (notes,) = meta_of(bench, "watch")
    assert notes["external_changes"]["counts"] == {"reloaded": 2, "offloaded": 1}


# priming


def test_the_prefix_is_primed_once_a_slot_where_it_pays(tmp_path: Path) -> None:
    """Priming is kept after a trial of a few rows without and a few rows with it shows that rows reuse the
    prefix.
    """
    bench = primed(tmp_path)
    bench.run(2)
    notes = primer_of(bench)
    assert notes["state"] == "kept: it saves time"
    assert len(bench.backend.primes) == 2
    text = bench.backend.primes[0][0]
    assert text.endswith("<user>")
    outcomes = bench.outcomes
    assert [o.cached_tokens for o in outcomes[:5]] == [0] * 5
    shared = math.floor(0.9 * count_tokens(bench.backend.calls[0].request.messages[:1]))
    assert all((o.cached_tokens or 0) >= shared for o in outcomes[-20:])


def test_without_the_primer_nothing_is_sent(tmp_path: Path) -> None:
    """The sidecar can switch priming off."""
    bench = primed(tmp_path, "prime: never\n")
    bench.run()
    assert bench.backend.primes == []
    assert {o.cached_tokens for o in bench.outcomes} == {0}


def test_a_primer_that_does_not_pay_is_given_up(tmp_path: Path) -> None:
    """Priming stops where the server reuses prefixes without it."""
    bench = primed(tmp_path)
    bench.backend.sliding = 100_000  # the model has a sliding window, but everything fits it
    bench.run()
    assert primer_of(bench)["state"] == "given up: it saves no time"
    assert len(bench.backend.primes) == 1


@pytest.mark.parametrize("sliding", [None, 30], ids=["plain", "sliding"])
def test_where_slots_are_copied_the_prefix_is_evaluated_once(tmp_path: Path, sliding: int | None) -> None:
    """With plain attention each lane's first row finds the prefix, without a trial."""
    bench = primed(tmp_path, copies=True)
    bench.backend.sliding = sliding
    bench.run(4)
    notes = primer_of(bench)
    assert notes["state"] == "evaluated once and copied into the other slots"
    assert (notes["requests"], notes["copied"]) == (4, 3)
    assert notes["tokens"] == 4 * notes["evaluated"]
    assert {slot for _, slot in bench.backend.primes} == {0, 1, 2, 3}
    shared = math.floor(0.9 * count_tokens(bench.backend.calls[0].request.messages[:1]))
    assert all((o.cached_tokens or 0) >= shared for o in bench.outcomes)


def test_a_server_that_does_not_render_gets_no_primer(tmp_path: Path) -> None:
    """If the server does not know `_debug_render_only`, as older Ollama, the job runs without priming."""
    bench = primed(tmp_path, renders=False)
    assert bench.run().finished
    assert "given up" in str(primer_of(bench)["state"])
    assert bench.backend.primes == []


def test_a_reload_makes_the_prefix_be_primed_again(tmp_path: Path) -> None:
    """After a reload the prefix is primed again, because the slots of the old process are gone."""
    bench = primed(tmp_path, "prime: always\n")
    bench.backend.fault = reloads(bench, "0 20", HELD)
    bench.run()
    assert len(bench.backend.primes) == 2


# repair


def test_a_repair_changes_seed_and_temperature(tmp_path: Path) -> None:
    """A repair changes seed and temperature, because at temperature 0 another seed gives the same answer."""
    side = SIDECAR + "repair: {temperature: 0.6}\n"
    bench = Bench(tmp_path, texts(8), side)
    bench.backend.fault = lambda call: (
        Reply(" ", "stop", 30, None, 1) if call.text.startswith("row 5") else None
    )
    bench.run()
    attempts = [c.request.sampling for c in bench.backend.calls if c.text.startswith("row 5")]
    assert [t["seed"] for t in attempts] == [7, 8, 9, 10]
    assert [t["temperature"] for t in attempts] == [0.0, 0.6, 0.6, 0.6]


def test_a_refused_request_in_the_second_pass_fails_only_the_long_rows(tmp_path: Path) -> None:
    """If the server refuses the larger window, only the long rows fail, with the reason."""
    rows = texts(6)
    rows[3] = "y" * 4000

    def refuse(spec: LoadSpec) -> None:
        if spec.num_ctx > 256:
            raise RequestRefused("window too large", fix="Take a smaller one.")

    bench = Bench(tmp_path, rows, LONG, load_fault=refuse)
    assert bench.run().finished
    assert "window too large" in (bench.outcomes[3].message or "")


def test_rows_of_one_to_two_hundred_thousand_tokens_all_get_a_result(tmp_path: Path) -> None:
    """Rows of 100,000 to 200,000 tokens are answered or fail with sizes, and the second pass loads once."""
    sizes = [1, 200_000, 30, 900, 4_000, 60, 131_000, 2, 12_000, 40_000, 1_100, 75_000] * 3
    rows = [f"{n} ".ljust(4 * size - 16, "w") for n, size in enumerate(sizes)]
    side = LONG.replace("256", "1024") + "segment: 6\n"
    bench = Bench(tmp_path, rows, side)
    bench.backend.trained_ctx = 131_072
    refused: dict[str, int] = {}
    real = bench.backend.reply_to

    def counting(request: ChatRequest) -> Reply:
        try:
            return real(request)
        except ContextOverflow:
            refused[request.messages[-1].content] = refused.get(request.messages[-1].content, 0) + 1
            raise

    bench.backend.reply_to = counting  # type: ignore[method-assign]  # it counts what it refuses
    assert bench.run(3).finished
    for outcome, size in zip(bench.outcomes, sizes, strict=True):
        if size > 131_072:
            assert (outcome.state, outcome.code) == ("failed", "context_overflow")
            assert outcome.details["tokens"] == pytest.approx(size + 16, abs=12)
        else:
            assert outcome.state == "ok"
    assert max(refused.values()) == 1
    windows = [spec.num_ctx for _, spec in bench.backend.loads]
    assert windows == [1024, 131_072], "the model's own is the longest"
