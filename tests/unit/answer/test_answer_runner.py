"""The engine from rows to answers, with a real ledger, a scripted server and a simulated clock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolama.backends.base import Reply
from spoolama.errors import (
    AnswerUnfinished,
    BackendError,
    ContextOverflow,
    JobError,
    OutOfMemory,
    RequestRefused,
    ServerAway,
    ServerBusy,
    ServerDied,
    Stalled,
    UnexpectedReply,
)
from spoolama.run.runner import RunEnd
from spoolama.spool.ledger_reader import LedgerReader
from support.backend import Call
from unit.answer.engine_bench import SIDECAR, Bench, texts

STRATEGIES = [
    "{strategy: reset, every: 7}",
    "{strategy: window, keep: 4, every: 6}",
    "{strategy: anchors, anchors: 4}",
    "{strategy: anchors, anchors: 3, every: 5, choose: important, score: answer | length}",
    "{strategy: important, keep: 4, every: 6}",
    "{strategy: important, keep: 4, every: 6, score: uncertain}",
    "{strategy: hybrid, anchors: 3, keep: 4, every: 6}",
    "{strategy: hybrid, important: 3, keep: 4, every: 6, score: 'row.text | length'}",
    "{strategy: budget, tokens: 150}",
    "{strategy: window, keep: 400, every: 600}",
]


def test_all_rows_are_answered_in_conversations_that_stay_in_the_window(tmp_path: Path) -> None:
    """Every row is answered, prompts grow row by row, and none exceeds num_ctx - num_predict."""
    bench = Bench(tmp_path, texts(60), SIDECAR + "trim: {strategy: reset, every: 1000}\n")
    assert bench.run() == RunEnd(finished=True)
    assert [o.state for o in bench.outcomes] == ["ok"] * 60
    sizes = [len(c.request.messages) for c in bench.backend.calls]
    assert sizes[:3] == [2, 4, 6]
    assert 2 in sizes[3:], "a trim happened"
    assert max(o.prompt_tokens or 0 for o in bench.outcomes) + 16 < 512
    with LedgerReader(bench.path) as reader:
        assert reader.totals().trims == sizes[1:].count(2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompts_do_not_depend_on_the_number_of_lanes(tmp_path: Path, strategy: str) -> None:
    """Prompts depend on input, sidecar and answers, not on the number of lanes."""
    side = SIDECAR + f"segment: 20\ntrim: {strategy}\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = Bench(tmp_path / "a", texts(100), side), Bench(tmp_path / "b", texts(100), side)
    one.run(1)
    other.run(3)
    assert one.prompts == other.prompts
    assert other.backend.most_in_flight == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stop_after", [1, 7, 23, 41, 60])
def test_a_resumed_job_sends_the_same_prompts(tmp_path: Path, strategy: str, stop_after: int) -> None:
    """A job that is stopped at any point and restarted rebuilds its conversation from the ledger byte for
    byte.
    """
    side = SIDECAR + f"trim: {strategy}\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, torn = Bench(tmp_path / "a", texts(60), side), Bench(tmp_path / "b", texts(60), side)
    whole.run()

    def stop_at(call: Call) -> None:
        if len(torn.backend.calls) == stop_after:
            torn.stop.set()

    torn.backend.fault = stop_at
    assert torn.run() == RunEnd(finished=False)
    assert torn.run() == RunEnd(finished=True)
    assert whole.prompts == torn.prompts


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_that_are_not_checked_before_a_stop_are_asked_for_again(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that stops does not wait for slow checks, loses and repeats no answer, and blames no row."""
    monkeypatch.setattr("spoolama.evaluation.evaluator._STOP_S", 0.0)
    side = SIDECAR + f"segment: 10\nretries: 0\nformat: {{type: object}}\ntrim: {strategy}\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, torn = Bench(tmp_path / "a", texts(60), side), Bench(tmp_path / "b", texts(60), side)
    for bench in (whole, torn):
        bench.backend.answer = lambda request: json.dumps({"a": request.messages[-1].content})
    whole.run(4)

    stops: list[Call] = []

    def stop_at(call: Call) -> None:
        # With several lanes there may be no moment at which exactly 30 calls are counted.
        if len(torn.backend.calls) >= 30 and not stops:
            stops.append(call)
            torn.stop.set("cancel")

    torn.backend.fault = stop_at
    assert torn.run(4) == RunEnd(finished=False)
    assert torn.progress.in_flight == 0
    assert torn.run(4) == RunEnd(finished=True)
    assert [o.state for o in torn.outcomes] == ["ok"] * 60
    assert {text: set(sent) for text, sent in torn.prompts.items()} == {
        text: set(sent) for text, sent in whole.prompts.items()
    }
    assert sum(map(len, torn.prompts.values())) > sum(map(len, whole.prompts.values()))


def fail_times(times: int, error: Callable[[], BackendError], text: str = "row 5 ") -> Callable[[Call], None]:
    """Fail the first requests for one row."""
    left = [times]

    def fault(call: Call) -> None:
        if call.text.startswith(text) and left[0]:
            left[0] -= 1
            raise error()

    return fault


