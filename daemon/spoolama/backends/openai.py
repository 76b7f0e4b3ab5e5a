"""Implements the backend for OpenAI-compatible servers such as vLLM, llama-server and SGLang.

Their context window is fixed at the start of the server, so it is only compared with `num_ctx`. Ollama is
refused here: its `/v1` API has neither `num_ctx` nor `truncate` and truncates long prompts silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from spoolama.backends import llama_server
from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.http import HttpClient
from spoolama.backends.model_shape import ModelShape
from spoolama.backends.openai_wire import Dialect, chat_body, checked, dialect_of, read_reply, wire_messages
from spoolama.backends.replies import integer
from spoolama.clock import Clock
from spoolama.errors import BackendError, RequestRefused, UnexpectedReply, WrongServer

PROBE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 30.0


class OpenAIBackend:
    """A client of one OpenAI-compatible server.

    Args:
        url: The server's address, with or without `/v1`.
        api_key: Sent as a bearer token.
        transport: For tests; None: the network.
        clock: Measures loads.
    """

    kind = "openai"
    releases = False
    uses_gpus = True
    sets_slots = False
    pid = None

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock,
    ) -> None:
        self._root = url.rstrip("/").removesuffix("/v1")
        self._http = HttpClient(
            self._root,
            transport=transport,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )
        self._clock = clock
        self._server = ServerInfo(self.kind, None)
        self._dialect: Dialect = "unknown"

    async def probe(self) -> ServerInfo:
        """Request the list of models."""
        await self._models(PROBE_TIMEOUT_S)
        return self._server

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Check that the server has the model with a large enough context window."""
        began = self._clock.monotonic()
        await self._refuse_ollama()
        if spec.load_options:
            names = ", ".join(sorted(spec.load_options))
            raise RequestRefused(
                f"{names}: this server takes load options only at its start, not in requests",
                fix=f"Remove {names} from `options` in the sidecar and set it at the start of the server.",
            )
        models = await self._models(DESCRIBE_TIMEOUT_S)
        entry = models.get(spec.model)
        if entry is None:
            raise RequestRefused(
                f"the server has no model {spec.model!r}; it has: {', '.join(sorted(models)) or 'none'}",
                fix="Set `model` in the sidecar to one of these.",
            )
        model = await self._model(spec.model, entry)
        if model.num_ctx is not None and model.num_ctx < spec.num_ctx:
            raise RequestRefused(
                f"the server runs {spec.model!r} with a window of {model.num_ctx} tokens, not {spec.num_ctx}",
                fix=f"Set options.num_ctx to {model.num_ctx} or less, "
                "or start the server with a larger window.",
            )
        return replace(model, load_s=self._clock.monotonic() - began)

    async def chat(self, request: ChatRequest) -> Reply:
        """Send one prompt and return its answer."""
        body = chat_body(request, dialect=self._dialect)
        reply = await self._http.post("/v1/chat/completions", body, timeout_s=request.timeout_s)
        return read_reply(checked(reply, model=request.load.model))

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        """Count with the server's own tokenizer, if it has a route for that."""
        if self._dialect == "llamacpp":
            return await llama_server.count_tokens(self._http, messages)
        if self._dialect == "vllm":
            reply = await self._http.post(
                "/tokenize",
                {"model": spec.model, "messages": wire_messages(messages), "add_generation_prompt": True},
                timeout_s=DESCRIBE_TIMEOUT_S,
            )
            return integer(checked(reply).get("count"))
        return None

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:  # noqa: ARG002 - one model
        """Render with llama-server's route; other servers have none."""
        if self._dialect != "llamacpp":
            return None
        return await llama_server.render(self._http, messages)

    async def prime(
        self,
        spec: LoadSpec,  # noqa: ARG002 - one model
        text: str,
        *,
        slot: int | None = None,  # noqa: ARG002 - chats are not pinned to slots either
        timeout_s: float = 600.0,
    ) -> Reply | None:
        """Prime with llama-server's completion route. It chooses the slot with the longest common prefix."""
        if self._dialect != "llamacpp":
            return None
        return await llama_server.prime(self._http, text, slot=None, timeout_s=timeout_s)

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """Return the facts of the model if the server lists it: listed models are loaded."""
        entry = (await self._models(DESCRIBE_TIMEOUT_S)).get(spec.model)
        return None if entry is None else await self._model(spec.model, entry)

    async def shape(self, spec: LoadSpec) -> ModelShape | None:  # noqa: ARG002 - interface
        """Return None: these servers do not report the shape."""
        return None

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """Return None: these servers have no list of loaded models."""
        return None

    async def release(
        self,
        *,
        keep: str | None = None,  # noqa: ARG002
        also: str | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Do nothing: such a server keeps its model loaded as long as it runs."""
        return ()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _models(self, timeout_s: float) -> dict[str, Mapping[str, Any]]:
        payload = checked(await self._http.get("/v1/models", timeout_s=timeout_s))
        data = payload.get("data")
        if not isinstance(data, list):
            raise UnexpectedReply(
                "/v1/models returned no list; check that this is an OpenAI-compatible server", status=200
            )
        return {str(entry["id"]): entry for entry in data if isinstance(entry, dict) and "id" in entry}

    async def _refuse_ollama(self) -> None:
        root = await self._http.get("/", timeout_s=PROBE_TIMEOUT_S)
        found = root.text.strip() == "Ollama is running"
        if not found:
            version = await self._http.get("/api/version", timeout_s=PROBE_TIMEOUT_S)
            found = (
                version.status == 200 and isinstance(version.payload, dict) and "version" in version.payload
            )
        if found:
            raise WrongServer(
                "this is an Ollama server; its OpenAI interface silently truncates prompts that are too long",
                fix=f"Set the backend's kind to ollama and its url to {self._root}.",
            )

    async def _model(self, name: str, entry: Mapping[str, Any]) -> LoadedModel:
        """Read version, window and slots, as far as this kind of server reports them."""
        self._dialect = dialect_of(entry.get("owned_by"))
        trained: int | None = None
        slots: int | None = None
        if self._dialect == "llamacpp":
            facts = llama_server.read_facts(await self._optional("/props"))
            version, window, slots = facts.version, facts.num_ctx, facts.slots
            meta = entry.get("meta")
            trained = integer(meta.get("n_ctx_train")) if isinstance(meta, dict) else None
        else:
            reported = (await self._optional("/version")).get("version")
            version = reported if isinstance(reported, str) else None
            window = integer(entry.get("max_model_len"))
        self._server = ServerInfo(self.kind, version)
        return LoadedModel(
            name=name, digest=None, num_ctx=window, slots=slots, server=self._server, trained_ctx=trained
        )

    async def _optional(self, path: str) -> Mapping[str, Any]:
        """Request a body that this server may not provide; return an empty one if it reports an error."""
        try:
            return checked(await self._http.get(path, timeout_s=DESCRIBE_TIMEOUT_S))
        except BackendError as error:
            if error.status is None:
                raise
            return {}
