"""The rules of the fake engine, and the fake as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import jsonschema
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message, Reply
from spoolama.backends.ollama import OllamaBackend
from spoolama.clock import SystemClock
from spoolama.errors import ServerAway
from support.fake_ollama import FakeModel, FakeOllama, Fault, Latency, Script

T = TypeVar("T")
SPEC = LoadSpec("smollm2:135m", 4096)
RUBRIC = Message("system", "r" * 400)  # 100 + 4 tokens


def run(script: Script | None, scenario: Callable[[FakeOllama, OllamaBackend], Awaitable[T]]) -> T:
    """Run a scenario with a fake and its client."""

    async def inside() -> T:
        async with FakeOllama(script) as server:
            backend = OllamaBackend(server.url, clock=SystemClock())
            try:
                return await scenario(server, backend)
            finally:
                await backend.aclose()

    return asyncio.run(inside())


def ask(*texts: str, spec: LoadSpec = SPEC, num_predict: int = 32) -> ChatRequest:
    """Send the rubric and then alternating user and assistant turns."""
    roles = ("user", "assistant")
    turns = tuple(Message(roles[n % 2], text) for n, text in enumerate(texts))
    return ChatRequest(spec, (RUBRIC, *turns), num_predict)


async def cached(backend: OllamaBackend, *requests: ChatRequest) -> list[int | None]:
    """Return the cached tokens of consecutive requests."""
    return [(await backend.chat(request)).cached_tokens for request in requests]


def test_tokens_are_counted_by_the_documented_rule() -> None:
    """The fake counts a token per four bytes, four per frame, three for the opened answer and
    one for its end.
    """

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> Reply:
        return await backend.chat(ask("1234567", "12", "良い"))

    reply = run(Script(labels=["12345678"]), scenario)

    assert reply.prompt_tokens == (100 + 4) + (2 + 4) + (1 + 4) + (2 + 4) + 3
    assert reply.completion_tokens == 2 + 1


def test_the_prefix_is_cached_and_one_token_always_evaluated() -> None:
    """Another row reuses the rubric, the same row all but one token, and an appended turn all
    of prompt and answer.
    """

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> list[int | None]:
        first = await backend.chat(ask("aaaa"))
        return await cached(backend, ask("bbbb"), ask("bbbb"), ask("bbbb", first.text, "cccc"))

    whole = (100 + 4) + (1 + 4) + 3

    assert run(Script(labels=["same"]), scenario) == [104 + 3, whole - 1, (100 + 4) + (1 + 4) + (1 + 4)]


def test_a_sliding_window_loses_a_branched_prefix_unless_primed() -> None:
    """With a sliding window long rows lose the rubric, unless a request with only the rubric primed it."""
    model = FakeModel("smollm2:135m", window=64)

    async def rows(_: FakeOllama, backend: OllamaBackend) -> list[int | None]:
        return await cached(backend, ask("a" * 800), ask("b" * 800))

    async def primed(server: FakeOllama, backend: OllamaBackend) -> list[int | None]:
        await backend.load(SPEC)
        rubric = f"<|im_start|>system\n{RUBRIC.content}<|im_end|>\n"
        body = {
            "model": SPEC.model,
            "prompt": rubric,
            "raw": True,
            "stream": False,
            "options": {"num_predict": 1},
        }
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
            body["options"] = {"num_ctx": 4096, "num_predict": 1}
            assert (await client.post("/api/generate", json=body)).json()["prompt_eval_count"] == 104
        return await rows(server, backend)

    assert run(Script(models=[model]), rows) == [0, 0]
    assert run(Script(models=[model]), primed) == [103 + 1, 104]


def test_slots_are_chosen_by_shared_prefix_and_calls_wait_in_order() -> None:
    """Two conversations on two slots keep their own prefix, and a third call waits for a slot."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> tuple[list[int | None], list[str], int]:
        await backend.load(SPEC)
        one, two = (ChatRequest(SPEC, (Message("user", letter * 4000),), 8) for letter in "ab")
        await asyncio.gather(backend.chat(one), backend.chat(two))
        again = await asyncio.gather(backend.chat(two), backend.chat(one))
        before = len(server.chats)
        for number in range(4):
            server.script.faults.append(Fault("text", calls=[before + number + 1], body=f"answer {number}"))
        order: list[str] = []

        async def note(number: int) -> None:
            order.append((await backend.chat(ask(str(number)))).text)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(note(number))
                await server.wait_for_calls(before + number + 2)
        return [reply.cached_tokens for reply in again], order, server.peak_in_flight

    kept, order, peak = run(Script(slots=2, latency=Latency(request_s=0.05)), scenario)

    assert kept == [1006, 1006]
    assert sorted(order[:2]) == ["answer 0", "answer 1"]
    assert sorted(order[2:]) == ["answer 2", "answer 3"]
    assert peak == 2


