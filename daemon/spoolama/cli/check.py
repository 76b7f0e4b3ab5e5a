"""`spoolama check`: checks a drop or the settings without the service and without a model server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from spoolama.cli.checking import CHARACTERS_PER_TOKEN, CheckedFiles, Findings, check_drop, drop_of
from spoolama.cli.gpu_report import cards_now
from spoolama.cli.settings_options import settings_from
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess
from spoolama.job.plan import PILOT_ROWS
from spoolama.job.sidecar import Vram
from spoolama.job.trim import CANDIDATES
from spoolama.memory.limits import GB, Marks, in_gb, stricter
from spoolama.publish.words import counted
from spoolama.service.assembly import backend_settings, limits_for
from spoolama.service.settings import Settings
from spoolama.service.status_text import duration
from spoolama.spool.layout import Spool

__all__ = ["check", "check_one", "memory_limits"]

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

    if drop is None and config is None:
        raise click.UsageError("give a data file, a sidecar, or --config with a settings file")
    settings = settings_from(config)
    if config is not None:
        _show_settings(settings, config)
    if drop is not None:
        found = drop_of(drop, data, settings.default_sidecar)
        findings = check_one(found, settings)
        _report(found, findings, rate=rate, lanes=settings.lanes)
        sys.exit(0 if findings.asked else 1)


def check_one(drop: CheckedFiles, settings: Settings) -> Findings:
    """Check one drop with the service's settings."""

    async def read() -> Findings:
        async with Evaluator(EvaluationProcess()) as evaluator:
            newline = settings.final_newline == "require"
            return await check_drop(drop, evaluator, limits=limits_for(settings), newline_required=newline)

    findings = asyncio.run(read())
    if findings.vram is not None:
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


def _report(drop: CheckedFiles, findings: Findings, *, rate: float | None = None, lanes: int = 1) -> None:
    """Print the findings."""

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
    if words := _earlier_rows(findings):
        click.echo(words)
    if findings.perhaps_too_long:
        click.echo(
            f"The longest prompt (line {findings.longest_line}, {findings.longest:,} characters) might not "
            f"fit: num_ctx minus num_predict leaves {findings.room_tokens:,} tokens."
        )
    for line in (*_extra_requests(findings), *findings.memory):
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

    made = backend_settings(settings.backend)
    click.echo(f"{config}: the settings are valid.")
    click.echo(f"  spool: {settings.spool}")
    click.echo(f"  backend: {made.kind} {made.url}".rstrip())
    click.echo(f"  lanes: {settings.lanes}")
    spool = Spool(settings.spool)
    missing = [p.name for p in (spool.incoming, spool.processing, spool.done, spool.failed) if not p.is_dir()]
    if missing:
        click.echo(
            f"  The spool does not exist yet ({', '.join(missing)}). Run: spoolama init {settings.spool}"
        )


# --- earlier rows, pilot and audit ------------------------------------------------------------------------


def _earlier_rows(findings: Findings) -> str | None:
    """What stands before a row and is not in the estimate of tokens; None: nothing does.

    Which rows it will be is known only when the job runs; how many tokens at most, by `high`, is known now.
    """
    rows = findings.rows_before
    if findings.mode != "conversation" or (findings.alone and not findings.pilot):
        return None
    bound = (
        f"and are dropped before a prompt passes {findings.high_tokens:,} tokens "
        f"({findings.trim.high:g} of the room, trim.high)"
    )
    if findings.alone:
        return (
            "Earlier rows are not in it. If the pilot chooses a conversation, up to 20 earlier ones, or 6 "
            f"fixed and up to 5 earlier ones, stand before a row with their answers, {bound}."
        )
    parts = []
    if findings.anchors:
        parts.append(f"{findings.anchors} fixed {'row' if findings.anchors == 1 else 'rows'}")
    if rows is None:
        within = f" within {findings.trim.tokens:,} tokens" if findings.trim.tokens else ""
        parts.append(f"earlier ones{within}")
    elif rows:
        parts.append(f"up to {rows:,} earlier {'one' if rows == 1 else 'ones'}")
    if not parts:
        return None
    if rows == 0:
        bound = f"in at most half of the room of {findings.room_tokens - 1:,} tokens"
    return f"Other rows are not in it: {' and '.join(parts)} stand before a row with their answers, {bound}."


def _extra_requests(findings: Findings) -> list[str]:
    """What is asked besides the rows, and how much that is at most."""
    lines = []
    if findings.mode == "conversation" and findings.strategy == "auto" and findings.format != "openai":
        lines += _pilot(findings)
    candidates = min(CANDIDATES, findings.rows)
    if isinstance(findings.trim.choose, tuple):
        candidates = len(findings.trim.choose)
    if findings.anchors:
        lines.append(f"Anchors: {candidates} rows are answered in isolation first, to choose from.")
    if findings.audit.rows:
        lines += _audit(findings)
    return lines


