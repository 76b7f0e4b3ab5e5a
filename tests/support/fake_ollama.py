"""A fake Ollama over real loopback HTTP, in process or on its own (`python -m support.fake_ollama`).

It follows replies recorded from a real one (status, keys, texts), and counts tokens, cached tokens and loads
by the rules in `fake_ollama_engine`. A `Script` defines what it does and may change while it runs::

    async with FakeOllama(Script(slots=4, faults=[Fault("reset", calls=[3])])) as server:
        backend = OllamaBackend(server.url, clock=SystemClock())

It needs `h11`, a dependency of httpx.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from types import TracebackType

from support.fake_ollama_checks import find_model
from support.fake_ollama_http import HttpServer
from support.fake_ollama_log import CallLog
from support.fake_ollama_routes import Routes
from support.fake_ollama_script import (
    GEMMA3,
    SMOLLM2,
    Answer,
    Asked,
    Call,
    FakeModel,
    Fault,
    Latency,
    Script,
)

__all__ = [
    "GEMMA3",
    "SMOLLM2",
    "Answer",
    "Asked",
    "Call",
    "FakeModel",
    "FakeOllama",
    "Fault",
    "Latency",
    "Script",
]


class FakeOllama:
    """A server on a loopback port that answers as a scripted Ollama.

    Args:
        script: What it does; the default answers every chat at once with one of three labels.
        port: 0 for a free one.
        call_log: Where each call is appended as JSON lines, before it is answered (`CallLog`).
        keep: How many calls `calls` keeps; None: all.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        port: int = 0,
        call_log: Path | None = None,
        keep: int | None = None,
    ) -> None:
        self.script = script or Script()
        self._kept: deque[Call] = deque(maxlen=keep)
        self._log = CallLog(call_log) if call_log is not None else None
        self._arrived = asyncio.Event()
        self._total = 0
        self._routes = Routes(self.script, received=self._received, ended=self._ended)
        self._server = HttpServer(self._routes.handle, port=port)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, after the start."""
        return self._server.url

    @property
    def calls(self) -> list[Call]:
        """Every chat and generate call in the order received, broken ones included."""
        return list(self._kept)

    @property
    def chats(self) -> list[Call]:
        """Those of `/api/chat` that had messages."""
        return [call for call in self._kept if call.path == "/api/chat" and call.messages]

    @property
    def loads(self) -> list[tuple[str, int]]:
        """Name and window of every load, in order."""
        return list(self._routes.engine.loads)

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded models."""
        return list(self._routes.engine.runners)

    @property
    def in_flight(self) -> int:
        """Calls that use a slot now."""
        return self._routes.generator.in_flight

    @property
    def peak_in_flight(self) -> int:
        """The largest number of calls that used a slot at once."""
        return self._routes.generator.peak_in_flight

    def kill_runners(self) -> None:
        """Kill every model process: calls in flight get status 500, and the next ones load again."""
        for runner in list(self._routes.engine.runners.values()):
            self._routes.engine.kill(runner)

    def evict(self, name: str) -> None:
        """Unload a model, as another client does."""
        self._routes.engine.unload(name)

    def reload(self, name: str, num_ctx: int) -> None:
        """Load a model with another window at once, as another client does; calls in flight finish.

        The next request with its own options is a reload again, as its `load_duration` shows.
        """
        self._routes.engine.reload(find_model(self.script, name), num_ctx)

    async def wait_for_calls(self, count: int) -> None:
        """Wait for this many chat and generate calls since the start."""
        while self._total < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening and break every connection, so that the server is away and its models
        are unloaded.
        """
        await self._server.stop()
        self.kill_runners()

    async def __aenter__(self) -> FakeOllama:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._log is not None:
            self._log.close()

    def _received(self, call: Call) -> None:
        self._kept.append(call)
        self._total += 1
        if self._log is not None:
            self._log.received(call)
        self._arrived.set()

    def _ended(self, call: Call) -> None:
        if self._log is not None:
            self._log.ended(call)


if __name__ == "__main__":
    from support.fake_ollama_main import main

    main()
