"""A job under changing memory pressure: model residency and pressure handler act, and no row fails."""

from __future__ import annotations

from itertools import pairwise

import pytest

from spoolama.backends.base import LoadSpec, Reply
from spoolama.errors import JobError, ModelUnavailable, OutOfMemory, ServerAway
from spoolama.memory.level import GB
from support.backend import Call
from unit.answer.memory_bench import CRITICAL, HIGH, OK, SIDECAR, MemoryBench, short_rows

ONE_LOAD = SIDECAR.replace("8192", "1024")
"""No smaller load is left."""
LONG = "word " * 1500
"""About 1,900 tokens."""


def out_of_memory(spec: LoadSpec) -> None:
    raise OutOfMemory("cudaMalloc failed: out of memory", status=500)


# loading


def test_a_load_waits_for_room_and_reports_the_reason() -> None:
    """Nothing is loaded without room, and the status gives the size of the load and the free memory."""
    bench = MemoryBench(short_rows(4))
    bench.memory.free_gb = 5.0
    assert bench.run([(300, bench.set(free_gb=15.0))]).finished
    assert bench.windows == [8192]
    assert 300 <= bench.loaded_at[0] <= 301
    waited = bench.phases("waiting for memory: m with a window of 8,192 needs an estimated ")
    assert (min(waited), max(waited)) == (0, 300)
    assert bench.shown[5][1].endswith("; 5.0 GB may still be taken")
    assert bench.progress.waiting is False
    assert bench.all_ok


def test_while_memory_is_high_a_load_waits_although_it_would_fit() -> None:
    """While memory is high a load waits even if it would fit, and the status gives the level."""
    bench = MemoryBench(short_rows(4))
    bench.memory.level = HIGH
    assert bench.run([(100, bench.set(level=OK))]).finished
    assert 100 <= bench.loaded_at[0] <= 101
    assert len(bench.phases("waiting for memory: as scripted")) >= 98
    assert bench.all_ok


def test_after_ten_minutes_without_room_a_smaller_load_is_taken() -> None:
    """After ten minutes without room the window is halved until the load fits, which is reported."""
    bench = MemoryBench(short_rows(4))
    bench.memory.free_gb = 9.0
    assert bench.run().finished
    assert bench.windows == [2048]
    assert 1200 <= bench.loaded_at[0] <= 1203
    assert [facts["num_ctx"] for _, name, facts in bench.memory.actions if name == "smaller_load"] == [
        4096,
        2048,
    ]
    assert [body["window"] for body in bench.store.plan_bodies] == [None, 2048]
    assert bench.all_ok


def test_the_job_waits_for_hours_while_others_use_the_card() -> None:
    """While not even the smallest load fits, the job waits at any level, and it resumes when
    there is room.
    """
    bench = MemoryBench(short_rows(4))
    bench.memory.free_gb = 1.0

    def full(spec: LoadSpec) -> None:
        if bench.memory.free_gb < 5:
            out_of_memory(spec)

    bench.backend.load_fault = full
    assert bench.run([(7200, bench.set(level=HIGH)), (9000, bench.set(free_gb=15.0, level=OK))]).finished
    assert bench.windows == [1024]
    assert 9000 <= bench.loaded_at[0] <= 9001
    assert bench.all_ok


def test_a_load_estimated_above_an_empty_card_is_tried() -> None:
    """A load whose estimate exceeds an empty card is tried, because estimates may be wrong, and
    this is reported.
    """
    bench = MemoryBench(short_rows(4), ONE_LOAD)
    bench.memory.free_gb = bench.memory.most_gb = 4.0
    assert bench.run().finished
    assert bench.windows == [1024]
    assert len(bench.memory.times_of("loaded_in_spite")) == 1
    assert bench.all_ok


def test_the_smallest_load_is_tried_beside_a_desktop() -> None:
    """After the last ten minutes the smallest load is tried beside a desktop, which never frees
    its memory.
    """
    bench = MemoryBench(short_rows(4), ONE_LOAD)
    bench.memory.free_gb = 7.6  # of about 8.3
    assert bench.run().finished
    assert bench.windows == [1024]
    assert 600 <= bench.loaded_at[0] <= 602
    assert [name for _, name, _ in bench.memory.actions] == ["loaded_in_spite"]
    assert bench.all_ok


