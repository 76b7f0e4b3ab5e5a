"""The one interface to a model server, and what crosses it.

A backend turns a `ChatRequest` into a `Reply` or raises one of the `BackendError`s of `spoolama.errors`.
It decides by status and structure; by text only where the server gives nothing else.
It never retries: what an error means is the engine's business (`engine/failures.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from spoolama.backends.model_shape import ModelShape

__all__ = [
    "MOST_COUNTED",
    "Backend",
    "ChatRequest",
    "HeldModel",
    "LoadSpec",
    "LoadedModel",
    "Message",
    "Reply",
    "ServerInfo",
]

MOST_COUNTED = 2**53 - 1
"""A larger count is no measurement, and the ledger could not hold it (RFC 8259, section 6)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant` (OpenAI lines may bring others)."""
    content: str
    """Its text."""

    def wire(self) -> dict[str, str]:
        """The message as every chat API spells it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What fixes a loaded model; frozen for the job, since a change of it is a reload."""

    model: str
    """The model's name as the sidecar has it."""
    num_ctx: int
    """Context window of one slot, in tokens."""
    load_options: Mapping[str, Any] = field(default_factory=dict)
    """Other load-time options (`num_batch`, `num_gpu`, `num_thread`, ...)."""
    slots: int = 1
    """How many requests the server should work on at once, where that is ours to set."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers."""

    kind: str
    """`ollama`, `embedded` or `openai`."""
    version: str | None
    """The server's version, where it tells."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready, as the server describes it."""

    name: str
    digest: str | None
    """What identifies the weights: Ollama's digest, a GGUF's sha256, or null."""
    num_ctx: int | None
    """The window of one slot as the server reports it; null where it does not."""
    slots: int | None
    """Requests it works on at once, where that is known."""
    server: ServerInfo
    size_bytes: int | None = None
    """Memory the server says the model takes."""
    vram_bytes: int | None = None
    """The part of it on the GPU."""
    can_think: bool = False
    """Whether the model has a thinking mode."""
    load_s: float | None = None
    """Seconds the load took."""
    sliding_window: int | None = None
    """Tokens that a layer with sliding-window attention looks back; null: plain attention, or unknown."""
    copies_prefix: bool = False
    """Whether a prefix that was primed in one slot is copied into the others instead of evaluated again."""
    trained_ctx: int | None = None
    """The longest window the model was made for, in tokens, as its own file says."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model that the server lists as loaded, whoever loaded it."""

    name: str
    size_bytes: int | None
    """From the log of its load, not live; of sliding-window models Ollama counts one of two KV buffers."""
    vram_bytes: int | None
    """The part of it on GPUs."""
    num_ctx: int | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One prompt to be answered. The load options stand in `load`, so that a reload cannot slip in."""

    load: LoadSpec
    messages: tuple[Message, ...]
    num_predict: int
    """Upper bound of the answer in tokens; always sent, at least 1."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """`temperature`, `seed`, `top_p`, ... by Ollama's names."""
    format: Mapping[str, Any] | Literal["json"] | None = None
    """JSON Schema (or "json") that constrains the answer."""
    think: bool | str | None = None
    """None: false where the model can think. Otherwise as the sidecar says."""
    timeout_s: float = 600.0
    """Bound on the whole request; past it the request is cancelled and `Stalled` is raised."""
    slot: int | None = None
    """The lane's number: a backend that can pin a conversation to a slot uses it."""
    logprobs: bool = False
    """Whether to ask how probable the answer's tokens were; it costs the server a little on each of them."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A generation that ended, with the server's own counts. None means: the server did not say."""

    text: str
    finish: Literal["stop", "length"]
    """`length`: the answer was cut at `num_predict` or at the window."""
    prompt_tokens: int | None
    """All prompt tokens, cached ones included."""
    cached_tokens: int | None
    """Prompt tokens served from the prefix cache, where the server counts them."""
    completion_tokens: int | None
    load_s: float | None = None
    """Seconds until the model was ready: over 1 on a warm model means it was loaded again."""
    prompt_s: float | None = None
    """Seconds evaluating the prompt."""
    eval_s: float | None = None
    """Seconds generating."""
    thinking: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The server's body as it came, for OpenAI batch output; without secrets by nature."""
    logprob: float | None = None
    """Mean natural-log probability of the answer's tokens, 0 at most; null where not asked or not told."""

    @property
    def answer_tokens(self) -> int | None:
        """Tokens that the answer takes in later prompts; None: unknown, as after thinking.

        Servers count thinking with the answer, and it is not sent again.
        """
        return None if self.thinking else self.completion_tokens


class Backend(Protocol):
    """A model server. All methods may raise a `BackendError`."""

    kind: str
    releases: bool
    """Whether `release` gives memory back: not where others share the server, or it has no such route."""

    async def probe(self) -> ServerInfo:
        """A cheap sign of life; no model is touched."""
        ...

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model, or see that it is loaded just so, and verify it as the server reports it.

        Raises:
            RequestRefused: the model is not there, or is not local, or cannot be loaded like this.
        """
        ...

    async def chat(self, request: ChatRequest) -> Reply:
        """One prompt, one answer."""
        ...

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        """The prompt's exact length without evaluating it; None where the server cannot tell."""
        ...

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        """The prompt as the server's own template renders it for `chat`, thinking off; nothing is evaluated.

        None where the server cannot tell.
        """
        ...

    async def prime(
        self, spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 600.0
    ) -> Reply | None:
        """Evaluate a rendered text just as it is, so that it stands in a slot's prefix cache.

        Args:
            spec: The load, as with every request.
            text: What `render` gave, or a beginning of it.
            slot: The lane's number; without it, or where lanes cannot be pinned, the server chooses.
            timeout_s: Bound on the whole request.

        Returns:
            The counts of a request with an answer of one token; None where the server has no such route. A
            prefix that was copied from another slot counts as cached whole.
        """
        ...

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """What the server holds of this model right now; nothing is loaded. None: it is not in memory."""
        ...

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        """What the model is made of, for an estimate of its memory; nothing is loaded. None: not told."""
        ...

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """All models that the server lists as loaded; None where it has no such list."""
        ...

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        """Give back the memory of every model that this backend loaded; a no-op where others share it.

        Args:
            keep: A model that stays.
            also: One to be released although this process did not load it: an earlier one did.

        Returns:
            Names of the models that were released.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and child processes."""
        ...
