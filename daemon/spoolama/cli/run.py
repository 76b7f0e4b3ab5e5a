"""`spoolama run`: runs the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoolama.cli.settings_options import config_option, settings_from, spool_option

if TYPE_CHECKING:
    from spoolama.service.settings import Settings


@click.command(
    epilog="""\b
Examples:
  spoolama run --config /etc/spoolama/spoolama.yaml
  spoolama run --once --spool spool --backend embedded""",
)
@config_option
@click.option("--once", is_flag=True, help="Process the files in the spool, then exit.")
@spool_option
@click.option(
    "--backend",
    type=click.Choice(["ollama", "embedded", "openai"]),
    help="The kind of model server. Overrides the settings. embedded runs a .gguf file, smollm2:135m or "
    "gemma3:270m.",
)
@click.option("--url", help="The address of the model server. Overrides the settings.")
@click.option("--lanes", type=click.IntRange(min=1), help="Parallel requests. Overrides the settings.")
def run(
    config: Path | None,
    once: bool,
    spool: Path | None,
    backend: str | None,
    url: str | None,
    lanes: int | None,
) -> None:
    """Run the service: process the files in incoming/ and publish the answers in done/.

    It stops on SIGTERM or Ctrl-C: rows in flight finish, and the next start continues with the rest. A
    second signal ends it at once; no answer is lost. SIGHUP reloads the settings.

    With --once it processes the present files and exits; on a terminal it shows a progress bar.
    """
    from spoolama.service.assembly import serve
    from spoolama.service.logs import configure

    def load() -> Settings:
        return settings_from(config, spool=spool, backend__kind=backend, backend__url=url, lanes=lanes)

    settings = load()
    live = once and sys.stdout.isatty()
    configure("warning" if live else settings.log.level)
    if live:
        from spoolama.cli.progress import show_progress

        sys.exit(serve(settings, reload=load, once=True, display=show_progress))
    from spoolama.cli.progress import print_ended

    sys.exit(serve(settings, reload=load, once=once, display=print_ended if once else None))
