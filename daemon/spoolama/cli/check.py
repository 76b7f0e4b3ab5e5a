"""`spoolama check`: checks a drop or the settings without the service and without a model server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoolama.cli.check_words import besides, earlier_rows
from spoolama.cli.settings_options import settings_from

if TYPE_CHECKING:
    from spoolama.cli.checking import CheckedFiles, Findings
    from spoolama.service.settings import Settings

__all__ = ["check", "check_one", "report"]

_FILE = click.Path(exists=True, path_type=Path)


@click.command(
    epilog="""\b
Examples:
  spoolama check reviews.csv
  spoolama check reviews.yaml --data 2026-11.csv --rate 4.7
  spoolama check --config config/spoolama.yaml""",
)
@click.argument("drop", type=_FILE, required=False)
@click.option("--data", type=_FILE, help="The data file, if its name does not match the sidecar's.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Rows per second, to estimate the run time."
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Check this settings file; with DROP, check the drop with these settings.",
)
def check(drop: Path | None, data: Path | None, rate: float | None, config: Path | None) -> None:
    """Check DROP, a data file or a sidecar, together with its counterpart: reads every row and renders every
    prompt.

    Shows the first two prompts, the rows that will fail and why, and an estimate of the tokens.
    Does not contact a model server. With --config alone it checks the service's settings.
    """
    from spoolama.cli.checking import drop_of

    if drop is None and config is None:
        raise click.UsageError("give a data file, a sidecar, or --config with a settings file")
    settings = settings_from(config)
    if config is not None:
        _show_settings(settings, config)
    if drop is not None:
        found = drop_of(drop, data, settings.default_sidecar)
        findings = check_one(found, settings)
        report(found, findings, rate=rate, lanes=settings.lanes)
        sys.exit(0 if findings.asked else 1)


def check_one(drop: CheckedFiles, settings: Settings) -> Findings:
    """Check one drop with the service's settings."""
    from spoolama.cli.checking import check_drop
    from spoolama.evaluation.evaluator import Evaluator
    from spoolama.evaluation.process import EvaluationProcess
    from spoolama.job.rows import RowLimits

    async def read() -> Findings:
        async with Evaluator(EvaluationProcess()) as evaluator:
            newline = settings.final_newline == "require"
            limits = RowLimits.for_cells(settings.max_cell_bytes)
            return await check_drop(drop, evaluator, limits=limits, newline_required=newline)

    findings = asyncio.run(read())
    if findings.vram is not None:
        from spoolama.cli.check_memory import memory_limits
        from spoolama.cli.gpu_look import cards_now

        sizes = [card.total_bytes for card in cards_now(settings)]
        findings.memory = memory_limits(findings.vram, settings.vram.marks, sizes)
    return findings


def _behind(findings: Findings, number: int) -> str:
    """Describe what precedes a row in its prompt but is known only when the job runs."""
    if findings.alone:
        return ""
    seen = []
    if findings.anchors:
        rows = "a row" if findings.anchors == 1 else f"{findings.anchors} rows"
        seen.append(f"{rows} chosen when the job runs")
    if number > 1 and findings.strategy != "anchors":
        seen.append("earlier rows with their answers")
    return f" (after {' and '.join(seen)})" if seen else ""


def report(drop: CheckedFiles, findings: Findings, *, rate: float | None = None, lanes: int = 1) -> None:
    """Print the findings."""
    from spoolama.cli.checking import CHARACTERS_PER_TOKEN
    from spoolama.clock import duration

    sidecar = f" with {drop.sidecar.name}" if drop.sidecar else ""
    click.echo(f"{drop.data.name}{sidecar}: {findings.rows:,} rows of {findings.format} for {findings.model}")
    for number, ask in enumerate(findings.examples, 1):
        click.echo(f"\nPrompt {number}{_behind(findings, number)}:")
        for message in (*ask.prefix, *ask.own):
            click.echo(f"  [{message.role}]")
            for line in message.content.splitlines():
                click.echo(f"    {line}")
    if findings.faults:
        failed = sum(findings.faults.values())
        classes = ", ".join(f"{count:,} {code}" for code, count in findings.faults.most_common())
        click.echo(f"\n{failed:,} rows will fail ({classes}); the others will be asked. First failures:")
        for fault in findings.first_faults:
            click.echo(f"  line {fault.line}: {fault.code}: {fault.message}")
    click.echo(
        f"\nPrompt tokens: about {findings.tokens:,}. This is an estimate with {CHARACTERS_PER_TOKEN} "
        "characters per token and each row isolated; cached tokens cost less."
    )
    if words := earlier_rows(findings):
        click.echo(words)
    if findings.perhaps_too_long:
        click.echo(
            f"The longest prompt (line {findings.longest_line}, {findings.longest:,} characters) might not "
            f"fit: num_ctx minus num_predict leaves {findings.room_tokens:,} tokens."
        )
    for line in (*besides(findings), *findings.memory):
        click.echo(line)
    if idle := findings.idle_lanes(lanes):
        click.echo(idle)
    if rate is None:
        click.echo("Time: unknown. Use --rate ROWS_PER_SECOND to estimate it.")
    else:
        click.echo(f"Time: about {duration(findings.asked / rate)} at {rate:g} rows/s (--rate).")
    if not findings.asked:
        click.echo("No row can be sent to the model, so this job would fail.", err=True)


def _show_settings(settings: Settings, config: Path) -> None:
    from spoolama.spool.layout import Spool

    settings.backend.api_key()
    click.echo(f"{config}: the settings are valid.")
    click.echo(f"  spool: {settings.spool}")
    click.echo(f"  backend: {settings.backend.kind} {settings.backend.address or ''}".rstrip())
    click.echo(f"  lanes: {settings.lanes}")
    spool = Spool(settings.spool)
    missing = [p.name for p in (spool.incoming, spool.processing, spool.done, spool.failed) if not p.is_dir()]
    if missing:
        click.echo(
            f"  The spool does not exist yet ({', '.join(missing)}). Run: spoolama init {settings.spool}"
        )