@pytest.mark.parametrize(
    ("error", "times", "state", "code"),
    [
        # The second of these does not count, because nothing had yet shown that the server was back.
        (lambda: ServerAway("refused"), 20, "ok", None),
        (lambda: ServerAway("refused"), 21, "failed", "server_away"),
        (lambda: ServerBusy("busy", status=503), 19, "ok", None),
        (lambda: ServerDied("runner died", status=500), 2, "ok", None),
        (lambda: ServerDied("runner died", status=500), 3, "failed", "server_died"),
        (lambda: OutOfMemory("out of memory", status=500), 3, "failed", "server_died"),
        (lambda: Stalled("no answer"), 3, "ok", None),
        (lambda: Stalled("no answer"), 4, "failed", "stalled"),
        (lambda: AnswerUnfinished("done: false"), 3, "ok", None),
        (lambda: AnswerUnfinished("done: false"), 4, "failed", "answer_unfinished"),
        (lambda: UnexpectedReply("teapot", status=418), 3, "ok", None),
        (lambda: UnexpectedReply("teapot", status=418), 4, "failed", "unexpected"),
        (lambda: ContextOverflow("too long", prompt_tokens=600, num_ctx=512), 1, "ok", None),
        (
            lambda: ContextOverflow("too long", prompt_tokens=600, num_ctx=512),
            2,
            "failed",
            "context_overflow",
        ),
    ],
)
def test_each_failure_counts_as_the_table_says(
    tmp_path: Path, error: Callable[[], BackendError], times: int, state: str, code: str | None
) -> None:
    """Each failure counts against the server, the row or neither, and the other rows are answered."""
    bench = Bench(tmp_path, texts(12), fault=fail_times(times, error))
    assert bench.run(2).finished
    hurt = bench.outcomes[5]
    assert (hurt.state, hurt.code) == (state, code)
    assert all(o.state == "ok" for o in bench.outcomes if o.ordinal != 5)


def test_a_failed_row_leaves_no_trace_in_its_conversation(tmp_path: Path) -> None:
    """Later prompts contain neither the failed row's text nor a gap."""
    bench = Bench(tmp_path, texts(8), fault=fail_times(99, lambda: UnexpectedReply("no")))
    bench.run()
    last = bench.backend.calls[-1].request.messages
    assert [m.role for m in last[1:]] == ["user", "assistant"] * 6 + ["user"]
    assert not any(m.content.startswith("row 5") for m in last)


def test_a_refused_request_ends_the_job_with_its_fix(tmp_path: Path) -> None:
    """A request that the server would refuse for every row ends the job with one error and its fix."""

    def refuse(call: Call) -> None:
        raise RequestRefused("model 'm' not found", status=404, fix="ollama pull m")

    bench = Bench(tmp_path, texts(30), fault=refuse)
    with pytest.raises(JobError, match="not found") as caught:
        bench.run()
    assert caught.value.fix == "ollama pull m"
    assert len(bench.backend.calls) == 1


def test_an_hour_without_a_server_fails_no_row_and_probes_once_a_second_at_most(tmp_path: Path) -> None:
    """While the server is away one lane probes it, and no attempt counts against a row."""
    bench = Bench(tmp_path, texts(40), SIDECAR + "segment: 10\n")
    down = (0.05, 3600.0)

    def away(*_: object) -> None:
        if down[0] <= bench.clock.monotonic() < down[1]:
            raise ServerAway("connection refused")

    bench.backend.fault = away
    bench.backend.load_fault = away
    assert bench.run(4).finished
    assert [o.state for o in bench.outcomes] == ["ok"] * 40
    attempts = [at for at, _ in bench.backend.loads if down[0] <= at < down[1]]
    assert 100 < len(attempts) < 200
    assert min(b - a for a, b in itertools.pairwise(attempts)) >= 1.0
    assert bench.clock.monotonic() < 3700


def test_the_job_waits_for_a_server_that_is_away_at_the_start(tmp_path: Path) -> None:
    """The job waits for a server that starts later than the job."""
    bench = Bench(tmp_path, texts(3))

    def away(_: object) -> None:
        if bench.clock.monotonic() < 600:
            raise ServerAway("connection refused")

    bench.backend.load_fault = away
    assert bench.run().finished


