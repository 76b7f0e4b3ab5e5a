"""Published jobs whose ledgers contain a pilot or an audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from spoolama.compare.pilot import Decision, TriedForm
from spoolama.publish.summary import Summary
from spoolama.spool.job_ledger import JobLedger
from support.published import Fill, answered, publish_job

SEGMENT = 30
SIDECAR = 'model: m\nprompt: "{{ text }}"\nsegment: 30\n'
FORMAT = "format: {type: string, enum: [negative, neutral, positive]}\n"
WORDS = ("negative", "neutral", "positive")
TAIL = "up to 5 earlier rows before each row"

Says = Callable[[int], str]
"""The answer to the row with this ordinal."""


def own(ordinal: int) -> str:
    """A row's isolated answer; its gold is the position of the word."""
    return WORDS[ordinal % 3]


async def nothing(ledger: JobLedger) -> None:
    """Leave the ledger as it is."""


def publish(
    path: Path,
    side: str = "",
    *,
    rows: int = 300,
    says: Says = own,
    fill: Fill = nothing,
    text: bool = False,
    **meta: Any,
) -> Summary:
    """Publish a job whose rows have `text` and `gold`; answers are words of a schema, or free text."""
    data = b"text,gold\n" + b"".join(b"x,%d\n" % (n % 3) for n in range(rows))
    sidecar = SIDECAR if text else SIDECAR + FORMAT
    spelled = says if text else (lambda n: json.dumps(says(n)))
    return publish_job(
        path,
        data_name="d.csv",
        data=data,
        sidecar=sidecar + side,
        answer=lambda row: spelled(row.ordinal),
        segment=SEGMENT,
        fill=fill,
        **meta,
    )


def store_answers(
    ledger: JobLedger, kind: str, rows: Iterable[int], says: Says, *, text: bool = False
) -> None:
    """Store answers of these rows for comparison."""
    for n in rows:
        spelled = says(n) if text else json.dumps(says(n))
        ledger.add_trial(kind, answered(n, spelled, alone=True, segment=SEGMENT))


def tried(form: str = "tail-5", words: str = TAIL, **more: Any) -> TriedForm:
    """Store a form that was tried."""
    usual: dict[str, Any] = {
        "rows": 90,
        "conversations": 5,
        "wins": 0,
        "losses": 0,
        "compared": 0,
        "how": "rows answered right",
        "better": False,
    }
    return TriedForm(form, words, **{**usual, **more})


def decision(form: str, why: str, *forms: TriedForm) -> dict[str, Any]:
    """The engine's note about a pilot."""
    return {**Decision(form, why, 118, forms).to_json(), "changes": {}}


def verdict(segment: int, differ: float = 6.0, *, harm: bool = True) -> dict[str, Any]:
    """The verdict on a segment that looked odd."""
    return {
        "segment": segment,
        "suspicion": '29 of 29 answers are "positive"',
        "rows": 8,
        "differ": differ,
        "harm": harm,
    }


BUDGET = {"random": 100, "odd": 0, "begun_before": False}


def harm(words: str = "the conversation changes about 30 % of the answers", **more: Any) -> dict[str, Any]:
    """The engine's note about harm."""
    return {"words": words, "segment": None, "audited": 40, "changed": 0.3, "answered": 120, **more}


def records_of(job: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    return [json.loads(line) for line in (job / "results.jsonl").read_bytes().splitlines()]


def line_of(summary: Summary, label: str) -> str:
    """An entry of the summary on one line, or empty without one."""
    found: list[str] = []
    for line in summary.text.splitlines():
        if line.startswith(label):
            found = [line[len(label) :].strip()]
        elif found and line.startswith(" ") and line.strip():
            found.append(line.strip())
        elif found:
            break
    return " ".join(found)


def top_of(summary: Summary) -> str:
    """The text between the counts and the first entry, on one line."""
    return " ".join(" ".join(summary.text.split("\n\nModel")[0].splitlines()[2:]).split())
