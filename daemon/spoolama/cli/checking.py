"""Everything the service would say about a drop, before it is dropped: the same readers, the same checks.

The rows go through the intake into a ledger in a temporary directory, and each prompt is rendered.
No model server is asked, so tokens are an estimate and say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from spoolama.clock import SystemClock
from spoolama.compare.audit import AuditBudget, budget_of, smallest_harm
from spoolama.compare.pilot import least_answers
from spoolama.errors import ConfigError, InputError, RowError, SidecarError
from spoolama.evaluation.asking import Ask, Asker
from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.plan import pilot_asks, sees_others
from spoolama.job.rows.data_file import InputKind, detect, read_rows
from spoolama.job.rows.reader import RowLimits
from spoolama.job.sidecar import Sidecar, Trim, Vram
from spoolama.progress import Progress, Pulse
from spoolama.service.intake import take_in
from spoolama.spool.claim import JobDir
from spoolama.spool.durable import sha256_of
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader, Outcome
from spoolama.spool.names import data_name, is_sidecar, sidecar_names

__all__ = ["CHARACTERS_PER_TOKEN", "CheckedFiles", "Fault", "Findings", "check_drop", "drop_of"]

CHARACTERS_PER_TOKEN = 4
"""A common ratio of English text; only the model's own tokenizer knows better."""
_EXAMPLES = 2
_FAULTS_KEPT = 20
_AT_ONCE = 64
"""Rows that are rendered together."""


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """A data file and the sidecar that goes with it."""

    data: Path
    sidecar: Path | None


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that will not be asked."""

    line: int
    code: str
    message: str


@dataclass
class Findings:
    """What was found in a drop whose job would begin."""

    format: str
    model: str
    mode: str
    anchors: int = 0
    """Rows that will stand before every other one."""
    strategy: str = "auto"
    pilot: int = 0
    """Answers that the pilot may take, as asked for; 0: there is none."""
    gold: bool = False
    """Whether the sidecar names known answers."""
    noisy: bool = False
    """Whether the temperature is above 0."""
    trim: Trim = field(default_factory=Trim)
    audit: AuditBudget = field(default_factory=lambda: AuditBudget(0, 0))
    """Rows that the audit may ask again."""
    smallest_harm: float | None = None
    """Share of changed answers that it finds with 95 % probability; None: it finds none."""
    pilot_least: int | None = None
    """Answers without which the pilot proves nothing; None: no number is enough."""
    on_harm: str = "report"
    segment: int = 0
    """Rows of one conversation; 0: all are one."""
    lanes: int | None = None
    """Requests at once, where the sidecar says so."""
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Rows that will not be asked, by class."""
    first_faults: list[Fault] = field(default_factory=list)
    """The first of them."""
    examples: list[Ask] = field(default_factory=list)
    """The first questions as they will be asked."""
    prefix_characters: int = 0
    """Of the first row's shared part."""
    characters: int = 0
    """Of all rows' own parts."""
    longest: int = 0
    """Characters of the longest prompt, shared part included."""
    longest_line: int = 0
    vram: Vram | None = None
    """The sidecar's limits of GPU memory."""
    memory: list[str] = field(default_factory=list)
    """What these limits come to beside the service's, in words."""
    room_tokens: int = 0
    """What num_ctx leaves for a prompt."""

    @property
    def asked(self) -> int:
        """Rows that will be asked."""
        return self.rows - sum(self.faults.values())

    @property
    def first_fault(self) -> Fault | None:
        """The first row that will not be asked."""
        return self.first_faults[0] if self.first_faults else None

    @property
    def alone(self) -> bool:
        """Whether each row is asked in isolation, or a pilot has yet to say."""
        return self.mode != "conversation" or self.strategy == "auto"

    @property
    def rows_before(self) -> int | None:
        """Earlier rows before a row at most, those in front not counted; None: any number that fits."""
        longest = min(self.segment or self.rows, self.rows) - 1
        rows = self.trim.rows_before
        return None if rows is None else min(rows, longest)

    @property
    def high_tokens(self) -> int:
        """No earlier rows stand before a row whose prompt would pass this (`context/budget.py`)."""
        return int((self.room_tokens - 1) * self.trim.high)

    def idle_lanes(self, lanes: int) -> str | None:
        """What to say where there are fewer conversations than lanes; None: every lane has work.

        Args:
            lanes: Requests at once by the settings.
        """
        lanes = self.lanes or lanes
        conversations = -(-self.rows // self.segment) if self.segment else 1
        if self.alone or conversations >= lanes or self.rows < lanes:
            return None
        made = "1 conversation" if conversations == 1 else f"{conversations} conversations"
        return (
            f"These rows are {made}, and a conversation is held by one lane: {conversations} of {lanes} "
            f"lanes will have work. `segment: {-(-self.rows // lanes)}` would use all."
        )

    @property
    def tokens(self) -> int:
        """Prompt tokens of all rows, each behind the shared part, by characters."""
        return (self.prefix_characters * self.asked + self.characters) // CHARACTERS_PER_TOKEN

    @property
    def perhaps_too_long(self) -> bool:
        """Whether the longest prompt may not fit the window, by characters."""
        return self.longest // CHARACTERS_PER_TOKEN >= self.room_tokens


def drop_of(given: Path, data: Path | None = None, default_sidecar: Path | None = None) -> CheckedFiles:
    """Find the other half of a drop, by the names that the service goes by.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if is_sidecar(given.name):
        if data is None:
            near = [p for p in sorted(given.parent.iterdir()) if _fits(p.name, given.name)]
            if len(near) != 1:
                found = ", ".join(p.name for p in near) or "none"
                raise ConfigError(f"{given}: name its data file with --data (beside it: {found})")
            data = near[0]
        return CheckedFiles(data, given)
    name = data_name(given.name)
    if name is None:
        raise ConfigError(
            f"{given.name} is neither a data file (.csv, .tsv, .jsonl, .ndjson) nor a sidecar (.yaml)"
        )
    near = [given.parent / n for n in sidecar_names(name) if (given.parent / n).exists()]
    if len(near) > 1:
        raise ConfigError(
            f"{given.name} has {len(near)} sidecars: {', '.join(p.name for p in near)}. Keep one."
        )
    return CheckedFiles(given, near[0] if near else default_sidecar)


def _fits(data: str, sidecar: str) -> bool:
    name = data_name(data)
    return name is not None and sidecar.lower() in {s.lower() for s in sidecar_names(name)}


async def check_drop(
    drop: CheckedFiles, evaluator: Evaluator, *, limits: RowLimits, newline_required: bool
) -> Findings:
    """Read everything, as the service would.

    Args:
        drop: The data file and its sidecar.
        evaluator: Evaluates what the user wrote.
        limits: Bounds of rows.
        newline_required: Whether data must end with a newline.

    Raises:
        JobError: the job would not begin; with every problem that could be found.
        OSError: a file cannot be read.
    """
    kind = await asyncio.to_thread(detect, drop.data, drop.data.name)
    openai = kind.format == "openai"
    if drop.sidecar is not None:
        sidecar = await _sidecar(drop.data, drop.sidecar, kind, limits, evaluator)
    elif openai:
        sidecar = Sidecar(model="")
    else:
        raise InputError(
            f"{drop.data.name} has no sidecar", fix=f"Write {data_stem(drop.data)}.yaml beside it."
        )
    if sidecar.expect and sidecar.expect.sha256:
        found = await asyncio.to_thread(sha256_of, drop.data)
        if found != sidecar.expect.sha256.lower():
            raise InputError(f"{drop.data.name} has sha256 {found}, the sidecar expects another")
    findings = Findings(
        kind.format,
        sidecar.model,
        sidecar.mode,
        anchors=sidecar.trim.anchor_rows,
        strategy=sidecar.trim.strategy,
        segment=0 if sidecar.segment == "all" else sidecar.segment,
        lanes=sidecar.lanes,
        trim=sidecar.trim,
        gold=sidecar.gold is not None,
        noisy=sidecar.options.temperature > 0,
        on_harm=sidecar.on_harm,
        vram=sidecar.vram,
    )
    findings.room_tokens = sidecar.options.num_ctx - sidecar.options.num_predict
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="spoolama-check-") as directory:
        job = JobDir(
            Path(directory), "check", drop.data, drop.sidecar, drop.data.name, claimed_at=0.0, arrived=0.0
        )
        async with JobLedger(job.ledger, clock) as ledger:
            progress = Progress("check", clock, Pulse(clock))
            await take_in(
                job,
                kind,
                sidecar,
                ledger,
                evaluator,
                progress,
                limits=limits,
                newline_required=newline_required,
            )
        await _read_back(job.ledger, Asker(sidecar, evaluator.of_job(job.dropped_as)), findings)
    if not openai:
        findings.pilot = pilot_asks(sidecar, findings.rows)
        if sees_others(sidecar, findings.rows):
            noisy, margin = findings.noisy, sidecar.trim.margin
            findings.audit = budget_of(sidecar.audit_rows, findings.rows, noisy=noisy)
            findings.smallest_harm = smallest_harm(findings.audit.random, margin, noisy=noisy)
        segment = findings.segment if 0 < findings.segment <= findings.rows else None
        findings.pilot_least = least_answers(findings.rows, segment)
    return findings


async def _sidecar(
    data: Path, path: Path, kind: InputKind, limits: RowLimits, evaluator: Evaluator
) -> Sidecar:
    """The sidecar; what is wrong in it must not hide the columns that it names and the data does not have."""
    try:
        return await evaluator.load_sidecar(path, openai=kind.format == "openai")
    except SidecarError as error:
        found = list(error.problems)
        with contextlib.suppress(SidecarError, InputError):
            columns = await asyncio.to_thread(_columns, data, kind, limits)
            if columns:
                found += await evaluator.column_problems(path, columns, data.name)
        raise SidecarError(sorted(found, key=lambda p: (p.line or 0, p.column or 0))) from None


def _columns(data: Path, kind: InputKind, limits: RowLimits) -> list[str] | None:
    with read_rows(data, kind, limits=limits) as reader:
        return reader.columns


def data_stem(data: Path) -> str:
    """`a` of `a.csv.gz`."""
    name = data_name(data.name)
    return name.stem if name else data.stem


async def _read_back(ledger: Path, asker: Asker, findings: Findings) -> None:
    """Render every row, several at once: what waits for the evaluation process goes there together."""
    with contextlib.closing(LedgerReader(ledger)) as reader:
        rows = reader.outcomes()
        while batch := await asyncio.to_thread(lambda: list(islice(rows, _AT_ONCE))):
            asks = await asyncio.gather(*(_asked(row, asker) for row in batch))
            for row, ask in zip(batch, asks, strict=True):
                findings.rows += 1
                if isinstance(ask, RowError):
                    _count_fault(findings, row.line, ask.code, ask.message)
                else:
                    _count_ask(findings, row.line, ask)
                findings.model = findings.model or row.model or ""


async def _asked(row: Outcome, asker: Asker) -> Ask | RowError:
    if row.state == "failed" or row.fields is None:
        return RowError(row.code or "unreadable", row.message or "")
    try:
        return await asker.ask(row.fields, row.line, row.request)
    except RowError as error:
        return error


def _count_fault(findings: Findings, line: int, code: str, message: str) -> None:
    findings.faults[code] += 1
    if len(findings.first_faults) < _FAULTS_KEPT:
        findings.first_faults.append(Fault(line, code, message))


def _count_ask(findings: Findings, line: int, ask: Ask) -> None:
    shared = sum(len(m.content) for m in ask.prefix)
    own = sum(len(m.content) for m in ask.own)
    if not findings.examples:
        findings.prefix_characters = shared
    if len(findings.examples) < _EXAMPLES:
        findings.examples.append(ask)
    findings.characters += own + shared - findings.prefix_characters
    if shared + own > findings.longest:
        findings.longest, findings.longest_line = shared + own, line
