"""Helpers: a service that processes hostile inputs, and the checks of each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemons import clean_env, daemon, make_spool, wait_for
from integration.hostile_cases import ALL_CASES, ANSWERS, LARGE, Case

LANES = 16
NEXT_S = 30.0
"""A job dropped meanwhile is done at most this long after the hostile one hit its limit. It takes 2 s on an
idle machine, which leaves room for parallel tests on a slow one.
"""
ABOVE_IDLE_KB = 50 * 1024
EVALUATION_KB = 256 * 1024
STOP_S = 90.0
"""TimeoutStopSec of packaging/spoolama.service."""
PLAIN = {".yaml": b"model: m\nmode: isolated\nprompt: '{{ name }}'\n", ".csv": b"name\na\nb\n"}
FAKE = ("--model", '{"name": "m:latest", "context_length": 10000000}', "--slots", str(LANES))
BY_NAME = {case.name: case for case in (*ALL_CASES, *LARGE)}


def status_kb(pid: int, key: str) -> int:
    """Return a value of /proc/PID/status in kB; 0 if the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    """Return the evaluation processes of a service."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process."""
    with contextlib.suppress(OSError):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass
class Watched:
    """A service and the largest memory of it and of its evaluation processes, in kB."""

    process: subprocess.Popen[bytes]
    spool: Path
    log: Path
    idle: int = 0
    evaluation: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Read the evaluation processes until the service is stopped."""
        while not self._ended.wait(0.02):
            for child in children(self.process.pid):
                # Between fork and exec it is still a copy of the service.
                with contextlib.suppress(OSError):
                    if b"evaluation.child" in Path(f"/proc/{child}/cmdline").read_bytes():
                        self.evaluation = max(self.evaluation, status_kb(child, "VmHWM"))

    def end(self) -> None:
        """Stop reading."""
        self._ended.set()

    @property
    def most(self) -> int:
        """Return the service's own peak since `forget`."""
        return status_kb(self.process.pid, "VmHWM")

    def forget(self) -> None:
        """Start a new peak (proc(5): clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        self.evaluation = 0

    def busy(self) -> bool:
        """Whether an evaluation process has computed for longer than its start takes."""
        return any(cpu_s(child) > 1.0 for child in children(self.process.pid))

    def started(self) -> bool:
        """Whether the service has started."""
        return self.log.read_text().count("service.started") > 0


def drop(spool: Path, name: str, files: dict[str, bytes]) -> None:
    """Put files into incoming/, each atomically."""
    for ending, content in files.items():
        part = spool / "incoming" / f".{name}{ending}.part"
        part.write_bytes(content)
        part.rename(spool / "incoming" / f"{name}{ending}")


def published(spool: Path, name: str) -> Path | None:
    """Return the directory in done/ or failed/ of the job that was uploaded under this name."""
    found = [path for where in ("done", "failed") for path in (spool / where).glob(f"{name}-2*")]
    return found[0] if found else None


def outcome(job: Path) -> tuple[str, str]:
    """Return code and message of the job's error or of its first failed row, or empty strings."""
    if (job / "error.json").exists():
        error = json.loads((job / "error.json").read_text())
        return error["code"], error["message"]
    lines = (job / "errors.jsonl").read_text().splitlines()
    if not lines:
        return "", ""
    first: dict[str, Any] = json.loads(lines[0])
    note = first.get("_spoolama") or first["error"]
    return note["code"], note["message"]


@contextlib.contextmanager
def service(tmp: Path, url: str) -> Iterator[Watched]:
    """A service on this spool that has done one job and is idle."""
    spool, log = tmp / "spool", tmp / "log"
    if not spool.exists():
        make_spool(spool)
    log.write_text("")
    env = clean_env(spool, url, SPOOLAMA_LANES=str(LANES))
    with daemon(env, log=log) as process:
        found = Watched(process, spool, log)
        wait_for(found.started)
        thread = threading.Thread(target=found.watch)
        thread.start()
        try:
            drop(spool, f"first-{process.pid}", PLAIN)
            wait_for(lambda: published(spool, f"first-{process.pid}"))
            found.idle = status_kb(process.pid, "VmRSS")
            yield found
        finally:
            found.end()
            thread.join()


def check_that_nothing_is_delayed(found: Watched, case: Case) -> None:
    """Upload the case and a plain job after it; both must end as expected, in bounded time and memory."""
    spool = found.spool
    found.forget()
    drop(spool, case.name, case.files())
    wait_for(lambda: published(spool, case.name) or list((spool / "processing").glob(f"{case.name}-2*")))
    drop(spool, f"next-{case.name}", PLAIN)
    ends_in_time_and_memory(found, case)


def ends_in_time_and_memory(found: Watched, case: Case) -> None:
    """Check that the case ends with its message and the next job is done, in bounded time and memory."""
    spool = found.spool
    job = wait_for(lambda: published(spool, case.name), seconds=150)
    after = wait_for(lambda: published(spool, f"next-{case.name}"), seconds=NEXT_S)
    assert after.parent.name == "done"
    code, message = outcome(job)
    assert code == case.code, message
    assert all(words in message for words in case.words), message
    assert sum(path.stat().st_size for path in job.glob("error.json")) < 100_000
    assert found.process.poll() is None
    assert found.evaluation < EVALUATION_KB
    assert found.most - found.idle < ABOVE_IDLE_KB


def fake_arguments() -> list[str]:
    """A fake that answers with the row, or as the cases say."""
    arguments = [*FAKE, "--answer", "echo"]
    for row, answer in ANSWERS.items():
        arguments += ["--fault", json.dumps({"kind": "text", "contains": row, "body": answer})]
    return arguments
