"""The service dies repeatedly, killed from outside or by a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, results, run_once, wait_for, write_job
from support.notify_socket import NotifySocket

SIDECAR = "model: smollm2:135m\nprompt: '{{ text }}'\noptions: {num_predict: 16}\n"
FIRST = SIDECAR + "priority: 1\n"
ROWS = 3
KILLS = 10

# The real service, in which one call ends the process for the named jobs, with a shorter wait after a death.
LAUNCHER = """
import os, resource, signal, sys
from spoolama.cli.main import main
from spoolama.service import run_record
from spoolama.service.execution import JobExecutor

names, run_record.PROBATION_S = sys.argv[1].split(","), 0.2
execute = JobExecutor.execute

async def kill_or_execute(executor, job, progress, stop):
    if job.dropped_as in names:
        os.kill(os.getpid(), signal.SIGSEGV)
    return await execute(executor, job, progress, stop)

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
JobExecutor.execute = kill_or_execute
sys.argv[1:] = ["run"]
main()
"""


class Restarter:
    """Restarts the service whenever it dies, as systemd does."""

    def __init__(self, env: dict[str, str], killers: str, log: Path) -> None:
        self._command = [sys.executable, "-c", LAUNCHER, killers]
        self._env = env
        self._log = log
        self.ends: list[int] = []
        """How each run ended."""
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as out:
            return subprocess.Popen(self._command, env=self._env, stdout=out, stderr=out)

    def until(self, true: Callable[[], Any]) -> None:
        """Restart until the condition is true."""

        def look() -> bool:
            if true():
                return True
            if (status := self.process.poll()) is not None:
                self.ends.append(status)
                self.process = self._start()
            return False

        wait_for(look, seconds=60)

    def stop(self) -> None:
        """Stop the present run."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextmanager
def restarted(env: dict[str, str], *killers: str, log: Path) -> Iterator[Restarter]:
    service = Restarter(env, ",".join(killers), log)
    try:
        yield service
    finally:
        service.stop()


def done(spool: Path) -> list[str]:
    """Return the jobs in done/ by the uploads' stems."""
    return sorted(path.name.split("-")[0] for path in (spool / "done").iterdir())


def status(spool: Path, name: str) -> dict[str, Any]:
    """Return the status of an upload; {} if there is none yet."""
    path = spool / "status" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


def held(spool: Path, *names: str) -> bool:
    return all(status(spool, name).get("state") == "held" for name in names)


def answered_whole(spool: Path) -> bool:
    """Whether each published job has all its answers."""
    return all(
        [(r["row"], r["status"]) for r in results(job)] == [(n + 1, "ok") for n in range(ROWS)]
        for job in (spool / "done").iterdir()
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV], ids=["an administrator", "a driver"])
def test_healthy_jobs_survive_ten_deaths_without_progress(tmp_path: Path, death: signal.Signals) -> None:
    """If the service is killed 1 s after each READY=1, no job is held and all are answered in the end.

    The first kill waits until a job runs, which takes longer on a busy machine, because a death without a job
    does not count for one.
    """
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "log"
    for name in "abc":
        write_job(spool / "incoming", name, ROWS, SIDECAR)
    with (
        fake_ollama(None, "--latency-ms", "1500") as url,
        NotifySocket(tmp_path / "notify") as systemd,
    ):
        env = clean_env(spool, url)
        for number in range(KILLS):
            with daemon({**env, "NOTIFY_SOCKET": str(systemd.path)}, log=log) as process:
                systemd.wait_for("READY", "1", timeout_s=30)
                if number == 0:
                    wait_for(lambda: '"job.started"' in log.read_text())
                else:
                    time.sleep(1.0)
                process.send_signal(death)
                assert process.wait() == -death
        assert done(spool) == []
        with daemon(env, log=log):
            wait_for(lambda: done(spool) == ["a", "b", "c"], seconds=90)
    assert answered_whole(spool)
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    crashed = death == signal.SIGSEGV
    assert ("job.delayed" in events) == crashed, "crashes without progress were counted, kills were not"
    assert ("service.crashed" in events) == crashed
    assert "job.held_after_deaths" not in events


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_kills_the_service_is_held_and_released_by_the_named_command(
    tmp_path: Path,
) -> None:
    """A job that causes a SIGSEGV is held after three deaths, and is answered after its release and a fix."""
    spool = make_spool(tmp_path / "the spool")
    write_job(spool / "incoming", "killer", ROWS, FIRST)
    for name in "ab":
        write_job(spool / "incoming", name, ROWS, SIDECAR)
    with fake_ollama() as url:
        env = clean_env(spool, url)
        with restarted(env, "killer.csv", log=tmp_path / "log") as service:
            service.until(lambda: held(spool, "killer.csv") and done(spool) == ["a", "b"])
            assert service.ends == [-signal.SIGSEGV] * 3
        reason = status(spool, "killer.csv")["message"]
        assert reason.startswith("The service died 3 times while this job ran, without any progress")
        assert reason in (spool / "status" / "service.txt").read_text()
        subprocess.run(reason.rpartition("To run it again: ")[2], shell=True, check=True)
        after = run_once(env)
        assert after.returncode == 0, after.stderr
    assert done(spool) == ["a", "b", "killer"]
    assert answered_whole(spool)
    assert not list((spool / "failed").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("healthy", ["from the beginning", "later"])
def test_two_jobs_that_kill_are_held_once_another_job_shows_that_the_service_works(
    tmp_path: Path, healthy: str
) -> None:
    """Two jobs that both die take turns without a hold, until another job shows that the service works."""
    spool = make_spool(tmp_path / "spool")
    killers = ("k.csv", "l.csv")
    for name in "kl":
        write_job(spool / "incoming", name, ROWS, FIRST)
    if healthy == "from the beginning":
        write_job(spool / "incoming", "a", ROWS, SIDECAR)
    with (
        fake_ollama() as url,
        restarted(clean_env(spool, url), *killers, log=tmp_path / "log") as service,
    ):
        if healthy == "later":
            service.until(lambda: len(service.ends) == 8)
            assert not any(held(spool, name) for name in killers)
            write_job(spool / "incoming", "a", ROWS, SIDECAR)
        service.until(lambda: held(spool, *killers) and done(spool) == ["a"])
        assert set(service.ends) == {-signal.SIGSEGV}
        assert len(service.ends) >= 6
        if healthy == "from the beginning":
            assert len(service.ends) == 6
