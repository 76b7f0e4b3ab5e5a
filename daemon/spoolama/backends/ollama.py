"""Implements the backend for Ollama with its native API.

The reasons for the format of the requests (from Ollama's source and from recordings of a running server):

- `/api/chat` with `stream: false`: a failure keeps its HTTP status, and a client that disconnects frees its
  slot.
- `truncate: false`: a prompt that does not fit is refused with its exact length, not truncated silently.
- `shift` is never sent: since 0.30 it is a launch flag of the runner, so sending it may cause a reload.
- `keep_alive: -1` as a number in every request: the last request counts, and the string "-1" is refused.
- `num_ctx` and the other load options are identical in every request: a difference causes a reload.
- `num_predict` is at least 1: 0 is treated as not set.
- `think: false` for a model that can think: the default is true.
- `_debug_render_only` in a chat returns the rendered prompt in `_debug_info.rendered_template` and generates
  nothing (the model is loaded first). A server without it generates an answer, so `num_predict` is 1.
- `/api/generate` with `raw: true` takes a rendered text unchanged and reaches the engine by the same path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.http import HttpClient
from spoolama.backends.model_shape import ModelShape, lacks_arrays, shape_of
from spoolama.backends.ollama_wire import (
    ModelFacts,
    checked,
    held_models,
    listed,
    loaded_model,
    read_generated,
    read_rendered,
    read_reply,
    read_show,
    refuse_cloud_name,
    size_of,
    too_small,
)
from spoolama.clock import Clock
from spoolama.errors import BackendError, ServerBusy, UnexpectedReply

PROBE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 1800.0
"""Ollama aborts a load after 5 min without progress; a large model on a slow disk makes slow progress."""
LEAST_LOAD_TIMEOUT_S = 60.0
"""Minimum timeout of the second attempt to load."""
RELEASE_TIMEOUT_S = 30.0
RENDER_TIMEOUT_S = 600.0
"""Rendering is fast, but a server without `_debug_render_only` evaluates the prompt."""


class OllamaBackend:
    """A client of one Ollama server.

    Args:
        url: The server's address.
        transport: For tests; None: the network.
        clock: Measures loads.
        shared: Others use the same models on that server, so spoolama never unloads them.
    """

    kind = "ollama"
    uses_gpus = True
    sets_slots = False
    pid = None

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock,
        shared: bool = False,
    ) -> None:
        self._http = HttpClient(url, transport=transport)
        self._clock = clock
        self.releases = not shared
        self._server = ServerInfo(self.kind, None)
        self._models: dict[str, ModelFacts] = {}
        self._loaded: set[str] = set()
        self._cannot_render: set[str | None] = set()
        """Server versions that cannot render: they generated an answer instead."""

    async def probe(self) -> ServerInfo:
        """Request the version."""
        payload = checked(await self._http.get("/api/version", timeout_s=PROBE_TIMEOUT_S))
        version = payload.get("version")
        if not isinstance(version, str):
            raise UnexpectedReply("/api/version has no version; check that this is Ollama", status=200)
        self._server = ServerInfo(self.kind, version)
        return self._server

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model with these options and an unlimited keep-alive, and verify what the server holds.

        Between the load and the check another client can load the model with another window. If the window is
        too small and the model's trained context does not explain that, the load is repeated once. If both
        attempts give the same window and the trained context is unknown, the model does not support more;
        otherwise `ServerBusy` is raised.
        """
        model = await self._describe(spec.model)
        # Recorded before the answer: a load that times out here can still finish, and must be unloaded later.
        self._loaded.add(spec.model)
        began = self._clock.monotonic()
        loaded = await self._load(spec, model, began)
        window, trained = loaded.num_ctx, model.trained_ctx
        if window is None or window >= spec.num_ctx:
            return loaded
        if trained is None or trained >= spec.num_ctx:
            loaded = await self._load(spec, model, began)
            again = loaded.num_ctx
            if again is None or again >= spec.num_ctx:
                return loaded
            if trained is not None or again != window:
                raise ServerBusy(
                    f"the server holds {spec.model!r} with a window of {again} tokens instead of "
                    f"{spec.num_ctx}: other clients load it with other options"
                )
        raise too_small(spec, window, trained)

    async def _load(self, spec: LoadSpec, model: ModelFacts, began: float) -> LoadedModel:
        """Load the model once within the remaining time, and read what the server holds."""
        payload = checked(
            await self._http.post(
                "/api/generate",
                {"model": spec.model, "stream": False, "keep_alive": -1, "options": _load_options(spec)},
                timeout_s=max(LEAST_LOAD_TIMEOUT_S, LOAD_TIMEOUT_S - (self._clock.monotonic() - began)),
            ),
            model=spec.model,
        )
        load_s = self._clock.monotonic() - began
        if payload.get("done_reason") != "load":
            raise UnexpectedReply(f"the load ended with {payload.get('done_reason')!r}", status=200)
        entry = listed(spec.model, await self._running())
        if entry is None:
            raise UnexpectedReply(
                f"{spec.model!r} was loaded, but the server does not list it as loaded", status=200
            )
        return loaded_model(spec.model, entry, model, self._server, load_s=load_s)

    async def chat(self, request: ChatRequest) -> Reply:
        """Send one prompt and return its answer."""
        options = {**request.sampling, **_load_options(request.load)}
        body = await self._chat_body(request.load, request.messages, options, request.num_predict)
        if request.format is not None:
            body["format"] = request.format
        if request.think is not None:
            body["think"] = request.think
        if request.logprobs:
            body["logprobs"] = True
        payload = await self._generate("/api/chat", body, timeout_s=request.timeout_s)
        return read_reply(payload, counts_whole_prompt=self._counts_whole_prompt)

    async def count_tokens(
        self,
        spec: LoadSpec,  # noqa: ARG002
        messages: Sequence[Message],  # noqa: ARG002
    ) -> int | None:
        """Return None: Ollama has no route that counts tokens without evaluating them."""
        return None

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        """Render with the chat template. A server version that cannot render is asked only once."""
        if self._server.version in self._cannot_render:
            return None
        body = await self._chat_body(spec, messages, _load_options(spec), 1)
        body["_debug_render_only"] = True
        payload = await self._generate("/api/chat", body, timeout_s=RENDER_TIMEOUT_S)
        rendered = read_rendered(payload)
        if rendered is None:
            self._cannot_render.add(self._server.version)
        return rendered

    async def prime(
        self,
        spec: LoadSpec,
        text: str,
        *,
        slot: int | None = None,  # noqa: ARG002 - Ollama chooses the slot
        timeout_s: float = 600.0,
    ) -> Reply | None:
        """Generate one token from the raw text. The server chooses the slot with the best prefix match."""
        if not text:
            return None  # a request without a prompt only loads the model
        model = await self._facts(spec.model)
        body: dict[str, Any] = {
            "model": spec.model,
            "prompt": text,
            "raw": True,
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "options": {**_load_options(spec), "num_predict": 1},
        }
        if model.can_think:
            body["think"] = False
        payload = await self._generate("/api/generate", body, timeout_s=timeout_s)
        return read_generated(payload, counts_whole_prompt=self._counts_whole_prompt)

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """Return the entry in the list of loaded models; its window can differ from `spec`."""
        entry = listed(spec.model, await self._running())
        if entry is None:
            return None
        return loaded_model(spec.model, entry, await self._facts(spec.model), self._server)

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        """Compute the shape from `/api/show` and the size in `/api/tags`."""
        facts = await self._facts(spec.model)
        if lacks_arrays(facts.info):
            # Request the lists only if required: a verbose reply has the whole vocabulary, which is some MB.
            facts = await self._describe(spec.model, verbose=True)
        tags = checked(await self._http.get("/api/tags", timeout_s=DESCRIBE_TIMEOUT_S))
        size = size_of(spec.model, tags)
        return shape_of(facts.info, size, facts.tensors) if size is not None else None

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """Return the list of loaded models; it does not contain models that are being loaded."""
        return held_models(await self._running())

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        """Unload the models that spoolama loaded. All are tried before the first error is raised."""
        if not self.releases:
            return ()
        first: BackendError | None = None
        released = []
        for name in sorted((self._loaded | ({also} if also else set())) - {keep}):
            try:
                reply = await self._http.post(
                    "/api/generate",
                    {"model": name, "stream": False, "keep_alive": 0},
                    timeout_s=RELEASE_TIMEOUT_S,
                )
                if reply.status != 404:  # 404: deleted meanwhile
                    checked(reply, model=name)
                self._loaded.discard(name)
                released.append(name)
            except BackendError as error:
                first = first or error
        if first is not None:
            raise first
        return tuple(released)

    async def aclose(self) -> None:
        """Close the connections; loaded models stay loaded."""
        await self._http.aclose()

    async def _chat_body(
        self, spec: LoadSpec, messages: Sequence[Message], options: Mapping[str, Any], num_predict: int
    ) -> dict[str, Any]:
        """Return the common part of chat bodies; checks first that the model runs on this server."""
        model = await self._facts(spec.model)
        body: dict[str, Any] = {
            "model": spec.model,
            "messages": [message.wire() for message in messages],
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "options": {**options, "num_predict": max(1, num_predict)},
        }
        if model.can_think:
            body["think"] = False
        return body

    async def _generate(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Send a request that can load the model, and record that we must unload it."""
        name = body["model"]
        self._loaded.add(name)
        return checked(await self._http.post(path, body, timeout_s=timeout_s), model=name)

    @property
    def _counts_whole_prompt(self) -> bool:
        """False only for 0.30.0 and its release candidates: `prompt_eval_count` omits cached tokens."""
        version = self._server.version
        return version is None or re.match(r"v?0\.30\.0(?!\d)", version) is None

    async def _facts(self, name: str) -> ModelFacts:
        return self._models.get(name) or await self._describe(name)

    async def _describe(self, name: str, *, verbose: bool = False) -> ModelFacts:
        """Request the facts of a model; this happens before any data of a job is sent."""
        refuse_cloud_name(name)
        await self.probe()
        body = {"model": name, **({"verbose": True} if verbose else {})}
        payload = checked(await self._http.post("/api/show", body, timeout_s=DESCRIBE_TIMEOUT_S), model=name)
        facts = self._models[name] = read_show(name, payload)
        return facts

    async def _running(self) -> Mapping[str, Any]:
        """Request the list of loaded models."""
        return checked(await self._http.get("/api/ps", timeout_s=DESCRIBE_TIMEOUT_S))


def _load_options(spec: LoadSpec) -> dict[str, Any]:
    return {"num_ctx": spec.num_ctx, **spec.load_options}
