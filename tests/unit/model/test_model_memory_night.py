"""Nights on a card that others use too: engine and watchdog as they are, model server and card modelled.

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

CHAT = "trim: {strategy: reset}\nsegment: 64\n"
FOREVER = float("inf")
SPEC = LoadSpec("gemma3:12b", 8192, slots=LANES)
LOADS = json.loads((Path(__file__).parents[2] / "data" / "h100-ollama.json").read_text())["loads"]


def steady(request: ChatRequest) -> float:
    """Answers that take a second at most, so that little time is given to rows in flight."""
    return min(1.0, seconds_of(request))


def check(night: Night) -> None:
    """All that was promised of a night."""
    assert not night.error
    assert night.ended is not None
    assert night.ended.finished
    # The store takes no answer twice.
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
def test_a_night_with_others_costs_no_row_and_gives_memory_back_in_time(seed: int, side: str) -> None:
    """Rows alone and in conversations, others eight times as often as usual: every promise holds."""
    night = run_night(4000, night_of(seed, 0.35, often=8), seed=seed, side=side, answer_s=steady)
    check(night)
    assert night.notes["paused"] >= 1
    assert night.over_s > 0
    assert night.most_s < 7.5


def test_rows_that_take_long_finish_before_the_model_is_released() -> None:
    """The card stays full for as long as the longest row in flight, and no longer."""
    users = Users([Use("job", 100.0, 700.0, 4.0)])
    night = run_night(800, users, answer_s=lambda request: 20.0 if "review 333 " in str(request) else 1.0)
    check(night)
    assert 5.0 <= night.longest_s <= 26.0
    assert night.notes["paused"] == 1


def test_a_program_that_takes_all_that_is_left_during_a_load_costs_no_row() -> None:
    """The load finds the card full; it is tried again when there is room."""
    users = Users([Use("job", 60.0, 90.0, 4.0), Use("greedy", 109.0, 200.0, 64.0)])
    night = run_night(600, users, answer_s=steady)
    check(night)
    assert night.server.short_of_memory == 1


def test_somebody_who_stays_for_hours_is_waited_for() -> None:
    """Not even the smallest load has room beside a model of 9 GB; the job goes on when it has gone."""
    night = run_night(400, Users([Use("model", 0.0, 3 * 3600.0, 9.0)]), answer_s=steady)
    check(night)
    assert 3.0 < night.hours < 3.2
    assert night.server.short_of_memory == 0


def test_a_leak_makes_memory_high_before_it_is_critical() -> None:
    """What grows slowly is seen at the high mark, and the model is gone before the card is full."""
    night = run_night(1500, Users([Use("leak", 30.0, 250.0, 0.5, 0.02)]), answer_s=steady)
    check(night)
    assert [(before, after) for _, before, after in night.changes][:2] == [
        ("ok", "high"),
        ("high", "critical"),
    ]
    assert night.longest_s > 0
    assert night.tally["peak_bytes"] < 15.5 * GB


def test_a_larger_load_that_does_not_fit_beside_others_is_not_tried() -> None:
    """A model that was loaded smaller stays as it is while others have what the larger one needs."""
    uses = [Use("first", 0.0, 700.0, 5.0), Use("later", 700.0, FOREVER, 4.0)]
    night = run_night(400, Users(uses), num_ctx=2048, answer_s=lambda request: 20.0)
    check(night)
    assert night.notes["larger_load"] == 0


def test_a_smallest_load_that_just_fitted_goes_when_others_need_a_little_more() -> None:
    """It was loaded up to the critical mark; what brought memory above it was little, and is waited for."""
    users = Users([Use("first", 0.0, FOREVER, 5.4), Use("more", 100.0, 400.0, 0.15)])
    night = run_night(300, users, num_ctx=1024, answer_s=lambda request: 2.0)
    check(night)
    assert night.notes["paused"] == 1
    assert night.notes["left_as_it_is"] == 0


# What is modelled.


def test_the_modelled_load_is_one_that_was_measured() -> None:
    """It takes what a model of this shape took on an H100, within 1 %, at every window."""
    clock = VirtualClock()
    card = ModelledCard(clock, Users([]), total_gb=80)
    for load in LOADS:
        server = CardServer(clock, card=card)
        spec = LoadSpec("m", load["num_ctx"], slots=load["parallel"])
        assert server.takes(spec) == pytest.approx(
            load["nvml_used_loaded"] - load["nvml_used_before"], rel=0.01
        )


def test_a_load_fills_the_card_in_steps_and_gives_all_of_it_back_if_it_does_not_fit() -> None:
    """Nothing of a load that failed stays; the same load works when others have gone."""
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


def test_a_request_without_its_model_is_noticed() -> None:
    """The server loads it by itself, as Ollama does, and counts it; a release takes requests with it."""
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
    """The table is the same everywhere."""
    users = night_of(5, 1.0)
    assert {use.name for use in users.uses} == {"desktop", "job", "model", "spike", "leak", "greedy"}
    assert users.uses == night_of(5, 1.0).uses != night_of(6, 1.0).uses
    assert all(0.3 * GB <= users.want(at)["desktop"] <= GB for at in (0.0, 1800.0, 1e6))
    assert set(users.want(1e6)) == {"desktop"}


def test_a_loop_in_which_everybody_waits_for_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that hangs in itself fails with words, and does not run into its bound."""
    monkeypatch.setattr("support.quiet_loop._NOBODY_S", 0.01)
    with pytest.raises(RuntimeError, match="everybody waits, and nobody for the clock"):
        run_quietly(VirtualClock(), asyncio.Event().wait())


def test_the_bench_prints_the_figures_of_its_nights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table in Markdown, one column a night."""
    path = tmp_path / "build" / "night.md"
    bench_night.main(["--rows", "300", "--hours", "0.05", "--nights", "2", "--markdown", str(path)])
    table = path.read_text()
    assert capsys.readouterr().out == table
    assert "| figure | night 1 | night 2 |\n|---|---:|---:|\n| rows | 300 | 300 |\n" in table
    assert "| rows lost | 0 | 0 |\n" in table
    assert "| hours critical | " in table
