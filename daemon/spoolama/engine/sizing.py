"""What a load of a model takes, as far as it can be told before."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spoolama.backends.base import Backend, LoadSpec
from spoolama.backends.model_shape import ModelShape
from spoolama.errors import BackendError, ServerAway
from spoolama.gpu.estimate import Estimate, estimate, words_of
from spoolama.gpu.limits import in_gb
from spoolama.gpu.room import Memory, Need

__all__ = ["Sizing"]


@dataclass(frozen=True, slots=True)
class Sizing:
    """Sizes of loads of one model; without a shape nothing is known, and nothing is said."""

    shape: ModelShape | None
    on_card: bool
    """Whether the server puts it on a card where there is one."""

    @classmethod
    async def of(cls, backend: Backend, spec: LoadSpec) -> Sizing:
        """Ask the server what the model is made of.

        Raises:
            ServerAway: nobody is there; any other refusal to tell is no reason to stop.
        """
        shape = None
        try:
            shape = await backend.shape(spec)
        except ServerAway:
            raise
        except BackendError:
            pass  # whoever loads it will be told the same, and says so
        given = spec.load_options.get("num_gpu")
        return cls(shape, on_card=given != 0 if backend.kind == "ollama" else bool(given))

    def estimate(self, spec: LoadSpec) -> Estimate | None:
        """What this load is expected to take; None: nothing is known of the model."""
        if self.shape is None:
            return None
        return estimate(self.shape, spec.num_ctx, spec.slots, batch=self._batch(spec), on_card=self.on_card)

    def need(self, spec: LoadSpec) -> Need | None:
        """The same, as something that room is looked for."""
        found = self.estimate(spec)
        if found is None:
            return None
        size = found.total_bytes
        if not self.on_card:
            # Weights are mapped from their file, and the system takes such memory back where it is short.
            size -= found.weights_bytes
        where = f"{spec.model} with a window of {spec.num_ctx:,} needs {words_of(found)}"
        return Need(size, "card" if self.on_card else "host", where)

    def shortage(self, spec: LoadSpec, memory: Memory) -> str:
        """What this load needs and what there is, in words; empty where nothing is known."""
        room = memory.most_bytes("card" if self.on_card else "host")
        found = self.estimate(spec)
        if found is None or room is None:
            return ""
        return f"It needs {words_of(found)}; {in_gb(room)} may be taken."

    def to_json(self, spec: LoadSpec) -> dict[str, Any] | None:
        """The estimate, for the metrics."""
        found = self.estimate(spec)
        return None if found is None else {**asdict(found), "total_bytes": found.total_bytes}

    @staticmethod
    def _batch(spec: LoadSpec) -> int | None:
        given = spec.load_options.get("num_batch")
        return given if isinstance(given, int) else None
