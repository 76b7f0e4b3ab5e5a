"""Ollama by its own API.

Why each request looks as it does (read in Ollama's source and recorded from a running one):

- `/api/chat` with `stream: false`: a failure keeps its status, and a reader that goes away holds no slot.
- `truncate: false`: a prompt that does not fit is refused with its exact length instead of cut in silence.
- `shift` is never sent: since 0.30 it is a launch flag of the runner, so a value of our own may be a reload.
- `keep_alive: -1` as a number, on every request: the last one counts, and the text "-1" is refused.
- `num_ctx` and the other load options on every request exactly alike: a difference is a reload.
- `num_predict` at least 1: 0 is taken as not given.
- `think: false` for a model that can think: absent means true there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.http import HttpCaller, HttpReply, excerpt
from spoolama.backends.ollama_errors import failure
from spoolama.backends.ollama_reply import read_reply
from spoolama.clock import Clock
from spoolama.errors import BackendError, RequestRefused, UnexpectedReply

__all__ = ["OllamaBackend"]

PROBE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 1800.0
"""Ollama gives a load up after five minutes without progress; a large model on a slow disk makes some."""
RELEASE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Model:
    """What `/api/show` says of a model."""

    can_think: bool
    trained_ctx: int | None


class OllamaBackend:
    """A client of one Ollama server.

    Args:
        url: The server's address.
        transport: For tests; None: the network.
        clock: Measures loads.
        shared: Others use the same models there: they are never released from here.
        connect_timeout_s: Bound on making a connection.
    """

    kind = "ollama"

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock,
        shared: bool = False,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self._http = HttpCaller(url, transport=transport, connect_timeout_s=connect_timeout_s)
        self._clock = clock
        self._shared = shared
        self._server = ServerInfo(self.kind, None)
        self._models: dict[str, _Model] = {}
        self._loaded: set[str] = set()

    async def probe(self) -> ServerInfo:
        """Ask for the version."""
        payload = self._checked(await self._http.get("/api/version", timeout_s=PROBE_TIMEOUT_S))
        version = payload.get("version")
        if not isinstance(version, str):
            raise UnexpectedReply("/api/version names no version: is this an Ollama?", status=200)
        self._server = ServerInfo(self.kind, version)
        return self._server

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model with just these options, for good, and verify what the server then holds."""
        model = await self._describe(spec.model)
        # Before the answer: a load that we no longer wait for still ends with a model that we must release.
        self._loaded.add(spec.model)
        began = self._clock.monotonic()
        payload = self._checked(
            await self._http.post(
                "/api/generate",
                {"model": spec.model, "stream": False, "keep_alive": -1, "options": _load_options(spec)},
                timeout_s=LOAD_TIMEOUT_S,
            ),
            model=spec.model,
        )
        load_s = self._clock.monotonic() - began
        if payload.get("done_reason") != "load":
            raise UnexpectedReply(f"the load ended with {payload.get('done_reason')!r}", status=200)
        entry = await self._running(spec.model)
        window = _int(entry.get("context_length"))
        if window is not None and window < spec.num_ctx:
            raise _too_small(spec, window, model.trained_ctx)
        return LoadedModel(
            name=spec.model,
            digest=_str(entry.get("digest")),
            num_ctx=window,
            slots=None,  # OLLAMA_NUM_PARALLEL is told by no route
            server=self._server,
            size_bytes=_int(entry.get("size")),
            vram_bytes=_int(entry.get("size_vram")),
            can_think=model.can_think,
            load_s=load_s,
        )

    async def chat(self, request: ChatRequest) -> Reply:
        """One prompt, one answer."""
        name = request.load.model
        model = self._models.get(name) or await self._describe(name)
        body: dict[str, Any] = {
            "model": name,
            "messages": [message.wire() for message in request.messages],
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "options": {
                **request.sampling,
                **_load_options(request.load),
                "num_predict": max(1, request.num_predict),
            },
        }
        if request.format is not None:
            body["format"] = request.format
        if request.think is not None:
            body["think"] = request.think
        elif model.can_think:
            body["think"] = False
        self._loaded.add(name)
        payload = self._checked(
            await self._http.post("/api/chat", body, timeout_s=request.timeout_s), model=name
        )
        return read_reply(payload, counts_whole_prompt=not _counts_evaluated_only(self._server.version))

    async def count_tokens(
        self,
        spec: LoadSpec,  # noqa: ARG002
        messages: Sequence[Message],  # noqa: ARG002
    ) -> int | None:
        """None: Ollama has no route that counts without evaluating."""
        return None

    async def release(self) -> None:
        """Unload what was loaded from here. Every model is tried before the first error is raised."""
        if self._shared:
            return
        first: BackendError | None = None
        for name in sorted(self._loaded):
            try:
                reply = await self._http.post(
                    "/api/generate",
                    {"model": name, "stream": False, "keep_alive": 0},
                    timeout_s=RELEASE_TIMEOUT_S,
                )
                if reply.status != 404:  # deleted meanwhile: nothing left to release
                    self._checked(reply, model=name)
                self._loaded.discard(name)
            except BackendError as error:
                first = first or error
        if first is not None:
            raise first

    async def aclose(self) -> None:
        """Close the connections; loaded models stay as they are."""
        await self._http.aclose()

    async def _describe(self, name: str) -> _Model:
        """What the server knows of a model; nothing of a job is sent before this was seen."""
        _refuse_cloud_name(name)
        await self.probe()
        payload = self._checked(
            await self._http.post("/api/show", {"model": name}, timeout_s=DESCRIBE_TIMEOUT_S), model=name
        )
        if host := payload.get("remote_host"):
            raise RequestRefused(
                f"model {name!r} does not run on this server but on {host}",
                mend="Choose a model that runs on the server: rows are never sent to a remote one.",
            )
        capabilities = payload.get("capabilities")
        known = capabilities if isinstance(capabilities, list) else []
        if known and "completion" not in known:
            raise RequestRefused(
                f"model {name!r} gives no answers; it can do: {', '.join(map(str, known))}",
                mend="Choose a model that can chat.",
            )
        info = payload.get("model_info")
        info = info if isinstance(info, dict) else {}
        trained = _int(info.get(f"{info.get('general.architecture')}.context_length"))
        model = _Model(can_think="thinking" in known, trained_ctx=trained)
        self._models[name] = model
        return model

    async def _running(self, name: str) -> Mapping[str, Any]:
        """The model's entry in the list of loaded ones."""
        payload = self._checked(await self._http.get("/api/ps", timeout_s=DESCRIBE_TIMEOUT_S))
        full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        models = payload.get("models")
        for entry in models if isinstance(models, list) else []:
            if isinstance(entry, dict) and full.lower() in {
                str(entry.get("name")).lower(),
                str(entry.get("model")).lower(),
            }:
                return entry
        raise UnexpectedReply(f"{name!r} was loaded, yet the server does not list it as loaded", status=200)

    @staticmethod
    def _checked(reply: HttpReply, *, model: str | None = None) -> Mapping[str, Any]:
        """The body of a good reply; anything else is raised."""
        if reply.status != 200:
            raise failure(reply, model=model)
        if not isinstance(reply.payload, dict):
            raise UnexpectedReply(f"HTTP 200, but no JSON object: {excerpt(reply.text)!r}", status=200)
        if "error" in reply.payload:
            raise failure(reply, model=model)
        return reply.payload


def _load_options(spec: LoadSpec) -> dict[str, Any]:
    return {"num_ctx": spec.num_ctx, **spec.load_options}


def _refuse_cloud_name(name: str) -> None:
    """Ollama hands such names on to a remote service (`modelref.go`)."""
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    if tag == "cloud" or tag.endswith("-cloud"):
        raise RequestRefused(
            f"model {name!r} runs in a cloud",
            mend="Choose a model that runs on the server: rows are never sent to a remote one.",
        )


def _too_small(spec: LoadSpec, window: int, trained: int | None) -> RequestRefused:
    own = f"; the model's own maximum is {trained}" if trained is not None else ""
    mend = f"Set options.num_ctx to {window} or less"
    if trained is None or window < trained:
        mend += ", or give the server more memory"
    return RequestRefused(
        f"the server loaded {spec.model!r} with a window of {window} tokens instead of {spec.num_ctx}{own}",
        mend=f"{mend}.",
    )


def _counts_evaluated_only(version: str | None) -> bool:
    """0.30.0 alone, its candidates included, leaves cached tokens out of `prompt_eval_count`."""
    return version is not None and re.match(r"v?0\.30\.0(?!\d)", version) is not None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