def test_other_load_options_are_a_reload() -> None:
    """A changed window or thread count causes a reload, and equal options do not."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        specs = [SPEC, SPEC, LoadSpec(SPEC.model, 2048), LoadSpec(SPEC.model, 2048, {"num_thread": 1})]
        loads = [(await backend.chat(ask("x", spec=spec))).load_s for spec in specs]
        assert loads == [2.0, 0.001, 2.0, 2.0]
        assert server.loads == [(SPEC.model, 4096), (SPEC.model, 2048), (SPEC.model, 2048)]

    run(None, scenario)


def test_an_answer_is_cut_at_num_predict_and_at_the_window() -> None:
    """An answer that exceeds num_predict or the window is cut there and ends with `length`."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> list[tuple[str, int | None]]:
        spec = LoadSpec(SPEC.model, 128)
        replies = [
            await backend.chat(ask("x", spec=spec, num_predict=5)),
            await backend.chat(ask("x", spec=spec, num_predict=100)),
            await backend.chat(ChatRequest(spec, (Message("user", "x"),), 100)),
        ]
        return [(reply.finish, reply.completion_tokens) for reply in replies]

    text = Script(labels=["y" * 200])  # 51 tokens

    assert run(text, scenario) == [("length", 5), ("length", 128 - 112), ("stop", 51)]


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"s": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
            "required": ["s"],
        },
        {"type": "integer", "minimum": 3, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "minLength": 30, "maxLength": 31},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
        {"type": ["string", "null"]},
        {"anyOf": [{"const": 1}, {"type": "null"}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"y": {"const": "z"}}}}},
    ],
)
def test_answers_fit_simple_schemas(schema: dict[str, Any]) -> None:
    """For any row the answer is valid."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> list[str]:
        rows = [ChatRequest(SPEC, (Message("user", str(n)),), 99, format=schema) for n in range(20)]
        return [(await backend.chat(row)).text for row in rows]

    for text in run(None, scenario):
        jsonschema.validate(json.loads(text), schema)


def test_an_answer_depends_only_on_its_request() -> None:
    """One request gives the same answer on two servers and after other calls; another row, option or turn may
    change it.
    """

    async def answers(_: FakeOllama, backend: OllamaBackend) -> list[str]:
        return [(await backend.chat(ask(str(n)))).text for n in range(30)]

    async def reversed_answers(_: FakeOllama, backend: OllamaBackend) -> list[str]:
        found = [(await backend.chat(ask(str(n)))).text for n in reversed(range(30))]
        return found[::-1]

    one = run(None, answers)

    assert one == run(Script(slots=3, version="0.24.0"), reversed_answers)
    assert set(one) == {"positive", "negative", "neutral"}


def test_faults_occur_as_scripted() -> None:
    """A fault occurs by number, by text or by interval, and at most as often as scripted."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> list[str]:
        return [
            (await backend.chat(ask(text))).text for text in ("a", "b", "a poison", "c poison", "d", "e", "f")
        ]

    faults = [
        Fault("text", calls=[2], body="number"),
        Fault("text", contains="poison", times=1, body="poison"),
        Fault("text", every=7, body="seventh"),
    ]

    assert run(Script(faults=faults, labels=["-"]), scenario) == [
        "-",
        "number",
        "poison",
        "-",
        "-",
        "-",
        "seventh",
    ]


def test_a_client_that_goes_away_frees_its_slot() -> None:
    """A cancelled call is detected, and the call behind it is answered."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[str | None]:
        await backend.load(SPEC)
        gone = asyncio.create_task(backend.chat(ask("x")))
        await server.wait_for_calls(2)
        server.script.faults.clear()
        next_one = asyncio.create_task(backend.chat(ask("y")))
        await server.wait_for_calls(3)
        gone.cancel()
        await next_one
        await asyncio.gather(gone, return_exceptions=True)
        return [call.outcome for call in server.chats]

    assert run(Script(faults=[Fault("hang")]), scenario) == ["hang", "ok"]


def test_it_is_cheap() -> None:
    """Client and fake together take less than 4 ms of CPU for a row."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> float:
        await backend.chat(ask("warm"))
        began = time.process_time()
        for number in range(200):
            await backend.chat(ask(str(number)))
        return (time.process_time() - began) / 200

    assert run(None, scenario) < 0.004


def _start(
    tmp_path: Path, *more: str, stdin: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], str]:
    command = [
        sys.executable,
        "-m",
        "support.fake_ollama",
        "--call-log",
        str(tmp_path / "calls.jsonl"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([*command, *more], stdin=stdin, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


def _log(tmp_path: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]


def test_the_call_log_survives_kill_9(tmp_path: Path) -> None:
    """A call is logged before its answer, so a kill leaves it in the log without an end."""
    process, url = _start(tmp_path, "--fault", '{"kind": "hang", "calls": [2]}', "--answer", "echo")

    async def scenario() -> str:
        backend = OllamaBackend(url, clock=SystemClock())
        answered = await backend.chat(ask("one"))
        hanging = asyncio.create_task(backend.chat(ask("two")))
        while len(_log(tmp_path)) < 3:
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(ServerAway):
            await hanging
        await backend.aclose()
        return answered.text

    try:
        text = asyncio.run(scenario())
    finally:
        process.kill()
        process.communicate()

    assert text == "one"
    assert [(line["event"], line["number"], line.get("row")) for line in _log(tmp_path)] == [
        ("call", 1, "one"),
        ("end", 1, None),
        ("call", 2, "two"),
    ]
    body = json.loads(_log(tmp_path)[2]["body"])
    assert body["messages"][-1] == {"role": "user", "content": "two"}


@pytest.mark.parametrize("way", ["stdin", "sigterm"])
def test_the_process_ends_on_sigterm_and_on_closed_stdin(tmp_path: Path, way: str) -> None:
    """SIGTERM, or a closed stdin where requested, ends the process in order."""
    process, url = _start(tmp_path, "--exit-with-stdin", stdin=subprocess.PIPE)
    assert url.startswith("http://127.0.0.1:")

    if way == "sigterm":
        process.send_signal(signal.SIGTERM)
    else:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    process.communicate(timeout=20)

    assert process.returncode == 0
