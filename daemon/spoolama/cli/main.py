"""The command `spoolama`; imports the module of a subcommand only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

import click

from spoolama import __version__

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("run:run", "Run the service, or with --once process the present files and exit."),
    "submit": ("submit:submit", "Check files and place them in a spool."),
    "check": ("check:check", "Check a drop or the settings before an upload."),
    "status": ("status:status", "Show the status of the service or of one file."),
    "watch": ("status:watch", "Show the progress of the service live."),
    "gpu": ("gpu:gpu", "Show GPU and main memory, and whether a model fits."),
    "init": ("init:init", "Create a spool directory."),
    "analyze": ("published:analyze", "Show the answers, agreement and failures of a published job."),
    "compare": ("published:compare", "Show two published jobs side by side."),
    "convert": ("convert:convert", "Convert to OpenAI batch requests, and batch outputs to CSV."),
    "merge": ("published:merge", "Merge the answers of a retry into the original job."),
    "sample": ("sample:sample", "Create sample data with a sidecar."),
}
"""Command name: its location (`module:attribute` in this package) and its line in the help."""


class _Lazy(click.Group):
    """A group that imports a command only when it is called."""

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
Help for a command: spoolama submit --help""",
)
@click.version_option(__version__, prog_name="spoolama")
def spoolama() -> None:
    """Drop a file, get answers: a directory as a batch queue for a local LLM.

    Exit status: 0 success; 1 failure, with a message on stderr; 75 temporary failure, such as another daemon
    on the spool: try again later; 78 the configuration or the spool must be fixed first.
    """


def main() -> None:
    """The entry point: prints errors of spoolama as one line, without a traceback."""
    from spoolama.errors import SpoolamaError

    try:
        spoolama()
    except SpoolamaError as error:
        click.echo(f"spoolama: {error}", err=True)
        fix = getattr(error, "fix", "")
        if fix:
            click.echo(fix, err=True)
        sys.exit(error.exit_status)
    except OSError as error:
        click.echo(f"spoolama: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        sys.exit(1)
