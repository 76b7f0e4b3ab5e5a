"""After a killed service the next one can release the model that it left loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemons import daemon, make_spool, wait_for
from integration.memory_scene import Scene, card, running
from support.card_model import Habits

pytestmark = pytest.mark.slow

MIB = 1 << 20


def killed(scene: Scene) -> int:
    """Kill the service while rows are answered; return the number of requests until then."""
    scene.wait_for_chats(5)
    scene.service.kill()
    scene.service.wait()
    return len(scene.asked())


def wait_for_unload(scene: Scene, since: int) -> None:
    wait_for(lambda: "unload" in scene.asked()[since:], seconds=15)


def test_a_resumed_job_releases_its_orphan_when_memory_is_critical(tmp_path: Path) -> None:
    """The resumed job uses the smaller load that the killed service left, then releases it for others, and
    loses no row.
    """
    with running(tmp_path, card(2.5), habits=Habits(hidden_token_bytes=MIB), latency_ms=60) as scene:
        scene.submit([f"row {n}" for n in range(40)], options={"num_ctx": 8192})
        since = killed(scene)
        assert scene.asked()[:since].count("load 4096") == 1  # 10.9 GB
        scene.others(4.4)
        with daemon(scene.env, log=scene.log, command=scene.command):
            wait_for_unload(scene, since)
            scene.others(1)
            job = scene.ended()
    assert next(call for call in scene.asked()[since:] if call != "chat") == "load 4096"
    assert job.counts == (40, 0, 0)


def test_an_orphan_with_a_smaller_window_is_released(tmp_path: Path) -> None:
    """A leftover model that makes memory critical is released by the next job."""
    with running(tmp_path, latency_ms=60) as scene:
        scene.submit([f"row {n}" for n in range(40)], options={"num_ctx": 2048})
        since = killed(scene)
        scene.others(8.5)  # and the leftover model's 6.8
        scene.spool = make_spool(tmp_path / "second")
        scene.submit(["row"], options={"num_ctx": 4096})
        with daemon(scene.env | {"SPOOLAMA_SPOOL": str(scene.spool)}, log=scene.log, command=scene.command):
            wait_for_unload(scene, since)
            scene.others(1)
            job = scene.ended()
    assert scene.asked()[since:][:2] == ["unload", "load 4096"]
    assert job.counts == (1, 0, 0)
