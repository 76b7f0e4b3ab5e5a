"""Builds the service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spoolama.backends.base import Backend
from spoolama.backends.factory import make_backend
from spoolama.clock import Clock, SystemClock
from spoolama.errors import ConfigError
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess, ProcessPair
from spoolama.job.rows.reader import RowLimits
from spoolama.memory.host import SCAN_EVERY_S, HostProbe
from spoolama.memory.level import LevelRules
from spoolama.memory.nvml import NvmlCards
from spoolama.memory.reader_threads import CardThread, HostThread
from spoolama.memory.readings import CardProbe, NoCards
from spoolama.memory.watchdog import EVERY_S, MemoryWatchdog
from spoolama.service.daemon import Daemon
from spoolama.service.execution import JobExecutor
from spoolama.service.incoming import priority_of
from spoolama.service.logs import say
from spoolama.service.settings import BackendSection, Settings
from spoolama.service.state import ServiceState
from spoolama.service.systemd import Notifier, watchdog_interval
from spoolama.spool.layout import Spool

MemoryMaker = Callable[[Settings, Backend, Clock], tuple[MemoryWatchdog, CardThread]]


def backend_for(settings: Settings, clock: Clock) -> Backend:
    """Create the backend for the model server in the settings; does not connect or start anything.

    Raises:
        ConfigError: the file with the API key cannot be read, or a package is not installed.
    """
    section = settings.backend
    try:
        return make_backend(
            section.kind,
            clock,
            url=section.address or "",
            api_key=section.api_key(),
            shared=section.shared,
            threads=section.threads,
            cache_dir=section.cache_dir,
        )
    except ImportError as error:
        raise ConfigError(
            f"backend.kind {section.kind} needs a package that is not installed ({error.name}). "
            "Run: pip install 'spoolama[embedded]'"
        ) from error


def memory_for(
    settings: Settings, backend: Backend, clock: Clock, *, proc: Path = Path("/proc"), speed: float = 1.0
) -> tuple[MemoryWatchdog, CardThread]:
    """Create the memory watchdog. For a server on another machine it only knows the models that it lists.

    Args:
        settings: The settings.
        backend: The model server.
        clock: Time.
        proc: Where the kernel describes the processes of this machine.
        speed: Factor by which intervals and delays are shorter.
    """
    here, vram = server_is_here(settings.backend), settings.vram
    cards: CardProbe = NvmlCards() if here else NoCards("the model server is on another machine")
    # On a busy machine readings may be late although the driver does not hang, so the limits have a minimum.
    stale_after_s = max(2.0, 5.0 / speed)
    thread = CardThread(
        cards, clock, every_s=EVERY_S / speed, stale_after_s=stale_after_s, absent_every_s=60.0 / speed
    )
    host = HostThread(
        HostProbe(proc, clock=clock, scan_every_s=SCAN_EVERY_S / speed),
        clock,
        pids=lambda: [] if backend.pid is None else [backend.pid],
        stale_after_s=stale_after_s,
        every_s=EVERY_S / speed,
    )
    rules = LevelRules()
    watchdog = MemoryWatchdog(
        thread,
        host if here else None,
        clock,
        rules=replace(
            rules,
            rise_s=rules.rise_s / speed,
            fall_s=rules.fall_s / speed,
            trend_s=rules.trend_s / speed,
            horizon_s=rules.horizon_s / speed,
        ),
        every_s=EVERY_S / speed,
        limits=vram.limits,
        host_limits=vram.host_limits,
        only=vram.cards,
        on_cards=backend.uses_gpus,
    )
    return watchdog, thread


def server_is_here(section: BackendSection) -> bool:
    """Whether the model server runs on this machine, and so uses its memory."""
    if section.address is None:
        return True
    host = urlsplit(section.address).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Looks up only our own name, so that a slow name server cannot delay the start.
        own = socket.gethostname().lower()
        return host in ("localhost", own) or (host.startswith(f"{own}.") and host == socket.getfqdn().lower())
    return address.is_loopback or address.is_unspecified or _is_own(address)


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether the address belongs to this machine: only then can a socket bind to it. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        return True
    return False


def serve(
    settings: Settings,
    *,
    reload: Callable[[], Settings] | None = None,
    once: bool = False,
    display: Callable[[ServiceState, str], Coroutine[Any, Any, None]] | None = None,
    make_memory: MemoryMaker = memory_for,
) -> int:
    """Run the service until it ends.

    Args:
        settings: The settings.
        reload: Reads the settings again, for SIGHUP.
        once: Process the present files, then exit.
        display: Shows the state while the service runs; gets the spool's path and is cancelled at the end.
        make_memory: Creates the memory watchdog.

    Returns:
        The exit status.
    """

    async def run() -> int:
        daemon = _daemon(settings, reload=reload, once=once, make_memory=make_memory)
        if display is None:
            return await daemon.run()
        show = asyncio.create_task(display(daemon.state, str(settings.spool)), name="show")
        try:
            return await daemon.run()
        finally:
            show.cancel()
            await asyncio.gather(show, return_exceptions=True)

    return asyncio.run(run())


def _daemon(
    settings: Settings, *, reload: Callable[[], Settings] | None, once: bool, make_memory: MemoryMaker
) -> Daemon:
    """Create the whole service with the real clock, inside the event loop."""
    clock = SystemClock()
    spool = Spool(settings.spool)
    backend = backend_for(settings, clock)
    memory = make_memory(settings, backend, clock)
    # Evaluating a new sidecar must not delay the rows of the running job.
    process = EvaluationProcess(report=_report)
    of_jobs = Evaluator(process)
    of_arrivals = Evaluator(ProcessPair(process, EvaluationProcess(idle_s=10.0, report=_report)))
    executor = JobExecutor(
        spool,
        backend,
        of_jobs,
        clock,
        lanes=settings.lanes,
        limits=RowLimits.for_cells(settings.max_cell_bytes),
        newline_required=settings.final_newline == "require",
        memory=memory[0],
    )
    return Daemon(
        settings,
        spool,
        backend,
        executor,
        Notifier(),
        clock,
        reload=reload,
        watchdog_s=watchdog_interval(os.environ),
        evaluators=(of_jobs, of_arrivals),
        priority_of=partial(priority_of, evaluator=of_arrivals),
        once=once,
        traces_crashes=True,
        memory=memory,
    )


def _report(event: str, text: str) -> None:
    say(event, text=text)
