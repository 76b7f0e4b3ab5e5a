"""`spoolama check`: everything the service would say, before anything is uploaded."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoolama.cli.check_words import besides, earlier_rows
from spoolama.cli.settings_options import settings_from

if TYPE_CHECKING:
    from spoolama.service.checking import Drop, Findings
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
@click.option("--data", type=_FILE, help="The data file, where its name does not fit the sidecar's.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Rows per second to reckon with.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Check these settings; with DROP, check it by them.",
)
def check(drop: Path | None, data: Path | None, rate: float | None, config: Path | None) -> None:
    """Check DROP, a data file or a sidecar, and its other half: every row is read and every prompt rendered.

    Shows the first two prompts as they will be asked, which rows will fail and why, and an estimate of
    tokens.
    No model server is asked. With --config alone the service's settings are checked.
    """
    from spoolama.service.checking import drop_of

    if drop is None and config is None:
        raise click.UsageError("name a data file, a sidecar, or --config with a settings file")
    settings = settings_from(config)
    if config is not None:
        _show_settings(settings, config)
    if drop is not None:
        found = drop_of(drop, data, settings.default_sidecar)
        findings = check_one(found, settings)
        report(found, findings, rate=rate, lanes=settings.lanes)
        sys.exit(0 if findings.asked else 1)


def check_one(drop: Drop, settings: Settings) -> Findings:
    """Check one drop by the service's settings."""
    from spoolama.evaluation.evaluator import Evaluator
    from spoolama.evaluation.process import EvaluationProcess
    from spoolama.service.assembly import limits_for
    from spoolama.service.checking import check_drop

    async def read() -> Findings:
        async with Evaluator(EvaluationProcess()) as evaluator:
            newline = settings.final_newline == "require"
            return await check_drop(drop, evaluator, limits=limits_for(settings), newline_required=newline)

    findings = asyncio.run(read())
    if findings.vram is not None:
        from spoolama.cli.check_memory import memory_limits
        from spoolama.cli.gpu_look import cards_now

        sizes = [card.total_bytes for card in cards_now(settings)]
        findings.memory = memory_limits(findings.vram, settings.vram.marks, sizes)
    return findings


def _behind(findings: Findings, number: int) -> str:
    """What else stands before a row: it is known only when the job runs."""
    if findings.alone:
        return ""
    seen = []
    if findings.anchors:
        rows = "a row that is" if findings.anchors == 1 else f"{findings.anchors} rows that are"
        seen.append(f"{rows} chosen when the job runs")
    if number > 1 and findings.strategy != "anchors":
        seen.append("the rows before it and their answers")
    return f" (behind {', '.join(seen)})" if seen else ""


def report(drop: Drop, findings: Findings, *, rate: float | None = None, lanes: int = 1) -> None:
    """Say what was found."""
    from spoolama.service.checking import CHARACTERS_PER_TOKEN
    from spoolama.service.status_text import duration

    sidecar = f" with {drop.sidecar.name}" if drop.sidecar else ""
    click.echo(f"{drop.data.name}{sidecar}: {findings.rows:,} rows of {findings.format} for {findings.model}")
    for number, ask in enumerate(findings.examples, 1):
        click.echo(f"\nPrompt {number} as it is asked{_behind(findings, number)}:")
        for message in (*ask.prefix, *ask.own):
            click.echo(f"  [{message.role}]")
            for line in message.content.splitlines():
                click.echo(f"    {line}")
    if findings.faults:
        failed = sum(findings.faults.values())
        classes = ", ".join(f"{count:,} {code}" for code, count in findings.faults.most_common())
        click.echo(f"\n{failed:,} rows will not be asked ({classes}). The others go on. The first:")
        for fault in findings.first_faults:
            click.echo(f"  line {fault.line}: {fault.code}: {fault.message}")
    click.echo(
        f"\nPrompt tokens: about {findings.tokens:,}. This is an estimate, {CHARACTERS_PER_TOKEN} characters "
        "a token, each row alone behind the shared part; what a cache serves again costs less."
    )
    if words := earlier_rows(findings):
        click.echo(words)
    if findings.perhaps_too_long:
        click.echo(
            f"The longest prompt (line {findings.longest_line}, {findings.longest:,} characters) may not "
            f"fit: num_ctx less num_predict leaves {findings.room_tokens:,} tokens."
        )
    for line in (*besides(findings), *findings.memory):
        click.echo(line)
    if idle := findings.idle_lanes(lanes):
        click.echo(idle)
    if rate is None:
        click.echo("Time: not known before the first rows. With --rate ROWS_PER_SECOND it is reckoned.")
    else:
        click.echo(f"Time: about {duration(findings.asked / rate)} at {rate:g} rows/s, the rate you gave.")
    if not findings.asked:
        click.echo("No row can be asked, so this job would fail.", err=True)


def _show_settings(settings: Settings, config: Path) -> None:
    from spoolama.service.assembly import backend_settings
    from spoolama.spool.layout import Spool

    made = backend_settings(settings.backend)
    click.echo(f"{config}: the settings are fine.")
    click.echo(f"  spool: {settings.spool}")
    click.echo(f"  backend: {made.kind} {made.url}".rstrip())
    click.echo(f"  lanes: {settings.lanes}")
    spool = Spool(settings.spool)
    missing = [p.name for p in (spool.incoming, spool.processing, spool.done, spool.failed) if not p.is_dir()]
    if missing:
        click.echo(
            f"  The spool is not there yet ({', '.join(missing)}). Run: spoolama init {settings.spool}"
        )
