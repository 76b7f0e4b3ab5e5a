"""A service that was killed leaves its model in memory: the next one releases it like its own."""

from __future__ import annotations

from pathlib import Path

from daemons import daemon, make_spool, wait_for
from integration.memory_scene import Scene, card, running
from support.card_model import Habits

MIB = 1 << 20


def killed(scene: Scene) -> int:
    """Kill the service while rows are answered; how much the server was asked until then."""
    scene.wait_for_chats(5)
    scene.service.kill()
    scene.service.wait()
    return len(scene.asked())


def wait_for_unload(scene: Scene, since: int) -> None:
    wait_for(lambda: "unload" in scene.asked()[since:], seconds=15)


def test_a_resumed_job_releases_its_orphan_when_memory_is_critical(tmp_path: Path) -> None:
    """The model was loaded smaller when the service was killed: the job goes on with it as it is, then makes
    room for others, and no row is lost."""
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


def test_an_orphan_with_a_smaller_window_is_not_waited_for(tmp_path: Path) -> None:
    """No job knows of it any more, and it is what makes memory critical: the next job puts it out."""
    with running(tmp_path, latency_ms=60) as scene:
        scene.submit([f"row {n}" for n in range(40)], options={"num_ctx": 2048})
        since = killed(scene)
        scene.others(8.5)  # and the orphan's 6.8
        scene.spool = make_spool(tmp_path / "second")
        scene.submit(["row"], options={"num_ctx": 4096})
        with daemon(scene.env | {"SPOOLAMA_SPOOL": str(scene.spool)}, log=scene.log, command=scene.command):
            wait_for_unload(scene, since)
            scene.others(1)
            job = scene.ended()
    assert scene.asked()[since:][:2] == ["unload", "load 4096"]
    assert job.counts == (1, 0, 0)
