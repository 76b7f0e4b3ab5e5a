"""Checks a drop as the service does, without a model server.

The rows go through the intake into a ledger in a temporary directory, and each prompt is rendered.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from spoolama.compare.audit import AuditBudget, budget_of, smallest_harm
from spoolama.compare.pilot import least_answers
from spoolama.errors import ConfigError, InputError, Problem, RowError, SidecarError
from spoolama.evaluation.asking import MessageBuilder, RowMessages
from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.plan import pilot_asks, sees_others
from spoolama.job.rows.data_file import InputKind, detect, read_rows
from spoolama.job.rows.reader import RowLimits
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress
from spoolama.service.intake import take_in
from spoolama.spool.claim import JobDir
from spoolama.spool.durable import sha256_of
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.ledger_reader import LedgerReader, Outcome
from spoolama.spool.names import data_name, is_sidecar, sidecar_names

CHARACTERS_PER_TOKEN = 4
"""A common ratio of English text."""
_EXAMPLES = 2
_FAULTS_KEPT = 20
_AT_ONCE = 64
"""Rows that are rendered in parallel."""


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """A data file and the sidecar that goes with it."""

    data: Path
    sidecar: Path | None


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that will fail."""

    line: int
    code: str
    message: str


@dataclass
class Findings:
    """The result of checking a drop whose job would begin."""

    sidecar: Sidecar
    format: str
    model: str
    rows: int = 0
    pilot: int = 0
    """Most answers that the pilot may ask for; 0: there is no pilot."""
    pilot_least: int | None = None
    """Least number of answers with which the pilot can decide; None: no number is enough."""
    audit: AuditBudget = field(default_factory=lambda: AuditBudget(0, 0))
    smallest_harm: float | None = None
    """Share of changed answers that the audit detects with 95 % probability; None: it detects none."""
    faults: Counter[str] = field(default_factory=Counter)
    """Rows that will fail, by error code."""
    first_faults: list[RowProblem] = field(default_factory=list)
    examples: list[RowMessages] = field(default_factory=list)
    """The first requests."""
    prefix_characters: int = 0
    """Characters of the prefix of the first row."""
    characters: int = 0
    """Characters of the rows' own parts."""
    longest: int = 0
    """Characters of the longest prompt, prefix included."""
    longest_line: int = 0
    memory: list[str] = field(default_factory=list)
    """The limits of GPU memory in words."""

    @property
    def asked(self) -> int:
        """Rows that can be sent to the model."""
        return self.rows - sum(self.faults.values())

    @property
    def conversation(self) -> bool:
        """Whether the sidecar itself puts earlier rows into prompts; with `auto` the pilot decides."""
        return self.sidecar.mode == "conversation" and self.sidecar.trim.strategy != "auto"

    @property
    def segment(self) -> int:
        """Rows of one conversation."""
        segment = self.sidecar.segment
        return self.rows if segment == "all" else min(segment, self.rows)

    @property
    def room_tokens(self) -> int:
        """Tokens that num_ctx leaves for a prompt."""
        return self.sidecar.options.num_ctx - self.sidecar.options.num_predict

    @property
    def high_tokens(self) -> int:
        """Most tokens of a prompt with earlier rows (`context/budget.py`)."""
        return int((self.room_tokens - 1) * self.sidecar.trim.high)

    @property
    def rows_before(self) -> int | None:
        """Most earlier rows in a prompt, without anchors; None: any number that fits."""
        rows = self.sidecar.trim.rows_before
        return None if rows is None else min(rows, self.segment - 1)

    @property
    def tokens(self) -> int:
        """Estimated prompt tokens of all rows in isolation."""
        return (self.prefix_characters * self.asked + self.characters) // CHARACTERS_PER_TOKEN


