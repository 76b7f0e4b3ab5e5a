"""The daemon: its tasks, their order and their end, with a real spool, real tasks and a scripted executor."""

from __future__ import annotations

import asyncio
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spoolama.clock import Clock
from spoolama.errors import ConfigError, DiskFull, ServerAway, SpoolHeld
from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.sidecar import Sidecar
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.readings import NoCards
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress, Pulse
from spoolama.service.monitors import ServerProber
from spoolama.service.retention import Retention
from spoolama.service.settings import Settings, VramSection
from spoolama.service.state import JobEnd, ServerState, ServiceState
from spoolama.service.status import StatusReporter
from spoolama.service.systemd import Heartbeat
from spoolama.spool.claim import JobDir, claim
from spoolama.spool.layout import Spool
from spoolama.spool.scanner import Drop
from spoolama.stopping import Stop
from support.hand_clock import HandClock
from support.notify_socket import RecordingNotifier
from support.service import SIDECAR, Service, in_loop, until


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "spool")


def status_of(service: Service, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((service.spool.status / f"{name}.json").read_bytes())
    return found


@in_loop
async def test_an_upload_is_published_with_its_place_in_the_status(service: Service) -> None:
    """An upload moves from incoming/ to done/, and NAME.json gives the result."""
    async with service.running():
        service.drop("a")
        await until(lambda: service.published() == ["a"])
        await until(lambda: status_of(service, "a.csv")["state"] == "done")
    status = status_of(service, "a.csv")
    assert (service.spool.root / status["where"]).is_dir()
    assert status["message"] == "all answered"
    assert not list(service.spool.incoming.iterdir())


@in_loop
async def test_once_runs_all_jobs_and_exits(service: Service) -> None:
    """`--once` exits with 0 when nothing is left, also if a file is held."""
    for name in ("a", "b"):
        service.drop(name)
    service.drop("lonely", sidecar=None)
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["a", "b"]
    assert status_of(service, "lonely.csv")["reason"] == "no_sidecar"


@in_loop
async def test_many_held_files_are_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Many held files enlarge neither status/ nor the journal, and each upload is still claimed."""
    monkeypatch.setattr("spoolama.spool.scanner.MOST_HELD", 3)
    monkeypatch.setattr("spoolama.service.incoming.MOST_HELD", 3)
    for number in range(9):
        (service.spool.incoming / f"{number}.txt").write_text("x")
    text = service.spool.status / "service.txt"
    async with service.running():
        await until(lambda: text.exists() and "9 files in incoming/ held" in text.read_text())
        assert "  and 6 more files are held\n" in text.read_text()
        (service.spool.incoming / "9.txt").write_text("x")
        await until(lambda: "and 7 more files are held" in text.read_text())
        service.drop("a")
        await until(lambda: service.published() == ["a"])
    assert len(list(service.spool.status.glob("?.txt.json"))) == 3
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert len([one for one in events if one["event"] == "drop.held"]) == 3
    (many,) = [one for one in events if one["event"] == "drop.many_held"]
    assert many["message"].startswith("3 files stay in incoming/, and 6 more, which are not listed")


@in_loop
async def test_once_waits_for_more_files_than_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that may still become ready are waited for, listed or not."""
    monkeypatch.setattr("spoolama.spool.scanner.MOST_HELD", 1)
    service = Service(tmp_path / "spool", quiet_s=0.5)
    (service.spool.incoming / "0.txt").mkdir()
    service.drop("a")
    service.drop("b")
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["a", "b"]


@in_loop
async def test_once_waits_out_the_quiet_time(tmp_path: Path) -> None:
    """`--once` waits for the quiet time of a file that was just dropped."""
    service = Service(tmp_path / "spool", quiet_s=0.3)
    service.drop("a")
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["a"]


@in_loop
async def test_jobs_go_by_priority_then_by_arrival(service: Service) -> None:
    """Jobs run by priority and arrival, and the status of a waiting job gives its place."""
    gate = asyncio.Event()

    async def wait(job: JobDir, progress: Progress, stop: Stop) -> None:
        await gate.wait()

    service.executor.act = wait
    async with service.running():
        service.drop("first")
        await until(lambda: service.executor.executed == ["first.csv"])
        service.drop("second")
        await until(lambda: (service.spool.status / "second.csv.json").exists())
        service.drop("third")
        service.drop("urgent", sidecar=SIDECAR + "priority: 5\n")
        await until(lambda: (service.spool.status / "urgent.csv.json").exists())
        waiting = ("urgent", "second", "third")
        await until(lambda: [status_of(service, f"{n}.csv").get("place") for n in waiting] == [1, 2, 3])
        gate.set()
        await until(lambda: len(service.published()) == 4)
    assert service.executor.executed == ["first.csv", "urgent.csv", "second.csv", "third.csv"]


@in_loop
async def test_an_odd_schema_in_a_sidecar_does_not_end_the_service(service: Service) -> None:
    """An invalid sidecar fails its job and not the service, which reads it for the priority."""
    service.drop("odd", sidecar=SIDECAR + "format: {$schema: 3, type: object}\n")
    service.drop("good")
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["good", "odd"]


@in_loop
async def test_no_exception_of_a_sidecar_ends_the_service(service: Service) -> None:
    """If reading a sidecar raises any exception, its priority is 0 and the job continues."""

    async def fail(_: Evaluator, path: Path, **options: object) -> None:
        raise ZeroDivisionError(path, options)

    service.drop("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "load_sidecar", fail)
        assert await service.daemon(once=True).run() == 0
    assert service.published() == ["odd"]


@in_loop
async def test_a_slow_sidecar_delays_no_other_job(service: Service) -> None:
    """A slow sidecar gets priority 0 after a while, and the job that came with it runs."""

    async def never(_: Evaluator, path: Path, **_options: object) -> Sidecar:
        if "odd" in path.name:
            await asyncio.Event().wait()
        return Sidecar(priority=3)

    service.drop("odd")
    service.drop("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "load_sidecar", never)
        patch.setattr("spoolama.service.incoming._PRIORITY_S", 0.1)
        assert await service.daemon(once=True).run() == 0
    assert service.executor.executed == ["good.csv", "odd.csv"]


@in_loop
async def test_sidecars_of_many_drops_are_read_two_at_a_time(service: Service) -> None:
    """Of sixty sidecars of 1 MB at most two are in memory at once."""
    reading = most = 0

    async def slow(_: Evaluator, path: Path, **_options: object) -> Sidecar:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.01)
        reading -= 1
        return Sidecar(priority=int(path.stem[1:]))

    for number in range(8):
        service.drop(f"p{number}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "load_sidecar", slow)
        assert await service.daemon(once=True).run() == 0
    assert service.executor.executed == [f"p{number}.csv" for number in reversed(range(8))]
    assert most == 2


@in_loop
async def test_sigterm_drains_and_leaves_the_rest(service: Service) -> None:
    """SIGTERM asks the executor to stop, and the unfinished job resumes at the next start."""

    async def leave(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        await stop.wait()
        return JobEnd("left", None, "stopped")

    service.executor.act = leave
    service.drop("a")
    daemon = service.daemon()
    task = asyncio.create_task(daemon.run())
    await until(lambda: service.executor.executed == ["a.csv"])
    signal.raise_signal(signal.SIGTERM)
    assert await task == 0
    assert len(list(service.spool.processing.iterdir())) == 1
    assert service.backend.released == 1

    service.executor.act = None
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["a"]


@in_loop
async def test_draining_has_an_end(tmp_path: Path) -> None:
    """An executor that does not stop is cancelled after drain_s."""
    service = Service(tmp_path / "spool", drain_s=0.1)

    async def stubborn(job: JobDir, progress: Progress, stop: Stop) -> None:
        await asyncio.sleep(60)

    service.executor.act = stubborn
    service.drop("a")
    async with service.running():
        await until(lambda: service.executor.executed == ["a.csv"])
    assert service.notifier.sent.count("stopping") == 1


@in_loop
async def test_ready_is_sent_while_the_server_is_away(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY is sent while the server is unreachable, and the status says what is missing."""

    async def away() -> None:
        raise ServerAway("connection refused")

    monkeypatch.setattr(service.backend, "probe", away)
    async with service.running() as daemon:
        await until(lambda: daemon.state.server.away is not None)
        await until(lambda: any("server is away: connection refused" in s for s in service.notifier.sent))
    assert service.notifier.sent[0] == "ready"


@in_loop
async def test_a_dead_side_task_stops_the_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side task that fails stops the service with exit status 1, so that systemd restarts it."""

    async def die(_: Retention) -> None:
        raise OSError("out of descriptors")

    monkeypatch.setattr(Retention, "run", die)
    assert await asyncio.wait_for(service.daemon().run(), 10) == 1


@in_loop
async def test_a_side_task_that_returns_is_dead_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side task that returns counts as failed."""

    async def end(_: ServerProber) -> None:
        return

    monkeypatch.setattr(ServerProber, "run", end)
    assert await asyncio.wait_for(service.daemon().run(), 10) == 1


@in_loop
async def test_a_full_disk_holds_the_job(service: Service) -> None:
    """A full disk holds the job and does not fail it."""

    async def full(job: JobDir, progress: Progress, stop: Stop) -> None:
        raise DiskFull("no room")

    service.executor.act = full
    async with service.running() as daemon:
        service.drop("a")
        await until(lambda: [i.state for i in daemon.state.queue.waiting()] == ["held"])
        (item,) = daemon.state.queue.waiting()
        assert item.retry_at is not None
        await until(lambda: status_of(service, "a.csv").get("message") == "no room")
    assert len(list(service.spool.processing.iterdir())) == 1


@in_loop
async def test_a_second_daemon_is_turned_away(service: Service, tmp_path: Path) -> None:
    """A second daemon exits with 75 and names the process that holds the spool."""
    async with service.running():
        with pytest.raises(SpoolHeld) as caught:
            await Service(tmp_path / "spool").daemon().run()
    assert caught.value.exit_status == 75


@in_loop
async def test_sighup_applies_changed_settings(service: Service) -> None:
    """SIGHUP sends RELOADING and READY, keeps settings that need a restart, and ignores an invalid file."""
    answers: list[Settings | ConfigError] = [
        service.with_settings(lanes=7, release_after_s=9),
        ConfigError("c.yaml:1: spol: unknown key"),
    ]

    def load() -> Settings:
        answer = answers.pop(0)
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    def sent_ready(times: int) -> bool:
        return service.notifier.sent.count("ready") == times

    async with service.running(reload=load) as daemon:
        for times in (2, 3):
            signal.raise_signal(signal.SIGHUP)
            await until(partial(sent_ready, times))
        assert (daemon.settings.release_after_s, daemon.settings.lanes) == (9, 1)
    without_status = [s for s in service.notifier.sent if not s.startswith("status")]
    assert without_status[:5] == ["ready", "reloading", "ready", "reloading", "ready"]


@in_loop
async def test_sighup_applies_the_cards(service: Service) -> None:
    """SIGHUP applies limits and cards, as the log says."""
    thread = CardThread(NoCards(), service.clock)
    watchdog = MemoryWatchdog(thread, None, service.clock, only=(0,))
    new = service.settings.model_copy(update={"vram": VramSection(cards=[1], high=0.8)})
    async with service.running(reload=lambda: new, memory=(watchdog, thread)) as daemon:
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: daemon.settings == new)
    assert (watchdog.only, watchdog.limits.high) == ((1,), 0.8)


@in_loop
async def test_the_watchdog_gets_pings_and_checks_the_pulse_of_the_running_job(service: Service) -> None:
    """The pulse is checked as long as the job runs."""
    pulses: list[Pulse] = []

    async def note(job: JobDir, progress: Progress, stop: Stop) -> None:
        pulses.append(progress.pulse)
        await until(lambda: service.notifier.sent.count("watchdog") >= 2)
        assert daemon.state.pulses["job"] is progress.pulse

    service.executor.act = note
    async with service.running(watchdog_s=0.02) as daemon:
        service.drop("a")
        await until(lambda: service.published() == ["a"])
        await until(lambda: "job" not in daemon.state.pulses)
    assert len(pulses) == 1


def test_pings_stop_when_a_task_shows_no_progress() -> None:
    """A ping proves progress, not only a running timer."""
    clock, notifier = HandClock(), RecordingNotifier()
    state = ServiceState(clock, ServerState("ollama", "x"))
    state.pulses["job"] = pulse = Pulse(clock, liveness_s=30.0)
    heartbeat = Heartbeat(state, notifier, clock, interval_s=2.0)
    assert heartbeat.beat() is True
    clock.move(31.0)
    assert state.silent() == ["job"]
    assert heartbeat.beat() is False
    assert notifier.sent.count("watchdog") == 1
    pulse.beat()
    assert heartbeat.beat() is True
    assert notifier.sent.count("watchdog") == 2


@in_loop
async def test_models_are_released_when_the_queue_has_been_empty(tmp_path: Path) -> None:
    """Models are released when the queue has been empty for a while, not only at the end of the service."""
    service = Service(tmp_path / "spool", release_after_s=0)
    async with service.running():
        service.drop("a")
        await until(lambda: service.published() == ["a"])
        await until(lambda: service.backend.released == 1)


@pytest.mark.parametrize("last", ["resume", "cancel"])
@in_loop
async def test_the_last_of_two_commands_counts_while_rows_are_in_flight(service: Service, last: str) -> None:
    """A pause is revoked, or becomes a cancel, before the rows in flight have ended."""
    started, landed = asyncio.Event(), asyncio.Event()

    async def obey(job: JobDir, progress: Progress, stop: Stop) -> JobEnd | None:
        if started.is_set():
            return None
        started.set()
        await landed.wait()
        return JobEnd("left", None, "stopped")

    service.executor.act = obey
    async with service.running():
        service.drop("a")
        await started.wait()
        for command in ("pause", last):
            (service.spool.incoming / f"a.{command}").touch()
            await until(lambda: not list(service.spool.incoming.iterdir()))
        landed.set()
        await until(lambda: service.published("failed" if last == "cancel" else "done") == ["a"])


@in_loop
async def test_commands_by_file_pause_resume_and_cancel(service: Service) -> None:
    """A paused job stays paused after a restart, and a cancelled one is published."""
    started = asyncio.Event()

    async def obey(job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        started.set()
        await stop.wait()
        return JobEnd("left", None, "stopped")

    service.executor.act = obey
    async with service.running() as daemon:
        service.drop("a")
        await started.wait()
        (service.spool.incoming / "a.pause").touch()
        await until(lambda: [i.state for i in daemon.state.queue.waiting()] == ["paused"])
    assert await service.daemon(once=True).run() == 0
    assert service.executor.executed == ["a.csv"]

    started.clear()
    service.notifier.sent.clear()
    async with service.running() as daemon:
        (service.spool.incoming / "a.resume").touch()
        await started.wait()
        (service.spool.incoming / "a.csv.cancel").touch()
        await until(lambda: service.published("failed") == ["a"])
    assert service.executor.rejected[0][1].code == "cancelled"
    assert not list(service.spool.incoming.iterdir())


@in_loop
async def test_the_status_of_removed_files_is_deleted(service: Service) -> None:
    """The status of removed files is deleted."""
    async with service.running():
        service.drop("a", sidecar=None)
        await until(lambda: (service.spool.status / "a.csv.json").exists())
        (service.spool.incoming / "a.csv").unlink()
        await until(lambda: not (service.spool.status / "a.csv.json").exists())


@in_loop
async def test_a_job_that_is_still_written_to_blocks_no_other(service: Service) -> None:
    """A job that is still being written settles when its writer ends, and others run first."""
    async with service.running() as daemon:
        service.drop("a")
        await until(lambda: service.published() == ["a"])
        with (service.spool.incoming / "slow.csv").open("w") as slow:
            slow.write("text\n")
            slow.flush()
            (service.spool.incoming / "slow.yaml").write_text(SIDECAR)
            await until(lambda: [i.state for i in daemon.state.queue.waiting()] == ["settling"])
            service.drop("b")
            await until(lambda: service.published() == ["a", "b"])
            assert status_of(service, "slow.csv")["state"] == "settling"
            slow.write("x\n")
        await until(lambda: service.published() == ["a", "b", "slow"])


@in_loop
async def test_one_drop_that_cannot_be_claimed_does_not_stop_the_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status of a file that cannot be claimed gives the reason, and `--once` still ends."""

    def odd(spool: Spool, drop: Drop, *, clock: Clock) -> JobDir:
        if drop.data == "odd.csv":
            raise PermissionError(1, "Operation not permitted")
        return claim(spool, drop, clock=clock)

    monkeypatch.setattr("spoolama.service.incoming.claim", odd)
    service.drop("odd")
    service.drop("good")
    assert await service.daemon(once=True).run() == 0
    assert service.published() == ["good"]
    assert status_of(service, "odd.csv")["reason"] == "not_claimed"


@in_loop
async def test_a_cancellation_during_an_event_is_not_lost(service: Service) -> None:
    """A cancellation during a status change is not lost, so that no half of the service stays alive."""
    for _ in range(20):
        state = ServiceState(service.clock, ServerState("ollama", "x"))
        reporter = asyncio.create_task(StatusReporter(service.spool, state, service.clock).run())
        await asyncio.sleep(0.02)
        state.changed.set()
        reporter.cancel()
        done, _ = await asyncio.wait({reporter}, timeout=1.0)
        assert done == {reporter}
