"""`spoolama convert`: converts between data files and the OpenAI batch format."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from spoolama.cli.checking import drop_of
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess
from spoolama.job.rows.data_file import detect
from spoolama.job.sidecar import Sidecar
from spoolama.jobtools.convert import Converted, answers_to_csv, job_to_batch, requests_of
from spoolama.jobtools.published import json_lines, open_published
from spoolama.publish.openai_batch import is_batch_output

_FILE = click.Path(exists=True, path_type=Path)


@click.command(
    epilog="""\b
Examples:
  spoolama convert reviews.csv -o requests.jsonl
  spoolama convert batch_output.jsonl --rows reviews.csv -o answers.csv
  spoolama convert done/reviews-20261124T090000Z-k3f9 -o batch_output.jsonl
""",
)
@click.argument("source", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--sidecar", type=_FILE, help="The sidecar. Default: NAME.yaml in the directory of NAME.csv.")
@click.option("--rows", type=_FILE, help="The data file of a batch output; adds its columns to the output.")
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
def convert(source: tuple[Path, ...], sidecar: Path | None, rows: Path | None, out: Path) -> None:
    """Convert a data file with its sidecar to OpenAI batch requests, and batch outputs back to CSV.

    SOURCE is a data file (CSV, TSV, JSONL), the output and error files of a batch, or the directory
    of a published job.
    """
    if out.exists():
        raise click.ClickException(f"{out} already exists. Use another file name.")
    first = source[0]
    if first.is_dir():
        _only_one(source)
        converted = job_to_batch(open_published(first), out)
    elif _is_output(first):
        asked = asyncio.run(_sidecar_of(rows, sidecar))
        converted = answers_to_csv(list(source), out, data=rows, sidecar=asked)
    else:
        _only_one(source)
        converted = asyncio.run(_requests(first, sidecar, out))
    for problem in converted.problems:
        click.echo(problem, err=True)
    click.echo(f"{converted.written} written, {converted.left_out} left out: {out}")


def _only_one(source: tuple[Path, ...]) -> None:
    if len(source) != 1:
        raise click.ClickException("Give only one SOURCE. Only batch outputs may be several files.")


def _is_output(path: Path) -> bool:
    if not path.name.lower().endswith((".jsonl", ".ndjson")):
        return False
    return is_batch_output(next(json_lines(path), None))


async def _requests(data: Path, given: Path | None, out: Path) -> Converted:
    async with Evaluator(EvaluationProcess()) as evaluator:
        asked = await _load(data, given, evaluator)
        if asked is None:
            raise click.ClickException(f"{data} has no sidecar in its directory. Give it with --sidecar.")
        return await requests_of(data, asked, out, evaluator.of_job(data.name))


async def _sidecar_of(data: Path | None, given: Path | None) -> Sidecar | None:
    async with Evaluator(EvaluationProcess()) as evaluator:
        return await _load(data, given, evaluator)


async def _load(data: Path | None, given: Path | None, evaluator: Evaluator) -> Sidecar | None:
    path = given
    if path is None and data is not None:
        detect(data, data.name)  # raises the error about the file type before the one about a missing sidecar
        path = drop_of(data).sidecar
    return None if path is None else await evaluator.load_sidecar(path)
