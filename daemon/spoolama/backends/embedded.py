"""Implements the backend for llama.cpp (xllamacpp) in a child process; a crash ends only the child."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from spoolama.backends import llama_server
from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.embedded_models import default_cache_dir, find_weights
from spoolama.backends.embedded_process import EngineProcess
from spoolama.backends.gguf_header import GgufHeader, read_gguf
from spoolama.backends.http import HttpClient
from spoolama.backends.llama_server import PrefixCopies
from spoolama.backends.model_shape import ModelShape, shape_of
from spoolama.backends.openai_wire import chat_body, checked, fold, read_reply
from spoolama.clock import Clock
from spoolama.errors import RequestRefused, ServerAway, ServerDied, UnexpectedReply

T = TypeVar("T")

LOAD_TIMEOUT_S = 600.0
DESCRIBE_TIMEOUT_S = 30.0
WHOLE_WINDOW_BYTES = 512 * 1024 * 1024
"""Maximum KV cache of the whole window of a sliding-window model."""
COPY_BYTES = 512 * 1024 * 1024
"""Maximum size in main memory of the copy of a primed prefix; a longer one is evaluated in each slot."""
DEATH_TIMEOUT_S = 2.0
"""After a connection breaks, how long to wait for the process to end."""

_PARAMS = {"num_batch": "n_batch", "num_gpu": "n_gpu_layers", "main_gpu": "main_gpu"}
"""Load options of a sidecar and their names in llama.cpp; `num_thread` is handled separately."""


_IDLE_WHEN_GREEDY = {"temperature", "seed", "top_k", "top_p", "min_p", "typical_p", "stop"}
"""Sampling options that have no effect at temperature 0."""


class EmbeddedBackend:
    """Holds one model at a time in a child process.

    Args:
        clock: Measures loads.
        threads: CPU threads; None: one for each core. A sidecar's `num_thread` takes precedence.
        cache_dir: Where models from packages are assembled; None: the user's cache directory.
    """

    kind = "embedded"
    releases = True
    uses_gpus = False
    sets_slots = True

    def __init__(self, *, clock: Clock, threads: int | None = None, cache_dir: Path | None = None) -> None:
        self._clock = clock
        self._threads = threads
        self._cache_dir = cache_dir or default_cache_dir()
        self._lock = asyncio.Lock()
        self._process: EngineProcess | None = None
        self._http: HttpClient | None = None
        self._loaded: tuple[LoadSpec, LoadedModel] | None = None
        self._copies: PrefixCopies | None = None

    async def probe(self) -> ServerInfo:
        """Check that the engine is installed and, if it runs, that it answers."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise RequestRefused(
                "the embedded engine is not installed",
                fix="Install it: pip install 'spoolama[embedded]'",
            )
        process, http = self._process, self._http
        if process is not None and http is not None:
            if not process.alive:
                raise await process.death()
            checked(await http.get("/health", timeout_s=DESCRIBE_TIMEOUT_S))
        return ServerInfo(self.kind, _version())

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model in a child process; replaces a child that ended or has other load settings."""
        async with self._lock:
            if (
                self._loaded is not None
                and self._loaded[0] == spec
                and self._process is not None
                and self._process.alive
            ):
                return self._loaded[1]
            await self._stop()
            await self.probe()
            began = self._clock.monotonic()
            weights = await asyncio.to_thread(find_weights, spec.model, self._cache_dir)
            header, shape = await asyncio.to_thread(_described, weights.path)
            _refuse_longer_than_trained(spec, header)
            key = secrets.token_urlsafe(24)
            given = self._given(spec, weights.path, key)
            whole = _keeps_whole_window(spec, shape)
            if whole:
                given["params"].setdefault("swa_full", True)
            self._process = await EngineProcess.start(given, timeout_s=LOAD_TIMEOUT_S)
            # The server closes a connection after each stream; reusing it would race with the close.
            self._http = HttpClient(
                self._process.url, headers={"Authorization": f"Bearer {key}"}, reuse=False
            )
            facts = llama_server.read_facts(
                checked(await self._http.get("/props", timeout_s=DESCRIBE_TIMEOUT_S))
            )
            if facts.num_ctx is not None and facts.num_ctx < spec.num_ctx:
                await self._stop()
                raise RequestRefused(
                    f"{spec.model!r} has a window of {facts.num_ctx} tokens, not {spec.num_ctx}",
                    fix=f"Set options.num_ctx to {facts.num_ctx} or less.",
                )
            if self._process.copies is not None and spec.slots > 1 and shape is not None:
                most_tokens = COPY_BYTES // max(1, shape.token_bytes)
                self._copies = PrefixCopies(self._http, self._process.copies, most_tokens=most_tokens)
            sliding = header.sliding_window if shape is None else shape.sliding_window
            model = LoadedModel(
                name=spec.model,
                digest=weights.digest,
                num_ctx=facts.num_ctx,
                slots=facts.slots,
                server=ServerInfo(self.kind, _version()),
                can_think=facts.can_think,
                load_s=self._clock.monotonic() - began,
                sliding_window=None if whole else sliding,
                copies_prefix=self._copies is not None,
                trained_ctx=header.trained_ctx,
            )
            self._loaded = (spec, model)
            return model

    async def chat(self, request: ChatRequest) -> Reply:
        """Send one prompt and return its answer."""
        process, http = self._running(request.load)
        # Streamed, because this build of llama-server sees only on a stream that its client has gone away:
        # otherwise a cancelled request would hold its slot to the end (xllamacpp 2026.10, measured).
        body = chat_body(request, dialect="llamacpp", slot=_slot(request.load, request.slot))
        body |= _greedy(request)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        reply = await _alive(process, http.post("/v1/chat/completions", body, timeout_s=request.timeout_s))
        if reply.status == 200 and reply.payload is None:
            reply = replace(reply, payload=fold(reply.text))
        return read_reply(checked(reply, model=request.load.model))

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        """Count with the model's own template and tokenizer."""
        process, http = self._running(spec)
        return await _alive(process, llama_server.count_tokens(http, messages))

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        """Render with the model's own template."""
        process, http = self._running(spec)
        return await _alive(process, llama_server.render(http, messages))

    async def prime(
        self, spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 600.0
    ) -> Reply | None:
        """Prime the lane's own slot; the text is evaluated once and copied into the slots of other lanes."""
        process, http = self._running(spec)
        place = _slot(spec, slot)
        if self._copies is not None and place is not None:
            return await _alive(process, self._copies.prime(text, slot=place, timeout_s=timeout_s))
        return await _alive(process, llama_server.prime(http, text, slot=place, timeout_s=timeout_s))

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """Return the loaded model while its process runs."""
        alive = self._process is not None and self._process.alive
        if self._loaded is None or not alive or self._loaded[1].name != spec.model:
            return None
        return self._loaded[1]

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        """Read the shape from the header of the weights, without starting a child."""
        weights = await asyncio.to_thread(find_weights, spec.model, self._cache_dir)
        _, shape = await asyncio.to_thread(_described, weights.path)
        return None if shape is None else replace(shape, whole_window_bytes=WHOLE_WINDOW_BYTES)

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """Return the loaded model; its size is unknown."""
        if self._loaded is None or self.pid is None:
            return ()
        return (HeldModel(self._loaded[1].name, None, None, self._loaded[1].num_ctx),)

    async def release(
        self,
        *,
        keep: str | None = None,
        also: str | None = None,  # noqa: ARG002 - it holds at most one model
    ) -> tuple[str, ...]:
        """End the child, which frees all its memory."""
        async with self._lock:
            name = self._loaded[1].name if self._loaded is not None else None
            if name is not None and name == keep:
                return ()
            await self._stop()
            return () if name is None else (name,)

    async def aclose(self) -> None:
        """End the child: it never outlives its backend."""
        await self.release()

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs, for memory readings."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def _running(self, spec: LoadSpec) -> tuple[EngineProcess, HttpClient]:
        if self._process is None or self._http is None or self._loaded is None:
            raise ServerDied("the embedded engine is not running; it starts with the next load")
        if self._loaded[0] != spec:
            raise ServerDied("the embedded engine has another model or context window loaded")
        return self._process, self._http

    async def _stop(self) -> None:
        process, http = self._process, self._http
        self._process = self._http = self._loaded = self._copies = None
        if http is not None:
            await http.aclose()
        if process is not None:
            await process.stop()

    def _given(self, spec: LoadSpec, path: Path, key: str) -> dict[str, Any]:
        options = dict(spec.load_options)
        threads = options.pop("num_thread", None) or self._threads or os.cpu_count() or 1
        unknown = sorted(set(options) - set(_PARAMS))
        if unknown:
            names = ", ".join(unknown)
            raise RequestRefused(
                f"the embedded engine does not support the load option {names}",
                fix=f"Remove {names} from `options` in the sidecar.",
            )
        return {
            "path": str(path),
            "num_ctx": spec.num_ctx,
            "slots": max(1, spec.slots),
            "threads": threads,
            "api_key": key,
            "params": {_PARAMS[name]: value for name, value in options.items()},
        }


