"""Published jobs whose ledgers have a pilot, a guard or an audit in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from spoolama.effect.sample import Decision, Judged
from spoolama.report.summary import Summary
from spoolama.spool.job_ledger import JobLedger
from support.published import Fill, answered, publish_job

SEGMENT = 30
SIDECAR = 'model: m\nprompt: "{{ text }}"\nsegment: 30\n'
FORMAT = "format: {type: string, enum: [negative, neutral, positive]}\n"
WORDS = ("negative", "neutral", "positive")
TAIL = "up to 5 earlier rows before each row"

Says = Callable[[int], str]
"""What the row of this ordinal is answered."""


def own(ordinal: int) -> str:
    """What a row is answered for its own sake; its gold is the place of the word."""
    return WORDS[ordinal % 3]


async def nothing(ledger: JobLedger) -> None:
    """A ledger without anything more."""


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
    """A job whose rows have `text` and `gold`; answers are words of a schema, or free text."""
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


def again(ledger: JobLedger, kind: str, rows: Iterable[int], says: Says, *, text: bool = False) -> None:
    """These rows are answered for comparison."""
    for n in rows:
        spelled = says(n) if text else json.dumps(says(n))
        ledger.tried(kind, answered(n, spelled, alone=True, segment=SEGMENT))


def judged(form: str = "tail-5", words: str = TAIL, **more: Any) -> Judged:
    """A form that was on trial."""
    usual: dict[str, Any] = {
        "rows": 90,
        "conversations": 5,
        "agreement": 0.98,
        "low": 0.93,
        "high": 0.99,
        "speed": 1.4,
        "proof": True,
        "harm": False,
    }
    return Judged(form, words, **{**usual, **more})


def decision(
    form: str, why: str, *tried: Judged, floor: float | None = 1.0, compared: str = "equal answers"
) -> dict[str, Any]:
    """What the engine notes of a pilot."""
    made = Decision(form, why, 118, floor, 20, compared, tried)
    return {**made.to_json(), "changes": {}}


def verdict(segment: int, differ: float = 6.0, *, harm: bool = True, floor: float = 0.0) -> Mapping[str, Any]:
    """How a suspicion was settled."""
    return {
        "segment": segment,
        "suspicion": '29 of 29 answers are "positive"',
        "rows": 8,
        "differ": differ,
        "floor": floor,
        "harm": harm,
    }


def records_of(job: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    return [json.loads(line) for line in (job / "results.jsonl").read_bytes().splitlines()]


def line_of(summary: Summary, label: str) -> str:
    """An entry of the summary, on one line; empty: it has none."""
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
    """What stands between the books and the first entry, on one line."""
    return " ".join(" ".join(summary.text.split("\n\nModel")[0].splitlines()[2:]).split())
