"""`spoolama compare`: shows two published jobs over the same data side by side."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spoolama.jobtools.compare import Comparison, compare_jobs

__all__ = ["compare", "show_comparison"]

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    epilog="""\b
Example:
  spoolama compare done/reviews-20261124T090000Z-k3f9 done/alone-20261124T090200Z-p2d7""",
)
@click.argument("left", type=_DIRECTORY)
@click.argument("right", type=_DIRECTORY)
def compare(left: Path, right: Path) -> None:
    """Show two published jobs over the same data side by side: speed, tokens, answers, and agreement.

    To see the effect of the conversation on the answers, run the same rows in conversation and isolated
    (`mode`), and compare the two jobs.
    """
    show_comparison(compare_jobs(left, right), Console())


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the comparison as one table and some sentences."""
    table = Table("", show_header=False)
    table.add_column()
    table.add_column()
    left, right = comparison.left.cells, comparison.right.cells
    for name in dict.fromkeys([*left, *right]):
        table.add_row(f"[bold]{name}[/bold]", escape(left.get(name, "-")), escape(right.get(name, "-")))
    console.print(table)
    for sentence in comparison.sentences():
        console.print(escape(sentence), highlight=False)
