"""Starts, monitors and stops the process of the embedded engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spoolama.backends.http import excerpt
from spoolama.backends.replies import is_out_of_memory
from spoolama.errors import BackendError, OutOfMemory, RequestRefused, ServerDied, Stalled

TAIL_BYTES = 16 * 1024
STOP_TIMEOUT_S = 5.0


class EngineProcess:
    """A child process that holds one model.

    Args:
        process: The child, started by `start`.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail = bytearray()
        self._reader = asyncio.create_task(self._read_stderr(), name="embedded-stderr")
        self.url = ""
        self.copies: str | None = None
        """Name of the file that slots can be saved to; None: not supported."""

    @classmethod
    async def start(cls, given: Mapping[str, Any], *, timeout_s: float) -> EngineProcess:
        """Start a child and wait until it serves requests.

        Raises:
            RequestRefused: the child reports that the model cannot be loaded.
            ServerDied: the child ended without a report.
        """
        child = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "spoolama.backends.embedded_child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,  # Ctrl-C reaches only the parent, which then stops the child
                env=_environment(),
            )
        )
        try:
            child.url, child.copies = await child._hello(given, timeout_s)
        except BaseException:
            await child.stop()
            raise
        return child

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    async def ended_within(self, seconds: float) -> bool:
        """Whether it ends in that time: a connection breaks before the exit of the process is visible."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def death(self) -> ServerDied:
        """Return the error to raise for a process that has ended."""
        await self._process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(self._reader)
        code = self._process.returncode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        # After SIGKILL the log does not contain the reason.
        said = "" if code == -signal.SIGKILL else self._last_words()
        message = f"the embedded engine ended ({how}){f': {said}' if said else ''}"
        if is_out_of_memory(self._text()):
            return OutOfMemory(message)
        return ServerDied(message)

    async def stop(self) -> None:
        """End the process: close its stdin, then kill it. Its memory is free when this returns."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
            with suppress(OSError):
                await stdin.wait_closed()
        if not await self.ended_within(STOP_TIMEOUT_S):
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reader

    async def _hello(self, given: Mapping[str, Any], timeout_s: float) -> tuple[str, str | None]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                with suppress(OSError):
                    stdin.write(json.dumps(given).encode() + b"\n")
                    await stdin.drain()
                line = await stdout.readline()
        except TimeoutError:
            raise Stalled(f"the embedded engine did not load the model within {timeout_s:g} s") from None
        try:
            answer = json.loads(line)
        except ValueError:
            raise await self.death() from None
        if "url" in answer:
            return str(answer["url"]), answer.get("copies")
        raise self._refusal(str(answer.get("error")))

    def _refusal(self, error: str) -> BackendError:
        if is_out_of_memory(f"{error}\n{self._text()}"):
            return OutOfMemory(f"not enough memory to load this model in the embedded engine: {error}")
        if "No module named" in error:
            return RequestRefused(
                f"the embedded engine is not installed: {error}",
                fix="Install it: pip install 'spoolama[embedded]'",
            )
        said = self._last_words()
        return RequestRefused(
            f"the embedded engine cannot load this model: {error}{f': {said}' if said else ''}",
            fix="Check that the file is a complete GGUF file of a model that llama.cpp supports.",
        )

    async def _read_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while block := await stderr.read(TAIL_BYTES):
            self._tail += block
            del self._tail[:-TAIL_BYTES]

    def _text(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def _last_words(self) -> str:
        """Return the last errors in its log (`0.04.943.352 E srv ...`), or else the last lines."""
        lines = [line for line in self._text().splitlines() if line.strip()]
        errors = [line for line in lines if line.split(" ")[1:2] == ["E"]]
        return excerpt("; ".join((errors or lines)[-2:]), 400)


def _environment() -> dict[str, str]:
    """Return our environment with a PYTHONPATH in which the child finds this package."""
    root = str(Path(__file__).parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
