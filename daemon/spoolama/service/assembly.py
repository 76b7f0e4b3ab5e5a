"""Putting the service together from its settings: the one place in service/ that knows every part by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from spoolama.backends.base import Backend
from spoolama.backends.factory import BackendSettings, make_backend
from spoolama.clock import Clock, SystemClock
from spoolama.errors import ConfigError
from spoolama.job.rows import Limits
from spoolama.service.daemon import Daemon
from spoolama.service.execution import JobExecutor
from spoolama.service.notify import make_notifier, watchdog_interval
from spoolama.service.settings import BackendSection, Settings
from spoolama.service.state import ServiceState
from spoolama.spool.layout import Spool

__all__ = ["backend_for", "backend_settings", "daemon_for", "limits_for", "serve"]


def backend_settings(section: BackendSection) -> BackendSettings:
    """The backend's own settings; reads the key's file.

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
    """The model server that the settings name; nothing is connected or started yet."""
    try:
        return make_backend(backend_settings(settings.backend), clock)
    except ImportError as error:
        raise ConfigError(
            f"backend.kind {settings.backend.kind} needs a package that is not installed ({error.name}). "
            "Run: pip install 'spoolama[embedded]'"
        ) from error


def limits_for(settings: Settings) -> Limits:
    """Bounds of rows."""
    return Limits.for_cells(settings.max_cell_bytes)


def daemon_for(
    settings: Settings,
    *,
    env: Mapping[str, str] = os.environ,
    reload: Callable[[], Settings] | None = None,
    once: bool = False,
) -> Daemon:
    """The whole service on the machine's own clock; call it inside the event loop."""
    clock = SystemClock()
    spool = Spool(settings.spool)
    backend = backend_for(settings, clock)
    executor = JobExecutor(
        spool,
        backend,
        clock,
        lanes=settings.lanes,
        limits=limits_for(settings),
        newline_required=settings.final_newline == "require",
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
        once=once,
    )


def serve(
    settings: Settings,
    *,
    reload: Callable[[], Settings] | None = None,
    once: bool = False,
    beside: Callable[[ServiceState, str], Coroutine[Any, Any, None]] | None = None,
) -> int:
    """Run the service to its end.

    Args:
        settings: What the administrator set.
        reload: Reads the settings again, for SIGHUP.
        once: Work off what is there, then end.
        beside: Shows the state while the service runs; gets the spool's path, and is cancelled at the end.

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
