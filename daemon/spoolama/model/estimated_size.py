"""Estimates the memory of a load from the model shape that the server reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spoolama.backends.base import Backend, LoadSpec
from spoolama.backends.model_shape import ModelShape
from spoolama.errors import BackendError, ServerAway
from spoolama.memory.estimate import Estimate, estimate, words_of
from spoolama.memory.level import in_gb
from spoolama.memory.room import Memory, Need

__all__ = ["EstimatedSize"]


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
        return cls(shape, on_card=given != 0 if backend.kind == "ollama" else bool(given))

    def estimate(self, spec: LoadSpec) -> Estimate | None:
        """Estimate the memory of this load; None if the shape is unknown."""
        if self.shape is None:
            return None
        return estimate(self.shape, spec.num_ctx, spec.slots, batch=self._batch(spec), on_card=self.on_card)

    def need(self, spec: LoadSpec) -> Need | None:
        """Return the estimate as a `Need`."""
        found = self.estimate(spec)
        if found is None:
            return None
        size = found.total_bytes
        if not self.on_card:
            # Weights are mapped from their file, and the kernel reclaims such memory under pressure.
            size -= found.weights_bytes
        where = f"{spec.model} with a window of {spec.num_ctx:,} needs {words_of(found)}"
        return Need(size, "card" if self.on_card else "host", where)

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