def _audit(findings: Findings) -> list[str]:
    rows = findings.audit.rows
    times = "twice" if findings.noisy else "once, and those that differ twice"
    small = findings.smallest_harm
    lines = [f"Audit: at most {counted(rows, 'row')} of conversations are asked again in isolation, {times}."]
    if small is None:
        lines.append("Warning: so few rows cannot show harm. Set audit to a larger number.")
    else:
        lines.append(
            f"It finds, with 95 % probability, a conversation that changes {small * 100:.0f} % of the answers"
            " or more."
        )
    if findings.on_harm == "isolate":
        lines.append(
            "on_harm: isolate: then the remaining rows are asked in isolation, and those of harmed segments "
            f"again: at most {findings.rows:,} more answers."
        )
    return lines


def _pilot(findings: Findings) -> list[str]:
    if not findings.gold:
        return ["Each row is asked in isolation behind the shared part."]
    if not findings.pilot:
        return [
            "Each row is asked in isolation behind the shared part. A pilot, which tries whether earlier "
            f"rows make the answers agree better with gold, runs from {PILOT_ROWS:,} rows on (trim.pilot: N "
            "has one in any case)."
        ]
    lines = [
        f"A pilot of at most {findings.pilot:,} answers tries whether earlier rows make the answers agree "
        "better with gold. Without proof each row is asked in isolation."
    ]
    if findings.pilot_least is None:
        lines.append(
            f"Warning: {counted(findings.rows, 'row')} in such segments cannot give that proof. Set "
            "trim.pilot: 0."
        )
    elif findings.pilot < findings.pilot_least:
        lines.append(
            f"Warning: {findings.pilot:,} answers are too few for a proof. It takes at least "
            f"trim.pilot: {findings.pilot_least}."
        )
    return lines


# --- limits of GPU memory ----------------------------------------------------------------------------------


def memory_limits(vram: Vram, service: Marks, totals: Sequence[int]) -> list[str]:
    """The limits in force while the job runs, and its own limits that have no effect or cannot be met.

    Args:
        vram: The sidecar's limits.
        service: The service's limits.
        totals: Sizes in bytes of the cards that can be read now.
    """
    if not totals:
        return [_unread(vram, service), *_looser(vram, service)]
    lines = []
    for total in sorted(set(totals)):
        job = Marks(vram.high or 1.0, vram.critical or 1.0, vram.keep_free_gb or 0.0)
        found = stricter(service.limits(total), job.limits(total))
        lines.append(
            f"vram: high from {in_gb(found.high_bytes)}, critical from {in_gb(found.critical_bytes)} "
            f"on a GPU of {in_gb(total)}, counting all processes."
        )
        lines += _useless(vram, service, total)
    return lines


def _useless(vram: Vram, service: Marks, total: int) -> Iterator[str]:
    """Values of the job that have no effect on a card of this size, or cannot be met there."""
    theirs = service.limits(total)
    for name, mark, alone, limit in (
        ("high", vram.high, Marks(vram.high or 1.0, 1.0, 0.0).limits(total).high_bytes, theirs.high_bytes),
        (
            "critical",
            vram.critical,
            Marks(1.0, vram.critical or 1.0, 0.0).limits(total).critical_bytes,
            theirs.critical_bytes,
        ),
    ):
        if mark is not None and alone > limit:
            yield (
                f"Warning: vram.{name}: {mark:g} exceeds the service's {in_gb(limit)} on a GPU of "
                f"{in_gb(total)}, so it is ignored there."
            )
    kept = vram.keep_free_gb
    if kept is None:
        return
    left = total - theirs.critical_bytes
    if kept * GB < left:
        yield (
            f"Warning: vram.keep_free_gb: {kept:g} is lower than the service's limit, which keeps "
            f"{in_gb(left)} of a GPU of {in_gb(total)} free, so it is ignored there."
        )
    elif kept * GB > total / 2:
        yield (
            f"Warning: vram.keep_free_gb: {kept:g} is more than half of a GPU of {in_gb(total)}. "
            f"At most half is kept free, so critical is at {in_gb(total // 2)} there."
        )


def _looser(vram: Vram, service: Marks) -> Iterator[str]:
    """The same without a card, where only values of the same unit can be compared."""
    pairs = (("high", vram.high, service.high), ("critical", vram.critical, service.critical))
    for name, mark, theirs in pairs:
        if mark is not None and (mark <= 1) == (theirs <= 1) and mark > theirs:
            yield f"Warning: vram.{name}: {mark:g} exceeds the service's {theirs:g}, so it is ignored."
    if vram.keep_free_gb is not None and vram.keep_free_gb < service.keep_free_gb:
        yield (
            f"Warning: vram.keep_free_gb: {vram.keep_free_gb:g} is lower than the service's "
            f"{service.keep_free_gb:g}, so it is ignored."
        )


def _unread(vram: Vram, service: Marks) -> str:
    free = max(vram.keep_free_gb or 0.0, service.keep_free_gb)
    return (
        f"vram: high from {_lower(vram.high, service.high)}; critical from "
        f"{_lower(vram.critical, service.critical)}, or with less than {free:g} GB free. "
        "No GPU can be read on this machine now, so its size is unknown."
    )


def _lower(job: float | None, service: float) -> str:
    if job is None or job == service:
        return _mark(service)
    if (job <= 1) == (service <= 1):
        return _mark(min(job, service))
    return f"{_mark(job)} or {_mark(service)}, whichever is less"


def _mark(mark: float) -> str:
    return f"{mark * 100:g} % of a GPU" if mark <= 1 else f"{mark:g} GB"
