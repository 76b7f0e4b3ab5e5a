"""`spoolama analyze`: shows the answers, agreement, failures and slow rows of a published job."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spoolama.jobtools.analysis import Analysis, analyze_job

__all__ = ["analyze"]

_UNITS = {
    "slowest": ("seconds", "{:.2f}"),
    "longest prompt": ("tokens", "{:.0f}"),
    "longest answer": ("tokens", "{:.0f}"),
    "most tries": ("tries", "{:.0f}"),
}
_MAX_ANSWERS = 15


@click.command(
    epilog="""\b
Example:
  spoolama analyze spool/done/reviews-20261124T090000Z-k3f9 --csv analysis.csv""",
)
@click.argument("jobdir", type=click.Path(exists=True, file_okay=False, path_type=Path))
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
    _show(analysis, Console())
    if table is not None:
        with table.open("wb") as file:
            file.writelines(analysis.csv())
        click.echo(f"Written: {table}")


def _show(analysis: Analysis, console: Console) -> None:
    console.print(f"[bold]{escape(analysis.job)}[/bold]")
    console.print(analysis.balance)
    for text in analysis.warnings:
        console.print(escape(text), highlight=False)
    if analysis.spread.counts:
        answers = Table("Answer", title="Answers", title_justify="left")
        answers.add_column("Rows", justify="right")
        answers.add_column("Share", justify="right")
        listed = list(analysis.spread.counts.items())
        for label, rows in listed[:_MAX_ANSWERS]:
            answers.add_row(escape(label), str(rows), f"{rows / analysis.spread.rows:.1%}")
        if len(listed) > _MAX_ANSWERS:
            rest = sum(rows for _, rows in listed[_MAX_ANSWERS:])
            answers.add_row(f"({len(listed) - _MAX_ANSWERS} more)", str(rest), "")
        for label in analysis.spread.never:
            answers.add_row(escape(label), "0", "never given")
        console.print(answers)
    else:
        console.print(f"Answers: {analysis.spread.sentence()}")
    told = analysis.agreement.sentences() if analysis.agreement else []
    for sentence in (*told, *([] if analysis.along is None else [analysis.along])):
        console.print(escape(sentence), highlight=False)
    for label, sentence in analysis.effects:
        console.print(f"[bold]{label}[/bold] {escape(sentence)}", highlight=False)
    if analysis.failures:
        failures = Table("Class", "Rows", "First", "Message", title="Failures", title_justify="left")
        for failure in analysis.failures:
            example = failure.example
            place = f"row {example.row}, line {example.line}"
            message = (example.error or {}).get("message", "")
            failures.add_row(escape(failure.code), str(failure.rows), place, escape(message[:300]))
        console.print(failures)
    for what, rows_of in analysis.extremes.items():
        unit, form = _UNITS[what]
        extremes = Table("Row", "Id", unit.capitalize(), title=what.capitalize(), title_justify="left")
        for value, record in rows_of:
            extremes.add_row(str(record.row), escape(record.id or ""), form.format(value))
        console.print(extremes)
