"""Hostile inputs through the running service: each ends with its words, and the next job begins in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, wait_for
from integration.hostile_cases import ANSWERS, CASES, LARGE, Case, blank_bomb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LANES = 16
NEXT_S = 30.0
"""A job dropped meanwhile starts this long after the hostile one met its limit, at the latest."""
ABOVE_IDLE_KB = 50 * 1024
EVALUATION_KB = 256 * 1024
STOP_S = 90.0
"""TimeoutStopSec of packaging/spoolama.service."""
PLAIN = {".yaml": b"model: m\nmode: isolated\nprompt: '{{ name }}'\n", ".csv": b"name\na\nb\n"}
FAKE = ("--model", '{"name": "m:latest", "context_length": 10000000}', "--slots", str(LANES))
BY_NAME = {case.name: case for case in (*CASES, *LARGE)}


def status_kb(pid: int, key: str) -> int:
    """A line of /proc/PID/status, in kB; 0 if the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    """The evaluation processes of a service."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    with contextlib.suppress(OSError):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass
class Watched:
    """A service and the most memory that it and its evaluation processes were seen to take, in kB."""

    process: subprocess.Popen[bytes]
    spool: Path
    log: Path
    idle: int = 0
    evaluation: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look at the evaluation processes until the service is stopped."""
        while not self._ended.wait(0.02):
            for child in children(self.process.pid):
                # Between fork and exec it is still a copy of the service.
                with contextlib.suppress(OSError):
                    if b"evaluation.child" in Path(f"/proc/{child}/cmdline").read_bytes():
                        self.evaluation = max(self.evaluation, status_kb(child, "VmHWM"))

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()

    @property
    def most(self) -> int:
        """The service's own peak since `forget`."""
        return status_kb(self.process.pid, "VmHWM")

    def forget(self) -> None:
        """Begin a new peak (proc(5): clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        self.evaluation = 0

    def busy(self) -> bool:
        """Whether an evaluation process has computed for more than its start takes."""
        return any(cpu_s(child) > 1.0 for child in children(self.process.pid))

    def started(self) -> bool:
        """Whether the service is at work."""
        return self.log.read_text().count("service.started") > 0


def drop(spool: Path, name: str, files: dict[str, bytes]) -> None:
    """Put files into incoming/, each at once."""
    for ending, content in files.items():
        part = spool / "incoming" / f".{name}{ending}.part"
        part.write_bytes(content)
        part.rename(spool / "incoming" / f"{name}{ending}")


def published(spool: Path, name: str) -> Path | None:
    """The directory in done/ or failed/ of the job that was dropped under this name."""
    found = [path for where in ("done", "failed") for path in (spool / where).glob(f"{name}-2*")]
    return found[0] if found else None


def outcome(job: Path) -> tuple[str, str]:
    """Code and message of the job's error or of its first failed row; empty if there is none."""
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


def held_up(found: Watched, case: Case) -> None:
    """Drop the case and a plain job behind it; both end as they must, in bounded time and memory."""
    spool = found.spool
    found.forget()
    drop(spool, case.name, case.files())
    wait_for(lambda: published(spool, case.name) or list((spool / "processing").glob(f"{case.name}-2*")))
    drop(spool, f"next-{case.name}", PLAIN)
    ends_in_time_and_memory(found, case)


