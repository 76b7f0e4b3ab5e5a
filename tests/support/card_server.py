"""A model server with a card: loads take time and memory, and other programs take memory too.

For simulated nights on a simulated clock. The size of a load is that of `memory/estimate.py`, which was
compared with an H100; the simulation does not show that the estimate is correct.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Reply
from spoolama.backends.model_shape import ModelShape, shape_of
from spoolama.errors import OutOfMemory, ServerDied
from spoolama.memory.estimate import CELL_BYTES, estimate
from spoolama.memory.level import GB
from spoolama.memory.readings import Card, Host, Runner
from support.backend import Call, ScriptedBackend, count_tokens
from support.card_users import Users
from support.clock import VirtualClock

_DRIVER_BYTES = 480 * 2**20
"""The driver's own part, as on an H100 (`reserved` of NVML's second memory call)."""
_HOST_BYTES = 64 * GB
_RUNNER_RSS_BYTES = 900 * 2**20
_FIRST_PID = 4000


def gemma3_12b(weights_bytes: int = 7_300_000_000) -> ModelShape:
    """The shape of gemma3:12b: 48 layers; each sixth attends to everything and the others to 1,024 tokens."""
    keys = {
        "block_count": 48,
        "embedding_length": 3840,
        "feed_forward_length": 15360,
        "attention.head_count": 16,
        "attention.head_count_kv": 8,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.sliding_window": 1024,
        "vocab_size": 262_144,
        "context_length": 131_072,
    }
    named = {f"gemma3.{name}": value for name, value in keys.items()}
    shape = shape_of({"general.architecture": "gemma3", **named}, weights_bytes)
    assert shape is not None, "every key that is needed stands above"
    return shape


GEMMA3_12B = gemma3_12b()


def seconds_of(request: ChatRequest) -> float:
    """Return the time of an answer with four requests at once: 0.56 s on average, 6 s more in one of 500
    rows.

    It depends on the prompt alone, so that a seed gives the same night.
    """
    luck = zlib.crc32(request.messages[-1].content.encode())
    slow = 6.0 if luck % 500 == 0 else 0.0
    return 0.3 + 0.0004 * count_tokens(request.messages) + 0.4 * (luck % 1000) / 1000 + slow


class ModelledCard:
    """A `CardProbe` of a card whose memory the driver, the model and other programs share.

    Other programs take what they want if it is free, and the rest when it becomes free.

    Args:
        clock: Time.
        users: The other programs.
        total_gb: The card's size, in GB of 2^30 bytes.
    """

    def __init__(self, clock: VirtualClock, users: Users, total_gb: float = 16.0) -> None:
        self._clock = clock
        self._users = users
        self.total_bytes = round(total_gb * GB)
        self.ours_bytes = 0
        """Memory of the model's process."""
        self.pid: int | None = None
        """The model's process."""

    @property
    def others_bytes(self) -> int:
        """Memory of other programs now."""
        wanted = sum(self._users.want(self._clock.monotonic()).values())
        return min(wanted, self.total_bytes - _DRIVER_BYTES - self.ours_bytes)

    @property
    def used_bytes(self) -> int:
        """Memory that is not free."""
        return _DRIVER_BYTES + self.ours_bytes + self.others_bytes

    def take(self, size_bytes: int) -> bool:
        """Give the model's process this much more, if it is free."""
        if self.total_bytes - self.used_bytes < size_bytes:
            return False
        self.ours_bytes += size_bytes
        return True

    def give_back(self) -> None:
        """End the model's process."""
        self.ours_bytes, self.pid = 0, None

    def read(self) -> tuple[Card, ...]:
        """Read the card now."""
        held = {} if self.pid is None else {self.pid: self.ours_bytes}
        return (
            Card(
                index=0,
                name="modelled card",
                total_bytes=self.total_bytes,
                used_bytes=self.used_bytes,
                reserved_bytes=_DRIVER_BYTES,
                processes={1: self.others_bytes, **held},
                temperature_c=60,
                throttled=(),
            ),
        )


