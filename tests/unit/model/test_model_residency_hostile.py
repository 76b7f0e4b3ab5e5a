"""Hostile cases: loads that stop working, unloads that fail, servers that keep their model, and
phase changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from spoolama.backends.base import LoadedModel, LoadSpec, Reply, ServerInfo
from spoolama.backends.model_shape import ModelShape
from spoolama.errors import ModelUnavailable, OutOfMemory, RequestRefused, ServerBusy, ServerDied
from spoolama.job.row import RowRequest
from spoolama.job.sidecar import Options, Sidecar
from spoolama.memory.level import Level
from support.backend import Call
from support.card_server import GEMMA3_12B
from support.store import MemoryStore
from unit.answer.memory_bench import CRITICAL, HIGH, OK, SIDECAR, MemoryBench, short_rows

ONE_LOAD = SIDECAR.replace("8192", "1024")
"""No smaller load is left."""
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


def out_of_memory() -> None:
    raise OutOfMemory("cudaMalloc failed: out of memory", status=500)


def once(error: Exception, *texts: str) -> Callable[[Call], Reply | None]:
    """A fault on the first attempt of each of these rows."""
    met: set[str] = set()

    def fault(call: Call) -> Reply | None:
        if call.text in texts and call.text not in met:
            met.add(call.text)
            raise error
        return None

    return fault


def runs_out(*texts: str) -> Callable[[Call], Reply | None]:
    return once(OutOfMemory("cudaMalloc failed: out of memory", status=500), *texts)


async def keeps_all(*, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
    """A release by a server with shared models."""
    return ()


def states(bench: MemoryBench) -> dict[str, int]:
    found = [row.state for row in bench.store.rows]
    return {state: found.count(state) for state in dict.fromkeys(found)}


# loads that stop working


def test_two_shortages_in_a_second_end_no_job_whose_load_worked_before() -> None:
    """If others freed the memory before the last reading, two shortages in a second do not end the job."""
    bench = MemoryBench(short_rows(200), ONE_LOAD)
    bench.backend.load_fault = lambda _: out_of_memory() if 30 <= bench.clock.monotonic() < 32 else None
    come, go = bench.set(level=CRITICAL, others_gb=6.0), bench.set(level=OK, others_gb=1.0)
    assert bench.run([(5, come), (30, go)]).finished
    assert len(bench.memory.times_of("out_of_memory")) == 2
    assert bench.clock.monotonic() < 300
    assert bench.all_ok


def test_a_load_that_always_runs_out_of_memory_ends_the_job_after_an_hour() -> None:
    """If the card is otherwise empty and every load runs out of memory, the job ends after an hour and keeps
    its answers.
    """
    bench = MemoryBench(short_rows(40), ONE_LOAD, fault=runs_out("row 10"))
    bench.memory.others_gb = 0.5
    bench.backend.load_fault = lambda _: out_of_memory() if bench.windows[1:] else None
    with pytest.raises(ModelUnavailable, match="m does not fit: cudaMalloc failed"):
        bench.run([(DAY_S, lambda: bench.stop.set())])
    assert HOUR_S / 2 < bench.clock.monotonic() < 2 * HOUR_S
    assert states(bench) == {"ok": 11, "pending": 29}


def test_a_load_that_always_dies_after_a_release_ends_the_job_within_two_hours() -> None:
    """If the model process dies at each load without a memory error, the job ends within two hours."""
    bench = MemoryBench(short_rows(40), ONE_LOAD)

    def dies(spec: LoadSpec) -> None:
        if bench.windows[1:]:
            raise ServerDied("runner terminated: exit status 2")

    bench.backend.load_fault = dies
    script = [(5, bench.set(level=CRITICAL)), (30, bench.set(level=OK)), (DAY_S, lambda: bench.stop.set())]
    with pytest.raises(ModelUnavailable, match="m cannot be loaded again: runner terminated: exit status 2"):
        bench.run(script)
    assert HOUR_S / 6 < bench.clock.monotonic() < 2 * HOUR_S
    assert states(bench) == {"ok": 10, "pending": 30}


class TwoModels(MemoryStore):
    """OpenAI lines: the first half asks for model `a`, the rest for model `b`."""

    def __init__(self, number: int) -> None:
        super().__init__([{} for _ in range(number)])
        for n, row in enumerate(self.rows):
            name = "a" if n < number // 2 else "b"
            self.rows[n] = replace(row, model=name, request=RowRequest((("user", f"row {n}"),)))

    async def models(self) -> list[str | None]:
        return sorted({row.model for row in self.rows if self._open(row)}, key=str)


def test_a_model_lost_in_mid_job_fails_only_its_own_lines() -> None:
    """Lines of an OpenAI file that ask for another model are answered."""
    bench = MemoryBench([])
    bench.store = TwoModels(40)
    bench.store.notes["own_requests"] = True
    bench.sidecar = Sidecar(model="", options=Options(num_ctx=1024, num_predict=16), prime="never")

    def deleted(spec: LoadSpec) -> None:
        if spec.model == "a" and bench.windows[1:]:
            raise RequestRefused("model 'a' not found", status=404)

    bench.backend.load_fault = deleted
    stop = (HOUR_S, lambda: bench.stop.set())
    assert bench.run([(4, bench.set(level=CRITICAL)), (20, bench.set(level=OK)), stop], lanes=1).finished
    assert {row.model for row in bench.store.rows if row.state == "failed"} == {"a"}
    assert {row.state for row in bench.store.rows if row.model == "b"} == {"ok"}
    assert states(bench)["ok"] == 20 + 4
    failure = bench.store.failures[19]
    assert failure.message.startswith("a cannot be loaded again: model 'a' not found")


# servers that keep their model


@pytest.mark.parametrize("level", [HIGH, CRITICAL])
@pytest.mark.parametrize(("window", "shape"), [(32768, GEMMA3_12B), (None, None)])
def test_the_job_does_not_wait_for_a_server_that_keeps_its_model(
    level: Level, window: int | None, shape: ModelShape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server itself fills the card and keeps its model, the job does not wait for it."""
    bench = MemoryBench(short_rows(60), shape_=shape, releases=False)
    bench.memory.level = level
    bench.backend.fault = once(ServerBusy("503"), "row 10", "row 30")
    held = LoadedModel(name="m", digest=None, num_ctx=window, slots=None, server=ServerInfo("openai", "1"))

    async def inspect(spec: LoadSpec) -> LoadedModel | None:
        return None if window is None else held

    monkeypatch.setattr(bench.backend, "inspect", inspect)
    monkeypatch.setattr(bench.backend, "release", keeps_all)
    assert bench.run([(10 * HOUR_S, lambda: bench.stop.set())]).finished
    assert bench.phases("waiting for memory") == []
    assert bench.clock.monotonic() < 100
    assert bench.all_ok