async def _alive(process: EngineProcess, asked: Awaitable[T]) -> T:
    """Await a request; if it fails because the process ended, raise that error instead."""
    try:
        return await asked
    except (ServerAway, UnexpectedReply) as error:
        if await process.ended_within(DEATH_TIMEOUT_S):
            raise await process.death() from error
        raise


def _slot(spec: LoadSpec, lane: int | None) -> int | None:
    return None if lane is None else lane % max(1, spec.slots)


def _greedy(request: ChatRequest) -> dict[str, Any]:
    """Return sampler settings for temperature 0 that spare llama.cpp from sorting the whole vocabulary.

    The default sampler chain selects the same token (its order is documented in llama.cpp,
    tools/server/README.md). Penalties change which token is most likely, so with them the default chain is
    used.
    """
    sampling = request.sampling
    if request.logprobs or sampling.get("temperature") != 0 or not sampling.keys() <= _IDLE_WHEN_GREEDY:
        return {}
    return {"samplers": ["top_k"], "top_k": 1}


def _described(weights: Path) -> tuple[GgufHeader, ModelShape | None]:
    """Return the header of a GGUF file, and the shape of the model if the header has it."""
    header = read_gguf(weights)
    return header, shape_of(header.pairs, weights.stat().st_size, header.tensors)


def _keeps_whole_window(spec: LoadSpec, shape: ModelShape | None) -> bool:
    """Whether sliding-window layers keep the whole context window, so that every shared token is reused.

    Otherwise llama.cpp keeps only the attention window and returns to checkpoints. That evaluates about ten
    more tokens per row (measured on Gemma 3 270M), and the whole prefix if there is no checkpoint.
    """
    if shape is None or shape.sliding_window is None:
        return False
    return shape.token_bytes * spec.num_ctx * max(1, spec.slots) <= WHOLE_WINDOW_BYTES


def _refuse_longer_than_trained(spec: LoadSpec, header: GgufHeader) -> None:
    """Refuse a window beyond the trained context, where llama.cpp only warns and answers are nonsense."""
    if header.trained_ctx is not None and spec.num_ctx > header.trained_ctx:
        raise RequestRefused(
            f"{spec.model!r} supports at most {header.trained_ctx} tokens of context, not {spec.num_ctx}",
            fix=f"Set options.num_ctx to {header.trained_ctx} or less.",
        )


def _version() -> str:
    return f"xllamacpp {importlib.metadata.version('xllamacpp')}"
