"""Card memory runs short while a job runs: the reaction of the whole service, and the rows.

The service, the fake server and the stub of NVML are real processes; times of the watchdog are scaled.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from integration.memory_scene import GB, MODEL, card, gb, running, words
from nvml_stub import FakeCard
from support.card_model import Habits

pytestmark = pytest.mark.slow

ROWS = [f"row {n}" for n in range(80)]


def test_a_leak_is_detected_and_the_job_continues_after_it(tmp_path: Path) -> None:
    """A leak is high by its trend and then critical; rows pause in between, and none is lost."""
    with running(tmp_path, latency_ms=40) as scene:
        scene.submit([f"row {n}" for n in range(120)])
        scene.wait_for_chats(5)
        used = 1.0
        while "critical" not in scene.levels():
            used = min(9.0, used + 0.12)  # 9.0 and the model are all of the card except 0.2 GB
            scene.others(used)
            time.sleep(0.05)
        scene.wait_for_event("memory.action", action="released")
        scene.others(1)
        job = scene.ended()
    high, critical = scene.events("memory.high")[0], scene.events("memory.critical")[0]
    assert float(high["used"].split()[0]) < 14 <= 15 <= float(critical["used"].split()[0])
    assert "at this rate" in high["reason"]
    assert scene.levels() == ["high", "critical", "high", "ok"]
    assert job.counts == (120, 0, 0)
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}
    assert min(job.memory["seconds"].values()) > 0
    assert job.metrics["memory_pause_s"] > 0
    assert 15 <= job.metrics["peak_vram_gb"] <= 16
    assert "rows were paused" in (job.path / "summary.txt").read_text()


def test_a_spike_changes_nothing(tmp_path: Path) -> None:
    """A spike is in the peak but changes no level and no row. The margin is wide, because a busy machine
    sleeps longer.
    """
    with running(tmp_path, pace=1, latency_ms=50) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(10)
        scene.others(8.8)
        time.sleep(1.1)  # of the 3 s after which it would count
        scene.others(1)
        job = scene.ended()
    assert job.counts == (80, 0, 0)
    assert job.metrics["peak_vram_gb"] > 15, "nobody looked meanwhile"
    assert scene.levels() == []
    assert (job.actions, job.memory["changes"], job.metrics["memory_pause_s"]) == ({}, 0, 0)
    assert scene.asked() == ["load 2048", *["chat"] * 80, "unload"]


def test_a_model_is_loaded_again_when_others_leave_the_card(tmp_path: Path) -> None:
    """The model is loaded again when it fits, not when memory is ok; until then no row is sent."""
    with running(tmp_path) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(20)
        scene.others(8.8)
        scene.wait_for_event("memory.critical")
        scene.wait_for_event("memory.ok")  # 9.2 of 16 GB are in use without the model
        before = scene.asked()
        text = scene.wait_for_status("waiting for memory: judge:12b with a window of 2,048 needs")
        assert "5.8 GB of 16.0 GB may still be taken on the GPU" in text
        assert "of 80 rows" in text
        assert scene.asked() == before
        scene.others(1)
        job = scene.ended()
    at = before.index("unload")
    assert before[at:] == ["unload"], "asked or loaded although it was critical"
    assert scene.asked()[at : at + 3] == ["unload", "load 2048", "chat"]
    assert scene.asked().count("chat") == 80
    assert scene.levels() == ["critical", "high", "ok"]
    assert job.counts == (80, 0, 0)
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}
    assert job.windows == [2048, 2048]
    again = job.metrics["loads"][1]
    assert again["taken_on_cards_bytes"] == pytest.approx(again["estimate"]["total_bytes"], rel=0.01)


def test_a_window_that_runs_out_of_memory_is_halved_and_long_rows_come_last(tmp_path: Path) -> None:
    """A load that takes more than estimated is halved, and longer rows get their own load."""
    habits = Habits(hidden_token_bytes=1 << 20)  # 8 GB at the requested window
    rows = [words(4500), *ROWS[:30], words(4200)]
    with running(tmp_path, card(2.5), habits=habits) as scene:
        scene.submit(rows, options={"num_ctx": 8192})
        job = scene.ended()
    loads = [what for what in scene.asked() if what.startswith("load")]
    assert loads == ["load 8192", "load 8192", "load 4096", "load 4608"]
    assert job.counts == (32, 0, 0)
    assert job.actions["out_of_memory"] == 2
    assert job.actions["smaller_load"] == 1
    failed = scene.events("memory.action")[0]
    assert (failed["action"], failed["num_ctx"]) == ("out_of_memory", 8192)
    assert "cudaMalloc failed: out of memory" in failed["error"]


def test_rows_that_need_the_requested_window_fail_with_their_size(tmp_path: Path) -> None:
    """If the load for long rows runs out of memory as well, only these rows fail, with their length."""
    habits = Habits(hidden_token_bytes=1 << 20)
    with running(tmp_path, card(2.5), habits=habits) as scene:
        scene.submit([words(7600), *ROWS[:30]], options={"num_ctx": 8192})
        job = scene.ended()
    assert job.counts == (30, 1, 0)
    assert job.metrics["errors"] == {"context_overflow": 1}
    error = job.rows[0]["error"]
    assert "7,6" in error["message"]
    assert "cannot be loaded: judge:12b does not fit" in error["message"]


def test_a_model_that_fits_at_no_window_ends_the_job_with_the_sizes(tmp_path: Path) -> None:
    """The job ends with the needed and the available memory, and no row is sent."""
    model = {**MODEL, "size_bytes": 20 * GB}
    with running(tmp_path, model=model) as scene:
        scene.submit(ROWS, options={"num_gpu": 99})
        job = scene.ended("failed")
    assert job.counts == (0, 0, 80)
    assert "chat" not in scene.asked()
    early = job.metrics["ended_early"]
    assert early["code"] == "out_of_memory"
    assert "judge:12b does not fit: llama-server process has terminated" in early["message"]
    assert "It needs an estimated 20.7 GB: weights 20.0" in early["fix"]
    assert "14.6 GB is available to it" in early["fix"]


def test_a_model_larger_than_the_cards_runs_as_ollama_puts_it(tmp_path: Path) -> None:
    """A model larger than the cards does not wait for room and stays although it fills the card."""
    model = {**MODEL, "size_bytes": 20 * GB}
    with running(tmp_path, model=model, pace=5) as scene:
        scene.submit(ROWS)
        scene.wait_for_event("memory.critical")
        job = scene.ended()
    assert job.counts == (80, 0, 0)
    assert scene.asked() == ["load 2048", *["chat"] * 80, "unload"]
    assert job.actions == {"left_as_it_is": 1, "loaded_in_spite": 1}
    (load,) = job.metrics["loads"]
    assert 0 < load["listed_vram_bytes"] < load["listed_bytes"]


def test_a_row_that_runs_out_of_memory_is_answered_with_a_smaller_window(tmp_path: Path) -> None:
    """A long prompt that twice runs out of memory leads to half the window, and no row fails."""
    habits = Habits(hidden_token_bytes=1 << 20, long_tokens=1500, growth_bytes=gb(4.7))
    rows = [*ROWS[:15], words(1700), *ROWS[15:30]]
    with running(tmp_path, habits=habits) as scene:
        scene.submit(rows, options={"num_ctx": 4096})
        job = scene.ended()
    loads = [what for what in scene.asked() if what.startswith("load")]
    assert loads == ["load 4096", "load 4096", "load 2048"]
    assert job.counts == (31, 0, 0)
    assert job.actions["out_of_memory"] == 2
    assert job.actions["smaller_load"] == 1
    assert job.rows[15]["attempts"] == 3


def test_full_cards_without_the_model_are_no_reason_to_wait(tmp_path: Path) -> None:
    """Memory is ok as long as the card with the model is; when that card fills up, it is the reported one."""
    cards = [card(n, uuid=f"GPU-{place}") for place, n in enumerate((15.4, 15.2, 1, 15.4))]
    with running(tmp_path, *cards, latency_ms=40) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(40)  # 1.6 s: three cards have been critical for ten times the dwell
        assert scene.levels() == []
        scene.others(8.8, place=2)
        critical = scene.wait_for_event("memory.critical")
        scene.wait_for_event("memory.action", action="released")
        scene.others(1, place=2)
        job = scene.ended()
    assert critical["card"] == 2
    assert "GPU 2: 15." in critical["reason"]
    assert job.counts == (80, 0, 0)
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}


def test_the_mig_instance_with_the_model_counts_and_its_full_neighbour_does_not(tmp_path: Path) -> None:
    """Of two MIG instances only the one with the model counts."""
    instances = {0: card(1, 10, uuid="MIG-0"), 1: card(9.4, 10, uuid="MIG-1")}
    cut = FakeCard(total=80 * GB, used=gb(11), instances=instances)
    model = {**MODEL, "size_bytes": 4 * GB, "parameters": 7_000_000_000}
    with running(tmp_path, cut, model=model, latency_ms=40) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(40)
        assert scene.levels() == []
        instances[0].used = gb(4.8)
        scene.script.write()
        critical = scene.wait_for_event("memory.critical")
        scene.wait_for_event("memory.action", action="released")
        instances[0].used = gb(1)
        scene.script.write()
        job = scene.ended()
    assert critical["total"] == "10.0 GB"
    assert job.counts == (80, 0, 0)
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}
