"""Removes published jobs that are older than `keep` in the settings. By default it removes none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path

from spoolama.clock import Clock
from spoolama.service.logs import say
from spoolama.service.settings import KeepSection
from spoolama.spool.layout import Spool

_EVERY_S = 3600.0
_GOING = ".going-"


def remove_old(spool: Spool, keep: KeepSection, now: float) -> list[tuple[str, Path]]:
    """Remove old jobs. Each job is renamed first, so that no process sees a part of it.

    A job's age counts from its publication: the rename into done/ set the directory's ctime.

    Returns:
        `(done or failed, former path)` of each.
    """
    removed = []
    for where, parent, days in (
        ("done", spool.done, keep.done_days),
        ("failed", spool.failed, keep.failed_days),
    ):
        for path in sorted(parent.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            if path.name.startswith(_GOING):
                shutil.rmtree(path, ignore_errors=True)  # an interrupted removal
                continue
            if days is None or path.name.startswith(".") or now - path.stat().st_ctime < days * 86400:
                continue
            going = parent / f"{_GOING}{path.name}"
            path.rename(going)
            shutil.rmtree(going, ignore_errors=True)
            _forget_status(spool, path.name)
            removed.append((where, path))
    return removed


def _forget_status(spool: Spool, job: str) -> None:
    for path in spool.status.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_bytes()).get("job") == job:
                path.unlink()


class Retention:
    """Removes old jobs once an hour."""

    def __init__(self, spool: Spool, keep: KeepSection, clock: Clock) -> None:
        self._spool = spool
        self.keep = keep
        self._clock = clock

    async def run(self) -> None:
        """Remove old jobs until cancelled."""
        while True:
            if self.keep.done_days is not None or self.keep.failed_days is not None:
                for where, path in await asyncio.to_thread(
                    remove_old, self._spool, self.keep, self._clock.time()
                ):
                    days = self.keep.done_days if where == "done" else self.keep.failed_days
                    say("job.removed", job=path.name, where=where, days=days)
            await self._clock.sleep(_EVERY_S)
