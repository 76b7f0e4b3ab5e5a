"""What loads of one model take: as it is expected, and as it was seen."""

from __future__ import annotations

from typing import Any

from spoolama.backends.base import Backend, LoadedModel, LoadSpec
from spoolama.engine.sizing import Sizing
from spoolama.gpu.limits import GB, in_gb
from spoolama.gpu.room import Memory, Need, Taken

__all__ = ["DESKTOP_BYTES", "Footprint"]

DESKTOP_BYTES = GB
"""What a desktop or the like may have on a card for ever."""
_HARDLY_BYTES = GB // 4
"""What a runner may grow by after its load: 20 MB were seen (an H100), libraries may take more."""


class Footprint:
    """Sizes of a model's loads, by window and slots.

    Args:
        memory: The watchdog, which knows what is in use.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._sizing: Sizing | None = None
        self._seen: dict[tuple[int, int], int] = {}
        """Bytes that loads were seen to take on the cards."""
        self._before: Taken | None = None
        """What was in use before the last load."""

    async def ask(self, backend: Backend, spec: LoadSpec) -> None:
        """Have the server say what the model is made of, if it did not yet.

        Raises:
            ServerAway: nobody is there.
        """
        if self._sizing is None:
            self._sizing = await Sizing.of(backend, spec)

    def before_load(self) -> None:
        """A load is about to begin; the model is not in memory."""
        self._before = self._memory.taken()

    def need(self, spec: LoadSpec) -> Need | None:
        """What this load takes: what was seen, where that is more than was expected. None: not known."""
        if self._sizing is None:
            return None
        need, seen = self._sizing.need(spec), self._of(spec) or 0
        if need is None or need.where == "host" or seen <= need.size_bytes:
            return need
        return Need(seen, need.where, f"{spec.model} took {in_gb(seen)} when it was loaded last")

    def shortage(self, spec: LoadSpec) -> str:
        """What this load needs and what there is, in words; empty where nothing is known."""
        return "" if self._sizing is None else self._sizing.shortage(spec, self._memory)

    def measure(self, spec: LoadSpec, loaded: LoadedModel) -> dict[str, Any]:
        """The load as it was expected and as it is seen now, for the metrics; sizes in bytes."""
        before, now = self._before, self._memory.taken()
        taken = 0
        if before is not None and now.runners_bytes is not None:
            # Others may run models here as well; and while our process is not found yet, these are all.
            taken = now.runners_bytes - (before.runners_bytes or 0)
        if taken <= 0 and before is not None and None not in (before.cards_bytes, now.cards_bytes):
            taken = (now.cards_bytes or 0) - (before.cards_bytes or 0)
        if taken > 0:
            self._seen[spec.num_ctx, spec.slots] = taken
        return {
            "model": spec.model,
            "num_ctx": spec.num_ctx,
            "slots": spec.slots,
            "estimate": None if self._sizing is None else self._sizing.to_json(spec),
            "listed_bytes": loaded.size_bytes,
            "listed_vram_bytes": loaded.vram_bytes,
            "taken_on_cards_bytes": taken if taken > 0 else None,
            "runner_rss_bytes": now.runners_rss_bytes,
        }

    def fills_alone(self, spec: LoadSpec) -> bool:
        """Whether others take hardly more of the cards than before the load: then it was the load."""
        before, now, ours = self._before, self._memory.taken(), self._of(spec)
        if self._memory.where != "card" or before is None or ours is None:
            return False
        if before.cards_bytes is None or now.cards_bytes is None:
            return False
        others = before.cards_bytes - (before.runners_bytes or 0)  # the reading may be older than a release
        return now.cards_bytes - ours <= others + _HARDLY_BYTES

    def leaves_hardly_any(self, spec: LoadSpec) -> bool:
        """Whether the load leaves others less than a desktop takes: memory is critical without them."""
        ours, most = self._of(spec), self._memory.most_bytes("card")
        return ours is not None and most is not None and ours > most - DESKTOP_BYTES

    def would_fit(self, larger: LoadSpec, spec: LoadSpec) -> bool:
        """Whether a larger load fits in place of the one that is in memory."""
        need, now = self.need(larger), self.need(spec)
        if need is not None and now is not None:
            need = Need(max(0, need.size_bytes - now.size_bytes), need.where, need.words)
            most, taken = self._memory.most_bytes("card"), self._memory.taken().cards_bytes
            if need.where == "card" and most is not None and taken is not None:
                # `room` counts this very model among what the server gives back for a load.
                return need.size_bytes <= most - taken
        return self._memory.room(need).fits

    def _of(self, spec: LoadSpec) -> int | None:
        return self._seen.get((spec.num_ctx, spec.slots))