def test_an_innocent_row_survives_a_neighbour_that_kills_the_server(tmp_path: Path) -> None:
    """From its second server failure on a row is alone in flight, so only the guilty row fails."""
    poison = fail_times(99, lambda: ServerDied("boom", status=500), "row 25")
    bench = Bench(tmp_path, texts(80), SIDECAR + "segment: 20\n")

    def fault(call: Call) -> Reply | None:
        if "row 25" in [c.text[:6] for c in bench.backend.calls[-bench.backend.in_flight :]]:
            raise ServerDied("boom", status=500)
        return poison(call)

    bench.backend.fault = fault
    assert bench.run(4).finished
    failed = [(o.ordinal, o.code) for o in bench.outcomes if o.state != "ok"]
    assert failed == [(25, "server_died")]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply("too lo", "length", 30, None, 16), "answer_cut"),
        (Reply("  ", "stop", 30, None, 1), "answer_empty"),
        (Reply("maybe", "stop", 3, None, 1), "prompt_truncated"),
    ],
)
def test_an_unusable_answer_is_repaired_or_fails_the_row(tmp_path: Path, reply: Reply, code: str) -> None:
    """A cut or empty answer is retried with other seeds, then in isolation, and then fails the row."""

    def fault(call: Call) -> Reply | None:
        return reply if call.text.startswith("row 5") else None

    bench = Bench(tmp_path, texts(9), fault=fault)
    bench.run()
    hurt = bench.outcomes[5]
    attempts = [c.request for c in bench.backend.calls if c.text.startswith("row 5")]
    if code == "prompt_truncated":  # shown only where a longer prompt was before
        assert hurt.state == "ok"
        assert len(attempts) == 3
        return
    assert (hurt.state, hurt.code, hurt.attempts) == ("failed", code, 4)
    assert [t.sampling["seed"] for t in attempts] == [7, 8, 9, 10]
    assert [len(t.messages) for t in attempts] == [12, 12, 2, 2]


def test_a_row_longer_than_the_window_is_measured_and_fails_with_its_sizes(tmp_path: Path) -> None:
    """A row that may exceed the window is counted, and its error gives the sizes of prompt, answer and
    window.
    """
    rows = texts(12)
    rows[3] = "y" * 4000
    rows[4] = "z" * 400  # 400 bytes may be 400 tokens, but are 104
    bench = Bench(tmp_path, rows, SIDECAR.replace("512", "256"))
    bench.run()
    long, fine = bench.outcomes[3], bench.outcomes[4]
    assert (long.state, long.code) == ("failed", "context_overflow")
    assert long.details == {"prompt_tokens": 1010, "num_predict": 16, "num_ctx": 256}
    assert fine.state == "ok"


def test_no_answer_is_asked_for_where_it_might_not_fit(tmp_path: Path) -> None:
    """A prompt that leaves too little of the window for the answer fails before it is sent."""
    rows = texts(12)
    rows[3] = "y" * (4 * 230)  # 230 tokens with markers: below num_ctx 256, but not with 16 for the answer
    bench = Bench(tmp_path, rows, SIDECAR.replace("512", "256"))
    bench.run()
    assert (bench.outcomes[3].state, bench.outcomes[3].code) == ("failed", "context_overflow")
    asked = [c.request.num_predict for c in bench.backend.calls if c.text.startswith("yyy")]
    assert set(asked) == {1}, "only counted, never answered"


def test_after_an_overflow_a_row_is_asked_without_earlier_rows(tmp_path: Path) -> None:
    """A row that was refused as too long is asked again with only the prefix, and the conversation resumes
    from it.
    """
    fault = fail_times(1, lambda: ContextOverflow("too long"))
    bench = Bench(tmp_path, texts(8), fault=fault)
    bench.run()
    assert [len(c.request.messages) for c in bench.backend.calls] == [2, 4, 6, 8, 10, 12, 2, 4, 6]


def test_the_first_rows_failing_alike_end_the_job(tmp_path: Path) -> None:
    """A template that names a missing column fails the job after ten rows."""
    bench = Bench(tmp_path, texts(50), SIDECAR.replace("{{ text }}", "{{ txet }}"))
    with pytest.raises(JobError, match="first 10 rows") as caught:
        bench.run()
    assert "template_undefined" in str(caught.value)
    assert not bench.backend.calls


def test_max_failed_ends_the_job(tmp_path: Path) -> None:
    """The job ends when `max_failed` rows have failed."""
    bench = Bench(
        tmp_path,
        texts(50),
        SIDECAR + "max_failed: 2\nretries: 0\n",
        fault=lambda c: fail_times(1, lambda: UnexpectedReply("no"), c.text)(c) if "3" in c.text else None,
    )
    with pytest.raises(JobError, match="max_failed"):
        bench.run()


def test_isolated_rows_see_no_other_row_and_learn_a_bound(tmp_path: Path) -> None:
    """Isolated rows see no other row; after the first hundred rows the measured bound becomes a plan."""
    bench = Bench(tmp_path, texts(200), SIDECAR + "mode: isolated\n")
    bench.run(2)
    assert {len(c.request.messages) for c in bench.backend.calls} == {2}
    with LedgerReader(bench.path) as reader:
        plans = reader.plans()
        versions = [o.plan_version for o in reader.outcomes()]
    assert [p["version"] for p in plans] == [1, 2]
    assert plans[1]["tokens_per_byte"] < 1.0
    assert versions == sorted(versions, key=lambda v: v or 0)
    assert versions.index(2) == plans[1]["from_segment"] == 99 + 16, "fixed, whatever the lanes and the speed"


def test_servers_without_counts_are_served_too(tmp_path: Path) -> None:
    """If the server reports no token counts, bounds keep the conversation inside the window."""
    bench = Bench(tmp_path, texts(40), counts=False)
    assert bench.run().finished
    assert all(o.state == "ok" and o.prompt_tokens is None for o in bench.outcomes)
