"""Sends HTTP requests for all backends, with one timeout per request and classified errors.

A connection that cannot be made or that breaks raises `ServerAway`: it is unknown whether the server did the
work. A reply that violates HTTP or JSON raises `UnexpectedReply`. After the timeout the request is cancelled
and its connection closed, which frees the server's slot; this raises `Stalled`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from spoolama.errors import ServerAway, Stalled, UnexpectedReply

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Longer replies are rejected, so that a faulty server cannot fill our memory."""
_CONNECT_TIMEOUT_S = 5.0
_SMALL_BODY = 64 * 1024
"""Up to this size the body of a request may stay in memory until Python's garbage collector runs."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A complete HTTP reply."""

    status: int
    payload: Any
    """The body as JSON; None if it is not JSON."""
    text: str
    """The body as text."""
    location: str | None = None
    """The target of a redirect."""


class _Connections(httpx.AsyncBaseTransport):
    """As many connections as requests are in flight at once, each in a pool of its own.

    httpx checks every idle connection of a pool before and after each request: with 16 lanes in one pool that
    took a quarter of the service's processor time.

    Args:
        reuse: Whether a connection serves more than one request.
    """

    def __init__(self, *, reuse: bool) -> None:
        self._limits = httpx.Limits(max_connections=None, max_keepalive_connections=1 if reuse else 0)
        self._context = httpx.create_ssl_context(trust_env=False)
        self._pools: list[httpx.AsyncHTTPTransport] = []
        self._free: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection that no other request uses."""
        pool = self._free.pop() if self._free else self._new()
        try:
            response = await pool.handle_async_request(request)
        except BaseException:
            self._free.append(pool)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, lambda: self._free.append(pool))
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()

    def _new(self) -> httpx.AsyncHTTPTransport:
        pool = httpx.AsyncHTTPTransport(verify=self._context, trust_env=False, limits=self._limits)
        self._pools.append(pool)
        return pool


class _Body(httpx.AsyncByteStream):
    """The body of a reply; `released` is called when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, released: Callable[[], None]) -> None:
        self._stream = stream
        self._released: Callable[[], None] | None = released

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        """Close the stream."""
        released, self._released = self._released, None
        try:
            await self._stream.aclose()
        finally:
            if released is not None:
                released()


class HttpClient:
    """An HTTP client for one server.

    It ignores proxies and netrc of the environment, so that rows go only to the configured server. It sends
    no `Origin`, because Ollama answers 403 to an unknown one.

    Args:
        url: The server's address, including any path in front of its API.
        transport: For tests; None: the network.
        headers: Sent with every request.
        reuse: Whether connections are kept alive between requests.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        headers: Mapping[str, str] | None = None,
        reuse: bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self.url,
            transport=transport or _Connections(reuse=reuse),
            trust_env=False,
            follow_redirects=False,
            # `_call` has one timeout for the whole request; the lanes limit the number of connections.
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            headers={"User-Agent": "spoolama", "Accept": "application/json", **(headers or {})},
        )

    async def get(self, path: str, *, timeout_s: float) -> HttpReply:
        """GET a path under the server's address."""
        return await self._call(self._client.build_request("GET", path), timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> HttpReply:
        """POST a JSON body."""
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        sent = content if len(content) <= _SMALL_BODY else _once(content)
        del content
        request = self._client.build_request("POST", path, content=sent, headers=headers)
        return await self._call(request, timeout_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(self, request: httpx.Request, timeout_s: float) -> HttpReply:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request)
        except TimeoutError:
            raise Stalled(f"no answer within {timeout_s:g} s") from None

    async def _exchange(self, request: httpx.Request) -> HttpReply:
        try:
            response = await self._client.send(request, stream=True)
        except httpx.ConnectTimeout as error:
            raise ServerAway(f"{self.url}: connecting timed out") from error
        except httpx.TransportError as error:
            raise ServerAway(f"{self.url}: {_reason(error)}") from error
        body = bytearray()
        try:
            async for block in response.aiter_bytes():
                body += block
                if len(body) > MAX_BODY_BYTES:
                    raise UnexpectedReply(
                        f"the reply exceeds {MAX_BODY_BYTES // 2**20} MiB", status=response.status_code
                    )
        except httpx.RemoteProtocolError as error:
            # The server closed the connection before the announced content length.
            raise UnexpectedReply(
                f"the reply ends after {len(body)} bytes: {_reason(error)}", status=response.status_code
            ) from error
        except httpx.DecodingError as error:
            raise UnexpectedReply(
                f"the reply cannot be decompressed: {_reason(error)}", status=response.status_code
            ) from error
        except httpx.TransportError as error:
            raise ServerAway(f"{self.url}: {_reason(error)}") from error
        finally:
            await response.aclose()
        text = body.decode("utf-8", "replace")
        try:
            payload = json.loads(body)
            if b"\\u" in body:
                # A lone surrogate is valid JSON but not valid text; files and the ledger cannot store it.
                json.dumps(payload, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            payload = None
        return HttpReply(response.status_code, payload, text, response.headers.get("location"))


def excerpt(text: str, limit: int = 300) -> str:
    """Return the start of an external text on one line, short enough for a log."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _once(content: bytes) -> AsyncIterator[bytes]:
    """Stream a body that is freed once it is sent; httpx requests and replies reference each other."""
    left = [content]

    async def send() -> AsyncIterator[bytes]:
        yield left.pop()

    return send()


def _reason(error: Exception) -> str:
    return excerpt(str(error)) or type(error).__name__
