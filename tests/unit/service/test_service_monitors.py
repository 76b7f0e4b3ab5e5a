"""The release of models while no job runs, and which servers are on this machine."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from spoolama.errors import ServerBusy
from spoolama.service import monitors
from spoolama.service.assembly import server_is_here
from spoolama.service.monitors import ModelReleaser
from spoolama.service.settings import BackendSection
from spoolama.service.state import ServerState, ServiceState
from support.backend import ScriptedBackend
from support.hand_clock import HandClock


class _Refusing(ScriptedBackend):
    """Refuses the first releases."""

    refusals = 3
    tried: int = 0

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        self.tried += 1
        if self.tried <= self.refusals:
            raise ServerBusy("503")
        return await super().release(keep=keep)


def test_a_failed_release_is_tried_each_minute_and_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed release is tried each minute and reported once, and the next idle time starts again."""
    events: list[str] = []
    monkeypatch.setattr(monitors, "say", lambda event, **_: events.append(event))
    clock = HandClock()
    server = _Refusing(clock)
    state = ServiceState(clock, ServerState("ollama", "x"))
    tried_at: list[int] = []

    async def work() -> None:
        releaser = ModelReleaser(server, state, clock, asyncio.Lock(), after_s=300.0)
        state.idle_since = clock.monotonic() + 1
        for second in range(3600):
            before = server.tried
            await releaser.release_if_due()
            tried_at.extend([second] * (server.tried - before))
            clock.move(1.0)

    asyncio.run(work())
    assert tried_at == [301, 361, 421, 481]
    assert events == ["models.release_failed", "models.released"]


class _Hanging(ScriptedBackend):
    """Never answers a release."""

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


def test_a_server_that_hangs_delays_a_release_by_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release has its own timeout, so that a server that hangs does not stop the service's pings."""
    events: list[str] = []
    monkeypatch.setattr(monitors, "say", lambda _, error: events.append(error))
    monkeypatch.setattr(monitors, "_ANSWER_S", 0.02)
    assert asyncio.run(monitors.release(_Hanging(HandClock()))) is False
    assert events == ["no answer in 0 s"]


def _own_address() -> str:
    """Return an address of this machine, chosen by the kernel; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("0.0.0.0", True),
        ("[::]", True),
        ("[::1]", True),
        ("localhost", True),
        (_own_address(), True),
        ("192.0.2.1", False),
        ("[2001:db8::1]", False),
        ("gpu.example", False),
    ],
)
def test_a_server_at_any_address_of_this_machine_is_local(host: str, here: bool) -> None:
    """A server at any address of this machine, in any spelling, is local."""
    section: Any = BackendSection(kind="ollama", url=f"http://{host}:11434")
    assert server_is_here(section) is here
