"""The real `spoolama run` under systemd's protocol: a process, a notify socket, signals, an exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, results, run_once, wait_for, write_job
from support.notify_socket import NotifySocket

pytestmark = pytest.mark.slow

SIDECAR = "model: smollm2:135m\nprompt: '{{ text }}'\noptions: {num_predict: 16}\n"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return make_spool(tmp_path / "spool")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "notify") as socket:
        yield socket


def order(systemd: NotifySocket) -> list[str]:
    """Return the kinds of messages in order, without repetitions."""
    kinds = [next(iter(message)) for message in systemd.messages]
    return [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]


def asked(calls: Path) -> int:
    """Return the chat requests to the fake server."""
    return calls.read_bytes().count(b'{"event": "call", "path": "/api/chat"')


def test_the_protocol_from_ready_to_stopping(spool: Path, systemd: NotifySocket, tmp_path: Path) -> None:
    """The order is READY, STATUS, WATCHDOG, RELOADING with its time, READY, STOPPING, and the
    exit status is 0.
    """
    with fake_ollama(None, "--any-model", "--latency-ms", "20") as url:
        env = clean_env(spool, url, NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="400000")
        with daemon(env, log=tmp_path / "log") as process:
            systemd.wait_for("READY", "1")
            assert order(systemd) == ["READY"]
            systemd.wait_for("STATUS")
            systemd.wait_for("WATCHDOG", "1")
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            process.send_signal(signal.SIGHUP)
            reloading = systemd.wait_for("RELOADING", "1")
            systemd.wait_for("READY", "1")
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert before <= int(reloading["MONOTONIC_USEC"]) <= after
            write_job(spool / "incoming", "r", 60, SIDECAR)
            while "60 rows" not in systemd.wait_for("STATUS")["STATUS"]:
                pass
            wait_for(lambda: list((spool / "done").iterdir()))
            process.send_signal(signal.SIGTERM)
            systemd.wait_for("STOPPING", "1")
            assert process.wait(10) == 0
    (job,) = (spool / "done").iterdir()
    assert len(results(job)) == 60


def test_ready_is_sent_while_ollama_is_away(spool: Path, systemd: NotifySocket, tmp_path: Path) -> None:
    """The status says that the server is away, and a job waits for it."""
    env = clean_env(spool, "http://127.0.0.1:9", NOTIFY_SOCKET=str(systemd.path), SPOOLAMA_DRAIN_S="1")
    with daemon(env, log=tmp_path / "log"):
        systemd.wait_for("READY", "1")
        while "away" not in systemd.wait_for("STATUS")["STATUS"]:
            pass


def test_a_second_daemon_exits_75_and_names_the_first(
    spool: Path, systemd: NotifySocket, tmp_path: Path
) -> None:
    """A second daemon exits with 75, so that systemd may retry later."""
    env = clean_env(spool, "http://127.0.0.1:9")
    with daemon({**env, "NOTIFY_SOCKET": str(systemd.path)}, log=tmp_path / "log") as first:
        systemd.wait_for("READY", "1")
        second = run_once(env)
    assert second.returncode == 75
    assert f"pid {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"SPOOLAMA_LANES": "none"}, "SPOOLAMA_LANES: "),
        ({"SPOOLAMA_SPOOL": "nowhere"}, "spoolama init"),
    ],
)
def test_an_error_that_a_person_must_fix_exits_78(spool: Path, change: dict[str, str], expected: str) -> None:
    """An error that a person must fix exits with 78, so that systemd does not retry."""
    ended = run_once(clean_env(spool, "http://127.0.0.1:9", **change))
    assert ended.returncode == 78
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sigterm_drains_and_the_next_start_resumes(spool: Path, tmp_path: Path) -> None:
    """Rows in flight finish and are saved, and no row is asked twice."""
    calls = tmp_path / "calls"
    with fake_ollama(calls, "--any-model", "--latency-ms", "30") as url:
        env = clean_env(spool, url)
        write_job(spool / "incoming", "r", 60, SIDECAR)
        with daemon(env, log=tmp_path / "log") as process:
            wait_for(lambda: calls.exists() and asked(calls) > 10)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert not list((spool / "done").iterdir())
        assert run_once(env).returncode == 0
    (job,) = (spool / "done").iterdir()
    assert len(results(job)) == 60
    assert asked(calls) == 60


def test_a_second_signal_ends_the_service_at_once(spool: Path, tmp_path: Path) -> None:
    """A second signal ends the service at once."""
    calls = tmp_path / "calls"
    with fake_ollama(calls, "--any-model", "--latency-ms", "20000") as url:
        write_job(spool / "incoming", "r", 3, SIDECAR)
        with daemon(clean_env(spool, url), log=tmp_path / "log") as process:
            wait_for(lambda: calls.exists() and b"/api/chat" in calls.read_bytes())
            process.send_signal(signal.SIGINT)
            wait_for(lambda: "service.stopping" in (tmp_path / "log").read_text())
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == -signal.SIGINT


def test_the_example_in_the_help_works(tmp_path: Path) -> None:
    """The five lines in `spoolama --help` work as printed."""
    help_text = subprocess.run(
        [sys.executable, "-m", "spoolama", "--help"], capture_output=True, text=True, check=True,
        env=clean_env(tmp_path, ""),
    ).stdout  # fmt: skip
    lines = [line.split() for line in help_text.splitlines() if line.startswith("    spoolama ")]
    assert len(lines) == 5
    with fake_ollama(None, "--any-model") as url:
        env = clean_env(tmp_path, url)
        del env["SPOOLAMA_SPOOL"]
        for line in lines:
            subprocess.run(
                [sys.executable, "-m", *line], cwd=tmp_path, env=env, check=True, capture_output=True
            )
    (job,) = (tmp_path / "spool" / "done").iterdir()
    assert len(results(job)) == 20
