"""`spoolama submit`: checks files and copies them into a spool on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from spoolama.cli.settings_options import config_option, settings_from, spool_option

__all__ = ["submit"]


@click.command(
    epilog="""\b
Examples:
  spoolama submit reviews.csv --spool spool
  spoolama submit a.csv a.yaml b.jsonl --config /etc/spoolama/spoolama.yaml
From another machine, use scp or rsync:
  rsync reviews.csv reviews.yaml gpu:/var/spool/spoolama/incoming/""",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@config_option
@spool_option
@click.option("--no-check", is_flag=True, help="Do not check the files first.")
def submit(files: tuple[Path, ...], config: Path | None, spool: Path | None, no_check: bool) -> None:
    """Check FILES as the service does, then copy them to incoming/, each drop completely or not at all.

    FILES are data files. A sidecar is found by its name in the directory of its data file, or given as well.
    Existing files in incoming/ are never replaced.
    """
    from spoolama.cli.check import check_one
    from spoolama.cli.checking import CheckedFiles, drop_of
    from spoolama.cli.placing import place
    from spoolama.spool.layout import Spool
    from spoolama.spool.names import data_name, is_sidecar, sidecar_names

    settings = settings_from(config, spool=spool)
    target = Spool(settings.spool)
    sidecars = {path.name: path for path in files if is_sidecar(path.name)}
    drops: list[CheckedFiles] = []
    for path in files:
        name = data_name(path.name)
        if name is not None:
            given = [sidecars.pop(n) for n in sidecar_names(name) if n in sidecars]
            drops.append(CheckedFiles(path, given[0]) if given else drop_of(path))
        elif not is_sidecar(path.name):
            drop_of(path)  # raises the error about the file type
    drops += [drop_of(sidecar) for sidecar in sidecars.values()]
    for drop in drops:
        words = ""
        if not no_check:
            findings = check_one(CheckedFiles(drop.data, drop.sidecar or settings.default_sidecar), settings)
            words = f", {findings.rows:,} rows"
            if not findings.asked:
                first = f" Line {fault.line}: {fault.message}." if (fault := findings.first_fault) else ""
                raise click.ClickException(
                    f"{drop.data.name}: no row can be sent to the model.{first} "
                    f"See: spoolama check {drop.data}"
                )
            if findings.faults:
                words += f", {sum(findings.faults.values()):,} of which will fail (see spoolama check)"
        place(target, drop)
        click.echo(
            f"Submitted {drop.data.name}{words}. For its status, run: spoolama status {drop.data.name}"
            + (f" --spool {spool}" if spool else "")
        )
