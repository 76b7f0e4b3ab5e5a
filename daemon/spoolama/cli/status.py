"""`spoolama status` and `watch`: show the status of the service or of one file, from its status files."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from spoolama.cli.settings_options import config_option, settings_from, spool_option

_STALE_S = 90.0


@click.command(
    epilog="""\b
Examples:
  spoolama status --spool spool
  spoolama status reviews.csv --spool spool""",
)
@click.argument("name", required=False)
@config_option
@spool_option
@click.option("--json", "as_json", is_flag=True, help="Print the JSON that the service wrote.")
def status(name: str | None, config: Path | None, spool: Path | None, as_json: bool) -> None:
    """Show the status of the service or of the uploaded file NAME.

    It reads the files in status/. Users with only ssh can read them too:
    ssh gpu cat /var/spool/spoolama/status/service.txt
    """
    from spoolama.spool.layout import Spool

    root = Spool(settings_from(config, spool=spool).spool)
    if name is None:
        payload, text = _read_service(root.status)
        click.echo(json.dumps(payload, indent=2, ensure_ascii=False) if as_json else text.rstrip("\n"))
        return
    found = _of_name(root.status, name)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in _in_words(found):
        click.echo(line)


def _read_service(directory: Path) -> tuple[dict[str, Any], str]:
    """Read the last status of the service as JSON and as text. The text shows if it is outdated."""
    try:
        payload = json.loads((directory / "service.json").read_bytes())
        text = (directory / "service.txt").read_text(encoding="utf-8")
        age = (datetime.now(UTC) - datetime.fromisoformat(payload["at"])).total_seconds()
    except FileNotFoundError:
        raise click.ClickException(
            f"No service has run on the spool {directory.parent} yet. Run: spoolama run"
        ) from None
    except (ValueError, KeyError) as error:
        raise click.ClickException(f"{directory / 'service.json'} is damaged: {error}") from None
    if age > _STALE_S or payload["service"]["state"] == "stopped":
        from spoolama.clock import duration

        old = duration(max(0.0, age))
        text = f"The service is not running. Its last status is {old} old:\n\n{text}"
    return payload, text


def _of_name(directory: Path, name: str) -> dict[str, Any]:
    from spoolama.spool.names import DATA_ENDINGS, readable
    from spoolama.spool.status_files import status_name

    name = Path(name).name
    packed = ("", ".gz", ".zst")
    for full in (name, *(f"{name}{ending}{pack}" for ending in DATA_ENDINGS for pack in packed)):
        path = directory / status_name(full)
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_bytes())
            return found
    click.echo(
        f"{readable(name)} has no status. Check that it was uploaded to {directory.parent / 'incoming'}.",
        err=True,
    )
    sys.exit(1)


def _in_words(found: dict[str, Any]) -> list[str]:
    from spoolama.service.status import failures_text, rows_text
    from spoolama.spool.names import readable

    name = readable(found["name"])
    match found["state"]:
        case "running":
            lines = [f"{name} is running as job {found['job']}: {found['phase']}."]
            if found["rows"]["total"]:
                lines.append(rows_text(found))
            return [*lines, *filter(None, [failures_text(found["failures"])])]
        case "done" | "failed":
            return [f"{name} is in {found['where']}", found["message"]]
        case "queued":
            line = f"{name} is number {found['place']} in the queue, as job {found['job']}."
            return [line, *filter(None, [found["message"]])]
        case state:
            where = f" as job {found['job']}" if found["job"] else ""
            return [f"{name}: {state}{where}.", *filter(None, [found["message"]])]


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
                payload, text = _read_service(directory)
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
