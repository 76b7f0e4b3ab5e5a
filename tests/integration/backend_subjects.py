"""The backends under the contract, and the actions of the contract on their servers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoolama.backends.base import Backend, ChatRequest, LoadSpec, Message, Reply
from spoolama.backends.embedded import EmbeddedBackend
from spoolama.backends.ollama import OllamaBackend
from spoolama.backends.openai import OpenAIBackend
from spoolama.clock import SystemClock
from support.fake_ollama import FakeOllama, Fault, Latency, Script

SYSTEM = Message(
    "system",
    "You judge the sentiment of a product review. Answer with one word: positive, negative or neutral. "
    "Look at what the customer says about the product, not at the mood of the words.",
)


def common_beginning(texts: Sequence[str]) -> str:
    """Return the common beginning of all texts."""
    first, last = min(texts), max(texts)
    size = next(
        (n for n, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first)
    )
    return first[:size]


@dataclass
class Subject:
    """A backend under the contract, with actions on its server."""

    backend: Backend
    spec: LoadSpec
    kill: Callable[[], None]
    """Kill the process that holds the model."""
    holds_memory: Callable[[], bool]
    """Whether a model is loaded."""
    loads: Callable[[], Any]
    """A value that changes with every load."""
    busy: Callable[[], Awaitable[bool]]
    """Whether the server works on a request."""

    async def until_busy(self) -> None:
        """Wait until the server processes a request."""
        async with asyncio.timeout(20):
            while not await self.busy():
                await asyncio.sleep(0.01)

    async def ask(self, *texts: str, num_predict: int = 8, slot: int = 0, **more: Any) -> Reply:
        """A request with the system message, alternating turns of user and assistant, and the
        answer's limit.
        """
        return await self.backend.chat(self.request(*texts, num_predict=num_predict, slot=slot, **more))

    def request(self, *texts: str, num_predict: int = 8, slot: int = 0, **more: Any) -> ChatRequest:
        turns = tuple(Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts))
        sampling = {"temperature": 0, "seed": 7, **more.pop("sampling", {})}
        return ChatRequest(self.spec, (SYSTEM, *turns), num_predict, sampling, slot=slot, **more)

    def endless(self, *, slot: int, timeout_s: float = 60.0) -> ChatRequest:
        """A request that runs far longer than any test waits."""
        return self.request(
            "Write forever.", num_predict=800, slot=slot, timeout_s=timeout_s, sampling={"ignore_eos": True}
        )


class Bench:
    """Subjects on one event loop, made at their first use and kept for the module."""

    def __init__(self, cache_dir: Path) -> None:
        self.runner = asyncio.Runner()
        self._cache_dir = cache_dir
        self._subjects: dict[str, Subject] = {}
        self._server: FakeOllama | None = None
        self._owner: EmbeddedBackend | None = None

    def run(self, name: str, behaviour: Callable[[Subject], Awaitable[None]]) -> None:
        self.runner.run(self._run(name, behaviour))

    async def _run(self, name: str, behaviour: Callable[[Subject], Awaitable[None]]) -> None:
        if name not in self._subjects:
            make = {"ollama": self._fake, "openai": self._behind_openai}.get(name, lambda: self._real(name))
            self._subjects[name] = await make()
        subject = self._subjects[name]
        await subject.backend.load(subject.spec)
        await behaviour(subject)

    async def _fake(self) -> Subject:
        script = Script(
            slots=2,
            latency=Latency(request_s=0.005),
            faults=[Fault("hang", contains="Write forever.")],
            labels=["one two three four"],
        )
        server = self._server = FakeOllama(script)
        await server.start()

        async def busy() -> bool:
            return server.in_flight > 0

        return Subject(
            backend=OllamaBackend(server.url, clock=SystemClock()),
            spec=LoadSpec("smollm2:135m", 1024, slots=2),
            kill=server.kill_runners,
            holds_memory=lambda: bool(server.loaded),
            loads=lambda: server.loads,
            busy=busy,
        )

    async def _real(self, model: str) -> Subject:
        backend = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=self._cache_dir)

        def kill() -> None:
            assert backend.pid is not None
            os.kill(backend.pid, signal.SIGKILL)

        return Subject(
            backend=backend,
            spec=LoadSpec(model, 1024, slots=2),
            kill=kill,
            holds_memory=lambda: backend.pid is not None,
            loads=lambda: backend.pid,
            busy=lambda: _works(backend),
        )

    async def _behind_openai(self) -> Subject:
        """Talk to the engine of an embedded backend as to any llama-server."""
        owner = self._owner = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=self._cache_dir)
        await owner.load(LoadSpec("smollm2:135m", 1024, slots=2))
        assert owner._http is not None
        key = owner._http._client.headers["authorization"].removeprefix("Bearer ")
        models = await owner._http.get("/v1/models", timeout_s=10)
        return Subject(
            backend=OpenAIBackend(f"{owner._http.url}/v1", api_key=key, clock=SystemClock()),
            spec=LoadSpec(models.payload["data"][0]["id"], 1024, slots=2),
            kill=lambda: None,
            holds_memory=lambda: True,
            loads=lambda: None,
            busy=lambda: _works(owner),
        )

    async def close(self) -> None:
        for subject in self._subjects.values():
            await subject.backend.aclose()
        if self._owner is not None:
            await self._owner.aclose()
        if self._server is not None:
            await self._server.stop()


async def _works(engine: EmbeddedBackend) -> bool:
    """Whether a slot of the llama-server in an embedded engine is in use."""
    assert engine._http is not None
    slots = await engine._http.get("/slots", timeout_s=10)
    return any(slot["is_processing"] for slot in slots.payload)
