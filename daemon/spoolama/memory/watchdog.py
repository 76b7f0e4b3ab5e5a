"""Watches the memory of cards and machine once per second and sets the memory pressure level.

It takes no action itself: the engine and the service query it (`memory/room.Memory`) and act.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spoolama.backends.base import HeldModel
from spoolama.clock import Clock
from spoolama.memory.history import MemoryHistory
from spoolama.memory.level import (
    Level,
    LevelRules,
    LevelState,
    MemoryLimits,
    RelativeLimits,
    in_gb,
    step,
    stricter,
)
from spoolama.memory.reader_threads import NOT_YET, CardThread, HostReading, HostThread
from spoolama.memory.readings import Card, Host, Readings, Runner
from spoolama.memory.room import (
    RequiredMemory,
    Room,
    UsedMemory,
    Where,
    room_on_cards,
    room_on_host,
    usable_bytes,
)

_HOST_SHARE = 0.1
_WORTH_SAYING_S = 600.0
"""A level that is reached later than this at the current rate is not mentioned."""
EVERY_S = 1.0
_LISTED_FOR_S = 30.0
"""A list of models older than this is discarded."""
HOST_LIMITS = RelativeLimits(high=0.9, critical=0.95, keep_free_gb=0.0)


class Ours:
    """Processes that hold a model that spoolama loaded.

    The process name does not decide, because others can run their own Ollama or llama-server on the same
    machine. Ours are the process of our own engine and every process that appears during one of our loads. If
    a load starts no new process, the server already held the model, in any of the existing processes; then
    all of them count until the model is unloaded and loaded again. Before the first load no process is ours.
    """

    def __init__(self) -> None:
        self.pids: frozenset[int] = frozenset()
        self._before: frozenset[int] | None = None
        """Processes that existed when a load began; None: no load is in progress or waits for a reading."""
        self._ended_at: float | None = None

    def begins(self, runners: Collection[Runner]) -> None:
        """Record that a load of ours begins while these processes exist."""
        if self._before is None:
            self._before = frozenset(runner.pid for runner in runners)
        self._ended_at = None

    def ended(self, at: float) -> None:
        """Record that the load has ended; a reading after `at` shows the new processes."""
        self._ended_at = at

    def failed(self) -> None:
        """Record that the load failed."""
        self._before = self._ended_at = None

    def released(self) -> None:
        """Record that our models were unloaded."""
        self.pids = frozenset()

    def look(self, seen: HostReading) -> None:
        """Evaluate a reading; a stale one changes nothing."""
        if not seen.known:
            return
        now = frozenset(runner.pid for runner in seen.runners)
        self.pids = seen.own or self.pids & now
        if self._before is None or seen.own:
            return
        self.pids |= now - self._before
        if self._ended_at is not None and seen.at >= self._ended_at:
            self.pids = self.pids or now
            self._before = self._ended_at = None


def frees_host(host: Host, runners: Collection[Runner]) -> bool:
    """Whether unloading our models would free at least a tenth of main memory.

    A model on a card uses little main memory. Pages of files, such as mapped weights, do not count, because
    the kernel reclaims them by itself.
    """
    held = sum(r.rss_bytes if r.anonymous_bytes is None else r.anonymous_bytes for r in runners)
    return held >= _HOST_SHARE * host.total_bytes


def in_words(readings: Readings, place: int | None, state: LevelState) -> str:
    """Describe in one line the memory that determines the level.

    Args:
        readings: The latest readings.
        place: Index of the card in the readings; None: this machine's memory.
        state: State of that card or of the machine.
    """
    card = _card(readings, place)
    if card is not None:
        name = "GPU memory" if len(readings.cards or ()) == 1 else f"GPU {card.index}"
        words = f"{name}: {in_gb(card.used_bytes)} of {in_gb(card.total_bytes)} in use"
    elif place is None and readings.host is not None and (state.level or not readings.cards):
        host = readings.host
        of = f"{host.bound}, " if host.bound else ""
        words = f"{of}{in_gb(host.used_bytes)} of {in_gb(host.total_bytes)} of this machine's memory in use"
    else:
        return readings.unreadable or "memory cannot be read"
    if state.full_in_s is not None and 0 < state.full_in_s < _WORTH_SAYING_S:
        words += f", critical in {state.full_in_s:.0f} s at this rate"
    return words


def figures(readings: Readings, place: int | None, state: LevelState) -> dict[str, Any]:
    """Return the readings behind a change, for the log and metrics.json."""
    found: dict[str, Any] = {}
    if state.full_in_s is not None:
        found["full_in_s"] = round(state.full_in_s, 1)
    card = _card(readings, place)
    if card is not None:
        found |= {"card": card.index, "used": in_gb(card.used_bytes), "total": in_gb(card.total_bytes)}
    if readings.host is not None:
        found["host_used"] = in_gb(readings.host.used_bytes)
    if readings.runners:
        found["runner"] = in_gb(sum(runner.rss_bytes for runner in readings.runners))
    return found


def _card(readings: Readings, place: int | None) -> Card | None:
    cards = readings.cards
    return cards[place] if cards is not None and place is not None and place < len(cards) else None


_Key = str | int
"""Key of a card: its uuid, since a lost card shifts the indices of later ones; its index if it has none."""


def _by_key(readings: Readings) -> dict[_Key, Card]:
    return {card.uuid or place: card for place, card in enumerate(readings.cards or ())}


@dataclass(slots=True)
class _Job:
    limits: RelativeLimits | None
    history: MemoryHistory


class MemoryWatchdog:
    """Evaluates the readings once per second and provides the memory pressure level.

    Args:
        cards: Reads the cards; started and stopped by the caller.
        host: Reads this machine's memory, started and stopped by `run`; None if the server runs elsewhere.
        clock: The clock.
        limits: The service's limits for cards.
        host_limits: The service's limits for this machine's memory.
        rules: Times of the state machine.
        only: NVML indices of the cards that count; empty: all.
        on_cards: Whether the server places models on cards by itself. If not, a card counts only while a
            model process has memory on it.
        on_change: Called with an event name and its fields at each change of level and at each action.
        every_s: Seconds between two looks.
    """

    def __init__(
        self,
        cards: CardThread,
        host: HostThread | None,
        clock: Clock,
        *,
        limits: RelativeLimits | None = None,
        host_limits: RelativeLimits = HOST_LIMITS,
        rules: LevelRules | None = None,
        only: Sequence[int] = (),
        on_cards: bool = True,
        on_change: Callable[[str, dict[str, Any]], None] = lambda _event, _facts: None,
        every_s: float = EVERY_S,
    ) -> None:
        self._cards = cards
        self._host = host
        self._clock = clock
        self.limits = limits or RelativeLimits()
        self.host_limits = host_limits
        self._rules = rules or LevelRules()
        self.only = tuple(only)
        self._on_cards = on_cards
        self.on_change = on_change
        self._every_s = every_s
        self._states: dict[_Key | None, LevelState] = {}
        """State of each card; key None: this machine's memory."""
        self._counted: list[_Key] = []
        """The cards that counted at the last reading."""
        self._looked = asyncio.Event()
        self._models: tuple[float, tuple[HeldModel, ...]] | None = None
        self._job: _Job | None = None
        self._said_unreadable = False
        self._seen_host = HostReading(clock.monotonic())
        self._ours = Ours()
        self._host_is_ours = False
        """Whether main memory counts because our models use a large part of it."""
        self._said_left = False
        self._loading = 0
        """Number of our own loads in progress."""
        self.latest: Readings | None = None
        self.level = Level.OK
        self.where: Where = "card"
        self.words = "memory has not been read yet"

    async def run(self) -> None:
        """Evaluate readings until cancelled."""
        if self._host is not None:
            self._host.start()
        try:
            while True:
                self.look()
                await self._clock.sleep(self._every_s)
        finally:
            if self._host is not None:
                self._host.stop()

    def look(self) -> None:
        """Evaluate the latest readings once, update the level and wake waiters."""
        now, seen = self._clock.monotonic(), self._cards.latest()
        cards = seen.cards
        if cards is not None:
            # Ignore a card that reports no size: with a total of 0 every limit would be reached.
            counting = (c for c in cards if c.total_bytes > 0 and (not self.only or c.index in self.only))
            cards = tuple(counting) or None
        if self._host is not None:
            self._seen_host = self._host.latest()
        self._ours.look(self._seen_host)
        models = self._models
        self.latest = readings = Readings(
            at=now,
            cards=cards,
            unreadable=None if cards else seen.unreadable or "none of the selected cards is present",
            host=self._seen_host.host,
            runners=self._seen_host.runners,
            models=models[1] if models is not None and now - models[0] <= _LISTED_FOR_S else None,
        )
        for key, used, limits in self._gauges(readings):
            state = self._states.get(key) or LevelState(since=now - self._rules.fall_s)
            self._states[key] = step(state, used, limits, now, self._rules, trend=not self._loading)
        self._say_unreadable(readings)
        self._settle(readings)
        if self._job is not None:
            self._job.history.add(readings, self.level, self._every_s)
        self._looked.set()
        self._looked = asyncio.Event()

    def listed(self, models: tuple[HeldModel, ...] | None) -> None:
        """Store the list of models that the server has just returned."""
        self._models = None if models is None else (self._clock.monotonic(), models)

    def _gauges(self, readings: Readings) -> Iterator[tuple[_Key | None, int | None, MemoryLimits | None]]:
        """Yield key, bytes in use and limits of each card and of this machine."""
        cards = _by_key(readings)
        for key, card in cards.items():
            yield key, card.used_bytes, self.limits_of(card)
        for gone in self._states.keys() - cards.keys() - {None}:
            yield gone, None, None
        host = readings.host
        if host is not None and host.total_bytes > 0:
            yield None, host.used_bytes, self.host_limits.limits(host.total_bytes)
        elif None in self._states:
            yield None, None, None

    def limits_of(self, card: Card) -> MemoryLimits:
        """Return the limits of a card: the service's, or the job's if they are lower."""
        limits = self.limits.limits(card.total_bytes)
        if self._job is not None and self._job.limits is not None:
            limits = stricter(limits, self._job.limits.limits(card.total_bytes))
        return limits

    def _settle(self, readings: Readings) -> None:
        """Set the overall level: the highest of the cards that count and of this machine."""
        self._counted = self._counting(readings)
        keys: list[_Key | None] = [None] if None in self._states and self._host_counts(readings) else []
        states = [(key, self._states[key]) for key in (*keys, *self._counted)]
        # At equal levels report the card.
        key, state = max(states, key=lambda c: (c[1].level, c[0] is not None), default=(None, LevelState()))
        place = None if key is None else [*_by_key(readings), key].index(key)
        before, self.level = self.level, state.level
        self.where = "host" if place is None else "card"
        self.words = in_words(readings, place, state)
        if self.level is not before:
            facts = {"from": str(before), "to": str(self.level), **figures(readings, place, state)}
            self.on_change("memory.level", {"reason": self.words, **facts})
            if self._job is not None:
                self._job.history.changed(self._clock.time(), {"reason": self.words, **facts})

    def _counting(self, readings: Readings) -> list[_Key]:
        """Return the cards that hold a model of ours, or the card with most free memory.

        A server uses the card with most free memory, or spreads a model over all cards. A card that other
        programs have filled and that holds no model of ours does not count.
        """
        cards = readings.cards
        if cards is None:
            return self._counted  # without readings their level becomes ok after `fall_s`
        by_key = _by_key(readings)
        ours = [key for key, card in by_key.items() if self._ours.pids & set(card.processes or ())]
        if ours or not self._on_cards:
            return ours
        # Sort by level first, so that the choice does not alternate between two similar cards.
        return sorted(by_key, key=lambda k: (self._states[k].level, -by_key[k].free_bytes))[:1]

    def _host_counts(self, readings: Readings) -> bool:
        """Whether main memory counts: not if the models are on a card and other programs have filled it.

        Once it counts, it counts until its level is ok: after an unload no part of it is ours any more, and a
        load at that moment would fill it again.
        """
        state = self._states[None]
        if readings.host is not None:
            mine = [runner for runner in readings.runners if runner.pid in self._ours.pids]
            still = self._host_is_ours and state.level is not Level.OK
            self._host_is_ours = still or frees_host(readings.host, mine)
        counts = self._host_is_ours or not self._on_cards or readings.cards is None
        left = state.level is not Level.OK and not counts
        if left and not self._said_left:
            words = (
                f"{in_words(readings, None, state)}; other programs use it, so models on GPUs keep running"
            )
            self.on_change("memory.action", {"action": "main_memory_left_to_others", "reason": words})
        self._said_left = left
        return counts

    def _say_unreadable(self, readings: Readings) -> None:
        """Log one event when the cards become unreadable and one when they are readable again."""
        lost = readings.cards is None and readings.unreadable != NOT_YET
        if lost and not self._said_unreadable:
            self.on_change("memory.unreadable", {"reason": readings.unreadable or "no reading"})
        elif not lost and self._said_unreadable:
            self.on_change("memory.readable", {"cards": len(readings.cards or ())})
        self._said_unreadable = lost

    # Interface for the engine and the service.

    def room(self, need: RequiredMemory | None) -> Room:
        """Whether a load of this size fits now; this does not consider the level."""
        readings = self.latest
        if readings is None or readings.unreadable == NOT_YET:
            # The service has just started: without a reading a full card would look empty.
            return Room(fits=False, why=NOT_YET)
        if need is not None and need.where == "host" and self._seen_host.not_yet:
            return Room(fits=False, why="this machine's memory has not been read yet")
        if need is None:
            return Room(fits=True, why=self.words)
        if need.where == "card" and readings.cards:
            limits: Mapping[int, MemoryLimits] = {
                n: self.limits_of(card) for n, card in enumerate(readings.cards)
            }
            back = sum(model.vram_bytes or 0 for model in readings.models or ())
            return room_on_cards(need, readings.cards, limits, reclaimed_bytes=back)
        if need.where == "host" and readings.host is not None:
            return room_on_host(need, readings.host, self.host_limits.limits(readings.host.total_bytes))
        return Room(fits=True, why=self.words)

    def most_bytes(self, where: Where) -> int | None:
        """The bytes below the critical limit if the memory is otherwise empty; None: not known."""
        readings = self.latest
        if readings is None:
            return None
        if where == "host":
            host = readings.host
            return None if host is None else self.host_limits.limits(host.total_bytes).critical_bytes
        if readings.cards is None:
            return None
        empty = [self.limits_of(card).critical_bytes - (card.reserved_bytes or 0) for card in readings.cards]
        return usable_bytes(readings.cards, empty)

    def taken(self) -> UsedMemory:
        """The memory in use now."""
        readings = self.latest
        if readings is None:
            return UsedMemory()
        pids = {runner.pid for runner in readings.runners}
        rss = sum(runner.rss_bytes for runner in readings.runners) if pids else None
        if readings.cards is None:
            return UsedMemory(runners_rss_bytes=rss)
        ours = [
            size
            for card in readings.cards
            for pid, size in (card.processes or {}).items()
            if pid in pids and size is not None
        ]
        return UsedMemory(sum(card.used_bytes for card in readings.cards), sum(ours) if ours else None, rss)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While we load a model, rising memory use is not a trend, and new processes are ours."""
        self._ours.begins(self._seen_host.runners)
        self._loading += 1
        try:
            yield
        except BaseException:
            self._ours.failed()
            raise
        else:
            self._ours.ended(self._clock.monotonic())
        finally:
            self._loading -= 1
            if self._host is not None:
                self._host.look_again()

    async def looked(self) -> None:
        """Wait for the next reading."""
        await self._looked.wait()

    def did(self, action: str, **facts: object) -> None:
        """Record an action."""
        if action == "released":
            self._ours.released()
        if action in ("released", "idle_released"):
            self._models = None  # their memory is free on the cards now and would be counted twice
        self.on_change("memory.action", {"action": action, **facts, "reason": self.words})
        if self._job is not None:
            self._job.history.did(self._clock.time(), action, {**facts, "reason": self.words})

    @contextmanager
    def during(
        self, limits: RelativeLimits | None = None, before: Mapping[str, Any] | None = None
    ) -> Iterator[MemoryHistory]:
        """Apply a job's limits and collect its memory metrics while it runs.

        Args:
            limits: The limits in its sidecar; None: only the service's limits apply.
            before: The memory metrics of the job's earlier runs.
        """
        history = MemoryHistory(before)
        self._job = _Job(limits, history)
        try:
            yield history
        finally:
            self._job = None
