"""`spoolama status` and `watch`: show the status of the service or of one file, from its status files."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from spoolama.cli.settings_options import config_option, settings_from, spool_option

if TYPE_CHECKING:
    from spoolama.spool.layout import Spool

_STALE_S = 90.0
_PIPE_WIDTH = 80


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
    from spoolama.spool.names import readable

    root = Spool(settings_from(config, spool=spool).spool)
    if name is None:
        payload, text = _read_service(root.status, _run_command(config, root.root))
        click.echo(json.dumps(payload, indent=2, ensure_ascii=False) if as_json else text.rstrip("\n"))
        return
    start = f"No service runs on this spool. Start it: {_run_command(config, root.root, once=True)}"
    found = _of_name(root, name, "" if _service_runs(root.status) else start)
    if found is None:
        click.echo(f"{readable(name)} has no status, and is not in {root.incoming}.", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in _in_words(found):
        click.echo(line)
    if found["job"] is None and found["state"] != "waiting" and not _service_runs(root.status):
        click.echo(start)
    if found.get("earlier"):
        click.echo("Earlier: " + "\n".join(_in_words(found["earlier"])))


def _run_command(config: Path | None, spool: Path, *, once: bool = False) -> str:
    """The command that runs the service on this spool."""
    settings = ["--config", str(config)] if config else []
    return shlex.join(["spoolama", "run", *(["--once"] if once else []), *settings, "--spool", str(spool)])


def _read_service(directory: Path, start: str) -> tuple[dict[str, Any], str]:
    """Read the last status of the service as JSON and as text. The text shows if it is outdated.

    Args:
        directory: status/ of the spool.
        start: The command that starts the service.
    """
    try:
        payload = json.loads((directory / "service.json").read_bytes())
        text = (directory / "service.txt").read_text(encoding="utf-8")
        age = (datetime.now(UTC) - datetime.fromisoformat(payload["at"])).total_seconds()
    except FileNotFoundError:
        raise click.ClickException(
            f"No service has run on the spool {directory.parent} yet. Run: {start}"
        ) from None
    except (ValueError, KeyError) as error:
        raise click.ClickException(f"{directory / 'service.json'} is damaged: {error}") from None
    if not _is_live(payload):
        from spoolama.clock import duration

        old = duration(max(0.0, age))
        text = f"The service is not running. Its last status is {old} old:\n\n{text}"
    return payload, text


def _is_live(payload: dict[str, Any]) -> bool:
    """Whether service.json is from a service that runs now."""
    age = (datetime.now(UTC) - datetime.fromisoformat(payload["at"])).total_seconds()
    return age <= _STALE_S and payload["service"]["state"] != "stopped"


def _service_runs(directory: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _is_live(json.loads((directory / "service.json").read_bytes()))
    return False


def _of_name(spool: Spool, name: str, stopped: str) -> dict[str, Any] | None:
    """The status of the file NAME. A file in incoming/ precedes an earlier job of the same name.

    Args:
        spool: The spool.
        name: The file's name; its ending may be omitted.
        stopped: That no service runs; empty if one does.

    Returns:
        What the service wrote, or the status of a file in incoming/ with the `earlier` one; None: unknown.
    """
    from spoolama.spool.names import DATA_ENDINGS
    from spoolama.spool.status_files import status_name

    name = Path(name).name
    packed = ("", ".gz", ".zst")
    names = [name, *(f"{name}{ending}{pack}" for ending in DATA_ENDINGS for pack in packed)]
    paths = (spool.status / status_name(full) for full in names)
    found: dict[str, Any] | None = next((json.loads(p.read_bytes()) for p in paths if p.is_file()), None)
    uploaded = None
    with contextlib.suppress(PermissionError):  # incoming/ may be closed to other users
        uploaded = next((full for full in names if (spool.incoming / full).is_file()), None)
    if uploaded is None or (found is not None and found["job"] is None and found["name"] == uploaded):
        return found
    held: list[dict[str, Any]] = []
    if not stopped:
        held = json.loads((spool.status / "service.json").read_bytes())["held"]
    waiting = {"state": "waiting", "name": uploaded, "job": None, "message": stopped or None}
    return next((one for one in held if one["name"] == uploaded), waiting) | {"earlier": found}


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
            return [f"{name} is in {found['where']}", *filter(None, [found["message"], found.get("fix")])]
        case "waiting":
            return [" ".join(filter(None, [f"{name} waits in incoming/.", found["message"]]))]
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

    root = Spool(settings_from(config, spool=spool).spool)
    start = _run_command(config, root.root)
    console = Console()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                payload, text = _read_service(root.status, start)
                if not console.is_terminal:
                    console.width = _pipe_width(payload)
                live.update(picture(payload, text.splitlines()[0]), refresh=True)
                if until_idle and payload["running"] is None and not payload["queue"]:
                    return
                time.sleep(every)
    except KeyboardInterrupt:
        return


def _pipe_width(payload: dict[str, Any]) -> int:
    """A width at which no name is cut: a program may read the output."""
    items = [*payload["queue"], *payload["held"], *payload["ended"]]
    names = [item["name"] + item.get("where", "") for item in items]
    return _PIPE_WIDTH + max(map(len, names), default=0)


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
        table = _table("Waiting", "File", "State")
        for item in rows:
            table.add_row(escape(item["name"]), item["state"], escape(item["message"] or ""))
        parts += ["", table, *more_held_text(payload)]
    if payload["ended"]:
        table = _table("Last ended", "File", "Where")
        for item in payload["ended"][:10]:
            table.add_row(escape(item["name"]), escape(item["where"]), escape(_with_fix(item)))
        parts += ["", table]
    return Group(*parts)


def _with_fix(ended: dict[str, Any]) -> str:
    return "\n".join(filter(None, [ended["message"], ended.get("fix")]))


def _table(title: str, *names: str) -> Table:
    """A table whose first columns are not wrapped, and whose last one takes the rest of the width."""
    table = Table(box=None, title=title, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("", overflow="fold")
    return table
