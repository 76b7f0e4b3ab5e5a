"""What an attack on the model's holder found at the seams of a job: between phases, in the second pass, while
rows are in flight, at a larger load, and at a resume."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spoolama.backends.base import Reply
from spoolama.errors import OutOfMemory
from support.backend import Call
from unit.answer.memory_bench import CRITICAL, HIGH, OK, SIDECAR, MemoryBench, short_rows

HOUR_S = 3600.0
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
"""Some 1,900 tokens."""


def out_of_memory() -> None:
    raise OutOfMemory("cudaMalloc failed: out of memory", status=500)


def runs_out(*texts: str) -> Callable[[Call], Reply | None]:
    """The first try of rows that begin so runs out of memory."""
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
    """The model goes with the last row that is answered; no row of the audit may have it loaded unasked."""
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


# The second pass.


def second_pass(others_stay_s: float) -> MemoryBench:
    """Ten seconds after the long load somebody takes most of the card, for so long."""
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


def test_others_who_stay_for_half_an_hour_cost_no_long_row() -> None:
    """Long rows have no smaller load to go on with, so theirs waits longer than others."""
    bench = second_pass(1800)
    assert bench.run().finished
    assert len(bench.memory.times_of("released")) == 1
    assert bench.all_ok


def test_a_model_lost_in_the_second_pass_fails_its_long_rows_alone() -> None:
    """Others stay for hours: rows without an answer fail with their sizes, and the job ends well."""
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
    """There is room; the load is tried in the end, whatever the level says."""
    bench = MemoryBench([*short_rows(60), LONG], TWO_PASSES)
    assert bench.run([(10, bench.set(level=HIGH)), (3 * HOUR_S, bench.set(level=OK))]).finished
    assert bench.windows == [1024, 2048]
    assert 600 <= bench.loaded_at[1] < 2 * HOUR_S
    assert bench.all_ok


# Rows in flight.


def test_a_smaller_load_waits_until_no_row_is_in_flight() -> None:
    """Rows of other lanes would lose the process that answers them, and have no try left."""
    faults = runs_out("row 9", "row 60")
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


# Larger loads.


def test_a_larger_load_that_ran_out_of_memory_is_not_tried_each_quarter_of_an_hour() -> None:
    """Whatever the estimate says: it is tried after an hour, and then not for four."""
    bench = MemoryBench(short_rows(3000), latency_s=20.0)
    bench.backend.load_fault = lambda spec: out_of_memory() if spec.num_ctx > 4096 else None
    bench.run([(4 * HOUR_S, lambda: bench.stop.set())])
    assert bench.windows == [8192, 8192, 4096] * 2
    assert HOUR_S <= bench.loaded_at[3] <= 1.5 * HOUR_S


def test_memory_that_becomes_tense_while_rows_finish_ends_a_climb_before_it_begins() -> None:
    """The model is not released for a larger load that could not follow."""
    bench = MemoryBench(short_rows(60), latency_s=120.0)
    bench.memory.free_gb = 9.5
    assert bench.run([(650, bench.set(free_gb=15.0)), (1525, bench.set(level=HIGH))]).finished
    assert min(bench.phases("loading m larger again")) < 1525
    assert bench.windows == [4096]
    assert bench.memory.times_of("released") == []
    assert bench.all_ok


# A resume.


def test_a_resume_after_a_smaller_load_asks_what_would_have_been_asked() -> None:
    """It begins in the window in which the segment was begun, so each row has the same company."""

    def job() -> MemoryBench:
        rows = [f"row {n} " + "word " * 60 for n in range(120)]
        return MemoryBench(rows, RESET, fault=runs_out("row 5 ", "row 9 "))

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
