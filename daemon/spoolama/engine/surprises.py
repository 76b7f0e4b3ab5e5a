"""What others do to our server while a job runs: models reloaded, evicted, given less memory.

Ollama tells of none of it. A reply whose model had to be loaded first (`load_duration`; 1 ms on a warm model,
0.27 s and more at a reload, recorded) is the sign; then `/api/ps` is asked what is held now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from spoolama.backends.base import Backend, LoadedModel, LoadSpec, Reply
from spoolama.errors import BackendError

__all__ = ["RELOAD_S", "Surprise", "Surprises"]

RELOAD_S = 0.1
"""A reply that waited longer than this for its model met a reload."""

_OFTEN = 5
_MOST_KEPT = 50


@dataclass(frozen=True, slots=True)
class Surprise:
    """Something that nobody here asked for."""

    kind: str
    """`reloaded`, `window_smaller`, `offloaded`, `evicted` or `prompt_cut`."""
    message: str
    ordinal: int | None
    """The row at which it was noticed."""


class Surprises:
    """Notices what happened to the loaded model.

    Args:
        backend: The model server.
        load: The terms on which we loaded the model.
        held: The model as it was loaded.
    """

    def __init__(self, backend: Backend, load: LoadSpec, held: LoadedModel) -> None:
        self._backend = backend
        self._load = load
        self._held = held
        self.window = self._of(held)
        """Tokens that the server holds of the window asked for; None where it does not tell."""
        self._doubt = False
        """Whether a smaller window was seen once."""
        self.seen: list[Surprise] = []
        self.counts: Counter[str] = Counter()

    @property
    def fresh(self) -> bool:
        """Whether our load put the model into memory, as far as its time tells: then its slots are empty."""
        return (self._held.load_s or 0.0) > RELOAD_S

    def loaded_by_us(self, held: LoadedModel, load: LoadSpec) -> None:
        """We loaded the model again ourselves, on these terms."""
        self._load = load
        self._held = held
        self.window = self._of(held)

    async def after(self, reply: Reply, ordinal: int) -> list[Surprise]:
        """What a reply tells; nothing is asked of the server unless it met a reload."""
        reloaded = (reply.load_s or 0.0) > RELOAD_S
        if not reloaded and not self._doubt:
            return []
        try:
            now = await self._backend.inspect(self._load)
        except BackendError:
            now = None  # then the next request will tell
        found: list[Surprise] = []
        if reloaded:
            message = (
                f"the model had to be loaded again ({reply.load_s:.1f} s): somebody else unloaded it or "
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
        """Keep it for the metrics."""
        self.counts[surprise.kind] += 1
        if len(self.seen) < _MOST_KEPT:
            self.seen.append(surprise)

    @property
    def complaint(self) -> str | None:
        """What to say in the status when it happens again and again."""
        times = self.counts["reloaded"]
        if times < _OFTEN:
            return None
        return f"the model was loaded again {times} times by others' requests; is the server shared?"

    def _of(self, model: LoadedModel) -> int | None:
        """A larger window than was asked for is another client's, or rounded up: it says nothing of ours."""
        return None if model.num_ctx is None else min(model.num_ctx, self._load.num_ctx)

    def _changes(self, now: LoadedModel, ordinal: int, *, settled: bool) -> list[Surprise]:
        found: list[Surprise] = []
        window, known = self._of(now), self.window or self._load.num_ctx
        smaller = window is not None and window < known
        # Between our reply and this look another client may have loaded the model once more with a window of
        # its own. Our next request brings ours back, if the server can: so it is believed only after a reply
        # for which nothing was loaded.
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
                    f"only {after:.0%} of the model is on the GPU now, {before:.0%} before: it is slower so",
                    ordinal,
                )
            )
        return found


def _share(model: LoadedModel) -> float | None:
    if not model.size_bytes or model.vram_bytes is None:
        return None
    return model.vram_bytes / model.size_bytes
