"""Collects the data of `spoolama gpu`: readings, loaded models and the estimate. Loads no model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from spoolama.backends.base import Backend, HeldModel, LoadSpec
from spoolama.backends.model_shape import ModelShape
from spoolama.clock import SystemClock
from spoolama.errors import BackendError, RequestRefused, WrongServer
from spoolama.memory.host import HostProbe
from spoolama.memory.level import LevelRules
from spoolama.memory.nvml import NvmlCards
from spoolama.memory.reader_threads import CardThread, HostThread
from spoolama.memory.readings import Card, CardProbe, NoCards
from spoolama.memory.room import Where
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.model.model_size import EstimatedSize
from spoolama.service.assembly import server_is_here
from spoolama.service.settings import Settings

T = TypeVar("T")

WAIT_S = 2.0
"""Maximum time in seconds for the first answer of the driver; an older reading does not count."""
_ANSWER_S = 5.0
_ASK_AGAIN_S = 5.0
_ENGINE = b"spoolama.backends.embedded_child"
"""Identifies the process of an embedded engine by its command line; its name is only python."""
_AT_ONCE = LevelRules(rise_s=0.0, fall_s=0.0, hysteresis=0.0)
"""The level at this moment; the service ignores short peaks, but a person wants to see them."""


class GpuReport:
    """Reads the memory, asks the server and estimates the load; `payload` returns the result.

    Args:
        settings: The address of the server, and the limits.
        backend: The server. It is never asked to load a model.
        spec: The load to estimate, or None.
        probe: Reads the cards; None: NVML.
    """

    def __init__(
        self, settings: Settings, backend: Backend, spec: LoadSpec | None, probe: CardProbe | None = None
    ) -> None:
        clock, vram = SystemClock(), settings.vram
        self._settings = settings
        self._backend = backend
        self._spec = spec
        self._here = server_is_here(settings.backend)
        self._host = HostThread(HostProbe(clock=clock), clock, pids=_engines)
        elsewhere = NoCards("the model server is on another machine")
        self._cards = CardThread(
            (probe or NvmlCards()) if self._here else elsewhere, clock, stale_after_s=WAIT_S
        )
        self._watchdog = MemoryWatchdog(
            self._cards,
            self._host if self._here else None,
            clock,
            limits=vram.limits,
            host_limits=vram.host_limits,
            rules=_AT_ONCE,
            only=vram.cards,
            on_cards=backend.uses_gpus,
        )
        self._models: tuple[HeldModel, ...] | None = None
        self._unlisted: str | None = None
        self._estimated: EstimatedSize | None = None
        self._unsized: str | None = None
        self.no_such_model = False
        """Whether the server does not have the model."""

    async def looked(self) -> None:
        """Wait for the next reading."""
        await self._watchdog.looked()

    async def run(self, *, keep_on: bool) -> None:
        """Read every second until cancelled, first when the cards are read or time out.

        Args:
            keep_on: Ask the server repeatedly, not only once.
        """
        self._cards.start()
        self._host.start()
        await asyncio.gather(
            self._ask(),
            asyncio.to_thread(self._cards.wait_for_first, WAIT_S),
            asyncio.to_thread(self._host.wait_for_first, WAIT_S),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watchdog.run())
            if keep_on:
                group.create_task(self._ask_again())

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(_ASK_AGAIN_S)
            await self._ask()

    async def _ask(self) -> None:
        """Ask for the loaded models and the model's shape. A server that is away is not an error."""
        self._models, self._unlisted = await _answer(self._backend.in_memory)
        self._watchdog.listed(self._models)
        spec = self._spec
        if spec is None or self._estimated is not None:
            return
        estimated_size, self._unsized = await _answer(lambda: EstimatedSize.of(self._backend, spec))
        if estimated_size is not None and estimated_size.shape is not None:
            self._estimated = estimated_size
        elif estimated_size is not None:
            _, why = await _answer(
                self._shape
            )  # asks again to get the reason, which `EstimatedSize.of` does not return
            self._unsized = why or "the server does not report the shape of the model"

    async def _shape(self) -> ModelShape | None:
        assert self._spec is not None
        try:
            return await self._backend.shape(self._spec)
        except RequestRefused as error:
            self.no_such_model = not isinstance(error, WrongServer)
            raise

    def payload(self) -> dict[str, Any]:
        """The current state for programs: sizes in bytes, null if unknown."""
        readings, dog = self._watchdog.latest, self._watchdog
        assert readings is not None, "looked comes first"
        seen = self._cards.latest()
        watched = readings.cards is not None or readings.host is not None
        names = {runner.pid: runner.name for runner in readings.runners}
        return {
            "level": str(dog.level) if watched else None,
            "why": dog.words,
            "cards": None if seen.cards is None else [self._card(card, names) for card in seen.cards],
            "no_cards": seen.unreadable or readings.unreadable,
            "machine": self._machine(),
            "holders": [asdict(runner) for runner in self._host.latest().runners],
            "server": self._server(),
            "estimate": self._estimate(no_card=self._here and seen.lasting),
        }

    def _card(self, card: Card, names: dict[int, str]) -> dict[str, Any]:
        limits, only = self._watchdog.limits_of(card), self._settings.vram.cards
        processes = None
        if card.processes is not None:
            processes = [{"pid": p, "name": names.get(p), "bytes": n} for p, n in card.processes.items()]
        return {
            **asdict(card),
            "free_bytes": card.free_bytes,
            "high_bytes": limits.high_bytes,
            "critical_bytes": limits.critical_bytes,
            "keep_free_gb": self._watchdog.limits.keep_free_gb,
            "counts": not only or card.index in only,
            "processes": processes,
        }

    def _machine(self) -> dict[str, Any] | None:
        """The memory of this machine, also if the server is on another machine."""
        host = self._host.latest().host
        if host is None:
            return None
        limits = self._watchdog.host_limits.limits(host.total_bytes)
        return {
            **asdict(host),
            "used_bytes": host.used_bytes,
            "high_bytes": limits.high_bytes,
            "critical_bytes": limits.critical_bytes,
        }

    def _server(self) -> dict[str, Any]:
        section = self._settings.backend
        # The models of an embedded engine belong to the service, which cannot be asked from here.
        listed = None if section.address is None else self._models
        return {
            "kind": section.kind,
            "address": section.address,
            "here": self._here,
            "error": self._unlisted,
            "models": None if listed is None else [asdict(model) for model in listed],
        }

    def _estimate(self, *, no_card: bool) -> dict[str, Any] | None:
        """The estimate compared with the free memory; `unknown` is the reason if there is no estimate."""
        spec, estimated_size = self._spec, self._estimated
        if spec is None:
            return None
        asked = {"model": spec.model, "num_ctx": spec.num_ctx, "slots": spec.slots}
        shape = None if estimated_size is None else estimated_size.shape
        if estimated_size is None or shape is None:
            return {**asked, "unknown": self._unsized}
        if no_card:
            estimated_size = replace(estimated_size, on_card=False)  # Ollama then takes main memory
        found, need = estimated_size.estimate(spec), estimated_size.need(spec)
        assert found is not None
        assert need is not None
        readings = self._watchdog.latest
        free = self._free(need.where)
        return {
            **asked,
            "unknown": None,
            "where": need.where,
            "cards": len(readings.cards or ()) if readings is not None else 0,
            "trained_ctx": shape.trained_ctx,
            "estimate": estimated_size.to_json(spec),
            "may_be_taken_bytes": free,
            "fits": None if free is None else self._watchdog.room(need).fits,
            "fits_whole": None if free is None else found.total_bytes <= free,
        }

    def _free(self, where: Where) -> int | None:
        """Bytes that a load may take below the critical limit, as in `memory/room.py`; None: unknown."""
        readings, dog = self._watchdog.latest, self._watchdog
        if readings is None:
            return None
        if where == "host":
            host, most = readings.host, dog.most_bytes("host")
            return None if host is None or most is None else max(0, most - host.used_bytes)
        if readings.cards is None:
            return None
        free = sum(max(0, dog.limits_of(card).critical_bytes - card.used_bytes) for card in readings.cards)
        return free + sum(model.vram_bytes or 0 for model in readings.models or ())


def cards_now(settings: Settings, probe: CardProbe | None = None) -> tuple[Card, ...]:
    """The cards that count and can be read within 2 s; empty if the server is on another machine."""
    if not server_is_here(settings.backend):
        return ()
    cards = CardThread(probe or NvmlCards())
    cards.start()
    cards.wait_for_first(WAIT_S)
    cards.stop()
    only = settings.vram.cards
    found = cards.latest().cards or ()
    return tuple(card for card in found if card.total_bytes > 0 and (not only or card.index in only))


async def _answer(ask: Callable[[], Awaitable[T | None]]) -> tuple[T | None, str | None]:
    """The reply of the server, or the reason why there is none."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await ask(), None
    except BackendError as error:
        return None, error.message
    except TimeoutError:
        return None, f"no answer within {_ANSWER_S:.0f} s"


def _engines() -> list[int]:
    """Process ids of embedded engines on this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # the process has ended, or is hidden
        if _ENGINE in words:
            found.append(int(entry.name))
    return found
