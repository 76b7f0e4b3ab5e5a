"""The requests to Ollama, and its answers about models and windows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_args

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.backends.factory import BackendKind, make_backend
from spoolama.backends.ollama import OllamaBackend
from spoolama.clock import SystemClock
from spoolama.errors import BackendError, RequestRefused, ServerBusy, ServerDied, UnexpectedReply
from support.fake_ollama import SMOLLM2, FakeModel, FakeOllama, Fault, Script

T = TypeVar("T")
THINKER = FakeModel("qwen3:8b", capabilities=("completion", "thinking"))
STUB = FakeModel("gpt-oss:120b", remote_host="https://remote.invalid")
EMBEDDER = FakeModel("nomic-embed-text:latest", capabilities=("embedding",))
SPEC = LoadSpec("smollm2:135m", 2048, {"num_batch": 256, "num_thread": 2})
ROW = (Message("system", "Judge."), Message("user", "Fine — 良い."))


def run(
    script: Script | None,
    scenario: Callable[[FakeOllama, OllamaBackend], Awaitable[T]],
    *,
    shared: bool = False,
) -> T:
    """Run a scenario with a fake and its client."""

    async def inside() -> T:
        async with FakeOllama(script) as server:
            backend = OllamaBackend(server.url, clock=SystemClock(), shared=shared)
            try:
                return await scenario(server, backend)
            finally:
                await backend.aclose()

    return asyncio.run(inside())


def test_a_request_has_the_designed_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has the designed options, keep-alive, truncate and messages, and nothing else."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        await backend.load(SPEC)
        sampling = {"temperature": 0, "seed": 7, "num_ctx": 99, "num_predict": 99}
        await backend.chat(ChatRequest(SPEC, ROW, 0, sampling, {"enum": ["a"]}))
        load, chat = server.calls
        assert load.body == {
            "model": "smollm2:135m",
            "stream": False,
            "keep_alive": -1,
            "options": {"num_ctx": 2048, "num_batch": 256, "num_thread": 2},
        }
        assert chat.body == {
            "model": "smollm2:135m",
            "messages": [
                {"role": "system", "content": "Judge."},
                {"role": "user", "content": "Fine — 良い."},
            ],
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "format": {"enum": ["a"]},
            "options": {
                "temperature": 0,
                "seed": 7,
                "num_ctx": 2048,
                "num_batch": 256,
                "num_thread": 2,
                "num_predict": 1,  # 0 would mean no limit
            },
        }
        assert "origin" not in chat.headers
        assert server.loads == [("smollm2:135m", 2048)]

    run(None, scenario)


@pytest.mark.parametrize(
    ("model", "think", "sent"),
    [(SMOLLM2, None, "absent"), (THINKER, None, False), (THINKER, True, True), (THINKER, "high", "high")],
)
def test_thinking_is_off_unless_asked(model: FakeModel, think: Any, sent: Any) -> None:
    """A thinking model gets `think: false`, because it thinks by default; other models get no switch."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> Any:
        loaded = await backend.load(LoadSpec(model.name, 2048))
        assert loaded.can_think is ("thinking" in model.capabilities)
        await backend.chat(ChatRequest(LoadSpec(model.name, 2048), ROW, 8, think=think))
        return server.chats[0].body.get("think", "absent")

    assert run(Script(models=[model]), scenario) == sent


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "m2:cloud", "me/x:Cloud", "host:1/me/x:cloud"])
def test_a_cloud_name_is_refused_before_anything_is_sent(name: str) -> None:
    """A name of a remote service is refused before a load or chat sends a byte."""

    async def scenario(server: FakeOllama, _: OllamaBackend) -> None:
        away = OllamaBackend("http://127.0.0.1:9", clock=SystemClock())  # any request would raise ServerAway
        spec = LoadSpec(name, 2048)
        for attempt in (away.load(spec), away.chat(ChatRequest(spec, ROW, 8))):
            with pytest.raises(RequestRefused, match="cloud"):
                await attempt
        await away.aclose()

    run(None, scenario)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gpt-oss:120b", "remote.invalid"), ("nomic-embed-text", "cannot chat"), ("nosuch", "not found")],
)
def test_a_model_that_cannot_answer_is_refused_before_a_row_is_sent(name: str, words: str) -> None:
    """Stubs of remote models, embedding models and missing models are refused before any chat call."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        spec = LoadSpec(name, 2048)
        for attempt in (backend.load(spec), backend.chat(ChatRequest(spec, ROW, 8))):
            with pytest.raises(RequestRefused, match=words):
                await attempt
        assert server.calls == []

    run(Script(models=[SMOLLM2, STUB, EMBEDDER]), scenario)


def test_the_error_of_a_missing_model_has_the_pull_command() -> None:
    """The fix is the command to run on the server."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> str:
        with pytest.raises(RequestRefused) as caught:
            await backend.load(LoadSpec("gemma3:12b", 2048))
        return caught.value.fix

    assert "ollama pull gemma3:12b" in run(None, scenario)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(), ["8192", "9000", "the maximum of the model is 8192"]),
        (Script(num_ctx_limit=4096), ["4096", "9000", "the maximum of the model is 8192"]),
    ],
)
def test_a_smaller_window_than_asked_is_refused(script: Script, words: list[str]) -> None:
    """The window in `/api/ps` decides, whether the model or the memory limits it."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> str:
        with pytest.raises(RequestRefused) as caught:
            await backend.load(LoadSpec("smollm2:135m", 9000))
        return str(caught.value)

    message = run(script, scenario)

    assert [word for word in words if word not in message] == []


def look_at_windows(windows: list[int], trained: int | None) -> tuple[int | None, int]:
    """Load a model for which `/api/ps` lists these windows in order; return the loaded one and the loads."""
    left, loads = iter(windows), 0
    info = {"general.architecture": "llama", **({"llama.context_length": trained} if trained else {})}

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal loads
        body: dict[str, Any] = {"version": "0.33.4"}
        match request.url.path:
            case "/api/show":
                body = {"capabilities": ["completion"], "model_info": info}
            case "/api/generate":
                loads += 1
                body = {"done": True, "done_reason": "load"}
            case "/api/ps":
                body = {"models": [{"name": "m:latest", "context_length": next(left)}]}
        return httpx.Response(200, json=body)

    async def inside() -> int | None:
        backend = OllamaBackend("http://x", transport=httpx.MockTransport(answer), clock=SystemClock())
        try:
            return (await backend.load(LoadSpec("m", 8192))).num_ctx
        finally:
            await backend.aclose()

    return asyncio.run(inside()), loads


@pytest.mark.parametrize("trained", [131_072, None])
def test_another_clients_window_is_replaced_by_ours(trained: int | None) -> None:
    """If another client loaded the model between our load and the check, one more load restores
    our window.
    """
    assert look_at_windows([2048, 8192], trained) == (8192, 2)
    assert look_at_windows([8192], trained) == (8192, 1)


@pytest.mark.parametrize(
    ("windows", "trained"), [([2048, 2048], 131_072), ([2048, 4096], 131_072), ([2048, 4096], None)]
)
def test_a_server_whose_clients_compete_for_a_window_is_busy(windows: list[int], trained: int | None) -> None:
    """If clients keep changing a window that the model has, the server is busy and the job waits."""
    with pytest.raises(ServerBusy, match="other clients"):
        look_at_windows(windows, trained)


def test_a_window_that_stays_small_for_no_known_reason_is_refused() -> None:
    """If the model does not report its own window, two equal readings decide."""
    with pytest.raises(RequestRefused, match="2048"):
        look_at_windows([2048, 2048], None)


def test_a_model_named_without_its_tag_is_found() -> None:
    """A model named without its tag is found although `/api/ps` lists it with `:latest`."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> int | None:
        return (await backend.load(LoadSpec("mine", 2048))).num_ctx

    assert run(Script(models=[FakeModel("mine:latest")]), scenario) == 2048