def drop_of(given: Path, data: Path | None = None, default_sidecar: Path | None = None) -> CheckedFiles:
    """Find the data file of a sidecar or the sidecar of a data file, by the naming rules of the service.

    Raises:
        ConfigError: the file type is unknown, or there is no single counterpart.
    """
    if is_sidecar(given.name):
        if data is None:
            near = [p for p in sorted(given.parent.iterdir()) if _fits(p.name, given.name)]
            if len(near) != 1:
                found = ", ".join(p.name for p in near) or "none"
                raise ConfigError(
                    f"{given}: give its data file with --data (found in its directory: {found})"
                )
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
    drop: CheckedFiles,
    evaluator: Evaluator,
    progress: Progress,
    *,
    limits: RowLimits,
    newline_required: bool,
) -> Findings:
    """Check a drop.

    Args:
        drop: The data file and its sidecar.
        evaluator: Evaluates sidecar and templates.
        progress: Receives the phase.
        limits: Maximum sizes of rows.
        newline_required: Whether the data must end with a newline.

    Raises:
        JobError: the job would not begin; it has every problem that was found.
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
            f"{drop.data.name} has no sidecar.", fix=f"Write {data_stem(drop.data)}.yaml in its directory."
        )
    if sidecar.expect and sidecar.expect.sha256:
        found = await asyncio.to_thread(sha256_of, drop.data)
        if found != sidecar.expect.sha256.lower():
            raise InputError(f"{drop.data.name} has the SHA-256 {found}, but the sidecar expects another.")
    findings = Findings(sidecar, kind.format, sidecar.model)
    with tempfile.TemporaryDirectory(prefix="spoolama-check-") as directory:
        job = JobDir(
            Path(directory), "check", drop.data, drop.sidecar, drop.data.name, claimed_at=0.0, arrived=0.0
        )
        async with JobLedger(job.ledger, progress.clock) as ledger:
            try:
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
            except InputError as error:
                if error.code == "no_such_column":  # nothing was uploaded
                    error.fix = f"Fix the sidecar, or the header of {drop.data.name}."
                raise
        asker = MessageBuilder(sidecar, evaluator.of_job(job.dropped_as))
        await _render(job.ledger, asker, findings, progress)
    if not openai:
        findings.pilot = pilot_asks(sidecar, findings.rows)
        if sees_others(sidecar, findings.rows):
            noisy = sidecar.noisy
            findings.audit = budget_of(sidecar.audit_rows, findings.rows, noisy=noisy)
            findings.smallest_harm = smallest_harm(findings.audit.random, sidecar.trim.margin, noisy=noisy)
        segment = None if sidecar.segment == "all" or sidecar.segment > findings.rows else sidecar.segment
        findings.pilot_least = least_answers(findings.rows, segment)
    return findings


async def _sidecar(
    data: Path, path: Path, kind: InputKind, limits: RowLimits, evaluator: Evaluator
) -> Sidecar:
    """Load the sidecar. Its problems do not hide missing columns and unreadable rows of the data."""
    try:
        return await evaluator.load_sidecar(path, openai=kind.format == "openai")
    except SidecarError as error:
        found, faults = list(error.problems), list[Problem]()
        with contextlib.suppress(SidecarError, InputError):
            columns, faults = await asyncio.to_thread(_unreadable, data, kind, limits)
            if columns:
                found += await evaluator.column_problems(path, columns, data.name)
        found.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
        problems = SidecarError([*found, *faults])
        problems.fix = f"Fix the sidecar and {data.name}." if faults else "Fix the sidecar."
        raise problems from None


def _unreadable(data: Path, kind: InputKind, limits: RowLimits) -> tuple[list[str] | None, list[Problem]]:
    """The columns of the data, and its first unreadable rows."""
    with read_rows(data, kind, limits=limits) as reader:
        faults = ((row.line, row.fault) for row in reader if row.fault is not None)
        found = [
            Problem(data.name, line, None, fault.code, fault.message)
            for line, fault in islice(faults, _FAULTS_KEPT)
        ]
        return reader.columns, found


def data_stem(data: Path) -> str:
    """`a` of `a.csv.gz`."""
    name = data_name(data.name)
    return name.stem if name else data.stem


async def _render(ledger: Path, asker: MessageBuilder, findings: Findings, progress: Progress) -> None:
    """Render the prompt of every row."""
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
            progress.phase = f"rendering prompts: {findings.rows:,} of {progress.total:,}"


async def _asked(row: Outcome, asker: MessageBuilder) -> RowMessages | RowError:
    if row.state == "failed" or row.fields is None:
        return RowError(row.code or "unreadable", row.message or "")
    try:
        return await asker.ask(row.fields, row.line, row.request)
    except RowError as error:
        return error


def _count_fault(findings: Findings, line: int, code: str, message: str) -> None:
    findings.faults[code] += 1
    if len(findings.first_faults) < _FAULTS_KEPT:
        findings.first_faults.append(RowProblem(line, code, message))


def _count_ask(findings: Findings, line: int, ask: RowMessages) -> None:
    shared = sum(len(m.content) for m in ask.prefix)
    own = sum(len(m.content) for m in ask.own)
    if not findings.examples:
        findings.prefix_characters = shared
    if len(findings.examples) < _EXAMPLES:
        findings.examples.append(ask)
    findings.characters += own + shared - findings.prefix_characters
    if shared + own > findings.longest:
        findings.longest, findings.longest_line = shared + own, line
