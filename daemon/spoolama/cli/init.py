"""`spoolama init`: creates a spool directory."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: spoolama init spool")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shared",
    is_flag=True,
    help="Several users upload: incoming/ gets mode 3770. Set its group yourself: chgrp GROUP DIR/incoming.",
)
def init(directory: Path, shared: bool) -> None:
    """Create a spool in DIRECTORY: incoming, processing, done, failed and status.

    Existing directories stay as they are. Then tests that the service can move files between them.
    """
    from spoolama.spool.layout import Spool

    spool = Spool(directory.absolute())
    spool.create(shared=shared)
    spool.prove()
    click.echo(f"The spool {directory} is ready. Put files into {directory / 'incoming'}, and run:")
    click.echo(f"  spoolama run --spool {directory}")