@pytest.mark.parametrize(
    ("version", "prompt", "cached"),
    [
        ("0.24.0", 17, None),
        ("0.30.0", None, None),
        ("0.30.1", 17, None),
        ("0.33.2", 17, None),
        ("0.33.3", 17, 16),
    ],
)
def test_counts_by_version(version: str, prompt: int | None, cached: int | None) -> None:
    """0.30.0 does not count whole prompts, and before 0.33.3 cached tokens are None."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        spec = LoadSpec("smollm2:135m", 2048)
        loaded = await backend.load(spec)
        assert loaded.server.version == version
        for _ in range(2):
            reply = await backend.chat(ChatRequest(spec, ROW, 8))
        assert (reply.prompt_tokens, reply.cached_tokens) == (prompt, cached)
        assert server.chats[1].cached_tokens == 16

    run(Script(version=version), scenario)


def test_release_unloads_the_models_of_this_client() -> None:
    """Release unloads every model that this client loaded, and no other."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[str]:
        other = OllamaBackend(server.url, clock=SystemClock())
        await other.load(LoadSpec("gemma3:270m", 2048))
        await other.aclose()
        await backend.load(SPEC)
        await backend.release()
        await backend.release()
        unloads = [call for call in server.calls if call.body.get("keep_alive") == 0]
        assert [call.body["model"] for call in unloads] == ["smollm2:135m"]
        return server.loaded

    assert run(None, scenario) == ["gemma3:270m"]


