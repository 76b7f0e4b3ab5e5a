"""The shared prefix, evaluated alone in each slot: only where that is measured to pay.

With sliding-window attention a prompt that branches off (another row behind the same prefix, a trim) reuses
nothing unless an earlier request ended where it branches (llama.cpp rewinds such a model only to checkpoints,
which it makes near the end of a prompt). A request of just the shared prefix is such an end. With plain
attention every shared token is reused anyway.

Where the server copies a primed prefix from slot to slot, priming is done without being tried: it costs one
evaluation, which the first prompts would have cost anyway, and every other slot is spared its own.

What is sent is what the server itself renders: the longest beginning that the renderings of several rows
share. Whether it pays is seen on the job: a few branching prompts without it, a few with it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from spoolama.backends.base import Backend, LoadSpec, Message, Reply
from spoolama.errors import BackendError, ServerAway, ServerBusy, ServerDied

__all__ = ["Primer", "PrimerNotes"]

_TRIALS = 4
"""Branching prompts that are looked at without the primer, and again with it."""
_PAYS = 0.9
"""It pays if no more than this share of the cost without it is left."""
_LOST = 0.5
"""A branching prompt that reuses less than this share of the primed tokens has lost them."""
_MOST_LOSSES = 0.2
"""If more branching prompts than this lose the prefix although it was primed, it is given up."""

Mode = Literal["auto", "always", "never"]


@dataclass
class PrimerNotes:
    """What was done and found, for the metrics."""

    state: str = "not needed"
    """In words."""
    requests: int = 0
    tokens: int = 0
    """Prompt tokens of these requests, cached ones included."""
    evaluated: int | None = None
    """... those that were evaluated, where the server tells."""
    copied: int = 0
    """Requests by which a slot got the prefix as a copy of another's; nothing was evaluated."""
    without: float | None = None
    """Median cost of a branching prompt without the primer: evaluated tokens, or seconds where the server
    does not count cached ones."""
    primed: float | None = None
    """The same with it."""
    unit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass
class _Trial:
    costs: list[float] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.costs) >= _TRIALS


class Primer:
    """Keeps the shared prefix primed.

    Args:
        backend: The model server.
        load: The loaded model's terms.
        mode: `auto` where it pays, `always`, `never`.
        sliding: Whether the model is known to have sliding-window attention.
        copies: Whether the server has several slots and copies a primed prefix between them.
        rows: Own messages of several rows, by which the shared beginning is found.
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
        self._without, self._with = _Trial(), _Trial()
        self._branches = self._losses = 0
        self._tokens = 0
        self.notes = PrimerNotes()
        copies = copies and mode == "auto" and len(rows) > 1
        self._on = mode == "always" or copies
        self._trying = mode == "auto" and sliding and not copies
        self._by_rule = self._on  # else it is on trial, and what came of that is to be told
        if mode == "never":
            self.notes.state = "switched off by the sidecar (prime: never, or think)"
        elif copies:
            self.notes.state = "to be evaluated once and copied into the other slots; no prompt asked for it"
        elif self._on:
            self.notes.state = "always, by the sidecar"
        elif self._trying:
            self.notes.state = "on trial: too few branching prompts to tell"

    def lost(self, load: LoadSpec | None = None) -> None:
        """The model was loaded again, on these terms where they are others: nothing is primed any more."""
        self._load = load or self._load
        self._primed.clear()
        self._seen.clear()

    async def before(
        self, lane: int, front: tuple[Message, ...], *, branches: bool, timeout_s: float
    ) -> bool:
        """To be called before a prompt is sent; primes this lane's slot where it is not.

        Args:
            lane: Its number; also the slot where a backend can choose.
            front: The messages that all prompts of the segment begin with.
            branches: Whether the prompt goes back to them, and does not just append to the last one.
            timeout_s: Bound on all that is asked of the server.

        Returns:
            Whether it primed.
        """
        if not front or not branches:
            return False
        if self._trying:
            if not self._without.full:
                return False
        elif not self._on:
            return False
        try:
            # Many renderings, or another lane's priming, may each stay within a bound of their own.
            async with asyncio.timeout(timeout_s):
                text = await self._text(front)
                if text is None or self._primed.get(lane) == text:
                    return False
                reply = await self._backend.prime(self._load, text, slot=lane, timeout_s=timeout_s)
        except TimeoutError:
            self._give_up(f"the server took longer than {timeout_s:g} s over it")
            return False
        except (ServerAway, ServerBusy, ServerDied):
            return False  # the row's own request will meet it, and is dealt with there
        except BackendError as error:
            self._give_up(f"the server does not take it ({error.code})")
            return False
        if reply is None:
            self._give_up("this server takes no raw prompts")
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
        """To be called with each reply: what its prompt cost shows whether priming pays."""
        first = lane not in self._seen
        self._seen.add(lane)
        if not branches or first or not (self._trying or self._on):
            return  # a slot's first prompt is evaluated whole in any case
        if self._on:
            self._watch(lane, reply)
            return
        cost = _cost(reply)
        if cost is None:
            self._give_up("the server tells neither cached tokens nor times")
            return
        self.notes.unit = "evaluated tokens" if reply.cached_tokens is not None else "seconds"
        if not self._without.full:
            self._without.costs.append(cost)
        elif lane in self._primed:
            self._with.costs.append(cost)
            if self._with.full:
                self._judge()

    def _judge(self) -> None:
        without, primed = statistics.median(self._without.costs), statistics.median(self._with.costs)
        self.notes.without, self.notes.primed = without, primed
        if primed <= _PAYS * without:
            self._trying, self._on = False, True
            self.notes.state = "kept: measured to pay"
        else:
            self._give_up("measured not to pay")

    def _watch(self, lane: int, reply: Reply) -> None:
        """A slot may lose its prefix, and lanes may meet other slots than they primed."""
        if reply.cached_tokens is None or not self._tokens:
            return
        self._branches += 1
        if reply.cached_tokens >= _LOST * self._tokens:
            return
        self._losses += 1
        self._primed.pop(lane, None)
        if self._losses > 2 * _TRIALS and self._losses > _MOST_LOSSES * self._branches:
            self._give_up("the server does not keep what was primed")

    def _give_up(self, why: str) -> None:
        self._trying = self._on = False
        self.notes.state = f"given up: {why}"

    async def _text(self, front: tuple[Message, ...]) -> str | None:
        if front not in self._texts:
            text = await self._shared(front)
            self._texts = {front: text}  # one front at a time is in use; older ones are done with
            if text is None:
                self._give_up("the server does not show how it renders prompts, or the rows share no prefix")
        return self._texts[front]

    async def _shared(self, front: tuple[Message, ...]) -> str | None:
        """What the renderings of all example rows begin with."""
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
        # By characters, which is what is wanted here, and what the linter warns of for paths.
        return os.path.commonprefix(sorted(rendered)) or None  # noqa: RUF071


def _cost(reply: Reply) -> float | None:
    if reply.prompt_tokens is not None and reply.cached_tokens is not None:
        return float(reply.prompt_tokens - reply.cached_tokens)
    return reply.prompt_s
