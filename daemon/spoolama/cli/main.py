"""The command `spoolama`. A command's module is imported only when it is called, so that help is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

import click

from spoolama import __version__

__all__ = ["COMMANDS", "main", "spoolama"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("run:run", "Run the service, or with --once work off what is there."),
    "submit": ("submit:submit", "Check files and drop them into a spool, whole or not at all."),
    "check": ("check:check", "Say everything the service would say, before anything is uploaded."),
    "status": ("status:status", "Say how the service or one dropped file fares."),
    "watch": ("watch:watch", "Follow the service's progress on the terminal."),
    "gpu": ("gpu:gpu", "Show memory of GPUs and machine, and whether a model would fit."),
    "init": ("init:init", "Make a spool."),
    "analyze": ("analyze:analyze", "Show a published job's answers, agreement and failures."),
    "compare": ("compare:compare", "Show two published jobs side by side."),
    "convert": ("convert:convert", "Convert to OpenAI batch requests, and their answers back to CSV."),
    "merge": ("merge:merge", "Bring the answers of mended rows home."),
    "sample": ("sample:sample", "Make sample data with its sidecar."),
}
"""Name to where it is (`module:attribute` in this package) and its line in the list."""


class _Lazy(click.Group):
    """A group that knows its commands by name and imports them when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"spoolama.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example, from nothing to answers:
  spoolama init spool
  spoolama sample reviews --rows 20 -o .
  spoolama check reviews.csv
  spoolama submit reviews.csv --spool spool
  spoolama run --once --spool spool
Each command explains itself: spoolama submit --help""",
)
@click.version_option(__version__, prog_name="spoolama")
def spoolama() -> None:
    """Drop a file, get answers: a directory as a batch queue for a local LLM.

    Exit status: 0 all is well; 1 it did not work, and why is on the screen; 75 another daemon has the spool,
    try again later; 78 the configuration or the spool must be mended first.
    """


def main() -> None:
    """The entry point: errors made on purpose end as one line, without a traceback."""
    from spoolama.errors import SpoolamaError

    try:
        spoolama()
    except SpoolamaError as error:
        click.echo(f"spoolama: {error}", err=True)
        mend = getattr(error, "mend", "")
        if mend:
            click.echo(mend, err=True)
        sys.exit(error.exit_status)
    except OSError as error:
        click.echo(f"spoolama: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        sys.exit(1)
