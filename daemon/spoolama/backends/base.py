"""Defines the interface to a model server, and the requests and replies that pass through it.

A backend turns a `ChatRequest` into a `Reply` or raises a `BackendError` of `spoolama.errors`. It classifies
errors by status and structure, and by text only if the server gives nothing else. It never retries: the
engine decides what an error means (`answer/failures.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from spoolama.backends.model_shape import ModelShape

MOST_COUNTED = 2**53 - 1
"""Larger counts are discarded: the ledger cannot store them exactly (RFC 8259, section 6)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant` (OpenAI lines may bring others)."""
    content: str
    """Its text."""

    def wire(self) -> dict[str, str]:
        """Return the message in the format of chat APIs."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Load-time settings of a model. They are constant within a job, because a change reloads the model."""

    model: str
    """The model name in the sidecar."""
    num_ctx: int
    """Context window of one slot, in tokens."""
    load_options: Mapping[str, Any] = field(default_factory=dict)
    """Other load-time options (`num_batch`, `num_gpu`, `num_thread`, ...)."""
    slots: int = 1
    """Number of parallel requests, for backends where spoolama sets it."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The kind and version of the server."""

    kind: str
    """`ollama`, `embedded` or `openai`."""
    version: str | None
    """The version that the server reports; None: it reports none."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model, as the server describes it."""

    name: str
    digest: str | None
    """Identifies the weights: Ollama's digest or the sha256 of a GGUF file; None: unknown."""
    num_ctx: int | None
    """Context window of one slot, as the server reports it; None: not reported."""
    slots: int | None
    """Number of parallel requests; None: unknown."""
    server: ServerInfo
    size_bytes: int | None = None
    """Memory that the model uses, as the server reports it."""
    vram_bytes: int | None = None
    """The part of it on the GPU."""
    can_think: bool = False
    """Whether the model has a thinking mode."""
    load_s: float | None = None
    """Duration of the load in seconds."""
    sliding_window: int | None = None
    """Window of sliding-window attention layers in tokens; None: full attention, or unknown."""
    copies_prefix: bool = False
    """Whether a prefix that was primed in one slot is copied into the others instead of evaluated again."""
    trained_ctx: int | None = None
    """Trained context length in tokens, from the model file."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model that the server lists as loaded; any client may have loaded it."""

    name: str
    size_bytes: int | None
    """Set at the load, not live; for sliding-window models Ollama counts only one of two KV buffers."""
    vram_bytes: int | None
    """The part of it on GPUs."""
    num_ctx: int | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One prompt to answer. Load options are only in `load`, so that a request cannot cause a reload."""

    load: LoadSpec
    messages: tuple[Message, ...]
    num_predict: int
    """Maximum length of the answer in tokens; always sent, at least 1."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """`temperature`, `seed`, `top_p`, ... with Ollama's names."""
    format: Mapping[str, Any] | Literal["json"] | None = None
    """JSON Schema (or "json") that constrains the answer."""
    think: bool | str | None = None
    """None: false for models that can think. Otherwise the value in the sidecar."""
    timeout_s: float = 600.0
    """Timeout of the whole request; then the request is cancelled and `Stalled` is raised."""
    slot: int | None = None
    """Number of the lane, for backends that can pin a conversation to a slot."""
    logprobs: bool = False
    """Whether to request log probabilities of the answer's tokens, which costs a little time per token."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished generation with the server's own counts. None: the server did not report the value."""

    text: str
    finish: Literal["stop", "length"]
    """`length`: the answer was cut off at `num_predict` or at the end of the context window."""
    prompt_tokens: int | None
    """All prompt tokens, including cached ones."""
    cached_tokens: int | None
    """Prompt tokens served from the prefix cache."""
    completion_tokens: int | None
    load_s: float | None = None
    """Seconds until the model was ready; over 0.1 for a loaded model means that it was loaded again."""
    prompt_s: float | None = None
    """Seconds to evaluate the prompt."""
    eval_s: float | None = None
    """Seconds to generate the answer."""
    thinking: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The unchanged response body, for OpenAI batch output; it contains no secrets."""
    logprob: float | None = None
    """Mean natural-log probability of the answer's tokens, at most 0; None: not requested or not reported."""

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer in later prompts; None: unknown, for example after thinking.

        Servers count thinking as part of the answer, but it is not sent again.
        """
        return None if self.thinking else self.completion_tokens


class Backend(Protocol):
    """A model server. All methods may raise a `BackendError`."""

    kind: str
    """Name of the kind of server, for messages and metrics. What differs between kinds is stated below."""
    releases: bool
    """Whether `release` frees memory. False if others share the server or it cannot unload models."""
    uses_gpus: bool
    """Whether the server puts a model on GPUs by itself; if not, only if `num_gpu` says so."""
    sets_slots: bool
    """Whether `LoadSpec.slots` sets the number of parallel requests; if not, the server's settings do."""

    @property
    def pid(self) -> int | None:
        """Process id of a model server that is a child of this process; None: there is none."""
        ...

    async def probe(self) -> ServerInfo:
        """Check cheaply that the server is reachable; this loads no model."""
        ...

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model unless it is loaded with these settings, and verify what the server reports.

        Raises:
            RequestRefused: the model does not exist, is not local, or cannot be loaded with these settings.
        """
        ...

    async def chat(self, request: ChatRequest) -> Reply:
        """Send one prompt and return its answer."""
        ...

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        """Count the tokens of a prompt exactly, without evaluating it; None if the server cannot."""
        ...

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        """Render the prompt with the server's template as `chat` does with thinking off; evaluate nothing.

        None if the server cannot.
        """
        ...

    async def prime(
        self, spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 600.0
    ) -> Reply | None:
        """Evaluate a rendered text unchanged, so that it is in the prefix cache of a slot.

        Args:
            spec: The load settings, as with every request.
            text: The result of `render`, or the beginning of it.
            slot: Number of the lane; without it, or if lanes cannot be pinned, the server chooses the slot.
            timeout_s: Timeout of the whole request.

        Returns:
            The counts of a request with an answer of one token; None if the server has no such route. All
            tokens of a prefix that was copied from another slot count as cached.
        """
        ...

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """Return how the server holds this model now, without loading it. None: it is not in memory."""
        ...

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        """Return the dimensions of the model for a memory estimate, without loading it. None: unknown."""
        ...

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """Return all models that the server lists as loaded; None if it has no such list."""
        ...

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        """Unload every model that this backend loaded; does nothing if others share the server.

        Args:
            keep: A model that stays loaded.
            also: A model to unload although an earlier process loaded it.

        Returns:
            Names of the models that were unloaded.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and child processes."""
        ...
