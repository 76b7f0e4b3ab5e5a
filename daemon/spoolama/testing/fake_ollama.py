"""A fake Ollama over real loopback HTTP, in process or as a process (`python -m spoolama.testing.fake_ollama`)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from spoolama.testing.fake_ollama_script import Call, Script

__all__ = ["FakeOllama"]


class FakeOllama:
    """A server on a loopback port that answers as a scripted Ollama.

    Args:
        script: What it does; the default answers every chat at once with one of three labels.
        port: 0 for a free one.
        call_log: Where each call is appended as JSON lines, the line before the answer.
    """

    def __init__(self, script: Script | None = None, *, port: int = 0, call_log: Path | None = None) -> None:
        self.script = script or Script()
        self.calls: list[Call] = []

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        raise NotImplementedError

    async def start(self) -> None:
        """Listen."""

    async def stop(self) -> None:
        """Stop listening and drop every connection: the server is away. `start` brings it back on its port."""

    async def __aenter__(self) -> FakeOllama:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
