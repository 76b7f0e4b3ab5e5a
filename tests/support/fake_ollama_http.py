"""The smallest HTTP/1.1 server that a fake needs: keep-alive, control of every byte, detection
of disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import h11

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request, received in full."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


Handler = Callable[[Incoming, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client, whose handler is a task that is cancelled when the client disconnects."""

    def __init__(self, handler: Handler, register: set[Connection]) -> None:
        self._handler = handler
        self._register = register
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._transport: asyncio.Transport | None = None
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.gone = False
        """The connection was closed by the client or broken from here."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._register.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._register.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._pump()

    def eof_received(self) -> bool:
        return False  # close: a client that has sent everything does not wait for an answer here

    # answers

    def reply(self, status: int, body: Any, *, content_type: str = JSON) -> None:
        """Send a whole reply: a text unchanged, anything else as JSON."""
        data = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=True).encode()
        self._send(self._head(status, content_type, [("Content-Length", str(len(data)))]))
        self._send(h11.Data(data=data))
        self._send(h11.EndOfMessage())

    def stream(self, lines: Iterable[Any]) -> None:
        """Send JSON lines with status 200."""
        self._send(self._head(200, "application/x-ndjson", []))
        for line in lines:
            self._send(h11.Data(data=json.dumps(line).encode() + b"\n"))
        self._send(h11.EndOfMessage())

    def begin(self, status: int, length: int) -> None:
        """Send the headers alone; the body follows by `write`."""
        self._send(self._head(status, JSON, [("Content-Length", str(length))]))

    def write(self, data: bytes) -> None:
        """Send bytes unchanged, HTTP or not."""
        if self._transport is not None and not self.gone:
            self._transport.write(data)

    def close(self) -> None:
        """Close in order, after all writes."""
        self.gone = True
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Break the connection so that the client sees a reset."""
        self.gone = True
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # internal

    @staticmethod
    def _head(status: int, content_type: str, more: list[tuple[str, str]]) -> h11.Response:
        return h11.Response(status_code=status, headers=[("Content-Type", content_type), *more])

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self.write(data)

    def _pump(self) -> None:
        while self._task is None and not self.gone:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                self.close()
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                incoming = Incoming(
                    self._request.method.decode(),
                    self._request.target.decode().partition("?")[0],
                    {name.decode().lower(): value.decode("latin-1") for name, value in self._request.headers},
                    bytes(self._body),
                )
                self._task = asyncio.create_task(self._answer(incoming), name="fake-ollama-request")
            else:
                self.close()
                return

    async def _answer(self, incoming: Incoming) -> None:
        try:
            await self._handler(incoming, self)
        except asyncio.CancelledError:
            self.reset()
            return
        except Exception:
            # A silent failure of the fake would look like a scripted fault.
            self.reset()
            raise
        finally:
            self._task = None
        if self.gone:
            return
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._pump()
        else:
            self.close()

    async def drop(self) -> None:
        """Break the connection and wait for its handler to end."""
        task = self._task
        self.reset()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class HttpServer:
    """Listens on the loopback address."""

    def __init__(self, handler: Handler, *, port: int = 0) -> None:
        self._handler = handler
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`; a restart keeps the port."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handler, self._connections), "127.0.0.1", self._port, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, break every connection and end every handler."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            await connection.drop()
