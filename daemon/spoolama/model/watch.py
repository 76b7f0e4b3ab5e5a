"""Observes requests and replies of a loaded model, to detect reloads and to keep its slots primed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from spoolama.backends.base import LoadedModel, LoadSpec, Message, Reply
from spoolama.model.primer import Primer
from spoolama.model.surprises import Surprise, Surprises
from spoolama.progress import Progress

__all__ = ["Watch"]


class Watch:
    """Observes every request and reply of one load of a model.

    Args:
        surprises: Detects what other clients do to the model.
        primer: Keeps the shared prefix in the slots.
        progress: Receives notices and the phase.
        shrink: Called with the window that the server holds if it changes; None: not needed.
    """

    def __init__(
        self,
        surprises: Surprises,
        primer: Primer,
        progress: Progress,
        shrink: Callable[[int], Awaitable[None]] | None,
    ) -> None:
        self._surprises = surprises
        self._primer = primer
        self._progress = progress
        self._shrink = shrink
        self._cold = surprises.fresh

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
        window = self._surprises.window
        found = await self._surprises.after(reply, ordinal)
        reloaded = any(surprise.kind == "reloaded" for surprise in found)
        if reloaded:
            self._primer.lost()
        else:
            self._primer.saw(lane, reply, branches=branches)
        for surprise in found:
            self._say(surprise)
        now = self._surprises.window
        if now is not None and now != window and self._shrink is not None:
            await self._shrink(now)
        return reloaded

    def cut(self, ordinal: int, message: str) -> None:
        """Record that the server silently truncated a prompt."""
        surprise = Surprise("prompt_cut", message, ordinal)
        self._surprises.note(surprise)
        self._progress.on_notice(surprise.kind, surprise.message)

    def loaded(self, model: LoadedModel, load: LoadSpec) -> None:
        """Record that we loaded the model again, after a server failure or memory pressure."""
        self._surprises.loaded_by_us(model, load)
        self._primer.lost(load)
        self._cold = self._surprises.fresh

    def notes(self) -> dict[str, Any]:
        """Return the observations for the metrics."""
        return {
            "surprises": {
                "counts": dict(self._surprises.counts),
                "first": [asdict(s) for s in self._surprises.seen],
            },
            "primer": self._primer.notes.to_json(),
        }

    def _say(self, surprise: Surprise) -> None:
        self._progress.on_notice(surprise.kind, surprise.message)
        if complaint := self._surprises.complaint:
            self._progress.phase = f"answering; {complaint}"