def test_a_shared_server_gets_its_smaller_load_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared server the smaller load replaces the model at once, because the model is what
    fills the card.
    """
    bench = MemoryBench(short_rows(100), releases=False, fault=runs_out("row 10", "row 20"))
    bench.memory.model_gb = 14.2
    monkeypatch.setattr(bench.backend, "release", keeps_all)

    def full() -> None:
        bench.memory.level = CRITICAL if bench.backend.held and bench.clock.monotonic() > 5 else OK

    bench.memory.before_look = full
    assert bench.run([(12 * HOUR_S, lambda: bench.stop.set())]).finished
    assert bench.windows == [8192, 8192, 4096]
    assert bench.clock.monotonic() < 100
    assert bench.all_ok


def test_our_model_on_a_busy_server_stays_while_memory_is_high() -> None:
    """If a busy server cannot report its models for some seconds at high level, our model is not released."""
    bench = MemoryBench(short_rows(200), fault=once(ServerBusy("503"), "row 20"))

    def busy(spec: LoadSpec) -> None:
        if any(call.text == "row 20" for call in bench.backend.calls) and bench.clock.monotonic() < 14:
            raise ServerBusy("503")

    bench.backend.inspect_fault = busy
    assert bench.run([(5, bench.set(level=HIGH)), (HOUR_S, lambda: bench.stop.set())]).finished
    assert bench.backend.released == 0
    assert bench.clock.monotonic() < 200
    assert bench.all_ok


# Releases.


def test_a_release_that_fails_is_tried_again_and_loads_keep_their_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed release is repeated, and the next load neither waits for our own model nor
    repeats each second.
    """
    bench = MemoryBench(short_rows(300))
    release = bench.backend.release

    async def busy(*, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        if 20 <= bench.clock.monotonic() < 80:
            raise ServerBusy("503")
        return await release(keep=keep, also=also)

    def others() -> None:
        here = 20 <= bench.clock.monotonic() < 5 * HOUR_S
        full = here and bench.backend.held is not None
        bench.memory.level, bench.memory.others_gb = CRITICAL if full else OK, 6.0 if here else 1.0
        bench.memory.free_gb = (0.0 if full else 9.0) if here else 15.0

    monkeypatch.setattr(bench.backend, "release", busy)
    bench.memory.before_look = others
    assert bench.run([(12 * HOUR_S, lambda: bench.stop.set())]).finished
    attempts = [at for at in bench.memory.times_of("release_failed") if at < 80]
    assert len(attempts) > 2
    assert 80 <= bench.memory.times_of("released")[0] <= 100
    assert bench.loaded_at[1] > bench.memory.times_of("released")[0]
    loads = bench.loaded_at[1:]
    assert max(sum(at <= other < at + HOUR_S for other in loads) for at in loads) <= 7
    assert bench.all_ok


def test_a_model_that_alone_fills_main_memory_is_released_three_times_in_an_hour_at_most() -> None:
    """A model that alone fills main memory is released at most three times in an hour, then rows continue."""
    bench = MemoryBench(short_rows(1500), ONE_LOAD, uses_gpus=False, sets_slots=True)
    bench.memory.where = "host"

    def alone() -> None:
        long = bench.backend.held is not None and bench.clock.monotonic() - bench.loaded_at[-1] >= 5
        bench.memory.level = CRITICAL if long else OK

    bench.memory.before_look = alone
    assert bench.run([(8 * HOUR_S, lambda: bench.stop.set())], lanes=1).finished
    assert bench.clock.monotonic() < HOUR_S
    assert len(bench.memory.times_of("released")) == 3
    ((_, _, facts),) = [action for action in bench.memory.actions if action[1] == "left_as_it_is"]
    assert str(facts["why"]).startswith("unloading the model did not help for long")
    assert bench.all_ok


AUDITED = """
model: m
system: Judge.
prompt: "{{ text }}"
mode: conversation
trim: {strategy: reset, every: 10}
audit: 10
prime: never
options: {num_ctx: 8192, num_predict: 16}
"""
RESET = """
model: m
system: Judge.
prompt: "{{ text }}"
mode: conversation
trim: {strategy: reset, every: 60}
prime: never
options: {num_ctx: 4096, num_predict: 16}
"""
TWO_PASSES = SIDECAR.replace("8192", "1024") + "long_rows: second_pass\n"
LONG = "word " * 1500
"""About 1,900 tokens."""


def begin_runs_out(*texts: str) -> Callable[[Call], Reply | None]:
    """The first attempt of rows with this beginning runs out of memory."""
    met: set[str] = set()

    def fault(call: Call) -> Reply | None:
        begin = next((text for text in texts if call.text.startswith(text)), None)
        if begin is not None and begin not in met:
            met.add(begin)
            out_of_memory()
        return None

    return fault


# Phases.


def test_a_phase_whose_predecessor_ended_at_critical_loads_when_there_is_room() -> None:
    """If a phase ends at a critical level, the model is unloaded and no row of the next phase loads it."""
    bench = MemoryBench(short_rows(20), AUDITED, latency_s=10.0)
    script = [
        (195, bench.set(level=CRITICAL, others_gb=6.0)),
        (400, bench.set(level=OK, others_gb=1.0)),
        (HOUR_S, lambda: bench.stop.set()),
    ]
    assert bench.run(script, lanes=1).finished
    assert bench.memory.times_of("released") == [200]
    assert len(bench.backend.calls) > 20
    assert [call for call in bench.backend.calls if 200 <= call.at < 400] == []
    assert 400 <= bench.loaded_at[1] <= min(call.at for call in bench.backend.calls[20:])
    assert bench.store.notes["held_s"] >= 200
    assert bench.store.notes["active_s"] == pytest.approx(10.0 * len(bench.backend.calls), abs=5)
    assert bench.all_ok


# the second pass


def second_pass(others_stay_s: float) -> MemoryBench:
    """Ten seconds after the long load another program takes most of the card for this time."""
    bench = MemoryBench([*short_rows(20), *[f"{LONG}{n}" for n in range(60)]], TWO_PASSES)

    def others() -> None:
        long = [at for at, spec in bench.backend.loads if spec.num_ctx > 1024]
        since = bench.clock.monotonic() - long[0] if long else 0.0
        here = 10 <= since < 10 + others_stay_s
        full = here and bench.backend.held is not None
        bench.memory.level = CRITICAL if full else OK
        bench.memory.others_gb, bench.memory.free_gb = (7.0, 8.0) if here else (1.0, 15.0)

    bench.memory.before_look = others
    return bench


def test_a_card_used_for_half_an_hour_fails_no_long_row() -> None:
    """Long rows wait more than half an hour for room, because they have no smaller load."""
    bench = second_pass(1800)
    assert bench.run().finished
    assert len(bench.memory.times_of("released")) == 1
    assert bench.all_ok


def test_a_model_lost_in_the_second_pass_fails_only_long_rows() -> None:
    """If others stay for hours, only long rows fail, with their sizes."""
    bench = second_pass(4 * HOUR_S)
    assert bench.run().finished
    assert len(bench.store.results) > 20
    failures = bench.store.failures
    assert sorted([*bench.store.results, *failures]) == list(range(80))
    assert min(failures) >= 20
    for failed in failures.values():
        assert failed.code == "context_overflow"
        assert 1850 < failed.details["tokens"] < 2048
        assert "no memory for 60 min" in failed.message


def test_memory_that_is_high_for_hours_fails_no_long_row_whose_load_fits() -> None:
    """A second pass whose load fits is tried in the end, even at a high level."""
    bench = MemoryBench([*short_rows(60), LONG], TWO_PASSES)
    assert bench.run([(10, bench.set(level=HIGH)), (3 * HOUR_S, bench.set(level=OK))]).finished
    assert bench.windows == [1024, 2048]
    assert 600 <= bench.loaded_at[1] < 2 * HOUR_S
    assert bench.all_ok


# rows in flight


def test_a_smaller_load_waits_until_no_row_is_in_flight() -> None:
    """A smaller load waits for rows in flight, which would otherwise lose their process and last attempt."""
    faults = begin_runs_out("row 9", "row 60")
    bench = MemoryBench(
        short_rows(200), SIDECAR + "retries: 0\n", uses_gpus=False, sets_slots=True, fault=faults
    )

    def stagger() -> None:
        bench.backend.latency_s = 1.0 + bench.clock.monotonic() * 7 % 23

    in_flight: list[tuple[int, int]] = []
    bench.memory.before_look = stagger
    bench.backend.load_fault = lambda spec: in_flight.append((spec.slots, bench.backend.in_flight))
    assert bench.run(lanes=4).finished
    assert [slots for slots, _ in in_flight[:4]] == [4, 4, 2, 4]
    assert in_flight[1][1] > 0, "nobody would have lost anything"
    assert in_flight[2][1] == in_flight[3][1] == 0
    assert bench.all_ok


# larger loads


def test_a_larger_load_that_ran_out_of_memory_is_not_tried_each_quarter_of_an_hour() -> None:
    """A larger load that ran out of memory is tried after an hour, and then not for four, whatever the
    estimate says.
    """
    bench = MemoryBench(short_rows(3000), latency_s=20.0)
    bench.backend.load_fault = lambda spec: out_of_memory() if spec.num_ctx > 4096 else None
    bench.run([(4 * HOUR_S, lambda: bench.stop.set())])
    assert bench.windows == [8192, 8192, 4096] * 2
    assert HOUR_S <= bench.loaded_at[3] <= 1.5 * HOUR_S


def test_rising_memory_while_rows_finish_cancels_a_larger_load() -> None:
    """If memory becomes high while rows finish, the model is not released for the larger load."""
    bench = MemoryBench(short_rows(60), latency_s=120.0)
    bench.memory.free_gb = 9.5
    assert bench.run([(650, bench.set(free_gb=15.0)), (1525, bench.set(level=HIGH))]).finished
    assert min(bench.phases("loading m larger again")) < 1525
    assert bench.windows == [4096]
    assert bench.memory.times_of("released") == []
    assert bench.all_ok


# resume


def test_a_resume_after_a_smaller_load_sends_the_same_prompts() -> None:
    """A resume uses the window in which the segment began, so that each row sees the same rows."""

    def job() -> MemoryBench:
        rows = [f"row {n} " + "word " * 60 for n in range(120)]
        return MemoryBench(rows, RESET, fault=begin_runs_out("row 5 ", "row 9 "))

    def asked(bench: MemoryBench) -> dict[str, list[str]]:
        return {call.text: [m.content for m in call.request.messages] for call in bench.backend.calls}

    whole, halves = job(), job()
    assert whole.run(lanes=1).finished
    assert not halves.run([(30, lambda: halves.stop.set())], lanes=1).finished
    assert halves.run(lanes=1).finished
    assert whole.windows == [4096, 4096, 2048]
    assert halves.windows == [4096, 4096, 2048, 2048]
    assert asked(halves) == asked(whole)
    assert halves.all_ok
