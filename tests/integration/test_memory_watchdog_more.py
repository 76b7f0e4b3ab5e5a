"""More events of a watched job: a driver that fails or hangs, main memory, no card, a shared server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from integration.memory_scene import GB, Scene, card, running
from spoolama.backends.base import HeldModel
from spoolama.memory.level import MemoryLimits
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.readings import Card
from spoolama.memory.room import RequiredMemory, room_on_cards
from spoolama.memory.watchdog import MemoryWatchdog
from support.card_model import Habits
from support.cards import ScriptedCards
from support.cards import card as card_of
from support.hand_clock import HandClock

pytestmark = pytest.mark.slow

ROWS = [f"row {n}" for n in range(80)]
_DRIVER_NOT_LOADED, _GPU_IS_LOST = 9, 15


def test_a_driver_that_goes_and_comes_back_stops_no_row(tmp_path: Path) -> None:
    """Loss and return are reported once each, the time without readings is counted, and watching resumes."""
    with running(tmp_path, latency_ms=40) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(10)
        scene.script.errors = {"*": _DRIVER_NOT_LOADED}
        scene.script.write()
        unreadable = scene.wait_for_event("memory.unreadable", reason="the NVIDIA driver is not loaded")
        scene.wait_for_chats(30)
        scene.script.errors = {}
        scene.script.epoch += 1
        scene.others(8.8)
        scene.wait_for_event("memory.critical")
        scene.others(1)
        job = scene.ended()
    assert "not watched" in unreadable["message"]
    names = [e["event"] for e in scene.events() if e["event"] in ("memory.unreadable", "memory.readable")]
    assert names == ["memory.unreadable", "memory.readable"]
    assert job.counts == (80, 0, 0)
    assert job.memory["seconds_without_reading"] > 0.3
    assert job.metrics["peak_vram_gb"] > 15
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}


def test_a_driver_that_hangs_delays_neither_the_job_nor_the_end_of_the_service(tmp_path: Path) -> None:
    """If a driver call never returns, all rows are answered and SIGTERM ends the service at
    once with status 0.
    """
    with running(tmp_path) as scene:
        scene.script.hanging = ["nvmlDeviceGetMemoryInfo"]
        scene.script.write()
        scene.script.wait_until_a_call_hangs()
        scene.wait_for_event("memory.unreadable", reason="NVML has not answered for ")
        scene.submit(ROWS)
        job = scene.ended()
        began = time.monotonic()
        scene.service.send_signal(signal.SIGTERM)
        status = scene.service.wait(30)
        took = time.monotonic() - began
    assert job.counts == (80, 0, 0)
    assert status == 0
    assert took < 10, "the call that hangs was waited for"
    assert "NVML has not answered for " in job.metrics["how"]["peak_vram_gb"]
    assert job.memory["seconds_without_reading"] == job.memory["seconds"]["ok"]


def test_a_read_of_proc_that_hangs_delays_neither_the_level_nor_the_end(tmp_path: Path) -> None:
    """If a read of /proc hangs, as for a locked process, the card is still watched and SIGTERM
    ends the service.
    """
    with running(tmp_path, latency_ms=40, SPOOLAMA_DRAIN_S="2") as scene:
        scene.submit([f"row {n}" for n in range(3000)])
        scene.wait_for_chats(10)
        stuck = tmp_path / "proc" / "77777"
        stuck.mkdir()
        os.mkfifo(stuck / "cmdline")
        scene.others(9.9)
        scene.wait_for_event("memory.critical")
        scene.others(1)
        scene.wait_for_event("memory.ok")
        began = time.monotonic()
        scene.service.send_signal(signal.SIGTERM)
        status = scene.service.wait(30)
        took = time.monotonic() - began
    assert status == 0
    assert took < 15, "the read that hangs was waited for"


def test_a_release_frees_main_memory_that_the_prompt_cache_fills(tmp_path: Path) -> None:
    """If the prompt cache fills main memory, the model is released and a new one answers the rest."""
    habits = Habits(cached_bytes=GB // 10)
    with running(tmp_path, habits=habits, host=(32 * GB, 24 * GB)) as scene:
        scene.submit([f"row {n}" for n in range(110)])
        critical = scene.wait_for_event("memory.critical")
        text = scene.wait_for_status("memory is critical")
        job = scene.ended()
    assert "of 32.0 GB of this machine's memory in use" in critical["reason"]
    assert "of this machine's memory in use" in text
    assert job.counts == (110, 0, 0)
    assert job.actions == {"paused": 1, "released": 1, "resumed": 1}
    assert job.memory["host_peak_bytes"] >= 0.95 * 32 * GB
    assert job.memory["runner_rss_peak_bytes"] >= 5 * GB
    assert job.metrics["peak_vram_gb"] < 14, "the card was not the reason"


def test_a_machine_without_nvidias_library_reports_it_once_and_answers_every_row(tmp_path: Path) -> None:
    """The card's numbers are null with the reason, and main memory is still watched."""
    broken = tmp_path / "lib"
    broken.mkdir()
    # A library that cannot be loaded precedes one that this machine may have.
    (broken / "libnvidia-ml.so.1").write_bytes(b"")
    with running(tmp_path, LD_LIBRARY_PATH=str(broken)) as scene:
        scene.submit(ROWS)
        job = scene.ended()
    reasons = [e["reason"] for e in scene.events("memory.unreadable")]
    assert reasons == ["no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found)"]
    assert scene.levels() == []
    assert job.counts == (80, 0, 0)
    assert job.metrics["peak_vram_gb"] is None
    assert job.metrics["how"]["peak_vram_gb"].startswith("null: no NVIDIA driver on this machine")
    assert job.memory["host_peak_bytes"] > 8 * GB


