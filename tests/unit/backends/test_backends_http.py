"""HTTP as all backends use it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from spoolama.backends.http import HttpClient


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_body_is_sent_with_its_length(size: int) -> None:
    """A large body, which is sent in parts, arrives with its length like a small one."""
    requests: list[tuple[str, str | None, bytes]] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        requests.append((request.headers["content-length"], request.headers.get("transfer-encoding"), body))
        return httpx.Response(200, json={"ok": True})

    async def run() -> None:
        caller = HttpClient("http://server", transport=httpx.MockTransport(answer))
        assert (await caller.post("/path", {"text": "x" * size}, timeout_s=5)).payload == {"ok": True}
        await caller.aclose()

    asyncio.run(run())
    body = b'{"text": "' + b"x" * size + b'"}'
    assert requests == [(str(len(body)), None, body)]
