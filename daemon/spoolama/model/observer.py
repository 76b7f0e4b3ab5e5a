"""Observes the loaded model: detects what other clients do to it, and keeps its slots primed.

Ollama does not report reloads, evictions or offloading. The sign is a reply with a long `load_duration`
(recorded: 1 ms with a loaded model, at least 0.27 s after a reload); then `/api/ps` shows what the server
holds now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from spoolama.backends.base import Backend, LoadedModel, LoadSpec, Message, Reply
from spoolama.errors import BackendError
from spoolama.model.primer import Primer
from spoolama.progress import Progress

_RELOAD_S = 0.1
"""If a reply waited longer than this for its model, the model was reloaded."""
_OFTEN = 5
_MOST_KEPT = 50


@dataclass(frozen=True, slots=True)
class ExternalChange:
    """An event that this job did not cause."""

    kind: str
    """`reloaded`, `window_smaller`, `offloaded` or `prompt_cut`."""
    message: str
    ordinal: int
    """The row at which it was detected."""


class ModelObserver:
    """Observes every request and reply of a model.

    Args:
        backend: The model server.
        load: The load settings of the model.
        held: The model as it was loaded.
        primer: Keeps the shared prefix in the slots.
        progress: Receives notices and the phase.
        shrink: Called with the window that the server holds if it changes; None: not needed.
    """

    def __init__(
        self,
        backend: Backend,
        load: LoadSpec,
        held: LoadedModel,
        primer: Primer,
        progress: Progress,
        shrink: Callable[[int], Awaitable[None]] | None,
    ) -> None:
        self._backend = backend
        self._load = load
        self._held = held
        self._primer = primer
        self._progress = progress
        self._shrink = shrink
        self._window = self._window_of(held)
        """Context window that the server holds, at most the requested one; None: not reported."""
        self._doubt = False
        """Whether a smaller window was seen once."""
        self._cold = self._fresh
        """Whether no request was sent since the model was loaded."""
        self._counts: Counter[str] = Counter()
        self._first: list[ExternalChange] = []

    async def before(
        self, lane: int, front: tuple[Message, ...], *, branches: bool, timeout_s: float
    ) -> bool:
        """Prepare for a prompt; returns whether its slot was primed, within `timeout_s` at most."""
        primed = await self._primer.before(lane, front, branches=branches, timeout_s=timeout_s)
        if primed:
            self._cold = False
        return primed

    def take_cold(self) -> bool:
        """Whether the next request is the first since the model was loaded."""
        cold, self._cold = self._cold, False
        return cold

    async def after(self, lane: int, reply: Reply, ordinal: int, *, branches: bool) -> bool:
        """Evaluate a reply; returns whether its model had to be loaded first."""
        reloaded = (reply.load_s or 0.0) > _RELOAD_S
        window = self._window
        if reloaded:
            self._note_change(
                "reloaded",
                f"the model had to be loaded again ({reply.load_s:.1f} s): another client unloaded it or "
                "loaded it with other options",
                ordinal,
            )
        if reloaded or self._doubt:
            await self._compare(ordinal, settled=not reloaded)
        if reloaded:
            self._primer.lost()
        else:
            self._primer.saw(lane, reply, branches=branches)
        if self._window is not None and self._window != window and self._shrink is not None:
            await self._shrink(self._window)
        return reloaded

    def cut(self, ordinal: int, message: str) -> None:
        """Record that the server silently truncated a prompt."""
        self._note_change("prompt_cut", message, ordinal)

    def loaded(self, model: LoadedModel, load: LoadSpec) -> None:
        """Record that we loaded the model again, after a server failure or memory pressure."""
        self._load, self._held = load, model
        self._window = self._window_of(model)
        self._primer.lost(load)
        self._cold = self._fresh

    def notes(self) -> dict[str, Any]:
        """Return the observations for the metrics."""
        return {
            "external_changes": {"counts": dict(self._counts), "first": [asdict(s) for s in self._first]},
            "primer": self._primer.notes.to_json(),
        }

    @property
    def _fresh(self) -> bool:
        """Whether our load put the model into memory, judged by its duration; then its slots are empty."""
        return (self._held.load_s or 0.0) > _RELOAD_S

    def _window_of(self, model: LoadedModel) -> int | None:
        """Return the window, at most the requested one: a larger one is another client's or rounded up."""
        return None if model.num_ctx is None else min(model.num_ctx, self._load.num_ctx)

    async def _compare(self, ordinal: int, *, settled: bool) -> None:
        """Ask the server what it holds now, and report a smaller window and offloading.

        Args:
            ordinal: The row of the last reply.
            settled: Whether that reply came without a reload.
        """
        try:
            now = await self._backend.inspect(self._load)
        except BackendError:
            return  # the next request will show it
        if now is None:
            return
        window, known = self._window_of(now), self._window or self._load.num_ctx
        smaller = window is not None and window < known
        # Between our reply and this check another client can load the model again with another window. Our
        # next request restores our window if the server can. So a smaller window counts only after a reply
        # without a reload.
        believed = smaller and self._doubt and settled
        self._doubt = smaller and not believed
        if window is not None and not self._doubt:
            self._window = window
        if believed:
            message = f"the server now holds a window of {window} tokens instead of {known}"
            self._note_change("window_smaller", message, ordinal)
        before, after = _gpu_share(self._held), _gpu_share(now)
        if before is not None and after is not None and after < before - 0.01:
            message = f"only {after:.0%} of the model is on the GPU now, {before:.0%} before; this is slower"
            self._note_change("offloaded", message, ordinal)
        self._held = now

    def _note_change(self, kind: str, message: str, ordinal: int) -> None:
        self._counts[kind] += 1
        if len(self._first) < _MOST_KEPT:
            self._first.append(ExternalChange(kind, message, ordinal))
        self._progress.on_notice(kind, message)
        if (times := self._counts["reloaded"]) >= _OFTEN:
            self._progress.phase = (
                f"answering; requests of other clients reloaded the model {times} times; "
                "check who shares the server"
            )


def _gpu_share(model: LoadedModel) -> float | None:
    if not model.size_bytes or model.vram_bytes is None:
        return None
    return model.vram_bytes / model.size_bytes
