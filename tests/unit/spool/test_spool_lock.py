"""One daemon on a spool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spoolama.errors import SpoolError, SpoolHeld
from spoolama.spool.layout import Spool
from spoolama.spool.lock import HOLDER_FILE, SpoolLock, boot_id, oom_kills

HOLDER = """
import subprocess, sys
from pathlib import Path
from spoolama.spool.layout import Spool
from spoolama.spool.lock import SpoolLock
lock = SpoolLock(Spool(Path(sys.argv[1])))
lock.acquire()
child = subprocess.Popen(["sleep", "600"], close_fds=False) if len(sys.argv) > 2 else None
print(child.pid if child else 0, flush=True)
sys.stdin.read()
"""


@contextmanager
def held(spool: Spool, *extra: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Another process that holds the spool, with the pid of its child if one was requested."""
    package = str(Path(__file__).parents[3] / "daemon")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(spool.root), *extra],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": package},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_the_second_daemon_gets_the_holder_of_the_spool(spool: Spool) -> None:
    """A second daemon fails at once with pid and host of the first and the exit status for a retry."""
    with held(spool) as (process, _):
        with pytest.raises(SpoolHeld, match=rf"pid {process.pid} on .* since \d{{4}}-") as caught:
            SpoolLock(spool).acquire()
        assert caught.value.exit_status == 75


def test_kill_9_gives_the_spool_back(spool: Spool) -> None:
    """After kill -9 the kernel gives the lock to the next process, even if a child still runs."""
    with held(spool, "with a child") as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            with SpoolLock(spool):
                body = json.loads((spool.status / HOLDER_FILE).read_bytes())
                assert body["pid"] == os.getpid()
        finally:
            os.kill(child, signal.SIGKILL)


def test_release_and_again(spool: Spool) -> None:
    """A released spool is free, and one process cannot lock it twice."""
    lock = SpoolLock(spool)
    with lock:
        for second in (lock, SpoolLock(spool)):
            with pytest.raises(SpoolHeld):
                second.acquire()
    assert not (spool.status / HOLDER_FILE).exists()
    lock.release()
    with SpoolLock(spool):
        pass


@pytest.mark.parametrize("note", [None, b"", b"[]", b'{"pid": 999999999, "host": "%s", "since": 0}'])
def test_a_stale_note_is_not_believed(spool: Spool, note: bytes | None) -> None:
    """If the note is missing, damaged or of a dead process, no process is named and the lock still works."""
    with SpoolLock(spool):
        path = spool.status / HOLDER_FILE
        path.unlink()
        if note is not None:
            path.write_bytes(note.replace(b"%s", os.uname().nodename.encode()))
        with pytest.raises(SpoolHeld, match="pid unknown"):
            SpoolLock(spool).acquire()


def test_no_spool(tmp_path: Path) -> None:
    """The error for a missing directory has the command that creates it, and a spool without
    status/ gets no lock.
    """
    with pytest.raises(SpoolError, match="spoolama init"):
        SpoolLock(Spool(tmp_path / "nowhere")).acquire()
    (tmp_path / "bare").mkdir()
    for _ in range(2):
        with pytest.raises(SpoolError, match="cannot be written"):
            SpoolLock(Spool(tmp_path / "bare")).acquire()


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("killed", "killed"),
        ("stopping", "stopping"),
        ("reboot", "released"),
        ("odd", "released"),
        ("error", "crashed"),
        ("signal", "crashed"),
        ("memory", "crashed"),
    ],
)
def test_the_next_process_knows_how_the_last_one_ended(spool: Spool, how: str, left: str) -> None:
    """The next process learns whether the last one was killed, killed while it stopped, or
    ended by a reboot.
    """
    with SpoolLock(spool) as lock:
        if how == "stopping":
            lock.note_stopping()
        if how == "error":
            lock.note_death()
        note = (spool.status / HOLDER_FILE).read_text()
    if how == "reboot":
        note = note.replace(boot_id(), "another boot")
    assert SpoolLock(spool).left == "released"
    if how == "signal":
        (spool.status / "crash.txt").write_text("Fatal Python error: Segmentation fault\n")
    if how == "memory":
        note = note.replace(f'"oom_kills": {oom_kills()}', '"oom_kills": -1')
    (spool.status / HOLDER_FILE).write_text("[]" if how == "odd" else note)
    with SpoolLock(spool) as after:
        assert after.left == left
        assert after.crash_trace.startswith("Fatal" if how == "signal" else "")
    (spool.status / "crash.txt").unlink(missing_ok=True)
    with SpoolLock(spool) as last:
        assert last.left == "released"
