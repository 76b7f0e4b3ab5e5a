"""`spoolama check`: checks a drop or the settings without the service and without a model server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from spoolama.cli.checking import CHARACTERS_PER_TOKEN, CheckedFiles, Findings, check_drop, drop_of
from spoolama.cli.gpu_report import cards_now
from spoolama.cli.settings_options import settings_from
from spoolama.clock import SystemClock, duration
from spoolama.evaluation.evaluator import Evaluator
from spoolama.evaluation.process import EvaluationProcess
from spoolama.job.plan import PILOT_ROWS
from spoolama.job.rows.reader import RowLimits
from spoolama.job.sidecar import CANDIDATES, Vram
from spoolama.memory.level import GB, RelativeLimits, in_gb, stricter
from spoolama.progress import Progress, Pulse
from spoolama.publish.words import counted
from spoolama.service.settings import Settings
from spoolama.spool.layout import Spool

_FILE = click.Path(exists=True, path_type=Path)
_FORMATS = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSONL", "openai": "OpenAI batch"}


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
    Does not contact a model server. With --config alone it checks the settings of the service.
    """
    if drop is None and config is None:
        raise click.UsageError("give a data file, a sidecar, or --config with a settings file")
    settings = settings_from(config)
    if config is not None:
        _show_settings(settings, config)
    if drop is not None:
        found = drop_of(drop, data, settings.default_sidecar)
        findings = check_one(found, settings)
        _report(found, findings, rate=rate, lanes=findings.sidecar.lanes or settings.lanes)
        sys.exit(0 if findings.asked else 1)


def check_one(drop: CheckedFiles, settings: Settings) -> Findings:
    """Check one drop with the settings of the service. On a terminal it shows the progress."""
    clock = SystemClock()
    progress = Progress("check", clock, Pulse(clock))

    async def run() -> Findings:
        showing = asyncio.create_task(show_phase(progress, sys.stderr))
        try:
            async with Evaluator(EvaluationProcess()) as evaluator:
                return await check_drop(
                    drop,
                    evaluator,
                    progress,
                    limits=RowLimits.for_cells(settings.max_cell_bytes),
                    newline_required=settings.final_newline == "require",
                )
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)

    findings = asyncio.run(run())
    if findings.sidecar.vram is not None:
        sizes = [card.total_bytes for card in cards_now(settings)]
        findings.memory = memory_limits(findings.sidecar.vram, settings.vram.limits, sizes)
    return findings


async def show_phase(progress: Progress, stream: TextIO) -> None:
    """Show the phase on a terminal, once per second until cancelled; then clear the line."""
    if not stream.isatty():
        return
    try:
        while True:
            await asyncio.sleep(1)
            stream.write(f"\r\x1b[K{progress.phase}")
            stream.flush()
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def _report(drop: CheckedFiles, findings: Findings, *, rate: float | None, lanes: int) -> None:
    sidecar = f" with {drop.sidecar.name}" if drop.sidecar else ""
    rows = counted(findings.rows, f"{_FORMATS[findings.format]} row")
    model = f", model {findings.model}" if findings.model else ""
    click.echo(f"{drop.data.name}{sidecar}: {rows}{model}")
    for number, ask in enumerate(findings.examples, 1):
        click.echo(f"\nPrompt {number}{_before_row(findings, number)}:")
        for message in (*ask.prefix, *ask.own):
            click.echo(f"  [{message.role}]")
            for line in message.content.splitlines():
                click.echo(f"    {line}")
    if findings.faults:
        failed = counted(sum(findings.faults.values()), "row")
        codes = ", ".join(f"{count:,} {code}" for code, count in findings.faults.most_common())
        click.echo(f"\n{failed} will fail ({codes}). First failures:")
        for fault in findings.first_faults:
            click.echo(f"  line {fault.line}: {fault.code}: {fault.message}")
    if not findings.asked:
        click.echo("No row can be sent to the model, so this job would fail.", err=True)
        return
    click.echo("")
    for line in (
        *_tokens(findings),
        *_extra_requests(findings),
        *findings.memory,
        *_idle_lanes(findings, lanes),
    ):
        click.echo(line)
    if rate is None:
        click.echo("Time: unknown. Use --rate ROWS_PER_SECOND to estimate it.")
    else:
        click.echo(f"Time: about {duration(findings.asked / rate)} at {rate:g} rows/s (--rate).")


def _show_settings(settings: Settings, config: Path) -> None:
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


# --- what is in the prompts, pilot and audit ---------------------------------------------------------------


def _before_row(findings: Findings, number: int) -> str:
    """What precedes a row in its prompt but is known only when the job runs."""
    if not findings.conversation:
        return ""
    parts = []
    if anchors := findings.sidecar.trim.anchor_rows:
        parts.append(counted(anchors, "anchor"))
    if number > 1 and findings.sidecar.trim.strategy != "anchors":
        parts.append("earlier rows with their answers")
    return f" (after {' and '.join(parts)})" if parts else ""


