"""Shows a live progress bar of the running job, from the state of the service."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from spoolama.clock import duration
from spoolama.progress import Snapshot
from spoolama.service.state import EndedJob, ServerState, ServiceState
from spoolama.service.status import status_line
from spoolama.spool.names import readable

_EVERY_S = 0.2


def ended_line(done: EndedJob, root: str) -> str:
    """One line about a published job, with its path."""
    name = readable(done.job.dropped_as)
    return f"{name} -> {root}/{done.ended.where}/{done.job.name}: {done.ended.words}"


async def print_ended(state: ServiceState, root: str) -> None:
    """Print a line for each ended job until cancelled; for output that is not a terminal."""
    printed = 0
    try:
        while True:
            printed = _say_ended(state, root, printed)
            await asyncio.sleep(_EVERY_S)
    finally:
        _say_ended(state, root, printed)


async def show_progress(state: ServiceState, root: str) -> None:
    """Show the running job until cancelled; each ended job stays as a line above the bar."""
    console = Console()
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.fields[phase]}"),
        console=console,
        transient=True,
        expand=True,
    )
    shown: TaskID | None = None
    about: str | None = None  # the job that the bar shows; empty if no job runs
    printed = 0
    with bar:
        try:
            while True:
                printed = _say_ended(state, root, printed, console)
                running = state.running
                now = running.item.job.name if running else ""
                if shown is None or now != about:
                    if shown is not None:
                        bar.remove_task(shown)
                    name = readable(running.item.job.dropped_as) if running else "waiting"
                    shown = bar.add_task(escape(name), total=None, rate="", left="", phase="")
                    about = now
                if running is None:
                    bar.update(shown, phase=escape(status_line(state)))
                else:
                    _advance(bar, shown, running.progress.snapshot(), state.server)
                await asyncio.sleep(_EVERY_S)
        finally:
            _say_ended(state, root, printed, console)


def short_phase(phase: str, server: ServerState) -> str:
    """The phase, short enough for a progress line if there is no connection to the server."""
    return server.no_connection(phase.removeprefix("waiting for the server: ")) or phase


def _advance(bar: Progress, shown: TaskID, snap: Snapshot, server: ServerState) -> None:
    left = snap.eta_s is not None and snap.done < snap.total
    bar.update(
        shown,
        total=snap.total or None,
        completed=snap.done,
        rate=f"{snap.rows_per_s:.1f} rows/s" if snap.rows_per_s else "",
        left=f"{duration(snap.eta_s or 0)} left" if left else "",
        phase=escape(short_phase(snap.phase, server)),
    )


def _say_ended(state: ServiceState, root: str, printed: int, console: Console | None = None) -> int:
    """Print the jobs that ended since the last call; returns the number of all ended jobs."""
    new = min(state.ended_count - printed, len(state.ended))
    for done in list(state.ended)[len(state.ended) - new :]:
        line = ended_line(done, root)
        if console is None:
            print(line, flush=True)
        else:
            console.print(escape(line), highlight=False, soft_wrap=True)
    return state.ended_count