def ends_in_time_and_memory(found: Watched, case: Case) -> None:
    """The case ends with its words and the job behind it is done, in bounded time and memory."""
    spool = found.spool
    job = wait_for(lambda: published(spool, case.name), seconds=60)
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
    """A fake that answers with the row, and with what the cases say."""
    arguments = [*FAKE, "--answer", "echo"]
    for row, answer in ANSWERS.items():
        arguments += ["--fault", json.dumps({"kind": "text", "contains": row, "body": answer})]
    return arguments


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A fake Ollama for all tests."""
    with fake_ollama(None, *fake_arguments()) as address:
        yield address


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Watched]:
    """One service that takes all the cases, one after another."""
    with service(tmp_path_factory.mktemp("hostile"), url) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_job_ends_with_its_words_and_the_next_one_begins(running: Watched, case: Case) -> None:
    """What a template, schema, score or sidecar does costs its own job only, in time and in memory."""
    held_up(running, case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_a_large_input_does_not_fill_the_memory_of_the_service(tmp_path: Path, url: str, case: Case) -> None:
    """Whatever the data file is, the service stays near what it takes idle."""
    with service(tmp_path, url) as found:
        held_up(found, case)


def test_a_large_answer_does_not_fill_the_memory_of_the_service(tmp_path: Path) -> None:
    """An answer of 2 MB is kept, and the service stays near what it takes idle."""
    side = (
        b"model: m\nmode: isolated\nprompt: '{{ name }}'\noptions: {num_ctx: 5000000, num_predict: 3000000}\n"
    )
    with fake_ollama(None, *FAKE, "--answer", "words:200000") as address:
        spool = make_spool(tmp_path / "spool")
        log = tmp_path / "log"
        log.write_text("")
        with daemon(clean_env(spool, address, SPOOLAMA_LANES=str(LANES)), log=log) as process:
            found = Watched(process, spool, log)
            wait_for(found.started)
            idle = status_kb(process.pid, "VmRSS")
            drop(spool, "large", {".yaml": side, ".csv": b"name\na\nb\nc\nd\n"})
            job = wait_for(lambda: published(spool, "large"))
            assert outcome(job) == ("", "")
            assert (job / "results.jsonl").stat().st_size > 4_000_000
            assert found.most - idle < ABOVE_IDLE_KB


def stop(found: Watched) -> float:
    """Send SIGTERM; seconds until the service has ended, in order."""
    began = time.monotonic()
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(STOP_S) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["freeze", "constant-power", "doubling-refs"])
def test_sigterm_ends_the_service_while_an_evaluation_runs(tmp_path: Path, url: str, name: str) -> None:
    """A template, a sidecar and a schema that are being evaluated do not hold up the stop."""
    case = BY_NAME[name]
    with service(tmp_path, url) as found:
        drop(found.spool, name, case.files())
        wait_for(found.busy)
        assert stop(found) < STOP_S
        assert children(found.process.pid) == []


def test_sigterm_ends_the_service_while_rows_are_read(tmp_path: Path, url: str) -> None:
    """A file that unpacks to 100 GB of rows does not hold up the stop; it waits for the next start."""
    with service(tmp_path, url) as found:
        drop(found.spool, "endless", blank_bomb(b'{"name": "a"}\n'))
        wait_for(lambda: "reading rows: " in (found.spool / "status" / "service.txt").read_text())
        assert stop(found) < 30.0
    assert list((found.spool / "processing").glob("endless-2*"))


class Restarts:
    """A spool whose service is killed and started again and again."""

    def __init__(self, tmp: Path, url: str) -> None:
        self._tmp, self._url = tmp, url
        self._stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        """Start the service on what the last one left."""
        self.found = self._stack.enter_context(service(self._tmp, self._url))

    def kill(self) -> None:
        """End the service by SIGKILL, and wait until its evaluation processes are gone too."""
        evaluations = children(self.found.process.pid)
        self.found.process.kill()
        self.found.process.wait()
        self.close()
        wait_for(lambda: not any(status_kb(child, "VmRSS") for child in evaluations))

    def close(self) -> None:
        """Stop the service, if it runs."""
        self._stack.close()


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Restarts]:
    """One spool on which a service is killed in each of the cases, one after another."""
    found = Restarts(tmp_path_factory.mktemp("killed"), url)
    yield found
    found.close()


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_after_kill_9_the_next_start_finishes_everything(restarts: Restarts, case: Case) -> None:
    """Killed while the hostile input is worked on, the service ends both jobs after its next start."""
    spool = restarts.found.spool
    drop(spool, case.name, case.files())
    if case.takes_seconds:
        wait_for(restarts.found.busy)
    else:
        wait_for(lambda: published(spool, case.name) or list((spool / "processing").glob(f"{case.name}-2*")))
    restarts.kill()
    drop(spool, f"next-{case.name}", PLAIN)
    restarts.start()
    ends_in_time_and_memory(restarts.found, case)


def say(*arguments: str, spool: Path) -> str:
    """What a command prints, in one line; it must end in time and without a traceback."""
    command = [sys.executable, "-m", "spoolama", *arguments]
    done = subprocess.run(
        command, env=clean_env(spool, ""), capture_output=True, text=True, timeout=60, check=False
    )
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert "Traceback" not in text
    return " ".join(text.split())


SAID = (
    *("freeze", "segv", "openai-schema", "constant-list", "sexagesimal", "many-problems"),
    *("timeout-1e300", "column-name", "zstd-bomb"),
)
"""Drops of every kind of error that is found before anything is asked."""


@pytest.mark.parametrize("name", SAID)
def test_check_and_submit_say_what_the_service_says(tmp_path: Path, name: str) -> None:
    """Both use the same process, end in time, and give the words of the service's error."""
    case = BY_NAME[name]
    spool = make_spool(tmp_path / "spool")
    drop_here = tmp_path / "mine"
    (drop_here / "incoming").mkdir(parents=True)
    drop(drop_here, case.name, case.files())
    (data,) = [path for path in (drop_here / "incoming").iterdir() if path.suffix != ".yaml"]
    for said in (
        say("check", str(data), spool=spool),
        say("submit", str(data), "--spool", str(spool), spool=spool),
    ):
        assert all(" ".join(words.split()) in said for words in case.words), said[:2000]
        assert len(said) < 100_000
    assert list((spool / "incoming").iterdir()) == []


def test_what_is_no_plain_sidecar_is_held_or_refused_unread(tmp_path: Path, url: str) -> None:
    """A sidecar of 1 TB, a FIFO, a link and a directory are not read, and hold up nothing."""
    with service(tmp_path, url) as found:
        spool, incoming = found.spool, found.spool / "incoming"
        found.forget()
        with (incoming / ".sparse.part").open("wb") as file:
            file.truncate(1 << 40)
        (incoming / ".sparse.part").rename(incoming / "sparse.yaml")
        os.mkfifo(incoming / "fifo.yaml")
        (incoming / "link.yaml").symlink_to("/dev/zero")
        (incoming / "directory.yaml").mkdir()
        names = ("sparse", "fifo", "link", "directory")
        for name in names:
            drop(spool, name, {".csv": b"name\na\n"})
        drop(spool, "next", PLAIN)
        assert wait_for(lambda: published(spool, "next"), seconds=NEXT_S).parent.name == "done"

        def settled() -> bool:
            text = (spool / "status" / "service.txt").read_text()
            sparse = published(spool, "sparse")
            if sparse is not None:
                assert "1,099,511,627,776 bytes" in outcome(sparse)[1]
            else:
                assert (incoming / "sparse.yaml").exists()
            held = [f"{name}.yaml" for name in names[1:]]
            return (sparse is not None or "sparse." in text) and all(name in text for name in held)

        wait_for(settled)
        assert found.most - found.idle < ABOVE_IDLE_KB