def test_the_smallest_load_is_tried_again_if_others_may_use_the_memory() -> None:
    """A job does not fail if another program takes the card for two minutes between readings."""
    bench = MemoryBench(short_rows(4), ONE_LOAD)
    bench.memory.others_gb = 9.0

    def full(spec: LoadSpec) -> None:
        if bench.clock.monotonic() < 100:
            out_of_memory(spec)

    bench.backend.load_fault = full
    assert bench.run().finished
    assert [b - a for a, b in pairwise(bench.loaded_at)] == pytest.approx([1, 5, 15, 30, 60], abs=1)
    assert bench.all_ok


def test_a_stop_between_attempts_of_the_smallest_load_leaves_the_job() -> None:
    """A stop between attempts of the smallest load leaves the job for the next start."""
    bench = MemoryBench(short_rows(4), ONE_LOAD, load_fault=out_of_memory)
    bench.memory.others_gb = 9.0
    assert not bench.run([(20, lambda: bench.stop.set())]).finished
    assert len(bench.windows) <= 4


def test_without_its_model_a_job_sends_no_row() -> None:
    """If a model cannot be loaded again, no row is sent, because it would load the model."""
    bench = MemoryBench(short_rows(40), ONE_LOAD)

    def gone(spec: LoadSpec) -> None:
        if bench.clock.monotonic() > 5:
            out_of_memory(spec)

    bench.backend.load_fault = gone
    with pytest.raises(ModelUnavailable, match="does not fit"):
        bench.run([(5, bench.set(level=CRITICAL)), (30, bench.set(level=OK, others_gb=0.5))])
    assert max(call.at for call in bench.backend.calls) < min(bench.memory.times_of("released"))


def test_a_load_that_runs_out_of_memory_twice_is_made_smaller() -> None:
    """The second attempt uses the same load, and the third a smaller one."""
    bench = MemoryBench(short_rows(4))
    bench.backend.load_fault = lambda spec: out_of_memory(spec) if spec.num_ctx > 4096 else None
    assert bench.run().finished
    assert bench.windows == [8192, 8192, 4096]
    assert len(bench.memory.times_of("out_of_memory")) == 2
    assert bench.all_ok


def test_a_model_that_never_fits_ends_the_job_with_the_sizes() -> None:
    """Each size is tried twice; then the error gives the needed and the available memory."""
    bench = MemoryBench(short_rows(4), load_fault=out_of_memory)
    with pytest.raises(JobError, match="m does not fit: cudaMalloc failed") as caught:
        bench.run()
    assert bench.windows == [8192] * 2 + [4096] * 2 + [2048] * 2 + [1024] * 2
    assert caught.value.fix.startswith("It needs an estimated 9.9 GB: weights 6.8, ")
    assert "; 15.0 GB is available to it. Free memory on the server" in caught.value.fix


def test_a_stop_ends_the_wait_for_room() -> None:
    """A stop ends the wait for room without a load, and the next start has all rows."""
    bench = MemoryBench(short_rows(4))
    bench.memory.free_gb = 5.0
    ended = bench.run([(50, lambda: bench.stop.set())])
    assert not ended.finished
    assert bench.clock.monotonic() == 50
    assert bench.windows == []
    assert [row.state for row in bench.store.rows] == ["pending"] * 4


def test_a_stop_ends_the_wait_for_a_released_model() -> None:
    """A stop ends the wait for a released model, and answered rows stay answered."""
    bench = MemoryBench(short_rows(100))
    ended = bench.run([(20, bench.set(level=CRITICAL)), (90, lambda: bench.stop.set())])
    assert not ended.finished
    assert 90 <= bench.clock.monotonic() <= 91
    done = [row.state for row in bench.store.rows].count("ok")
    assert 36 <= done <= 44
    assert len(bench.backend.calls) == done


# memory pressure


