"""Builds the service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spoolama.backends.base import Backend
from spoolama.backends.factory import BackendSettings, make_backend
from spoolama.clock import Clock, SystemClock
from spoolama.errors import ConfigError
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess, FirstIdle
from spoolama.job.rows import RowLimits
from spoolama.memory.host import SCAN_EVERY_S, HostProbe
from spoolama.memory.level import LevelRules
from spoolama.memory.nvml import NvmlCards
from spoolama.memory.reader_threads import CardThread, HostThread
from spoolama.memory.readings import CardProbe, NoCards
from spoolama.memory.watchdog import EVERY_S, MemoryWatchdog
from spoolama.service.daemon import Daemon
from spoolama.service.execution import JobExecutor
from spoolama.service.logs import say
from spoolama.service.notify import make_notifier, watchdog_interval
from spoolama.service.priority import priority_of
from spoolama.service.settings import BackendSection, Settings
from spoolama.service.state import ServiceState
from spoolama.spool.layout import Spool

__all__ = ["backend_for", "backend_settings", "daemon_for", "limits_for", "memory_for", "serve"]


def backend_settings(section: BackendSection) -> BackendSettings:
    """The backend's settings; reads the API key from its file.

    Raises:
        ConfigError: the file with the key cannot be read, or is empty.
    """
    key: str | None = None
    if section.api_key_file is not None:
        try:
            lines = section.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"backend.api_key_file: {section.api_key_file} cannot be read: {error}"
            ) from None
        key = lines[0].strip() if lines else ""
        if not key:
            raise ConfigError(f"backend.api_key_file: the first line of {section.api_key_file} is empty")
    return BackendSettings(
        kind=section.kind,
        url=section.address or "",
        api_key=key,
        shared=section.shared,
        threads=section.threads,
        cache_dir=section.cache_dir,
    )


def backend_for(settings: Settings, clock: Clock) -> Backend:
    """Create the backend for the model server in the settings; does not connect or start anything."""
    try:
        return make_backend(backend_settings(settings.backend), clock)
    except ImportError as error:
        raise ConfigError(
            f"backend.kind {settings.backend.kind} needs a package that is not installed ({error.name}). "
            "Run: pip install 'spoolama[embedded]'"
        ) from error


def limits_for(settings: Settings) -> RowLimits:
    """The size limits of rows."""
    return RowLimits.for_cells(settings.max_cell_bytes)


def memory_for(
    settings: Settings, backend: Backend, clock: Clock, env: Mapping[str, str] = os.environ
) -> tuple[MemoryWatchdog, CardThread]:
    """Create the memory watchdog. For a server on another machine it only knows the models that it lists.

    Two variables exist only for tests: SPOOLAMA_TEST_MEMORY_PACE is the factor by which the watchdog is
    faster, SPOOLAMA_TEST_PROC replaces /proc.
    """
    own, vram = server_is_here(settings.backend), settings.vram
    pace = float(env.get("SPOOLAMA_TEST_MEMORY_PACE", "1"))
    cards: CardProbe = NvmlCards() if own else NoCards("the model server is on another machine")
    proc = Path(env.get("SPOOLAMA_TEST_PROC", "/proc"))
    # On a busy machine readings may be late although the driver does not hang, so the limits have a minimum.
    thread = CardThread(
        cards,
        clock,
        every_s=1.0 / pace,
        stale_after_s=max(2.0, 5.0 / pace),
        absent_every_s=60.0 / pace,
    )
    host = HostThread(
        HostProbe(proc, clock=clock, scan_every_s=SCAN_EVERY_S / pace),
        clock,
        pids=lambda: own_pids(backend),
        stale_after_s=max(2.0, 5.0 / pace),
        every_s=EVERY_S / pace,
    )
    watchdog = MemoryWatchdog(
        thread,
        host if own else None,
        clock,
        rules=_faster(LevelRules(), pace),
        every_s=EVERY_S / pace,
        limits=vram.marks,
        host_limits=vram.host_marks,
        only=vram.cards,
        on_cards=settings.backend.kind != "embedded",
    )
    return watchdog, thread


def _faster(rules: LevelRules, pace: float) -> LevelRules:
    """The same rules with all times divided by `pace`."""
    return replace(
        rules,
        rise_s=rules.rise_s / pace,
        fall_s=rules.fall_s / pace,
        trend_s=rules.trend_s / pace,
        horizon_s=rules.horizon_s / pace,
    )


def own_pids(backend: Backend) -> list[int]:
    """The process id of the embedded engine, if the backend has one and it runs."""
    pid = getattr(backend, "pid", None)
    return [] if pid is None else [pid]


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


def daemon_for(
    settings: Settings,
    *,
    env: Mapping[str, str] = os.environ,
    reload: Callable[[], Settings] | None = None,
    once: bool = False,
) -> Daemon:
    """Create the whole service with the real clock; call it inside the event loop."""
    clock = SystemClock()
    spool = Spool(settings.spool)
    backend = backend_for(settings, clock)
    memory = memory_for(settings, backend, clock, env)
    # Evaluating a new sidecar must not delay the rows of the running job.
    process = EvaluationProcess(report=_report)
    of_jobs = Evaluator(process)
    of_arrivals = Evaluator(FirstIdle(process, EvaluationProcess(idle_s=10.0, report=_report)))
    executor = JobExecutor(
        spool,
        backend,
        of_jobs,
        clock,
        lanes=settings.lanes,
        limits=limits_for(settings),
        newline_required=settings.final_newline == "require",
        memory=memory[0],
    )
    return Daemon(
        settings,
        spool,
        backend,
        executor,
        make_notifier(env),
        clock,
        reload=reload,
        watchdog_s=watchdog_interval(env),
        evaluators=(of_jobs, of_arrivals),
        priority_of=partial(priority_of, evaluator=of_arrivals),
        once=once,
        traces_crashes=True,
        memory=memory,
    )


def _report(event: str, text: str) -> None:
    say(event, text=text)


def serve(
    settings: Settings,
    *,
    reload: Callable[[], Settings] | None = None,
    once: bool = False,
    beside: Callable[[ServiceState, str], Coroutine[Any, Any, None]] | None = None,
) -> int:
    """Run the service until it ends.

    Args:
        settings: The settings.
        reload: Reads the settings again, for SIGHUP.
        once: Process the present files, then exit.
        beside: Shows the state while the service runs; gets the spool's path and is cancelled at the end.

    Returns:
        The exit status.
    """

    async def run() -> int:
        daemon = daemon_for(settings, reload=reload, once=once)
        if beside is None:
            return await daemon.run()
        show = asyncio.create_task(beside(daemon.state, str(settings.spool)), name="show")
        try:
            return await daemon.run()
        finally:
            show.cancel()
            await asyncio.gather(show, return_exceptions=True)

    return asyncio.run(run())
