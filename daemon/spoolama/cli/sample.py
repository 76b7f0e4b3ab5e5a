"""`spoolama sample`: creates sample data with a sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from spoolama.cli.samples import SAMPLES, write_sample

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
    help="The directory to write to. Default: the current directory.",
)
def sample(kind: Literal["candidates", "reviews"], rows: int, seed: int, out: Path) -> None:
    """Create sample data with a sidecar.

    candidates: synthetic profiles without names (role, years, skills, education, location, note) to score.
    reviews: 200 sentences of real reviews with human ratings; more rows repeat them.
    """
    try:
        written = write_sample(kind, rows, seed, out)
    except FileExistsError as error:
        raise click.ClickException(
            f"{error.filename} already exists. Use another directory with -o."
        ) from error
    for path in written:
        click.echo(f"Written: {path}")
    if kind == "reviews" and rows > 200:
        click.echo(f"The {rows} rows repeat 200 real sentences in different orders.")
