"""`spoolama analyze`, `compare` and `merge`: commands on published jobs."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spoolama.jobtools.analysis import Analysis, analyze_job
from spoolama.jobtools.comparison import Comparison, compare_jobs
from spoolama.jobtools.merge import merge_jobs
from spoolama.publish.summary import agreement_sentences, balance, context_sentences

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
_UNITS = {
    "slowest": ("seconds", "{:.2f}"),
    "longest prompt": ("tokens", "{:.0f}"),
    "longest answer": ("tokens", "{:.0f}"),
    "most attempts": ("attempts", "{:.0f}"),
}
_MAX_ANSWERS = 15


@click.command(
    epilog="""\b
Example:
  spoolama analyze spool/done/reviews-20261124T090000Z-k3f9 --csv analysis.csv""",
)
@click.argument("jobdir", type=_DIRECTORY)
@click.option(
    "--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="Also write it to this CSV file."
)
@click.option("--rows", "most", type=click.IntRange(1, 1000), default=5, help="Number of slow and long rows.")
def analyze(jobdir: Path, table: Path | None, most: int) -> None:
    """Show the distribution of the answers of a published job, their agreement with gold, the effect of
    earlier rows, the failures, and the slowest and longest rows.

    JOBDIR is a directory in done/ or failed/, or one that merge created.
    """
    analysis = analyze_job(jobdir, most=most)
    _show_analysis(analysis, Console())
    if table is not None:
        with table.open("wb") as file:
            file.writelines(analysis.csv())
        click.echo(f"Written: {table}")


def _show_analysis(analysis: Analysis, console: Console) -> None:
    m = analysis.metrics
    console.print(f"[bold]{escape(m.job)}[/bold]")
    console.print(balance(m))
    if analysis.warning:
        console.print(escape(analysis.warning), highlight=False)
    if m.answers is not None and m.answers.counts:
        answers = Table("Answer", title="Answers", title_justify="left")
        answers.add_column("Rows", justify="right")
        answers.add_column("Share", justify="right")
        listed = list(m.answers.counts.items())
        for label, rows in listed[:_MAX_ANSWERS]:
            answers.add_row(escape(label), str(rows), f"{rows / m.answers.rows:.1%}")
        if len(listed) > _MAX_ANSWERS:
            rest = sum(rows for _, rows in listed[_MAX_ANSWERS:])
            answers.add_row(f"({len(listed) - _MAX_ANSWERS} more)", str(rest), "")
        for label in m.answers.never:
            answers.add_row(escape(label), "0", "never")
        console.print()
        console.print(answers)
        console.print()
    elif m.answers is not None:
        console.print(f"Answers: {m.answers.sentence()}")
    for sentence in agreement_sentences(m):
        console.print(escape(sentence), highlight=False)
    for label, sentence in context_sentences(m):
        console.print(f"[bold]{label}:[/bold] {escape(sentence)}", highlight=False)
    if analysis.failures:
        failures = Table("Code", "Rows", "First", "Message", title="Failures", title_justify="left")
        for failure in analysis.failures:
            place = f"row {failure.example.row}, line {failure.example.line}"
            failures.add_row(escape(failure.code), str(failure.rows), place, escape(failure.message[:300]))
        console.print()
        console.print(failures)
    for what, rows_of in analysis.extremes.items():
        unit, form = _UNITS[what]
        extremes = Table("Row", "Id", unit.capitalize(), title=what.capitalize(), title_justify="left")
        for value, result in rows_of:
            extremes.add_row(str(result.row), escape(result.id or ""), form.format(value))
        console.print()
        console.print(extremes)


@click.command(
    epilog="""\b
Example:
  spoolama compare done/reviews-20261124T090000Z-k3f9 done/isolated-20261124T090200Z-p2d7""",
)
@click.argument("left", type=_DIRECTORY)
@click.argument("right", type=_DIRECTORY)
def compare(left: Path, right: Path) -> None:
    """Show two published jobs over the same data side by side: speed, tokens, answers, and agreement.

    To see the effect of the conversation on the answers, run the same rows in conversation and isolated
    (`mode`), and compare the two jobs.
    """
    _show_comparison(compare_jobs(left, right), Console())


def _show_comparison(comparison: Comparison, console: Console) -> None:
    table = Table("", show_header=False)
    table.add_column()
    table.add_column()
    left, right = comparison.left.cells, comparison.right.cells
    for name in dict.fromkeys([*left, *right]):
        table.add_row(f"[bold]{name}[/bold]", escape(left.get(name, "-")), escape(right.get(name, "-")))
    console.print(table)
    for sentence in comparison.sentences():
        console.print(escape(sentence), highlight=False)


@click.command(
    epilog="""\b
Example:
  spoolama merge done/reviews-20261124T090000Z-k3f9 done/errors-20261124T101500Z-p2d7 -o whole""",
)
@click.argument("jobdir", type=_DIRECTORY)
@click.argument("retrydir", type=_DIRECTORY)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The directory to create.")
def merge(jobdir: Path, retrydir: Path, out: Path) -> None:
    """Merge the answers of a retry into the job that the rows came from.

    JOBDIR is the published job whose errors.jsonl (or skipped.jsonl, or retry.jsonl) was uploaded again.
    RETRYDIR is the published job of that retry. The result has all rows in order; the rows that still failed
    can be uploaded again.
    """
    summary = merge_jobs(jobdir, retrydir, out)
    click.echo(summary.text)
    click.echo(f"Written: {out}")
