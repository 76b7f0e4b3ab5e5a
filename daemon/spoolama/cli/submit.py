"""`spoolama submit`: checks files and copies them into a spool on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from pathlib import Path

import click

from spoolama.cli.check import check_one
from spoolama.cli.checking import CheckedFiles, drop_of
from spoolama.cli.settings_options import config_option, settings_from, spool_option
from spoolama.errors import SpoolError
from spoolama.regular import open_regular
from spoolama.spool.durable import DISK, in_words
from spoolama.spool.layout import Spool
from spoolama.spool.names import data_name, is_sidecar, sidecar_names

_CHUNK = 1024 * 1024


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
    settings = settings_from(config, spool=spool)
    target = Spool(settings.spool)
    with contextlib.suppress(PermissionError):  # reported when the files are copied
        if not (target.root.exists() and target.incoming.exists()):
            raise _no_spool(target)
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
                first = "".join(f" Line {each.line}: {each.message}." for each in findings.first_faults[:1])
                raise click.ClickException(
                    f"{drop.data.name}: no row can be sent to the model.{first} "
                    f"See: spoolama check {drop.data}"
                )
            if findings.faults:
                words += f", {sum(findings.faults.values()):,} of which will fail (see spoolama check)"
        _place(target, drop)
        click.echo(
            f"Submitted {drop.data.name}{words}. For its status, run: spoolama status {drop.data.name}"
            + (f" --spool {spool}" if spool else "")
        )


def _place(spool: Spool, drop: CheckedFiles) -> None:
    """Copy a drop into incoming/ so that the service sees it completely or not at all.

    All files are written with dot names and synced, and then renamed: first the data file, then the sidecar.
    Existing files are never replaced.

    Raises:
        SpoolError: one of the names exists already, or the user has no permission.
    """
    sources = [drop.data] if drop.sidecar is None else [drop.data, drop.sidecar]
    temps: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        with in_words(f"copying {drop.data.name}"):
            for source in sources:
                temp = spool.incoming / f".{secrets.token_hex(6)}.submit"
                temps.append((temp, spool.incoming / source.name))
                _copy(source, temp)
            for temp, target in temps:
                DISK.rename_new(temp, target)
                placed.append(target)
            DISK.fsync_dir(spool.incoming)
    except FileExistsError as error:
        for target in placed:  # remove the data file without its sidecar
            with contextlib.suppress(OSError):
                DISK.unlink(target)
        raise SpoolError(
            f"incoming/ already has a file {Path(str(error.filename2 or error.filename)).name}. "
            "Wait until it is processed, or rename your file."
        ) from error
    except FileNotFoundError as error:
        if Path(str(error.filename)).parent != spool.incoming:
            raise SpoolError(f"{error.filename} does not exist.") from error
        raise _no_spool(spool) from error
    except PermissionError as error:
        raise SpoolError(f"No permission to write to {spool.incoming}. Ask the administrator.") from error
    finally:
        for temp, _ in temps:
            with contextlib.suppress(OSError):
                DISK.unlink(temp)


def _no_spool(spool: Spool) -> SpoolError:
    return SpoolError(
        f"{spool.root} is not a spool. Name yours with --spool DIRECTORY, or create one: "
        f"spoolama init {shlex.quote(str(spool.root))}"
    )


def _copy(source: Path, target: Path) -> None:
    # Readable by all, because the service runs as another user. Claimed files are private.
    fd = DISK.create(target, 0o644)
    try:
        with open_regular(source) as file:
            while chunk := file.read(_CHUNK):
                DISK.write(fd, chunk)
        DISK.fsync(fd)
    finally:
        os.close(fd)
