"""Published jobs without a service or a model: real readers, ledger and reports, with scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spoolama.errors import RowError
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.plan import first_plan
from spoolama.job.row import Answered, Failed, Row
from spoolama.job.rows.data_file import detect, read_rows
from spoolama.job.sidecar import Sidecar
from spoolama.publish.build import build_outputs
from spoolama.publish.summary import Summary
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.layout import UPLOADED
from spoolama.spool.ledger_reader import LedgerReader
from spoolama.spool.ledger_rows import NewRow
from support.clock import VirtualClock

Script = Callable[[Row], str | RowError | None]
"""The result of a readable row: its answer, its error, or None if it is never asked."""

Fill = Callable[[JobLedger], Awaitable[None]]
"""Writes more into the ledger: answers for comparison, verdicts, plans."""


def publish_job(
    path: Path,
    *,
    data_name: str,
    data: bytes,
    sidecar: str,
    answer: Script,
    counts: bool = True,
    fill: Fill | None = None,
    segment: int = 10,
    **meta: Any,
) -> Summary:
    """Make `path` what a published job looks like.

    Args:
        path: The directory to make; its name is the job's.
        data_name: The data file's name.
        data: Its bytes.
        sidecar: YAML; empty for OpenAI requests without one.
        answer: What becomes of each readable row.
        counts: Whether the server counted tokens.
        fill: Called with the ledger when every row has its end.
        segment: Rows of a segment.
        meta: Notes of the ledger besides the usual ones, or in their place.
    """
    uploaded = path / UPLOADED
    uploaded.mkdir(parents=True)
    (uploaded / data_name).write_bytes(data)
    openai = detect(uploaded / data_name, data_name).format == "openai"
    if sidecar:
        (uploaded / "job.yaml").write_text(sidecar, encoding="utf-8")
        asked = parse_sidecar(sidecar, "job.yaml", openai=openai)
    else:
        asked = Sidecar(model="test")
    ledger = path.parent / f"{path.name}.sqlite"
    notes: dict[str, Any] = {"sidecar_name": "job.yaml" if sidecar else None, "data_name": data_name, **meta}
    ended_early = asyncio.run(
        _fill(ledger, uploaded / data_name, asked, answer, counts, path.name, notes, fill, segment)
    )
    with LedgerReader(ledger) as reader:
        return build_outputs(path, reader, asked, ended_early=ended_early)


async def _fill(
    file: Path,
    data: Path,
    sidecar: Sidecar,
    answer: Script,
    counts: bool,
    job: str,
    notes: dict[str, Any],
    fill: Fill | None,
    segment: int,
) -> dict[str, str] | None:
    ledger = JobLedger(file, VirtualClock())
    kind = detect(data, data.name)
    ended_early = None
    await ledger.add_plan(1, replace(first_plan(sidecar), segment_rows=segment).to_json())
    with read_rows(data, kind) as rows:
        for row in rows:
            name = row.id
            if sidecar.id is not None and row.fields is not None:
                name = str(row.fields.get(sidecar.id))
            unique = sidecar.id is not None or kind.format == "openai"
            await ledger.take_in([NewRow(row, name, unique and name is not None)])
            if (await ledger.counts())["pending"] == 0:
                continue  # it could not be read, or its id was used before
            end = answer(row)
            if isinstance(end, str):
                ledger.answered(answered(row.ordinal, end, counts=counts, segment=segment))
            elif end is not None:
                details = {**end.details, **({"answer": end.answer} if end.answer is not None else {})}
                ledger.failed(Failed(row.ordinal, end.code, end.message, 1, details))
            else:
                ended_early = {"code": "cancelled", "message": "cancelled by NAME.cancel", "fix": ""}
                await ledger.skip_rest()
        usual: dict[str, Any] = {
            "own_requests": kind.format == "openai",
            "job": job,
            "data_sha256": "d" * 64,
            "sidecar_sha256": None,
            "input_format": kind.format,
            "columns": rows.columns,
            "active_s": 10.0,
            "waited_s": 0.0,
            "runs": 1,
            "lanes": 1,
            "trim_count": 0,
            "memory": None,
        }
        await ledger.note(**{**usual, **notes})
    if fill is not None:
        await fill(ledger)
    await ledger.flush()
    await ledger.close()
    return ended_early


def answered(
    ordinal: int, text: str, *, counts: bool = True, alone: bool = False, segment: int = 10
) -> Answered:
    """Return an answer as a ledger stores it.

    Args:
        ordinal: The row's, from 0.
        text: The answer.
        counts: Whether the server counted tokens.
        alone: Whether the row saw no other row.
        segment: Rows of a segment.
    """
    place = ordinal % segment
    return Answered(
        ordinal=ordinal,
        answer=text,
        finish="stop",
        segment=ordinal // segment,
        place=place,
        visible_rows=((ordinal - place, ordinal - 1),) if place and not alone else (),
        isolated=False,
        trimmed=False,
        plan_version=1,
        turn_tokens=20,
        own_bytes=20,
        own_tokens=None,
        prompt_tokens=100 + 20 * place if counts else None,
        cached_tokens=(80 + 20 * place if ordinal else 0) if counts else None,
        completion_tokens=5 if counts else None,
        load_s=0.0,
        prompt_s=0.1,
        eval_s=0.2,
        latency_s=0.3 + ordinal / 100,
        attempts=1,
    )
