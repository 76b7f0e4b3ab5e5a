"""Wake-ups by the real watchdog, for every way a file arrives and every way a watch ends."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoolama.spool.watch import DirectoryEvents

WAIT_S = 10.0


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def watch(tmp_path: Path, woken: threading.Event) -> Iterator[DirectoryEvents]:
    """A running watch on tmp_path/incoming."""
    (tmp_path / "incoming").mkdir()
    made = DirectoryEvents(tmp_path / "incoming", woken.set)
    yield made
    made.stop()


def write(incoming: Path) -> None:
    (incoming / "a.csv").write_bytes(b"x")


def move_in(incoming: Path) -> None:
    (incoming.parent / "a.csv").write_bytes(b"x")
    (incoming.parent / "a.csv").rename(incoming / "a.csv")


def move_within(incoming: Path) -> None:
    (incoming / ".a.csv").rename(incoming / "a.csv")


def link(incoming: Path) -> None:
    os.link(incoming / ".a.csv", incoming / "a.csv")


def take_away(incoming: Path) -> None:
    (incoming / ".a.csv").unlink()


@pytest.mark.parametrize("arrive", [write, move_in, move_within, link, take_away])
def test_every_way_of_arriving_wakes(
    tmp_path: Path, watch: DirectoryEvents, woken: threading.Event, arrive: Callable[[Path], None]
) -> None:
    """A file that is written, moved in, renamed or hard-linked (SFTP's rename) wakes the service."""
    (tmp_path / "incoming" / ".a.csv").write_bytes(b"x")
    assert watch.start()
    assert not woken.is_set()
    arrive(tmp_path / "incoming")
    assert woken.wait(WAIT_S)
    assert watch.healthy()
    assert watch.trouble is None


def test_scanning_does_not_wake(tmp_path: Path) -> None:
    """Our own scan, which lists and reads, does not wake the service."""
    incoming, woken = tmp_path, threading.Event()
    wakes: list[int] = []

    def count() -> None:
        wakes.append(1)
        if (incoming / "b.csv").exists():
            woken.set()

    (incoming / "a.csv").write_bytes(b"x")
    watch = DirectoryEvents(incoming, count)
    assert watch.start()
    try:
        (incoming / "a.csv").read_bytes()
        assert len(list(incoming.iterdir())) == 1
        # Events are ordered, so events of the reading would come before that of c.csv.
        (incoming / "b.csv").mkdir()
        (incoming / "c.csv").touch()
        assert woken.wait(WAIT_S)
    finally:
        watch.stop()
    assert len(wakes) <= 2  # c.csv was created and closed


def test_a_handler_that_raises_does_not_end_the_wakeups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in on_wake is logged, and the next event still wakes."""
    calls = threading.Semaphore(0)

    def fail() -> None:
        calls.release()
        raise ValueError("nobody listens")

    watch = DirectoryEvents(tmp_path, fail)
    assert watch.start()
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / f"{name}.csv").touch()
            assert calls.acquire(timeout=WAIT_S)
        assert watch.healthy()
    finally:
        watch.stop()
    assert "a wake-up failed" in caplog.text


def until(true: Callable[[], bool]) -> bool:
    """Wait until other threads make this true."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("way", ["replaced", "moved away", "removed"])
def test_a_replaced_directory_is_detected(
    tmp_path: Path, watch: DirectoryEvents, woken: threading.Event, way: str
) -> None:
    """A watch on a replaced directory is unhealthy, and a restart repairs it."""
    incoming = tmp_path / "incoming"
    assert watch.start()
    if way == "moved away":
        incoming.rename(tmp_path / "old")
    else:
        shutil.rmtree(incoming)
    if way != "removed":
        incoming.mkdir()
    assert until(lambda: not watch.healthy())
    assert watch.trouble == "the watch on the directory ended"
    if way == "removed":
        assert not watch.start()
        assert watch.trouble is not None
        assert "cannot be watched" in watch.trouble
        incoming.mkdir()
    assert watch.start()
    woken.clear()
    write(incoming)
    assert woken.wait(WAIT_S)


def test_a_dead_thread_is_detected(watch: DirectoryEvents) -> None:
    """If the thread that reads for the observer is dead, the watch is unhealthy."""
    assert watch.start()
    assert watch._observer is not None
    for emitter in watch._observer.emitters:
        emitter.stop()
    assert until(lambda: not watch.healthy())
    assert watch._observer.is_alive()


def test_not_started_and_stopped(watch: DirectoryEvents) -> None:
    """Before the start and after the stop there are no wake-ups, and a second stop is no error."""
    assert (watch.healthy(), watch.trouble) == (False, "not started")
    assert watch.start()
    watch.stop()
    watch.stop()
    assert (watch.healthy(), watch.trouble) == (False, "stopped")


def test_a_refused_watch_is_no_error(
    watch: DirectoryEvents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unreadable directory or a lack of watches is reported, and the rescan replaces the watch."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert not watch.start()
    assert watch.trouble is not None
    assert "Permission denied" in watch.trouble
