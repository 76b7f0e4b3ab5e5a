"""The effect of each form of conversation on the answers of a real model; `make bench-forms` runs it.

Isolated rows, every form of the pilot, and `auto` with gold, on the same rows: each is a job of the service
on the embedded engine. For each it prints the distribution of the answers, how many equal the isolated ones,
the agreement with `gold` where it exists, with intervals, and rows per second. Rows that took part in a
choice, or are anchors, are left out of every form's agreement with gold.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from daemons import clean_env, make_spool, results, run_once  # noqa: E402 - it is run as a script
from spoolama.cli.sample import write_sample  # noqa: E402
from spoolama.compare.evidence import wilson  # noqa: E402
from spoolama.compare.similarity import similarity_of  # noqa: E402
from spoolama.publish.agreement import Agreement, AnswerCounts  # noqa: E402

ROOT = Path(__file__).parents[2]

FORMS = {
    "alone": "mode: isolated",
    "tail-1": "trim: {strategy: reset, every: 2}",
    "tail-5": "trim: {strategy: reset, every: 6}",
    "tail-20": "trim: {strategy: reset, every: 21}",
    "anchors": "trim: {strategy: anchors, anchors: 6}",
    "anchors-tail-5": "trim: {strategy: anchors, anchors: 6, every: 6}",
    "window-20": "trim: {strategy: window, keep: 20, every: 30}",
    "auto": "trim: {strategy: auto, pilot: PILOT}",
}
"""The sidecar's lines for each."""


@dataclass(frozen=True, slots=True)
class Task:
    """The question about the rows."""

    sidecar: str
    sample: Literal["reviews", "candidates"]
    """Of `spoolama sample`, unless the data are given."""
    gold: str | None
    more: str = "num_predict: 16"
    """Further options of the model."""


