"""Detects what other clients do to the loaded model during a job: reloads, evictions, offloading.

Ollama does not report these events. The sign is a reply with a long `load_duration` (recorded: 1 ms with a
loaded model, at least 0.27 s after a reload); then `/api/ps` shows what the server holds now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from spoolama.backends.base import Backend, LoadedModel, LoadSpec, Reply
from spoolama.errors import BackendError

__all__ = ["RELOAD_S", "Surprise", "Surprises"]

RELOAD_S = 0.1
"""If a reply waited longer than this for its model, the model was reloaded."""

_OFTEN = 5
_MOST_KEPT = 50


@dataclass(frozen=True, slots=True)
class Surprise:
    """An event that this job did not cause."""

    kind: str
    """`reloaded`, `window_smaller`, `offloaded`, `evicted` or `prompt_cut`."""
    message: str
    ordinal: int | None
    """The row at which it was detected."""


class Surprises:
    """Detects changes of the loaded model.

    Args:
        backend: The model server.
        load: The load settings of the model.
        held: The model as it was loaded.
    """

    def __init__(self, backend: Backend, load: LoadSpec, held: LoadedModel) -> None:
        self._backend = backend
        self._load = load
        self._held = held
        self.window = self._of(held)
        """Context window that the server holds, at most the requested one; None: not reported."""
        self._doubt = False
        """Whether a smaller window was seen once."""
        self.seen: list[Surprise] = []
        self.counts: Counter[str] = Counter()

    @property
    def fresh(self) -> bool:
        """Whether our load put the model into memory, judged by its duration; then its slots are empty."""
        return (self._held.load_s or 0.0) > RELOAD_S

    def loaded_by_us(self, held: LoadedModel, load: LoadSpec) -> None:
        """Record that we loaded the model again with these settings."""
        self._load = load
        self._held = held
        self.window = self._of(held)

    async def after(self, reply: Reply, ordinal: int) -> list[Surprise]:
        """Return the surprises that a reply shows; queries the server only after a reload."""
        reloaded = (reply.load_s or 0.0) > RELOAD_S
        if not reloaded and not self._doubt:
            return []
        try:
            now = await self._backend.inspect(self._load)
        except BackendError:
            now = None  # the next request will show it
        found: list[Surprise] = []
        if reloaded:
            message = (
                f"the model had to be loaded again ({reply.load_s:.1f} s): another client unloaded it or "
                "loaded it with other options"
            )
            found.append(Surprise("reloaded", message, ordinal))
        if now is not None:
            found += self._changes(now, ordinal, settled=not reloaded)
            self._held = now
        for surprise in found:
            self.note(surprise)
        return found

    def note(self, surprise: Surprise) -> None:
        """Record a surprise for the metrics."""
        self.counts[surprise.kind] += 1
        if len(self.seen) < _MOST_KEPT:
            self.seen.append(surprise)

    @property
    def complaint(self) -> str | None:
        """Text for the status after repeated reloads; None otherwise."""
        times = self.counts["reloaded"]
        if times < _OFTEN:
            return None
        return f"requests of other clients reloaded the model {times} times; check who shares the server"

    def _of(self, model: LoadedModel) -> int | None:
        """Return the window, at most the requested one: a larger one is another client's or rounded up."""
        return None if model.num_ctx is None else min(model.num_ctx, self._load.num_ctx)

    def _changes(self, now: LoadedModel, ordinal: int, *, settled: bool) -> list[Surprise]:
        found: list[Surprise] = []
        window, known = self._of(now), self.window or self._load.num_ctx
        smaller = window is not None and window < known
        # Between our reply and this check another client can load the model again with another window. Our
        # next request restores our window if the server can. So a smaller window counts only after a reply
        # without a reload.
        believed = smaller and self._doubt and settled
        self._doubt = smaller and not believed
        if window is not None and not smaller:
            self.window = window
        elif believed:
            found.append(
                Surprise(
                    "window_smaller",
                    f"the server now holds a window of {window} tokens instead of {known}",
                    ordinal,
                )
            )
            self.window = window
        before, after = _share(self._held), _share(now)
        if before is not None and after is not None and after < before - 0.01:
            found.append(
                Surprise(
                    "offloaded",
                    f"only {after:.0%} of the model is on the GPU now, {before:.0%} before; this is slower",
                    ordinal,
                )
            )
        return found


def _share(model: LoadedModel) -> float | None:
    if not model.size_bytes or model.vram_bytes is None:
        return None
    return model.vram_bytes / model.size_bytes
