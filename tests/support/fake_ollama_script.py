"""The configuration of a fake Ollama (models, speed, answers, faults) and the calls that it received."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from support.card_model import CardModel


@dataclass(frozen=True, slots=True)
class Asked:
    """The inputs of an answer."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    """Sampling options only, without load options and `num_predict`."""
    format: Any = None
    think: Any = None

    @property
    def row(self) -> str:
        """The last message's text: the row."""
        return str(self.messages[-1].get("content", "")) if self.messages else ""


Answer = Callable[[Asked], str]
"""The text of an answer; a pure function makes a run repeatable."""


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of the server."""

    name: str
    digest: str = ""
    """sha256 in hex; empty: that of the name."""
    family: str = "llama"
    parameter_size: str = "134.52M"
    quantization_level: str = "Q4_1"
    parameters: int = 134_515_008
    size_bytes: int = 98_362_745
    vram_bytes: int = 0
    """Bytes on the GPU in `/api/ps`."""
    context_length: int = 8192
    """The trained window; a larger `num_ctx` is cut to it."""
    window: int | None = None
    """Sliding attention window in tokens; None: plain attention."""
    capabilities: tuple[str, ...] = ("completion",)
    remote_host: str | None = None
    """A stub of a model that runs on another host."""
    template: Literal["chatml", "gemma"] = "chatml"
    load_s: float = 2.0
    """The `load_duration` of a load."""

    @property
    def full_digest(self) -> str:
        """The digest that the server shows."""
        return self.digest or hashlib.sha256(self.name.encode()).hexdigest()


SMOLLM2 = FakeModel("smollm2:135m", digest="fd5f44c0b5aff6453726119fc560d73a8a995a55b4a49804bc24b1969ecf1794")
"""Plain attention."""
GEMMA3 = FakeModel(
    "gemma3:270m",
    digest="d6a5bd949d28767632efc33a95bdfd7b7f73d4b11cc21d9f6f0af20c49c65c92",
    family="gemma3",
    parameter_size="268.10M",
    quantization_level="Q4_K_M",
    size_bytes=253_113_575,
    context_length=32768,
    window=512,
    template="gemma",
)
"""Sliding-window attention: a prefix that lies far back is lost unless a request ended there."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of the server; token times are always reported and waited for as `pace` says."""

    request_s: float = 0.0
    """Wait for every answer, while it uses its slot."""
    prompt_token_s: float = 0.0005
    """Reported for each evaluated prompt token."""
    answer_token_s: float = 0.005
    """Reported for each answered token."""
    pace: float = 0.0
    """Share of the reported token and load times that is really waited for."""
    load_s: float = 0.0
    """Wait for every load, beside the paced part."""
    jitter: float = 0.0
    """Waits vary by up to this share, up and down, by a generator seeded with `seed`."""
    seed: int = 7


FaultKind = Literal[
    "http",  # status and body as given
    "reset",  # the connection is reset before any byte
    "reset_body",  # ... after the headers and half of the body
    "cut_body",  # the connection is closed in order, but half of the body is missing
    "garbage",  # bytes that are not HTTP
    "not_json",  # HTTP 200 with a body that is no JSON
    "hang",  # no byte at all
    "drip",  # a byte from time to time
    "not_done",  # HTTP 200, `done` false, no counters
    "no_reason",  # HTTP 200, `done` true without a `done_reason`
    "empty",  # an empty answer
    "text",  # the answer is `body`
    "silent_cut",  # HTTP 200 on a prompt cut to half the window
    "runner_killed",  # the model's process dies: 500, and the model has to be loaded again
    "out_of_memory",  # the same for lack of memory
    "busy",  # 503
    "cloud",  # 403
    "missing",  # 404
    "remote",  # an answer that says it came from elsewhere
]


@dataclass(slots=True)
class Fault:
    """A fault; all given conditions must hold, and without any it always applies."""

    kind: FaultKind
    calls: Sequence[int] = ()
    """Numbers of chat calls, from 1."""
    every: int = 0
    """Every this many chat calls."""
    contains: str = ""
    """Text of the last message."""
    when: Callable[[Call], bool] | None = None
    """Any other condition."""
    times: int | None = None
    """Applies at most this often."""
    status: int = 500
    """`http`: the status."""
    body: str = ""
    """`http`: the `error` text, or a whole body if it starts with `{`; `text`: the answer."""
    delay_s: float = 0.0
    """Wait before it applies, with the slot in use; `drip`: between two bytes."""
    struck: int = 0
    """How often it applied."""

    def strikes(self, call: Call) -> bool:
        """Whether it applies to this call, which is then counted."""
        if self.times is not None and self.struck >= self.times:
            return False
        if self.calls and call.number not in self.calls:
            return False
        if self.every and call.number % self.every:
            return False
        if self.contains and self.contains not in call.row:
            return False
        if self.when is not None and not self.when(call):
            return False
        self.struck += 1
        return True


@dataclass(slots=True)
class Call:
    """A chat or generate call, as received, and its result."""

    number: int
    """From 1, in the order in which requests were complete, counted by path."""
    at: float
    """Seconds since the epoch."""
    path: str
    """As requested; `/api/chat (render)` for a chat that was only rendered."""
    raw: bytes
    """The body as received."""
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    """Names in lower case."""
    outcome: str | None = None
    """`ok`, the status, the kind of fault, or `cancelled`; None: still running."""
    answer: str | None = None
    cached_tokens: int | None = None
    """The tokens reused from the prefix cache, whether reported or not."""
    slot: int | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the request."""
        found = self.body.get("messages")
        return found if isinstance(found, list) else []

    @property
    def row(self) -> str:
        """The last message's text: the row."""
        messages = self.messages
        return str(messages[-1].get("content", "")) if messages else ""

    @property
    def sha256(self) -> str:
        """Hash of the messages in a canonical form."""
        text = json.dumps(self.messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(slots=True)
class Script:
    """The configuration of a fake Ollama."""

    models: Sequence[FakeModel] = (SMOLLM2, GEMMA3)
    any_model: bool = False
    """Every name exists, as a copy of the first model."""
    version: str = "0.33.3"
    """From 0.33.3 on it reports cached tokens; 0.30.0 counts only evaluated prompt tokens."""
    slots: int = 1
    """OLLAMA_NUM_PARALLEL."""
    max_queue: int = 512
    """OLLAMA_MAX_QUEUE: calls that may wait while a model is loaded."""
    latency: Latency = field(default_factory=Latency)
    answer: Answer | None = None
    """None: a label, or a valid instance of the format, chosen by a hash of the request."""
    labels: Sequence[str] = ("positive", "negative", "neutral")
    faults: list[Fault] = field(default_factory=list)
    bytes_per_token: int = 4
    """A message counts one token for this many bytes of UTF-8, rounded up ..."""
    tokens_per_message: int = 4
    """... and this many for its frame; the opened answer counts one less."""
    num_ctx_limit: int | None = None
    """The largest window that is loaded, as after a reduction for lack of memory."""
    cloud_disabled: bool = True
    render_only: bool = True
    """Whether `_debug_render_only` is known; if not, such a chat is answered as any other."""
    vram_share: float | None = None
    """The share of a loaded model's size on the GPU in `/api/ps`; None: the model's `vram_bytes`."""
    memory: CardModel | None = None
    """The machine's memory, of which loads take their part; None: there is always enough."""