def test_a_critical_card_releases_its_model_and_rows_continue_afterwards() -> None:
    """Rows in flight finish, no row is sent while the model is unloaded, and each is answered once."""
    bench = MemoryBench(short_rows(100))
    script = [
        (20, bench.set(level=CRITICAL, others_gb=6.0)),
        (60, bench.set(level=HIGH, others_gb=1.0)),
        (80, bench.set(level=OK)),
    ]
    assert bench.run(script).finished
    (released,) = bench.memory.times_of("released")
    assert 20 <= released <= 21
    assert bench.windows == [8192, 8192]
    assert 80 <= bench.loaded_at[1] <= 81
    assert not [call for call in bench.backend.calls if released < call.at < bench.loaded_at[1]]
    assert [name for _, name, _ in bench.memory.actions] == ["paused", "released", "resumed"]
    assert 58 <= bench.store.notes["held_s"] <= 62
    assert len(bench.backend.calls) == 100
    assert bench.all_ok


def test_a_critical_moment_that_passes_while_rows_finish_releases_nothing() -> None:
    """If the pressure ends while rows in flight finish, the model stays loaded."""
    bench = MemoryBench(short_rows(40), latency_s=7.3)
    script = [(20, bench.set(level=CRITICAL)), (21, bench.set(level=HIGH)), (40, bench.set(level=OK))]
    assert bench.run(script).finished
    assert bench.memory.times_of("released") == []
    assert len(bench.windows) == 1
    assert bench.all_ok


def test_a_model_on_a_shared_server_stays_and_is_reported_once() -> None:
    """A model on a shared server is not released, which is reported once, and rows continue."""
    bench = MemoryBench(short_rows(100), releases=False)
    assert bench.run([(10, bench.set(level=CRITICAL))]).finished
    assert len(bench.memory.times_of("left_as_it_is")) == 1
    assert bench.memory.times_of("released") == []
    assert bench.clock.monotonic() < 60
    assert bench.all_ok


def test_a_model_that_alone_fills_the_card_stays_without_a_smaller_load() -> None:
    """A model that alone fills the card stays if there is no smaller load, which is reported once."""
    bench = MemoryBench(short_rows(100), ONE_LOAD)
    bench.memory.model_gb = 14.2
    assert bench.run([(10, bench.set(level=CRITICAL))]).finished
    ((_, _, facts),) = [action for action in bench.memory.actions if action[1] == "left_as_it_is"]
    assert facts["why"] == "the model by itself needs this memory, and no smaller load is possible"
    assert bench.memory.times_of("released") == []
    assert bench.all_ok


def test_the_smallest_load_is_released_for_others_that_were_there_first() -> None:
    """The smallest load is released for others that were there before it, if the model alone does not fill
    the card.
    """
    bench = MemoryBench(short_rows(200), ONE_LOAD)
    bench.memory.others_gb = 5.9
    bench.memory.look()
    assert bench.run([(10, bench.set(level=CRITICAL)), (30, bench.set(level=OK))]).finished
    assert bench.memory.times_of("left_as_it_is") == []
    assert len(bench.memory.times_of("released")) == 1
    assert bench.all_ok


def test_a_model_that_alone_fills_the_card_is_loaded_smaller() -> None:
    """A model that alone fills the card is replaced by a smaller load at the first critical level."""
    bench = MemoryBench(short_rows(100))
    assert bench.run([(10, bench.set(level=CRITICAL)), (30, bench.set(level=OK))]).finished
    assert bench.windows == [8192, 4096]
    why = [facts["why"] for _, name, facts in bench.memory.actions if name == "smaller_load"]
    assert why == ["the model by itself made memory critical"]


def test_a_model_is_released_for_others_after_a_short_server_failure() -> None:
    """After a short server failure, the model's own memory does not count as that of others."""
    bench = MemoryBench(short_rows(200), ONE_LOAD)
    bench.memory.sizes_known = False

    def away(call: Call) -> Reply | None:
        if call.text == "row 20" and not bench.memory.times_of("away"):
            bench.memory.did("away")
            raise ServerAway("connection reset")
        return None

    bench.backend.fault = away
    full = bench.set(level=CRITICAL, others_gb=6.0)
    assert bench.run([(40, full), (70, bench.set(level=OK, others_gb=1.0))]).finished
    assert bench.memory.times_of("left_as_it_is") == []
    assert len(bench.memory.times_of("released")) == 1
    assert bench.all_ok


