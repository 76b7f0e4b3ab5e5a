"""Helpers that run the real service and the fake server as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spoolama.spool.layout import Spool

DAEMON = Path(__file__).parents[1] / "daemon"


def clean_env(spool: Path, url: str, **more: str) -> dict[str, str]:
    """Return the environment of a service on this spool and server, without the machine's own settings."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SPOOLAMA_", "NOTIFY_", "WATCHDOG_", "JOURNAL_"))
    }
    env |= {
        "PYTHONPATH": str(DAEMON),
        "SPOOLAMA_SPOOL": str(spool),
        "SPOOLAMA_BACKEND__URL": url,
        "SPOOLAMA_QUIET_S": "0.2",
        "SPOOLAMA_RESCAN_S": "1",
        "SPOOLAMA_MIN_FREE_BYTES": "0",
    }
    return env | more


@contextlib.contextmanager
def fake_ollama(log: Path | None = None, *arguments: str) -> Iterator[str]:
    """Run a fake Ollama as a process; return its URL."""
    command = [sys.executable, "-m", "support.fake_ollama", "--exit-with-stdin", *arguments]
    if log is not None:
        command += ["--call-log", str(log)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(DAEMON), str(DAEMON.parent / "tests")])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            url = server.stdout.readline().strip()
            assert url, "the fake server did not start"
            yield url
        finally:
            server.stdin.close()
            server.wait(10)


@contextlib.contextmanager
def daemon(
    env: dict[str, str], *, log: Path, command: Sequence[str] = ("spoolama", "run")
) -> Iterator[subprocess.Popen[bytes]]:
    """A running service, which is stopped at the end."""
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=out, stderr=out)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def run_once(env: dict[str, str], *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Process everything in the spool."""
    return subprocess.run(
        [sys.executable, "-m", "spoolama", "run", "--once"],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def wait_for(what: Any, *, seconds: float = 100.0, every: float = 0.02) -> Any:
    """Return the callable's result once it is true; fail with its last value."""
    until = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {value!r}")
        time.sleep(every)
    return value


def make_spool(path: Path) -> Path:
    """Create a spool, as `spoolama init` does."""
    Spool(path).create()
    return path


def write_job(directory: Path, name: str, rows: int, sidecar: str) -> None:
    """Write a CSV of numbered rows and its sidecar."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["text"] + [f"row {i} {'x' * (i % 7)}" for i in range(rows)]
    (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (directory / f"{name}.yaml").write_text(sidecar)


def results(job: Path) -> list[dict[str, Any]]:
    """Return the lines of a published results.jsonl."""
    return [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
