"""The wrapper of sdnotify: UTF-8, never blocking, never raising."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from spoolama.service.systemd import Notifier, watchdog_interval
from support.notify_socket import NotifySocket


def test_a_status_beyond_latin_1_arrives_as_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is sent as UTF-8, because latin-1 would clear the unit's status."""
    with NotifySocket(tmp_path / "n") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
        notifier = Notifier()
        notifier.status("Bewerber ä, 候補者 … and\na line end \udcff")
        assert systemd.wait_for("STATUS")["STATUS"] == "Bewerber ä, 候補者 … and a line end \\udcff"
        notifier.close()


def test_a_full_queue_neither_blocks_nor_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full socket queue neither blocks nor raises."""
    with NotifySocket(tmp_path / "n") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
        notifier = Notifier()
        began = time.monotonic()
        while not notifier.lost and time.monotonic() - began < 5:
            notifier.watchdog()
        assert notifier.lost == 1
        notifier.close()


@pytest.mark.parametrize("address", [None, "gone"])
def test_without_systemd_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """The service runs without a socket, or with one that no longer exists."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": str(tmp_path / address)})
    notifier.ready()
    assert notifier.lost == 0
    notifier.close()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_pings_come_twice_as_often_as_asked(env: dict[str, str], expected: float | None) -> None:
    """Pings are sent at half the interval, and only by the process that systemd names."""
    assert watchdog_interval(env) == expected