def test_memory_that_is_critical_three_times_in_an_hour_makes_the_next_load_smaller() -> None:
    """Three critical levels in an hour make the next load smaller."""
    bench = MemoryBench(short_rows(1500))
    script = []
    for at in (100, 300, 500):
        script.append((at, bench.set(level=CRITICAL, others_gb=6.0)))
        script.append((at + 20, bench.set(level=OK, others_gb=1.0)))
    assert bench.run(script).finished
    assert bench.windows == [8192, 8192, 8192, 4096]
    why = [facts["why"] for _, name, facts in bench.memory.actions if name == "smaller_load"]
    assert why == ["memory became critical 3 times in an hour"]


def test_memory_that_is_critical_all_the_time_gets_seven_loads_an_hour_at_most() -> None:
    """If memory is critical for ten seconds after each load, there are at most seven loads an hour, a load
    waits for its whole time, and the status gives the wait.
    """
    bench = MemoryBench(short_rows(1500))

    def somebody() -> None:
        since = bench.clock.monotonic() - (bench.loaded_at[-1] if bench.windows else 0.0)
        busy = bool(bench.windows) and 10 <= since < 20
        bench.memory.level, bench.memory.others_gb = (CRITICAL, 6.0) if busy else (OK, 1.0)

    bench.memory.before_look = somebody
    assert bench.run().finished
    loads = bench.loaded_at[1:]
    assert len(loads) > 20
    assert max(sum(at <= other < at + 3600 for other in loads) for at in loads) <= 7
    assert bench.phases("waiting for memory: critical 7 times in an hour, the next load starts in ")
    assert bench.all_ok


# larger loads


def test_after_a_quarter_of_an_hour_of_ok_the_model_is_loaded_larger_again() -> None:
    """After each 15 minutes of ok the load grows by one size, and rows continue in between."""
    bench = MemoryBench(short_rows(300), latency_s=20.0)
    bench.memory.free_gb = 9.0
    assert bench.run([(1250, bench.set(free_gb=15.0))]).finished
    assert bench.windows == [2048, 4096, 8192]
    between = [after - before for before, after in pairwise(bench.loaded_at)]
    assert between == pytest.approx([900, 900], abs=40)  # rows in flight take 20 s
    assert len(bench.memory.times_of("larger_load")) == 2
    windows = dict.fromkeys(body["window"] for body in bench.store.plan_bodies)
    assert list(windows) == [None, 2048, 4096, 8192]
    assert bench.all_ok


def test_waiting_does_not_count_as_a_quarter_of_an_hour_of_ok() -> None:
    """A model that waited for a quarter of an hour is not unloaded at once for a larger load."""
    bench = MemoryBench(short_rows(200), latency_s=20.0)
    script = [
        (100, bench.set(level=CRITICAL, others_gb=6.0)),
        (120, bench.set(level=OK, free_gb=5.0)),
        (1500, bench.set(free_gb=15.0, others_gb=1.0)),
    ]
    assert bench.run(script).finished
    assert bench.windows[1] < 8192
    assert bench.loaded_at[2] - bench.loaded_at[1] >= 900


@pytest.mark.parametrize("known", [True, False])
def test_others_that_fill_the_card_after_a_larger_load_are_recognised(known: bool) -> None:
    """Memory that others take after a larger load does not count as the model's, even with an
    older reading.
    """
    bench = MemoryBench(short_rows(200), latency_s=20.0)
    bench.memory.free_gb = 9.5
    script = [
        (650, bench.set(free_gb=15.0)),
        (1700, bench.set(level=CRITICAL, others_gb=6.0)),
        (1760, bench.set(level=OK, others_gb=1.0)),
    ]
    bench.memory.sizes_known = known
    assert bench.run(script).finished
    assert bench.windows[:3] == [4096, 8192, 8192]
    assert len(bench.memory.times_of("smaller_load")) == 1
    assert [load["taken_on_cards_bytes"] for load in bench.store.notes["loads"]] == [9 * GB] * 3
    assert bench.all_ok


