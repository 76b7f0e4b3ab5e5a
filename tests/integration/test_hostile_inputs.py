"""Hostile inputs through the running service: each ends with its message, and the next job starts in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import clean_env, make_spool, wait_for
from integration.hostile_cases import CASES, Case, blank_bomb
from integration.hostile_service import (
    ABOVE_IDLE_KB,
    BY_NAME,
    NEXT_S,
    PLAIN,
    STOP_S,
    Watched,
    check_that_nothing_is_delayed,
    children,
    drop,
    outcome,
    published,
    service,
)
from support.thorough import cases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Watched]:
    """One service that processes all cases, one after another."""
    with service(tmp_path_factory.mktemp("hostile"), url) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_job_ends_with_its_message_and_the_next_one_starts(running: Watched, case: Case) -> None:
    """A hostile template, schema, score or sidecar fails only its own job, in bounded time and memory."""
    check_that_nothing_is_delayed(running, case)


def stop(found: Watched) -> float:
    """Send SIGTERM; return the seconds until the service has ended in order."""
    began = time.monotonic()
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(STOP_S) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["freeze", "constant-power", "doubling-refs"])
def test_sigterm_ends_the_service_while_an_evaluation_runs(tmp_path: Path, url: str, name: str) -> None:
    """A template, sidecar or schema that is being evaluated does not delay the stop."""
    case = BY_NAME[name]
    with service(tmp_path, url) as found:
        drop(found.spool, name, case.files())
        wait_for(found.busy)
        assert stop(found) < STOP_S
        assert children(found.process.pid) == []


def test_sigterm_ends_the_service_while_rows_are_read(tmp_path: Path, url: str) -> None:
    """A file that unpacks to 100 GB of rows does not delay the stop and waits for the next start."""
    with service(tmp_path, url) as found:
        drop(found.spool, "endless", blank_bomb(b'{"name": "a"}\n'))
        wait_for(lambda: "reading rows: " in (found.spool / "status" / "service.txt").read_text())
        assert stop(found) < 30.0
    assert list((found.spool / "processing").glob("endless-2*"))


def say(*arguments: str, spool: Path) -> str:
    """Return the output of a command in one line; it must end in time and without a traceback."""
    command = [sys.executable, "-m", "spoolama", *arguments]
    done = subprocess.run(
        command, env=clean_env(spool, ""), capture_output=True, text=True, timeout=60, check=False
    )
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert "Traceback" not in text
    return " ".join(text.split())


_SAID = ("freeze", "openai-schema", "many-problems", "zstd-bomb")
_MORE = ("segv", "column-name", "constant-list", "sexagesimal", "timeout-1e300")
SAID = cases(_SAID, (*_SAID, *_MORE))
"""Uploads with every kind of error that is found before a request."""


@pytest.mark.parametrize("name", SAID)
def test_check_and_submit_give_the_message_of_the_service(tmp_path: Path, name: str) -> None:
    """`check` and `submit` end in time and give the message of the service's error."""
    case = BY_NAME[name]
    spool = make_spool(tmp_path / "spool")
    drop_here = tmp_path / "mine"
    (drop_here / "incoming").mkdir(parents=True)
    drop(drop_here, case.name, case.files())
    (data,) = [path for path in (drop_here / "incoming").iterdir() if path.suffix != ".yaml"]
    for output in (
        say("check", str(data), spool=spool),
        say("submit", str(data), "--spool", str(spool), spool=spool),
    ):
        assert all(" ".join(words.split()) in output for words in case.words), output[:2000]
        assert len(output) < 100_000
    assert list((spool / "incoming").iterdir()) == []


def test_a_sidecar_that_is_not_a_plain_file_is_held_or_refused_unread(tmp_path: Path, url: str) -> None:
    """A sidecar of 1 TB, a FIFO, a link and a directory are not read and delay nothing."""
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
