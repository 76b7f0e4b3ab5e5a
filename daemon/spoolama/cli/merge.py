"""`spoolama merge`: merges the answers of a retry into the original job."""

from __future__ import annotations

from pathlib import Path

import click

from spoolama.jobtools.merge import merge_jobs

__all__ = ["merge"]

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    epilog="Example: spoolama merge done/reviews-20261124T090000Z-k3f9"
    " done/errors-20261124T101500Z-p2d7 -o whole",
)
@click.argument("jobdir", type=_DIRECTORY)
@click.argument("retrydir", type=_DIRECTORY)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The directory to create.")
def merge(jobdir: Path, retrydir: Path, out: Path) -> None:
    """Merge the answers of a retry into the job that the rows came from.

    JOBDIR is the published job whose errors.jsonl (or skipped.jsonl, or retry.jsonl) was dropped again.
    RETRYDIR is the published job of that retry. The result has all rows in order; the rows that still failed
    can be dropped again.
    """
    summary = merge_jobs(jobdir, retrydir, out)
    click.echo(summary.text)
    click.echo(f"Written: {out}")
