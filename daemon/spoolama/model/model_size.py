"""Estimates and measures the memory that the loads of a model take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spoolama.backends.base import Backend, LoadedModel, LoadSpec
from spoolama.backends.model_shape import ModelShape
from spoolama.errors import BackendError, ServerAway
from spoolama.memory.estimate import Estimate, estimate, words_of
from spoolama.memory.level import GB, in_gb
from spoolama.memory.room import Memory, RequiredMemory, UsedMemory


@dataclass(frozen=True, slots=True)
class EstimatedSize:
    """Estimated sizes of loads of one model; without a shape all results are None or empty."""

    shape: ModelShape | None
    on_card: bool
    """Whether the server puts the model on a card if there is one."""

    @classmethod
    async def of(cls, backend: Backend, spec: LoadSpec) -> EstimatedSize:
        """Request the shape of the model from the server.

        Raises:
            ServerAway: the server is not reachable; other errors leave the shape unknown.
        """
        shape = None
        try:
            shape = await backend.shape(spec)
        except ServerAway:
            raise
        except BackendError:
            pass  # the load gets the same error and reports it
        given = spec.load_options.get("num_gpu")
        return cls(shape, on_card=backend.uses_gpus if given is None else given != 0)

    def estimate(self, spec: LoadSpec) -> Estimate | None:
        """Estimate the memory of this load; None if the shape is unknown."""
        if self.shape is None:
            return None
        return estimate(self.shape, spec.num_ctx, spec.slots, batch=self._batch(spec), on_card=self.on_card)

    def need(self, spec: LoadSpec) -> RequiredMemory | None:
        """Return the estimate as a `RequiredMemory`."""
        found = self.estimate(spec)
        if found is None:
            return None
        size = found.total_bytes
        if not self.on_card:
            # Weights are mapped from their file, and the kernel reclaims such memory under pressure.
            size -= found.weights_bytes
        where = f"{spec.model} with a window of {spec.num_ctx:,} needs {words_of(found)}"
        return RequiredMemory(size, "card" if self.on_card else "host", where)

    def shortage(self, spec: LoadSpec, memory: Memory) -> str:
        """Describe what this load needs and what is available; empty if unknown."""
        room = memory.most_bytes("card" if self.on_card else "host")
        found = self.estimate(spec)
        if found is None or room is None:
            return ""
        return f"It needs {words_of(found)}; {in_gb(room)} is available to it."

    def to_json(self, spec: LoadSpec) -> dict[str, Any] | None:
        """Return the estimate for the metrics."""
        found = self.estimate(spec)
        return None if found is None else {**asdict(found), "total_bytes": found.total_bytes}

    @staticmethod
    def _batch(spec: LoadSpec) -> int | None:
        given = spec.load_options.get("num_batch")
        return given if isinstance(given, int) else None


DESKTOP_BYTES = GB
"""Card memory that a desktop or a similar program may use permanently."""
_HARDLY_BYTES = GB // 4
"""Growth of a model process after its load: 20 MB measured (an H100), libraries may need more."""


class MeasuredSize:
    """Sizes of a model's loads, by window and slots.

    Args:
        memory: The memory watchdog, which reports the memory in use.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._estimated: EstimatedSize | None = None
        self._seen: dict[tuple[int, int], int] = {}
        """Measured card memory of loads in bytes."""
        self._before: UsedMemory | None = None
        """Memory in use before the last load."""

    async def ask(self, backend: Backend, spec: LoadSpec) -> None:
        """Request the shape of the model from the server, once.

        Raises:
            ServerAway: the server is not reachable.
        """
        if self._estimated is None:
            self._estimated = await EstimatedSize.of(backend, spec)

    def before_load(self) -> None:
        """Record the memory in use before a load; the model is not in memory."""
        self._before = self._memory.taken()

    def need(self, spec: LoadSpec) -> RequiredMemory | None:
        """Return the memory of this load: the measured size if it exceeds the estimate. None: not known."""
        if self._estimated is None:
            return None
        need, seen = self._estimated.need(spec), self._of(spec) or 0
        if need is None or need.where == "host" or seen <= need.size_bytes:
            return need
        return RequiredMemory(seen, need.where, f"{spec.model} took {in_gb(seen)} when it was loaded last")

    def shortage(self, spec: LoadSpec) -> str:
        """Describe what this load needs and what is available; empty if unknown."""
        return "" if self._estimated is None else self._estimated.shortage(spec, self._memory)

    def measure(self, spec: LoadSpec, loaded: LoadedModel) -> dict[str, Any]:
        """Return the estimated and the measured size of the load for the metrics, in bytes."""
        before, now = self._before, self._memory.taken()
        taken = 0
        if before is not None and now.runners_bytes is not None:
            # Other model processes may exist too; until our process is found, they are the only ones.
            taken = now.runners_bytes - (before.runners_bytes or 0)
        if taken <= 0 and before is not None and None not in (before.cards_bytes, now.cards_bytes):
            taken = (now.cards_bytes or 0) - (before.cards_bytes or 0)
        if taken > 0:
            self._seen[spec.num_ctx, spec.slots] = taken
        return {
            "model": spec.model,
            "num_ctx": spec.num_ctx,
            "slots": spec.slots,
            "estimate": None if self._estimated is None else self._estimated.to_json(spec),
            "listed_bytes": loaded.size_bytes,
            "listed_vram_bytes": loaded.vram_bytes,
            "taken_on_cards_bytes": taken if taken > 0 else None,
            "runner_rss_bytes": now.runners_rss_bytes,
        }

    def fills_alone(self, spec: LoadSpec) -> bool:
        """Whether other programs use little more card memory than before, so that the load filled it."""
        before, now, ours = self._before, self._memory.taken(), self._of(spec)
        if self._memory.where != "card" or before is None or ours is None:
            return False
        if before.cards_bytes is None or now.cards_bytes is None:
            return False
        others = before.cards_bytes - (before.runners_bytes or 0)  # the reading may be older than an unload
        return now.cards_bytes - ours <= others + _HARDLY_BYTES

    def leaves_hardly_any(self, spec: LoadSpec) -> bool:
        """Whether the load leaves less memory than a desktop uses, so that it is critical by itself."""
        ours, most = self._of(spec), self._memory.most_bytes("card")
        return ours is not None and most is not None and ours > most - DESKTOP_BYTES

    def would_fit(self, larger: LoadSpec, spec: LoadSpec) -> bool:
        """Whether a larger load fits instead of the current one."""
        need, now = self.need(larger), self.need(spec)
        if need is not None and now is not None:
            need = RequiredMemory(max(0, need.size_bytes - now.size_bytes), need.where, need.words)
            most, taken = self._memory.most_bytes("card"), self._memory.taken().cards_bytes
            if need.where == "card" and most is not None and taken is not None:
                # Not `room`: it counts this model as memory that the server frees for a load.
                return need.size_bytes <= most - taken
        return self._memory.room(need).fits

    def _of(self, spec: LoadSpec) -> int | None:
        return self._seen.get((spec.num_ctx, spec.slots))
