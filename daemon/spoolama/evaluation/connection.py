"""Starts one evaluation process, exchanges requests with it over a socket, and explains why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from spoolama.evaluation.protocol import HEADER, MAX_REPLY_BYTES, frame

KILLED = "was killed (SIGKILL, by the kernel where memory runs out)"


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Limits of a task."""

    memory_bytes: int = 240_000_000
    """Address space of the whole process; about 50 MB are in use at its start."""
    wall_factor: float = 5.0
    """Wall time of a request as a multiple of its CPU time, because other processes also use the CPUs."""
    wall_spare_s: float = 10.0
    """Additional wall time of a request in seconds."""
    start_s: float = 60.0
    """Timeout for the start in seconds; imports take 1 s on an idle machine."""


class ProcessEnded(Exception):
    """The process ended.

    Args:
        why: Text that continues a sentence naming the task; None if the task may not be the cause.
        outside: Text about the end, if something outside the process ended it.
        by_time: Whether a limit of the task itself ended it, independent of earlier tasks.
    """

    def __init__(self, why: str | None, outside: str = "", *, by_time: bool = False) -> None:
        super().__init__(why or outside)
        self.why = why
        self.outside = outside
        self.by_time = by_time


class Connection(asyncio.Protocol):
    """One process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.defined: set[int] = {0}
        """Numbers of the definitions that the process has."""
        self.used = False
        """Whether the process has received a request."""
        self.restricted = True
        """Whether a seccomp filter restricts its system calls."""
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._reply: asyncio.Future[bytes] | None = None
        self._lost = False
        self._too_long = False

    @classmethod
    async def start(cls, limits: ProcessLimits) -> Connection:
        """Start a process and wait until it accepts tasks.

        Raises:
            OSError: the system cannot start it.
            Ended: it ended before it was ready.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # In the event loop's thread: the process dies with its starting thread (PR_SET_PDEATHSIG).
                process = subprocess.Popen[bytes](
                    [
                        sys.executable,
                        "-m",
                        "spoolama.evaluation.child.main",
                        str(os.getpid()),
                        str(limits.memory_bytes),
                    ],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    process_group=0,  # Ctrl-C reaches only the service, which then stops cleanly
                    env=_environment(),
                )
            except BaseException:
                ours.close()
                raise
        child = cls(process)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: child, sock=ours)
            child.restricted = bool(json.loads(await child._next(limits.start_s))["restricted"])
        except BaseException:
            await child.stop()
            raise
        return child

    @property
    def alive(self) -> bool:
        """Whether it can take requests."""
        return not self._lost

    async def ask(self, request: bytes, wall_s: float) -> list[list[Any]]:
        """Send a request and wait for its reply.

        Raises:
            Ended: the process ended, or it was killed because it did not answer in time.
        """
        assert self._transport is not None
        self._transport.write(frame(request))
        replies: list[list[Any]] = json.loads(await self._next(wall_s))
        return replies

    async def stop(self) -> None:
        """Kill the process if it still runs, and collect its exit status."""
        self._lost = True
        if self._transport is not None:
            self._transport.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def _next(self, wall_s: float) -> bytes:
        if self._lost:
            raise await self._ended()
        self._reply = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(wall_s):
                return await self._reply
        except TimeoutError:
            await self.stop()
            raise ProcessEnded(None, f"gave no answer within {wall_s:g} s") from None
        except EOFError:
            raise await self._ended() from None
        finally:
            self._reply = None

    async def _ended(self) -> ProcessEnded:
        """Return the reason of its end, from the exit status."""
        status = await asyncio.to_thread(self._status)
        if self._too_long:
            return ProcessEnded("returned a result that is too long", by_time=True)
        if status == -signal.SIGPROF:
            return ProcessEnded("took longer than {cpu_s:g} s", by_time=True)
        if status == -signal.SIGKILL:
            return ProcessEnded(None, KILLED)
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return ProcessEnded(f"crashed the evaluation process ({name})")

    def _status(self) -> int:
        try:
            return self.process.wait(5.0)
        except subprocess.TimeoutExpired:  # it closed its socket but still runs
            self.process.kill()
            return self.process.wait()

    # --- asyncio.Protocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Part of a reply has arrived."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < HEADER.size:
            return
        (length,) = HEADER.unpack_from(buffer)
        if length > MAX_REPLY_BYTES:
            self._too_long = True
            self.process.kill()
            self.connection_lost(None)
        elif len(buffer) >= HEADER.size + length:
            body = bytes(buffer[HEADER.size : HEADER.size + length])
            del buffer[: HEADER.size + length]
            if self._reply is not None and not self._reply.done():
                self._reply.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The process closed its end."""
        self._lost = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(EOFError())


def _environment() -> dict[str, str]:
    """Return a minimal environment: the Python path and one malloc arena, nothing else of the service's."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "1",
    }