@dataclass
class CardServer(ScriptedBackend):
    """Answers at the pace of a real model, which has to be on the card for it. A `HostSource` as well.

    A request for a model that is not loaded loads it, as in Ollama; the engine must never cause that
    (`uninvited`). A model that is released takes its requests down with it (`cut_off`).

    Args:
        card: Where the model goes.
        answer_s: How long the answer to a request takes.
        load_s: How long a load takes.
        release_s: The same of a release.
    """

    card: ModelledCard = field(kw_only=True)
    answer_s: Callable[[ChatRequest], float] = seconds_of
    load_s: float = 8.0
    release_s: float = 1.0
    uses_gpus: bool = True
    shape_: ModelShape | None = field(default_factory=gemma3_12b)
    short_of_memory: int = 0
    """Loads that found the card full."""
    uninvited: int = 0
    """Requests that had to load the model."""
    cut_off: int = 0
    """Requests in flight when the model was released."""
    answered: int = 0
    released_at: list[float] = field(default_factory=list)
    _pid: int = _FIRST_PID

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load in the usual time if there is room; return at once if the same load is there.

        Only successful loads are in `loads`, with the time of their end.

        Raises:
            OutOfMemory: the card was full before the model was loaded, and all memory was freed.
        """
        if self.held is not None and self._spec == spec:
            return self.held
        self._drop()
        await self._fill(spec)
        loaded = await super().load(spec)
        listed = self.takes(spec) - self._not_listed(spec)
        self.held = replace(loaded, size_bytes=listed, vram_bytes=listed, load_s=self.load_s)
        return self.held

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer in the usual time without recording the request, because a night has very many."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.held is None or self._spec != request.load:
                self.uninvited += 1
                await self.load(request.load)
            pid = self.card.pid
            reply = self.fault(Call(self.clock.monotonic(), request))
            if reply is not None:
                return reply
            await self.clock.sleep(self.answer_s(request))
            if self.card.pid != pid:
                self.cut_off += 1
                raise ServerDied("the model was unloaded", status=500)
            self.answered += 1
            return self.reply_to(request)
        finally:
            self.in_flight -= 1

    async def release(
        self,
        *,
        keep: str | None = None,
        also: str | None = None,
    ) -> tuple[str, ...]:
        """End the model's process; its memory is free a moment later."""
        if self.held is not None and self.held.name != keep:
            await self.clock.sleep(self.release_s)
            self.released_at.append(self.clock.monotonic())
            self.card.give_back()
        return await super().release(keep=keep)

    def host(self) -> Host | None:
        """A machine with much free memory."""
        return Host(_HOST_BYTES, _HOST_BYTES // 2)

    def look_again(self) -> None:
        """Nothing is cached."""

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        """Return the model's process."""
        del pids
        pid = self.card.pid
        return () if pid is None else (Runner(pid, "llama-server", _RUNNER_RSS_BYTES),)

    def takes(self, spec: LoadSpec) -> int:
        """Return the bytes that a load takes on the card."""
        assert self.shape_ is not None
        return estimate(self.shape_, spec.num_ctx, spec.slots).total_bytes

    def died(self, message: str = "cudaMalloc failed: out of memory") -> OutOfMemory:
        """End the model's process for lack of memory; return the error for its callers."""
        self._drop()
        return OutOfMemory(message, status=500)

    async def _fill(self, spec: LoadSpec) -> None:
        """Take memory as llama.cpp does: CUDA's own, all weights, and after reading them the rest."""
        assert self.shape_ is not None
        needs = estimate(self.shape_, spec.num_ctx, spec.slots)
        self._pid += 1
        self.card.pid = self._pid
        try:
            for share, part in (
                (0.1, needs.overhead_bytes),
                (0.1, needs.weights_bytes),
                (0.7, needs.kv_bytes + needs.compute_bytes),
                (0.1, 0),
            ):
                await self.clock.sleep(self.load_s * share)
                if not self.card.take(part):
                    self.short_of_memory += 1
                    raise OutOfMemory("cudaMalloc failed: out of memory", status=500)
        except BaseException:
            self.card.give_back()
            raise

    def _drop(self) -> None:
        self.held = None
        self.card.give_back()

    def _not_listed(self, spec: LoadSpec) -> int:
        """Memory missing in Ollama's list: CUDA's own, and keys and values of layers that
        attend to everything.
        """
        shape = self.shape_
        assert shape is not None
        heads = sum(n for n, slides in zip(shape.kv_heads, shape.slides, strict=True) if not slides)
        cell = heads * (shape.key_length + shape.value_length) * CELL_BYTES
        return estimate(shape, spec.num_ctx, spec.slots).overhead_bytes + cell * spec.num_ctx * spec.slots