def test_release_leaves_shared_models() -> None:
    """If the settings say that others use the models, release unloads nothing."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[str]:
        await backend.load(SPEC)
        await backend.release()
        return server.loaded

    assert run(None, scenario, shared=True) == ["smollm2:135m"]


def test_a_failed_release_is_tried_again() -> None:
    """A model stays on the release list until the server confirms that it is gone."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[str]:
        await backend.load(SPEC)
        await server.stop()
        with pytest.raises(BackendError):
            await backend.release()
        await server.start()
        await backend.load(LoadSpec("gemma3:270m", 2048))
        await backend.release()
        return [call.body["model"] for call in server.calls if call.body.get("keep_alive") == 0]

    assert run(None, scenario) == ["gemma3:270m", "smollm2:135m"]


class _RefusesRelease(httpx.AsyncBaseTransport):
    """Passes requests to the server, but refuses the first release."""

    def __init__(self, status: int) -> None:
        self._network = httpx.AsyncHTTPTransport()
        self._status: int | None = status

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request or pass it on."""
        status = self._status
        if status is None or b'"keep_alive": 0' not in await request.aread():
            return await self._network.handle_async_request(request)
        self._status = None
        return httpx.Response(status, json={"error": "not now"})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._network.aclose()


@pytest.mark.parametrize("status", [500, 503])
def test_a_model_whose_release_the_server_refuses_is_not_forgotten(status: int) -> None:
    """A refused release is tried again by the next one."""

    async def scenario(server: FakeOllama, _: OllamaBackend) -> list[list[str]]:
        backend = OllamaBackend(server.url, transport=_RefusesRelease(status), clock=SystemClock())
        await backend.load(SPEC)
        with pytest.raises(BackendError):
            await backend.release()
        released = [list(await backend.release()), list(await backend.release()), server.loaded]
        await backend.aclose()
        return released

    assert run(None, scenario) == [["smollm2:135m"], [], []]


def test_a_model_that_is_unloaded_after_its_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is unloaded between its load and the check of `/api/ps` raises an error."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        server.script.models = [FakeModel("smollm2:135m", load_s=0.0)]
        original = server._routes.engine.runner

        async def evicting(*given: Any) -> Any:
            found = await original(*given)
            server.evict("smollm2:135m")
            return found

        monkeypatch.setattr(server._routes.engine, "runner", evicting)
        with pytest.raises(UnexpectedReply, match="does not list it"):
            await backend.load(SPEC)

    run(None, scenario)


def test_a_killed_runner_takes_every_call_with_it() -> None:
    """All calls in flight on a dead runner raise `ServerDied`, and the next one reports the new load."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        spec = LoadSpec("smollm2:135m", 2048)
        await backend.load(spec)
        calls = [asyncio.create_task(backend.chat(ChatRequest(spec, ROW, 8))) for _ in range(3)]
        await server.wait_for_calls(4)
        await asyncio.sleep(0)
        server.kill_runners()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ServerDied] * 3
        server.script.faults.clear()
        assert (await backend.chat(ChatRequest(spec, ROW, 8))).load_s == 2.0

    run(Script(slots=2, faults=[Fault("hang")]), scenario)


def test_a_row_with_anything_in_it_arrives_as_it_is() -> None:
    """Control characters, lone surrogates and any script arrive unchanged."""
    text = 'tab\t nul\x00 \ud800 𝄞 \u202e \\ " 日本'

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> str:
        await backend.chat(ChatRequest(SPEC, (Message("user", text),), 8))
        return str(json.loads(server.chats[0].raw)["messages"][0]["content"])

    assert run(None, scenario) == text


def test_the_factory_makes_each_kind() -> None:
    """The settings name the kind, and making a backend opens no connection."""

    kinds = get_args(BackendKind)

    async def scenario() -> list[str]:
        backends = [make_backend(kind, SystemClock(), url="http://server") for kind in kinds]
        for backend in backends:
            await backend.aclose()
        return [backend.kind for backend in backends]

    assert asyncio.run(scenario()) == list(kinds)