# answers that run out of memory


def test_a_row_that_runs_out_of_memory_is_asked_again() -> None:
    """The model is loaded again at the same size, and the row is answered."""
    bench = MemoryBench(short_rows(40), fault=runs_out("row 10"))
    assert bench.run().finished
    assert bench.windows == [8192, 8192]
    assert len(bench.memory.times_of("out_of_memory")) == 1
    assert bench.all_ok


def test_answers_that_run_out_of_memory_twice_make_the_next_load_smaller() -> None:
    """Two answers that run out of memory make the next load smaller and fail no row."""
    bench = MemoryBench(short_rows(40), fault=runs_out("row 10", "row 20"))
    assert bench.run().finished
    assert bench.windows == [8192, 8192, 4096]
    assert bench.all_ok
    assert not bench.store.failures


def test_a_shortage_counts_once_for_all_rows_in_flight() -> None:
    """Four rows that meet the same end of the model process count as one shortage."""
    bench = MemoryBench(short_rows(80), fault=runs_out("row 20", "row 21", "row 22", "row 23"))
    assert bench.run(lanes=4).finished
    assert set(bench.windows) == {8192}
    assert bench.all_ok


def test_shortages_hours_apart_do_not_add_up() -> None:
    """Shortages that are hours apart do not end a job without a smaller load."""
    bench = MemoryBench(short_rows(800), ONE_LOAD, latency_s=20.0)

    def taken_meanwhile(spec: LoadSpec) -> None:
        if len(bench.windows) in (2, 4):  # the first attempt of each load after a release
            out_of_memory(spec)

    bench.backend.load_fault = taken_meanwhile
    script = []
    for at in (100, 7300):
        script.append((at, bench.set(level=CRITICAL, others_gb=6.0)))
        script.append((at + 20, bench.set(level=OK, others_gb=1.0)))
    assert bench.run(script).finished
    assert len(bench.windows) == 5
    assert bench.all_ok


def runs_out(*texts: str) -> object:
    """The first attempt of these rows runs out of memory."""
    met: set[str] = set()

    def fault(call: Call) -> Reply | None:
        if call.text in texts and call.text not in met:
            met.add(call.text)
            raise OutOfMemory("cudaMalloc failed: out of memory", status=500)
        return None

    return fault


# rows that do not fit a smaller window


def test_a_row_that_only_the_first_window_holds_is_answered_at_the_end() -> None:
    """A row that does not fit the smaller window is deferred and asked again with one that fits."""
    bench = MemoryBench([*short_rows(20), LONG, *short_rows(20)])
    bench.memory.free_gb = 8.5
    assert bench.run([(1850, bench.set(free_gb=15.0))]).finished
    assert bench.windows[0] == 1024
    assert 1900 < bench.windows[-1] <= 2304
    assert bench.store.results[20].num_ctx == bench.windows[-1]
    assert max(call.at for call in bench.backend.calls) == bench.backend.calls[-1].at
    assert bench.backend.calls[-1].text == LONG
    assert bench.all_ok


def test_rows_without_room_for_their_window_fail_with_their_sizes() -> None:
    """If the second pass finds no room, only its rows fail."""
    bench = MemoryBench([*short_rows(20), LONG, *short_rows(20), LONG])
    bench.memory.free_gb = 8.5
    assert bench.run().finished
    assert set(bench.windows) == {1024}
    assert [(f.ordinal, f.code) for f in bench.store.failures.values()] == [
        (20, "context_overflow"),
        (41, "context_overflow"),
    ]
    failed = bench.store.failures[20]
    assert 1900 < failed.details["tokens"] < 2304
    assert f"may have {failed.details['tokens']:,} tokens; a window of 2,048 cannot be" in failed.message
    assert "no memory for 60 min" in failed.message
    assert len(bench.store.results) == 40
