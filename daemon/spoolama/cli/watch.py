"""`spoolama watch`: shows the progress of the service live, from its status files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from spoolama.cli.settings_options import config_option, settings_from, spool_option
from spoolama.cli.status import read_service

__all__ = ["picture", "watch"]


@click.command(
    epilog="""\b
Examples:
  spoolama watch --spool spool
  spoolama watch --until-idle --spool spool""",
)
@config_option
@spool_option
@click.option("--until-idle", is_flag=True, help="Exit when no job runs and the queue is empty.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between updates.",
)
def watch(config: Path | None, spool: Path | None, until_idle: bool, every: float) -> None:
    """Show the running job, the queue and the last ended jobs. Ctrl-C ends this command, not the service."""
    from spoolama.spool.layout import Spool

    directory = Spool(settings_from(config, spool=spool).spool).status
    console = Console()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                payload, text = read_service(directory)
                live.update(picture(payload, text.splitlines()[0]), refresh=True)
                if until_idle and payload["running"] is None and not payload["queue"]:
                    return
                time.sleep(every)
    except KeyboardInterrupt:
        return


def picture(payload: dict[str, Any], headline: str) -> RenderableType:
    """One screen: headline, progress bar of the running job, queue, and the last ended jobs."""
    from spoolama.service.status import failures_text, more_held_text, rows_text

    parts: list[RenderableType] = [escape(headline), f"[dim]{escape(payload['service']['status'])}[/dim]"]
    running = payload["running"]
    if running:
        total = running["rows"]["total"]
        parts += [
            "",
            f"[bold]{escape(running['name'])}[/bold]  {escape(running['phase'])}",
            ProgressBar(total=total or None, completed=running["rows"]["done"], pulse=not total),
            escape(rows_text(running)),
            escape(failures_text(running["failures"])),
        ]
    rows = [*payload["queue"], *payload["held"]]
    if rows:
        table = Table("File", "State", "", box=None, title="Waiting", title_justify="left")
        for item in rows:
            table.add_row(escape(item["name"]), item["state"], escape(item["message"] or ""))
        parts += ["", table, *more_held_text(payload)]
    if payload["ended"]:
        table = Table("File", "Where", "", box=None, title="Last ended", title_justify="left")
        for item in payload["ended"][:10]:
            table.add_row(escape(item["name"]), escape(item["where"]), escape(item["message"]))
        parts += ["", table]
    return Group(*parts)