TASKS = {
    "sentiment": Task(
        "system: |\n"
        "  You judge the sentiment of sentences from product reviews.\n"
        "  Answer with the one word that fits best: positive, negative or neutral.\n"
        'prompt: "Sentence: {{ text }}"\nformat: {enum: [negative, neutral, positive]}\n',
        "reviews",
        "human_rating",
    ),
    "rating": Task(
        "system: You rate how happy the writer of a sentence is, from 1 (angry) to 9 (happy).\n"
        'prompt: "Sentence: {{ text }}"\nformat: {type: integer, minimum: 1, maximum: 9}\n'
        # Without them the small model gives every row a 1.
        "examples:\n"
        "  - {user: 'Sentence: it broke after two days and nobody answers the phone.', assistant: '1'}\n"
        "  - {user: 'Sentence: the box has a manual and a cable in it.', assistant: '5'}\n"
        "  - {user: 'Sentence: best thing i ever bought, works like a charm!', assistant: '9'}\n",
        "reviews",
        "human_rating",
    ),
    "topic": Task(
        "system: You say which part of a product a sentence from a review is about.\n"
        'prompt: "Sentence: {{ text }}"\n'
        "format: {enum: [price, battery, screen, service, size, sound, other]}\n",
        "reviews",
        None,
    ),
    "words": Task(
        "system: You say in at most five words what a sentence from a product review is about.\n"
        'prompt: "Sentence: {{ text }}"\n'
        "examples:\n"
        "  - {user: 'Sentence: nobody answers the phone.', assistant: 'poor service'}\n"
        "  - {user: 'Sentence: the sound is warm and never too loud.', assistant: 'pleasant sound'}\n",
        "reviews",
        None,
        # The small model does not stop; only the beginning of its answer counts here.
        more="stop: ['\\n', '.'], num_predict: 48",
    ),
    "fit": Task(
        "system: You sort profiles of people who want to work as a data engineer.\n"
        "prompt: '{{ role }}, {{ years }} years. Skills: {{ skills }}. {{ note }}'\n"
        "format: {enum: [invite, maybe, reject]}\n",
        "candidates",
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a form."""

    form: str
    metrics: dict[str, Any]
    answers: dict[int, str]
    """By the row's number."""
    used: frozenset[int]
    """Rows that took part in a choice."""
    agreement: Agreement | None = None


def run_forms(
    base: Path, task: Task, forms: Sequence[str], *, model: str, data: Path | None, rows: int, lanes: int,
    pilot: int, threads: int,
) -> list[Found]:  # fmt: skip
    """Run the job once for each form, in one run of the service."""
    spool = make_spool(base / "spool")
    if data is None:
        data = next(p for p in write_sample(task.sample, rows, 1, base) if p.suffix == ".csv")
    lines = data.read_text(encoding="utf-8")
    forms = [form for form in forms if form != "auto" or task.gold]  # without gold each row is isolated
    for form in forms:
        trim = FORMS[form].replace("PILOT", str(pilot))
        gold = f"gold: {task.gold}\n" if task.gold else ""
        (spool / "incoming" / f"{form}.csv").write_text(lines, encoding="utf-8")
        (spool / "incoming" / f"{form}.yaml").write_text(
            f"model: {model}\n{task.sidecar}{gold}{trim}\naudit: off\n"
            # Long enough for a window to be trimmed, short enough to give every lane work.
            f"segment: {max(60, rows // (4 * lanes))}\n"
            f"options: {{num_ctx: 4096, temperature: 0, seed: 7, {task.more}}}\n"
        )
    env = clean_env(spool, "", SPOOLAMA_LANES=str(lanes))
    env |= {"SPOOLAMA_BACKEND__KIND": "embedded", "SPOOLAMA_BACKEND__THREADS": str(threads)}
    env.pop("SPOOLAMA_BACKEND__URL")
    ended = run_once(env, timeout=7200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    with data.open(newline="", encoding="utf-8") as file:
        golds = {n: row.get(task.gold or "") for n, row in enumerate(csv.DictReader(file), 1)}
    found = []
    for form in forms:
        job = next((spool / "done").glob(f"{form}-2*"))
        rows_of = [row for row in results(job) if "answer" in row]
        found.append(
            Found(
                form,
                json.loads((job / "metrics.json").read_text()),
                {int(row["row"]): _text(row["answer"]) for row in rows_of},
                frozenset(int(row["row"]) for row in rows_of if row.get("gold_used")),
            )
        )
    if task.gold is None:
        return found
    used = frozenset().union(*(each.used for each in found))
    return [replace(each, agreement=_agreement(each, golds, used, task.gold)) for each in found]


def _agreement(
    found: Found, golds: Mapping[int, str | None], used: frozenset[int], gold: str
) -> Agreement | None:
    answer_counts = AnswerCounts(gold, None)
    for row, answer in found.answers.items():
        if row not in used:
            answer_counts.add(answer, golds.get(row))
    return answer_counts.agreement()


def table(found: Sequence[Found], listed: bool) -> list[str]:
    """Return Markdown with one line for each form."""
    alone = next(f for f in found if f.form == "alone").answers
    like = similarity_of(list(alone.values()), listed=listed)
    lines = [
        f"| in sight of | answers | {like.words} with alone | agreement with gold | rows/s |",
        "|---|---|---:|---:|---:|",
    ]
    for each in found:
        both = [n for n in each.answers if n in alone]
        total = sum(like.of(each.answers[n], alone[n]) for n in both)
        low, high = wilson(total, max(1, len(both)))
        same = "–" if each.form == "alone" else f"{total / len(both):.0%} ({low:.0%} to {high:.0%})"
        name = each.form
        if name == "auto":
            name = f"auto: {each.metrics['pilot']['form']} ({each.metrics['pilot']['why']})"
        rate = each.metrics["rows_per_second"]
        lines.append(
            f"| {name} | {_spread(each.metrics)} | {same} | {_gold(each.agreement)}"
            f" | {'–' if rate is None else f'{rate:.2f}'} |"
        )
    return lines


def _spread(metrics: dict[str, Any]) -> str:
    counts = (metrics["answers"] or {}).get("counts") or {}
    if not counts or len(counts) > 12:
        return "texts" if not counts else f"{len(counts)} different ones"
    return ", ".join(f"{label} {count}" for label, count in list(counts.items())[:7])


def _gold(agreement: Agreement | None) -> str:
    if agreement is None:
        return "–"
    value, interval = agreement.correlation, agreement.correlation_interval
    if value is None:
        return "undefined"
    return f"{value:.2f}" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="sentiment", help=f"of {', '.join(TASKS)}, separated by commas")
    parser.add_argument("--forms", default=",".join(FORMS), help="separated by commas; alone is always there")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of llama.cpp")
    parser.add_argument("--pilot", type=int, default=600, help="answers that the pilot of auto may take")
    parser.add_argument("--data", type=Path, help="a CSV with the columns that the task's prompt names")
    given = parser.parse_args(arguments)
    forms = ["alone", *(f for f in given.forms.split(",") if f != "alone")]
    for name in given.tasks.split(","):
        task = TASKS[name]
        data = given.data
        with tempfile.TemporaryDirectory() as base:
            if data is not None:
                data = _first_rows(data, given.rows, Path(base))
            print(f"{name}: {len(forms)} jobs, some minutes ...", file=sys.stderr, flush=True)
            found = run_forms(
                Path(base), task, forms,
                model=given.model, data=data, rows=given.rows, lanes=given.lanes, pilot=given.pilot,
                threads=given.threads,
            )  # fmt: skip
        print(f"\n{name}, {given.model}, {given.rows} rows\n")
        print(*table(found, "enum" in task.sidecar), sep="\n", flush=True)


def _first_rows(data: Path, rows: int, base: Path) -> Path:
    """A copy of the first rows."""
    with data.open(newline="", encoding="utf-8") as file:
        records = [record for _, record in zip(range(rows + 1), csv.reader(file), strict=False)]
    path = base / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(records)
    return path


if __name__ == "__main__":
    main()