def test_a_model_on_a_shared_server_is_never_released_for_memory(tmp_path: Path) -> None:
    """On a shared server the model stays, which is reported once, and rows continue at a critical level."""
    with running(tmp_path, SPOOLAMA_BACKEND__SHARED="true") as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(10)
        scene.others(8.8)
        job = scene.ended()
    assert scene.levels() == ["critical"], "it was still critical when the last row was answered"
    assert scene.asked() == ["load 2048", *["chat"] * 80]
    assert job.counts == (80, 0, 0)
    assert job.actions == {"left_as_it_is": 1}
    (left,) = scene.events("memory.action")
    assert left["why"] == "spoolama does not unload models of this server"


def test_a_job_waits_for_a_reading_and_room_at_the_start(tmp_path: Path) -> None:
    """With a full card and a slow driver nothing is loaded before a reading shows room."""

    def drop(scene: Scene) -> None:
        scene.submit(ROWS)
        scene.script.hanging = ["nvmlInitWithFlags"]
        scene.script.write()

    with running(tmp_path, card(12), before=drop, pace=1, latency_ms=5) as scene:
        scene.wait_for_event("job.started")
        scene.script.wait_until_a_call_hangs()
        scene.script.hanging = []
        scene.script.write()
        text = scene.wait_for_status("waiting for memory: ")
        assert "0 of 80 rows" in text or "the GPUs have not been read yet" in text
        scene.wait_for_status("of 16.0 GB may still be taken on the GPU")
        # A model that an earlier run may have left is released first.
        assert not scene.calls.exists() or set(scene.asked()) <= {"unload"}
        scene.others(1)
        job = scene.ended()
    assert job.counts == (80, 0, 0)
    assert scene.asked()[:2] == ["load 2048", "chat"]
    assert job.metrics["memory_pause_s"] == 0, "a load that waits is no pause"


def test_the_level_of_a_lost_card_does_not_apply_to_its_neighbour(tmp_path: Path) -> None:
    """If the card that others filled is lost, the model on the other card stays."""
    cards = card(15.2, uuid="GPU-0"), card(1, uuid="GPU-1")
    with running(tmp_path, *cards, latency_ms=40) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(20)
        scene.script.errors = {"* 0": _GPU_IS_LOST}
        scene.script.write()
        job = scene.ended()
    assert scene.levels() == []
    assert job.counts == (80, 0, 0)
    assert scene.asked() == ["load 2048", *["chat"] * 80, "unload"]


def test_the_size_of_a_load_excludes_the_models_of_others(tmp_path: Path) -> None:
    """The size of a load excludes another user's llama-server with 5 GB on the same card."""
    theirs = 777
    with_model = card(5.5, processes=[(theirs, 5 * GB)])

    def run_another(scene: Scene) -> None:
        folder = scene.proc / str(theirs)
        folder.mkdir()
        (folder / "cmdline").write_bytes(b"/usr/bin/llama-server\0")
        (folder / "status").write_text("VmRSS:\t500000 kB\n")

    with running(tmp_path, with_model, before=run_another) as scene:
        scene.submit(ROWS)
        job = scene.ended()
    (load,) = job.metrics["loads"]
    assert load["taken_on_cards_bytes"] == pytest.approx(load["estimate"]["total_bytes"], rel=0.01)


def test_mig_instances_do_not_share_a_model() -> None:
    """CUDA uses one MIG instance, so 12 GB do not fit two of 10 GB, while whole cards could share them."""
    whole = [Card(n, "A100", 10 * GB, GB // 2) for n in range(2)]
    cut = [Card(0, "A100 MIG", 10 * GB, GB // 2, mig=str(n)) for n in range(2)]
    limits = dict.fromkeys(range(2), MemoryLimits(10 * GB, 9 * GB, 9 * GB))
    need = RequiredMemory(12 * GB, "card")
    assert room_on_cards(need, whole, limits).fits
    assert not room_on_cards(need, cut, limits).fits
    assert not room_on_cards(need, cut, limits).ever


def test_a_released_model_does_not_count_as_free_twice() -> None:
    """The server's list is some seconds old, so a model released since does not count as free again."""
    clock = HandClock()
    cards = CardThread(ScriptedCards([(0, (card_of(12),)), (1, (card_of(6),))], clock), clock)
    watchdog = MemoryWatchdog(cards, None, clock)
    need = RequiredMemory(12 * GB, "card")
    cards.read_once()
    watchdog.listed((HeldModel("idle", 6 * GB, 6 * GB, 4096),))
    watchdog.look()
    assert not watchdog.room(need).fits, "3 GB may be taken, and 6 come back"
    watchdog.did("idle_released", models="idle")
    clock.move(1)
    cards.read_once()
    watchdog.look()
    assert not watchdog.room(need).fits, "9 GB may be taken"
    assert watchdog.room(RequiredMemory(8 * GB, "card")).fits


def test_a_lost_driver_does_not_make_cards_of_others_count(tmp_path: Path) -> None:
    """If three of four cards are full and no reading is possible, the job continues."""
    cards = [card(used, uuid=f"GPU-{place}") for place, used in enumerate((15.4, 15.2, 1, 15.4))]
    with running(tmp_path, *cards, latency_ms=40) as scene:
        scene.submit(ROWS)
        scene.wait_for_chats(30)
        scene.script.errors = {"*": _DRIVER_NOT_LOADED}
        scene.script.write()
        scene.wait_for_event("memory.unreadable")
        job = scene.ended()
    assert scene.levels() == []
    assert job.counts == (80, 0, 0)
    assert scene.asked() == ["load 2048", *["chat"] * 80, "unload"]
