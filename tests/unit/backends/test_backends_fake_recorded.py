"""The fake Ollama answers recorded requests as the real one did: status, content type and keys."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from support.fake_ollama import SMOLLM2, FakeOllama, Fault, Latency, Script
from wire.cases import Case, all_cases, case

# Cases that the same request to an idle server cannot produce, and how to produce them.
FAULTS = {
    "chat_runner_killed": Fault("runner_killed"),
}
# Cases that are compared in another way or not at all.
ELSEWHERE = {
    "chat_queue_full": "needs a server that loads: test_backends_fake.py",
    "chat_runner_killed_stream": "spoolama never streams from Ollama; the fake ends a stream in no such way",
}
# Keys below which the real server lists facts of that model only.
OPAQUE = {"model_info", "tensors", "logprobs", "modelfile"}


def shape(value: Any, *, key: str = "") -> Any:
    """Return keys and types of a body; of a list its first item."""
    if isinstance(value, dict):
        return "…" if key in OPAQUE else {k: shape(v, key=k) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return "…" if key in OPAQUE else [shape(value[0])] if value else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def last_json(body: bytes) -> Any:
    """Return the only or last JSON value of the body."""
    lines = [line for line in body.split(b"\n") if line]
    try:
        return json.loads(lines[-1])
    except ValueError:
        return body.decode()


async def _ask(recorded: Case, server: FakeOllama) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        if recorded.name.startswith("ps_") and recorded.name != "ps_empty":
            names = [model["name"] for model in recorded.json["models"]]
            for name in reversed(names):
                body = {"model": name, "keep_alive": -1, "options": {"num_ctx": 2048}}
                await client.post("/api/generate", json=body)
        return await client.request(
            recorded.method,
            recorded.path,
            content=recorded.request,
            headers={"Content-Type": "application/json"},
        )


@pytest.mark.parametrize("name", sorted(set(all_cases()) - set(ELSEWHERE)))
def test_the_fake_answers_like_the_recorded_one(name: str) -> None:
    """The same request gets the same status, content type, keys and error text."""
    recorded = case(name)

    async def scenario() -> httpx.Response:
        faults = [replace(FAULTS[name])] if name in FAULTS else []
        async with FakeOllama(Script(version="0.0.0", faults=faults)) as server:
            return await _ask(recorded, server)

    reply = asyncio.run(scenario())

    assert reply.status_code == recorded.status
    assert reply.headers["content-type"] == recorded.content_type
    theirs, ours = last_json(recorded.body), last_json(reply.content)
    assert shape(ours) == shape(theirs)
    if isinstance(theirs, dict) and "error" in theirs and "exceed_context" not in str(theirs):
        assert ours == theirs
    if isinstance(theirs, dict) and "done_reason" in theirs and name.startswith(("generate", "chat_empty_m")):
        assert ours["done_reason"] == theirs["done_reason"]


def test_the_queue_is_full_as_recorded() -> None:
    """Calls beyond the queue during a load get the recorded 503, and those inside it are answered."""
    recorded = case("chat_queue_full")

    async def scenario() -> list[httpx.Response]:
        slow = Latency(load_s=0.2)
        async with (
            FakeOllama(Script(version="0.0.0", max_queue=2, latency=slow)) as server,
            httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
        ):
            body = {"model": SMOLLM2.name, "messages": [{"role": "user", "content": "x"}], "stream": False}
            return await asyncio.gather(*(client.post("/api/chat", json=body) for _ in range(5)))

    replies = asyncio.run(scenario())

    assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503, 503]
    assert [reply.json() for reply in replies if reply.status_code == 503] == [recorded.json] * 3
