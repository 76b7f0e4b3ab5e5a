"""`spoolama sample`: realistic data to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from spoolama.report.samples import SAMPLES, write_sample

__all__ = ["sample"]


@click.command(epilog="Example: spoolama sample candidates --rows 1000 --seed 7 -o /tmp/try")
@click.argument("kind", type=click.Choice(SAMPLES))
@click.option("--rows", type=click.IntRange(1, 10_000_000), default=1000, show_default=True, help="Rows.")
@click.option("--seed", type=int, default=7, show_default=True, help="The same seed gives the same rows.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The directory to write into; default: here.",
)
def sample(kind: Literal["candidates", "reviews"], rows: int, seed: int, out: Path) -> None:
    """Make sample data with its sidecar.

    candidates: synthetic profiles without names (role, years, skills, education, location, note) to score.
    reviews: sentences of real reviews with people's ratings; there are 200, past that they come again.
    """
    try:
        written = write_sample(kind, rows, seed, out)
    except FileExistsError as error:
        raise click.ClickException(
            f"{error.filename} exists already; name another directory with -o."
        ) from error
    for path in written:
        click.echo(f"Written: {path}")
    if kind == "reviews" and rows > 200:
        click.echo(f"These are 200 real sentences; to make {rows} rows they come again in another order.")
