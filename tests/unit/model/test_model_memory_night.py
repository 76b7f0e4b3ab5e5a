"""Nights on a shared card: the real engine and watchdog, a modelled server and card.

`tests/bench/bench_night.py` runs whole nights of 170,000 rows and prints their figures.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bench import bench_night
from bench.night.night_run import LANES, Night, run_night
from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.errors import OutOfMemory
from spoolama.memory.level import GB
from support.card_server import CardServer, ModelledCard, seconds_of
from support.card_users import Use, Users, night_of
from support.clock import VirtualClock
from support.quiet_loop import run_quietly

pytestmark = pytest.mark.slow

CHAT = "trim: {strategy: reset}\nsegment: 64\n"
FOREVER = float("inf")
SPEC = LoadSpec("gemma3:12b", 8192, slots=LANES)
LOADS = json.loads((Path(__file__).parents[2] / "data" / "h100-ollama.json").read_text())["loads"]


def steady(request: ChatRequest) -> float:
    """Answers take at most a second, so that rows in flight get little time."""
    return min(1.0, seconds_of(request))


def check(night: Night) -> None:
    """Check every promise of a night."""
    assert not night.error
    assert night.ended is not None
    assert night.ended.finished
    # The ledger accepts no answer twice.
    assert sorted(night.store.results) == list(range(night.rows))
    assert not night.store.failures
    assert night.server.uninvited == 0, "no row is sent while the model is out"
    assert night.server.cut_off == 0, "no row is in flight when it is released"
    assert night.longest_s <= night.most_s
    assert night.longest_loading_s <= night.most_s + night.server.load_s
    assert night.changes_a_minute <= 8
    assert night.reloads_an_hour <= 7


@pytest.mark.parametrize(
    ("seed", "side"), [(2, CHAT), (3, "mode: isolated\n"), (10, CHAT), (11, "mode: isolated\n")]
)
def test_a_night_on_a_shared_card_fails_no_row_and_frees_memory_in_time(seed: int, side: str) -> None:
    """With eight times the usual visitors every promise holds, for isolated rows and for conversations."""
    night = run_night(4000, night_of(seed, 0.35, often=8), seed=seed, side=side, answer_s=steady)
    check(night)
    assert night.notes["paused"] >= 1
    assert night.over_s > 0
    assert night.most_s < 7.5


def test_rows_that_take_long_finish_before_the_model_is_released() -> None:
    """The card stays full no longer than the longest row in flight takes."""
    users = Users([Use("job", 100.0, 700.0, 4.0)])
    night = run_night(800, users, answer_s=lambda request: 20.0 if "review 333 " in str(request) else 1.0)
    check(night)
    assert 5.0 <= night.longest_s <= 26.0
    assert night.notes["paused"] == 1


def test_a_program_that_fills_the_card_during_a_load_fails_no_row() -> None:
    """A load that finds the card full is tried again when there is room."""
    users = Users([Use("job", 60.0, 90.0, 4.0), Use("greedy", 109.0, 200.0, 64.0)])
    night = run_night(600, users, answer_s=steady)
    check(night)
    assert night.server.short_of_memory == 1


def test_the_job_waits_for_a_program_that_runs_for_hours() -> None:
    """While another model takes 9 GB not even the smallest load fits, and the job resumes when it is gone."""
    night = run_night(400, Users([Use("model", 0.0, 3 * 3600.0, 9.0)]), answer_s=steady)
    check(night)
    assert 3.0 < night.hours < 3.2
    assert night.server.short_of_memory == 0


def test_a_leak_makes_memory_high_before_it_is_critical() -> None:
    """A slow leak raises the level to high, and the model is unloaded before the card is full."""
    night = run_night(1500, Users([Use("leak", 30.0, 250.0, 0.5, 0.02)]), answer_s=steady)
    check(night)
    assert [(before, after) for _, before, after in night.changes][:2] == [
        ("ok", "high"),
        ("high", "critical"),
    ]
    assert night.longest_s > 0
    assert night.history["peak_bytes"] < 15.5 * GB


def test_a_larger_load_that_does_not_fit_beside_others_is_not_tried() -> None:
    """A smaller load stays while other programs use the memory that the larger one needs."""
    uses = [Use("first", 0.0, 700.0, 5.0), Use("later", 700.0, FOREVER, 4.0)]
    night = run_night(400, Users(uses), num_ctx=2048, answer_s=lambda request: 20.0)
    check(night)
    assert night.notes["larger_load"] == 0


def test_a_smallest_load_at_the_threshold_is_released_for_a_little_more_use() -> None:
    """If a smallest load was loaded up to the critical threshold, a little more use by others releases it."""
    users = Users([Use("first", 0.0, FOREVER, 5.4), Use("more", 100.0, 400.0, 0.15)])
    night = run_night(300, users, num_ctx=1024, answer_s=lambda request: 2.0)
    check(night)
    assert night.notes["paused"] == 1
    assert night.notes["left_as_it_is"] == 0


# the model of the card


def test_the_modelled_load_is_one_that_was_measured() -> None:
    """At every window the modelled load is within 1 % of what a model of this shape took on an H100."""
    clock = VirtualClock()
    card = ModelledCard(clock, Users([]), total_gb=80)
    for load in LOADS:
        server = CardServer(clock, card=card)
        spec = LoadSpec("m", load["num_ctx"], slots=load["parallel"])
        assert server.takes(spec) == pytest.approx(
            load["nvml_used_loaded"] - load["nvml_used_before"], rel=0.01
        )


def test_a_load_fills_the_card_in_steps_and_gives_all_of_it_back_if_it_does_not_fit() -> None:
    """A failed load leaves no memory in use, and the same load works when there is room."""
    clock = VirtualClock()
    card = ModelledCard(clock, Users([Use("other", 0.0, 100.0, 5.0)]))
    server = CardServer(clock, card=card)

    async def work() -> None:
        empty = card.used_bytes
        with pytest.raises(OutOfMemory):
            await server.load(SPEC)
        assert 7 < clock.monotonic() < 8
        assert card.used_bytes == empty
        assert card.read()[0].processes == {1: 5 * GB}
        await clock.sleep(100)
        loaded = await server.load(SPEC)
        assert card.ours_bytes == server.takes(SPEC)
        (runner,) = server.runners()
        assert card.read()[0].processes == {1: 0, runner.pid: card.ours_bytes}
        assert loaded.vram_bytes is not None
        assert 0 < loaded.vram_bytes < card.ours_bytes, "Ollama lists less than there is"
        await server.release()
        assert card.ours_bytes == 0
        assert server.runners() == ()

    run_quietly(clock, work())
    assert server.short_of_memory == 1


def test_a_request_without_its_model_is_counted() -> None:
    """A request without a loaded model makes the server load it, which is counted, and a
    release ends its requests.
    """
    clock = VirtualClock()
    server = CardServer(clock, card=ModelledCard(clock, Users([])))

    async def work() -> None:
        await server.chat(ChatRequest(SPEC, (Message("user", "one"),), num_predict=16))
        asked = asyncio.create_task(
            server.chat(ChatRequest(SPEC, (Message("user", "two" * 4000),), num_predict=16))
        )
        await clock.sleep(0.1)
        await server.release()
        assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], Exception)

    run_quietly(clock, work())
    assert (server.uninvited, server.cut_off, server.answered) == (1, 1, 1)


def test_a_night_has_every_kind_of_visitor_and_is_the_same_for_its_seed() -> None:
    """A seed always gives the same table of visitors, with every kind of them."""
    users = night_of(5, 1.0)
    assert {use.name for use in users.uses} == {"desktop", "job", "model", "spike", "leak", "greedy"}
    assert users.uses == night_of(5, 1.0).uses != night_of(6, 1.0).uses
    assert all(0.3 * GB <= users.want(at)["desktop"] <= GB for at in (0.0, 1800.0, 1e6))
    assert set(users.want(1e6)) == {"desktop"}


def test_a_deadlock_in_the_simulated_loop_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated loop in which nobody can proceed fails with a message instead of a timeout."""
    monkeypatch.setattr("support.quiet_loop._NOBODY_S", 0.01)
    with pytest.raises(RuntimeError, match="everybody waits, and nobody for the clock"):
        run_quietly(VirtualClock(), asyncio.Event().wait())


def test_the_bench_prints_the_figures_of_its_nights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output is a table in Markdown with one column for each night."""
    path = tmp_path / "build" / "night.md"
    bench_night.main(["--rows", "300", "--hours", "0.05", "--nights", "2", "--markdown", str(path)])
    table = path.read_text()
    assert capsys.readouterr().out == table
    assert "| figure | night 1 | night 2 |\n|---|---:|---:|\n| rows | 300 | 300 |\n" in table
    assert "| rows lost | 0 | 0 |\n" in table
    assert "| hours critical | " in table
