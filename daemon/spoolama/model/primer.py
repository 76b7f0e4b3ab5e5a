"""Primes the slots of the server with the shared prefix if measurements show that this saves time.

With sliding-window attention a branching prompt (another row after the same prefix, or a trim) reuses nothing
unless an earlier request ended at the branch: llama.cpp rewinds such a model only to checkpoints, which it
creates near the end of a prompt. A request with only the prefix creates one. With full attention every shared
token is reused anyway.

If the server can copy a primed prefix between slots, priming needs no trial: it costs one evaluation, which
the first prompt needs anyway, and the other slots need none.

The primed text is the longest common beginning of the server's own renderings of several rows. The trial
compares the cost of a few branching prompts without and with priming.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spoolama.backends.base import Backend, LoadSpec, Message, Reply
from spoolama.errors import BackendError, ServerAway, ServerBusy, ServerDied

_TRIALS = 4
"""Number of branching prompts measured without priming, and again with it."""
_PAYS = 0.9
"""Priming is kept if the cost with it is at most this share of the cost without it."""
_LOST = 0.5
"""If a branching prompt reuses less than this share of the primed tokens, the slot has lost the prefix."""
_MOST_LOSSES = 0.2
"""If a larger share of branching prompts loses the primed prefix, priming is switched off."""

Mode = Literal["auto", "always", "never"]


@dataclass
class PrimerNotes:
    """Actions and measurements of the primer, for the metrics."""

    state: str = "not needed"
    """Text for people."""
    requests: int = 0
    tokens: int = 0
    """Prompt tokens of these requests, including cached ones."""
    evaluated: int | None = None
    """Prompt tokens that were evaluated; None: the server does not report them."""
    copied: int = 0
    """Requests that copied the prefix from another slot and evaluated nothing."""
    without: float | None = None
    """Median cost of a branching prompt without priming: evaluated tokens, or seconds if the server does not
    count cached tokens."""
    primed: float | None = None
    """Median cost of a branching prompt with priming."""
    unit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class Primer:
    """Keeps the shared prefix primed.

    Args:
        backend: The model server.
        load: The load settings of the model.
        mode: `auto` (if it saves time), `always` or `never`.
        sliding: Whether the model is known to have sliding-window attention.
        copies: Whether the server has several slots and copies a primed prefix between them.
        rows: Own messages of several rows, for finding the common beginning.
    """

    def __init__(
        self,
        backend: Backend,
        load: LoadSpec,
        *,
        mode: Mode = "auto",
        sliding: bool = False,
        copies: bool = False,
        rows: Sequence[tuple[Message, ...]] = (),
    ) -> None:
        self._backend = backend
        self._load = load
        self._rows = rows
        self._texts: dict[tuple[Message, ...], str | None] = {}
        self._primed: dict[int, str] = {}
        self._seen: set[int] = set()
        self._without: list[float] = []
        """Costs of branching prompts before priming."""
        self._with: list[float] = []
        """Costs of branching prompts with a primed slot."""
        self._branches = self._losses = 0
        self._tokens = 0
        self.notes = PrimerNotes()
        copies = copies and mode == "auto" and len(rows) > 1
        self._on = mode == "always" or copies
        self._trying = mode == "auto" and sliding and not copies
        self._by_rule = self._on  # otherwise the state shows the result of the trial
        if mode == "never":
            self.notes.state = "switched off by the sidecar (prime: never, or think)"
        elif copies:
            self.notes.state = "evaluated once and copied into the other slots; no prompt has needed it yet"
        elif self._on:
            self.notes.state = "always, set in the sidecar"
        elif self._trying:
            self.notes.state = "on trial: too few branching prompts to decide"

    def lost(self, load: LoadSpec | None = None) -> None:
        """Record that the model was loaded again, possibly with other settings, so that no slot is primed."""
        self._load = load or self._load
        self._primed.clear()
        self._seen.clear()

    async def before(
        self, lane: int, front: tuple[Message, ...], *, branches: bool, timeout_s: float
    ) -> bool:
        """Prime this lane's slot if necessary; call it before a prompt is sent.

        Args:
            lane: Number of the lane; also the slot if the backend can choose one.
            front: The messages that all prompts of the segment begin with.
            branches: Whether the prompt continues from them instead of appending to the last prompt.
            timeout_s: Timeout of all requests together.

        Returns:
            Whether the slot was primed.
        """
        if not front or not branches:
            return False
        if not self._on and not (self._trying and len(self._without) >= _TRIALS):
            return False
        try:
            # One timeout for everything: renderings and the priming of another lane each have their own.
            async with asyncio.timeout(timeout_s):
                text = await self._text(front)
                if text is None or self._primed.get(lane) == text:
                    return False
                reply = await self._backend.prime(self._load, text, slot=lane, timeout_s=timeout_s)
        except TimeoutError:
            self._give_up(f"priming took longer than {timeout_s:g} s")
            return False
        except (ServerAway, ServerBusy, ServerDied):
            return False  # the row's own request fails too and handles the error
        except BackendError as error:
            self._give_up(f"the server refuses it ({error.code})")
            return False
        if reply is None:
            self._give_up("this server does not support raw prompts")
            return False
        self._note(lane, text, reply)
        return True

    def _note(self, lane: int, text: str, reply: Reply) -> None:
        self._primed[lane] = text
        self.notes.requests += 1
        if reply.prompt_tokens is not None:
            self._tokens = reply.prompt_tokens
            self.notes.tokens += reply.prompt_tokens
            if reply.cached_tokens is not None:
                evaluated = reply.prompt_tokens - reply.cached_tokens
                self.notes.evaluated = (self.notes.evaluated or 0) + evaluated
                if evaluated == 0:
                    self.notes.copied += 1
                    self.notes.state = "evaluated once and copied into the other slots"
                elif self.notes.requests > 1 and self.notes.copied == 0 and self._by_rule:
                    self.notes.state = "evaluated in each slot"

    def saw(self, lane: int, reply: Reply, *, branches: bool) -> None:
        """Evaluate the prompt cost of a reply; call it for each reply."""
        first = lane not in self._seen
        self._seen.add(lane)
        if not branches or first or not (self._trying or self._on):
            return  # the first prompt of a slot is always evaluated completely
        if self._on:
            self._watch(lane, reply)
            return
        cost = _cost(reply)
        if cost is None:
            self._give_up("the server reports neither cached tokens nor times")
            return
        self.notes.unit = "evaluated tokens" if reply.cached_tokens is not None else "seconds"
        if len(self._without) < _TRIALS:
            self._without.append(cost)
        elif lane in self._primed:
            self._with.append(cost)
            if len(self._with) == _TRIALS:
                self._judge()

    def _judge(self) -> None:
        without, primed = statistics.median(self._without), statistics.median(self._with)
        self.notes.without, self.notes.primed = without, primed
        if primed <= _PAYS * without:
            self._trying, self._on = False, True
            self.notes.state = "kept: it saves time"
        else:
            self._give_up("it saves no time")

    def _watch(self, lane: int, reply: Reply) -> None:
        """Detect lost prefixes: a slot can lose its prefix, and a lane can get another slot."""
        if reply.cached_tokens is None or not self._tokens:
            return
        self._branches += 1
        if reply.cached_tokens >= _LOST * self._tokens:
            return
        self._losses += 1
        self._primed.pop(lane, None)
        if self._losses > 2 * _TRIALS and self._losses > _MOST_LOSSES * self._branches:
            self._give_up("the server does not keep the primed prefix")

    def _give_up(self, why: str) -> None:
        self._trying = self._on = False
        self.notes.state = f"given up: {why}"

    async def _text(self, front: tuple[Message, ...]) -> str | None:
        if front not in self._texts:
            text = await self._shared(front)
            self._texts = {front: text}  # only one front is in use at a time
            if text is None:
                self._give_up("the server does not show how it renders prompts, or the rows share no prefix")
        return self._texts[front]

    async def _shared(self, front: tuple[Message, ...]) -> str | None:
        """Return the common beginning of the renderings of all example rows."""
        rendered = set()
        for own in self._rows:
            try:
                text = await self._backend.render(self._load, (*front, *own))
            except BackendError:
                return None
            if text is None:
                return None
            rendered.add(text)
        if len(rendered) < 2:
            return None
        # commonprefix compares characters, as needed here; the linter warns because of paths.
        return os.path.commonprefix(sorted(rendered)) or None  # noqa: RUF071


def _cost(reply: Reply) -> float | None:
    if reply.prompt_tokens is not None and reply.cached_tokens is not None:
        return float(reply.prompt_tokens - reply.cached_tokens)
    return reply.prompt_s