def _tokens(findings: Findings) -> Iterator[str]:
    """The estimate of the prompt tokens, and what it leaves out."""
    yield (
        f"Prompt tokens: about {findings.tokens:,} if each row is isolated, estimated with "
        f"{CHARACTERS_PER_TOKEN} characters per token."
    )
    trim = findings.sidecar.trim
    limit = (
        f"A prompt with earlier rows has at most {findings.high_tokens:,} tokens (trim.high: {trim.high:g})."
    )
    if findings.conversation:
        parts = [counted(trim.anchor_rows, "anchor")] if trim.anchor_rows else []
        if findings.rows_before is None:
            parts.append("earlier rows" + (f" within {trim.tokens:,} tokens" if trim.tokens else ""))
        elif findings.rows_before:
            parts.append(f"up to {counted(findings.rows_before, 'earlier row')}")
        if parts:
            yield f"Each prompt also has {' and '.join(parts)}, with their answers."
            if findings.rows_before == 0:
                limit = f"Anchors take at most half of the {findings.room_tokens - 1:,} tokens for a prompt."
            yield limit
    elif findings.pilot:
        yield (
            "If the pilot chooses a conversation, a prompt also has up to 20 earlier rows, or 6 anchors "
            f"and up to 5 earlier rows, with their answers. {limit}"
        )
    if findings.longest // CHARACTERS_PER_TOKEN >= findings.room_tokens:
        yield (
            f"The longest prompt (line {findings.longest_line}, {findings.longest:,} characters) may be too "
            f"long: num_ctx minus num_predict leaves {findings.room_tokens:,} tokens."
        )


def _extra_requests(findings: Findings) -> Iterator[str]:
    """The additional requests of pilot, anchors and audit, at most."""
    sidecar = findings.sidecar
    if sidecar.mode == "conversation" and not findings.conversation and findings.format != "openai":
        yield from _pilot(findings)
    if sidecar.trim.anchor_rows:
        chosen = sidecar.trim.choose
        candidates = len(chosen) if isinstance(chosen, tuple) else min(CANDIDATES, findings.rows)
        yield f"Anchors: chosen from {counted(candidates, 'row')} that are first asked in isolation."
    if findings.audit.rows:
        yield from _audit(findings)


def _pilot(findings: Findings) -> Iterator[str]:
    if not findings.sidecar.gold:
        yield "Each row is asked in isolation."
        return
    if not findings.pilot:
        yield (
            "Each row is asked in isolation. From "
            f"{PILOT_ROWS:,} rows on, or with trim.pilot: N, a pilot tests whether earlier rows improve the "
            "agreement with gold."
        )
        return
    yield (
        f"Pilot: at most {findings.pilot:,} answers test whether earlier rows improve the agreement with "
        "gold. Without a clear improvement, each row is asked in isolation."
    )
    if findings.pilot_least is None:
        yield f"Warning: {counted(findings.rows, 'row')} in such segments cannot show it. Set trim.pilot: 0."
    elif findings.pilot < findings.pilot_least:
        yield (
            f"Warning: {findings.pilot:,} answers are too few to show it. Set trim.pilot: "
            f"{findings.pilot_least} or more."
        )


def _audit(findings: Findings) -> Iterator[str]:
    noisy = findings.sidecar.noisy
    twice = ", each twice." if noisy else ". Rows whose answer differs are asked twice."
    yield f"Audit: asks at most {counted(findings.audit.rows, 'row')} again in isolation{twice}"
    if findings.smallest_harm is None:
        yield "Warning: so few rows cannot show harm. Set audit to a larger number."
    else:
        yield (
            "With 95 % probability it detects a conversation that changes at least "
            f"{findings.smallest_harm * 100:.0f} % of the answers."
        )
    if findings.sidecar.on_harm == "isolate":
        yield (
            "on_harm: isolate: after harm, the rest is asked in isolation, and harmed segments again: at "
            f"most {findings.rows:,} more answers."
        )


def _idle_lanes(findings: Findings, lanes: int) -> Iterator[str]:
    """A warning if there are fewer conversations than lanes."""
    conversations = -(-findings.rows // findings.segment) if findings.segment else 1
    if findings.conversation and conversations < lanes <= findings.rows:
        yield (
            f"Warning: {counted(conversations, 'conversation')} for {lanes} lanes, and each conversation "
            f"uses one lane. Set `segment: {-(-findings.rows // lanes)}` to use all lanes."
        )


# --- limits of GPU memory ----------------------------------------------------------------------------------


def memory_limits(vram: Vram, service: RelativeLimits, totals: Sequence[int]) -> list[str]:
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
        job = RelativeLimits(vram.high or 1.0, vram.critical or 1.0, vram.keep_free_gb or 0.0)
        found = stricter(service.limits(total), job.limits(total))
        lines.append(
            f"vram: high from {in_gb(found.high_bytes)}, critical from {in_gb(found.critical_bytes)} "
            f"on a GPU of {in_gb(total)}, counting all processes."
        )
        lines += _useless(vram, service, total)
    return lines


def _useless(vram: Vram, service: RelativeLimits, total: int) -> Iterator[str]:
    """Values of the job that have no effect on a card of this size, or cannot be met there."""
    theirs = service.limits(total)
    for name, mark, alone, limit in (
        (
            "high",
            vram.high,
            RelativeLimits(vram.high or 1.0, 1.0, 0.0).limits(total).high_bytes,
            theirs.high_bytes,
        ),
        (
            "critical",
            vram.critical,
            RelativeLimits(1.0, vram.critical or 1.0, 0.0).limits(total).critical_bytes,
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


def _looser(vram: Vram, service: RelativeLimits) -> Iterator[str]:
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


def _unread(vram: Vram, service: RelativeLimits) -> str:
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
