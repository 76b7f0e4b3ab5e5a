"""Makes the ledgers in this directory: what a version of spoolama leaves in processing/ when it is killed.

    python tests/data/ledgers/make.py CHECKOUT [CASE ...]

CHECKOUT is a working tree of the version. README.md has the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FAKE_SERVER = f"{HERE.parents[2] / 'daemon'}{os.pathsep}{HERE.parents[1]}"
"""The fake Ollama is the one of this working tree, as in the test."""
ANSWER = "labels:good,bad,mixed"
PICKED = ("model", "messages", "format", "think", "options")
"""What decides an answer, of the body of a request."""
LONGEST_S = 60
"""For a job to come to where it is killed."""
STEP_ROWS = 5
"""Rows that the service stores at once where it is killed while it reads them."""

KILL_WHILE_READING = f"""
import os, signal
from spoolama.service import intake
from spoolama.spool.job_ledger import JobLedger
from spoolama.cli.main import main
take_in, batches = JobLedger.take_in, 0
async def kill_after_two(self, rows):
    global batches
    await take_in(self, rows)
    batches += 1
    if batches == 2:
        await self.flush()
        os.kill(os.getpid(), signal.SIGKILL)
JobLedger.take_in = kill_after_two
intake._BATCH_ROWS = {STEP_ROWS}
main()
"""
"""Runs the service with smaller batches, and kills it after the second one."""


@dataclass(frozen=True)
class Case:
    """A job, and when it is killed."""

    data: str
    """The data file's content."""
    sidecar: str
    ending: str = ".csv"
    calls: int | None = 10
    """It is killed while this request is answered; None: while rows are read."""
    since: int = 1
    """The first format whose versions know this sidecar."""


def _csv(rows: int) -> str:
    texts = ["Great, really", 'It said "fine"', "Zu laut – schade", "battery died after a day", "ok"]
    lines = ["id,text,years,label"]
    for n in range(rows):
        text = f"{texts[n % 5]} ({n})".replace('"', '""')
        lines.append(f'C{n},"{text}",{n * 7 % 23},{("good", "bad", "mixed")[n % 3]}')
    return "\n".join(lines) + "\n"


def _nested(rows: int) -> str:
    lines = []
    for n in range(rows):
        row: dict[str, Any] = {
            "name": ["Łukasz", "Zoë", "名前", "O'Neil <b>&", "Σίσυφος 😀"][n % 5],
            "score": [0.1 + n, 1e21, -0.0, 3.0, 12345678.9][n % 5],
            "tags": [f"t{k}" for k in range(n % 4)],
            "address": None if n % 3 == 0 else {"city": "Köln", "geo": {"lat": 50.9, "lon": 6.95}},
            "big": 2**63 + n,
            "on": n % 2 == 0,
            "notes": [{"by": "ä", "n": k, "ok": None} for k in range(n % 3)],
        }
        if n % 4 == 1:
            del row["tags"]
        lines.append(json.dumps(row, ensure_ascii=bool(n % 2)))
    return "\n".join(lines) + "\n"


def _openai(rows: int) -> str:
    lines = []
    for n in range(rows):
        messages = [{"role": "system", "content": "Judge the review."}]
        if n % 6 == 5:
            messages += [
                {"role": "user", "content": "An earlier one"},
                {"role": "assistant", "content": "good"},
            ]
        messages.append({"role": "user", "content": f"Review {n}: naïve café"})
        body: dict[str, Any] = {"model": ["small", "smollm2:135m"][n % 2], "messages": messages}
        body |= {"max_tokens": 16} if n % 7 else {"max_tokens": 16, "temperature": 0.5, "seed": 3}
        line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines) + "\n"


COMMON = """model: smollm2:135m
system: Judge the review.
options: {num_ctx: 2048, num_predict: 24}
"""
PROMPT = 'prompt: "Review: {{ text }}"\n'
SCORED = """format:
  type: object
  properties: {score: {type: integer, minimum: 0, maximum: 100}}
  required: [score]
"""
SCHEMA = """format:
  type: object
  properties:
    verdict: {enum: [good, bad, "näh", null]}
    zeta: {type: array, items: {type: string, minLength: 2, maxLength: 12}, minItems: 1, maxItems: 3}
    alpha: {type: number, minimum: 0, maximum: 1}
    inner: {type: object, properties: {b: {type: boolean}, a: {anyOf: [{type: integer}, {type: "null"}]}}}
  required: [verdict, zeta, alpha]
  additionalProperties: false
"""
TEMPLATE = """prompt: |
  {%- for note in notes %}
  {{ loop.index }}/{{ loop.length }} {{ note.by ~ ": " ~ note.n }}{% if not loop.last %},{% endif %}
  {%- else %}
  no notes
  {%- endfor %}
  {{ name | upper | replace("O", "0") }} {{ name | length }} {{ "<" ~ name ~ ">" }}
  {{ tags | default(["none"]) | join("; ") }} {{ score }} {{ score | round(2) }} {{ big }} {{ on }}
  {{ address }} {{ address | tojson }}
  {% if address %}{{ address.geo.lat + 1 }} {{ address["city"] }}{% endif %}
  {% set total = notes | map(attribute="n") | sum %}{{ total }} {{ notes | tojson(indent=1) }}
"""
FILTERS = """prompt: |
  {#- every filter, and most of what else a template may have -#}
  {% macro line(label, value, end=";") -%}
    {{ label | trim }}={{ value }}{{ end }}
  {%- endmacro %}
  {% set seen = namespace(rows=0) %}
  {% for key, value in row | dictsort if key != "address" %}
    {% set seen.rows = seen.rows + 1 %}
    {{ line(key ~ " ", value) }}{{ "last" if loop.last else loop.revindex }}
  {% endfor %}
  {{ seen.rows }} {{ score | abs | int }} {{ name | capitalize }} {{ tags | d([]) | count }} {{ big | float }}
  {{ [3, 1, 2] | sort | first }} {{ [3, 1] | sort(reverse=true) | last }} {{ "%.3f/%s" | format(score, name) }}
  {% for number, found in notes | groupby("n") %}
  {{ number }}: {{ found | map(attribute="by") | join("+") }}
  {% endfor %}
  {{ name | indent(2, true) }}|{{ (address or {}) | items | list }}|{{ name | lower | title }}
  {{ [2, 9, 4] | max }} {{ [2, 9, 4] | min }} {{ tags | d([]) | reject("equalto", "t0") | list }}
  {{ notes | rejectattr("n") | list | length }} {{ notes | selectattr("n", "gt", 0) | map(attribute="n") | list }}
  {{ name | replace("o", "0", 1) }} {{ name | reverse }} {{ score | round(1, "floor") }} {{ on | string | upper }}
  {{ [1, 2, 3, 4] | select("odd") | list | tojson }} {{ "<b>x</b> y" | striptags }} {{ notes | sum("n", 7) }}
  {{ (name * 5) | truncate(12, true, "…") }} {{ ["B", "a", "A"] | unique | list }} {{ (name ~ " &/") | urlencode }}
  {{ "one two  three" | wordcount }} {{ "aaa bbb ccc ddd" | wordwrap(8) }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 2 ** 5 }}
  {% if address is none and not on %}none{% elif address is mapping %}mapping{% else %}other{% endif %}
  {{ name[1:3] }} {{ name.startswith("Z") }} {{ name.split("'")[0] }} {{ row["name"] == name }} {{ 1 < score <= 9 }}
  {{ missing | default("missing") }} {{ tags is defined and "t1" in tags }} {% raw %}{{ raw }}{% endraw %}
  {%- for a in range(3) -%} {{ a is divisibleby 2 }}{{ loop.cycle("x", "y") }} {%- endfor +%}
  {{ {"k": [1.0, none, true, "ß"]} }} {{ dict(a=1) }} {{ [] }} {{ "" }} {{ none }} {{ 1e-7 }} {{ 1e5 * 10 ** 12 }}
"""  # noqa: E501 - a prompt as it is
CASES = {
    "isolated": Case(_csv(20), COMMON + PROMPT + "mode: isolated\nid: id\n"),
    "default": Case(_csv(40), COMMON + PROMPT + "segment: 20\n", calls=14),
    "conversation": Case(
        _csv(24), COMMON + PROMPT + "segment: 8\ntrim: {strategy: reset, every: 5}\n", since=2
    ),
    "window-by-tokens": Case(
        _csv(40),
        COMMON.replace("2048", "256") + PROMPT + "segment: all\ntrim: {strategy: window, keep: 4}\n",
        calls=20,
    ),
    "window": Case(
        _csv(30), COMMON + PROMPT + "trim: {strategy: window, keep: 4, every: 4}\n", calls=14, since=2
    ),
    "anchors": Case(
        _csv(40),
        COMMON + PROMPT + "gold: label\ntrim: {strategy: anchors, anchors: 4, every: 3}\n",
        calls=32,
        since=2,
    ),
    "anchors-samples": Case(
        _csv(40), COMMON + PROMPT + "gold: label\ntrim: {strategy: anchors, anchors: 4}\n", since=2
    ),
    "important": Case(
        _csv(30),
        COMMON
        + PROMPT
        + SCORED
        + "trim: {strategy: important, keep: 3, every: 4, score: answer.score - 2 * (row.years | int)}\n",
        calls=16,
        since=2,
    ),
    "schema": Case(
        _csv(20),
        COMMON.replace("24}", "200}") + PROMPT + SCHEMA + "segment: 5\ntrim: {strategy: reset, every: 4}\n",
        since=2,
    ),
    "openai": Case(
        _openai(30),
        "models: {small: gemma3:270m}\nprime: never\ntrim: {strategy: window, keep: 3, every: 3}\n",
        ending=".jsonl",
        calls=12,
        since=2,
    ),
    "template": Case(_nested(20), COMMON + TEMPLATE + "mode: isolated\n", ending=".jsonl"),
    "template-filters": Case(_nested(12), COMMON + FILTERS + "mode: isolated\n", ending=".jsonl", calls=5),
    "audit": Case(
        _csv(24),
        COMMON + PROMPT + "trim: {strategy: window, keep: 3, every: 3}\naudit: 8\non_harm: isolate\n",
        calls=28,
        since=4,
    ),
    "pilot": Case(
        _csv(60),
        COMMON + PROMPT + "gold: label\ntrim: {strategy: auto, pilot: 200}\naudit: 4\n",
        calls=50,
        since=3,
    ),
    "second-pass": Case(
        _csv(20).replace("Great, really", "Great, really " * 60),
        COMMON.replace("2048", "256") + PROMPT + "mode: isolated\nlong_rows: second_pass\n",
        calls=14,
        since=3,
    ),
    "reading": Case(_csv(24), COMMON + PROMPT + "segment: 8\ntrim: {strategy: reset}\n", calls=None),
}


@contextlib.contextmanager
def fake_ollama(log: Path, latency_ms: int) -> Iterator[str]:
    """A fake Ollama; gives its URL."""
    command = [sys.executable, "-m", "support.fake_ollama", "--exit-with-stdin"]
    command += ["--answer", ANSWER, "--latency-ms", str(latency_ms), "--call-log", str(log)]
    env = {**os.environ, "PYTHONPATH": FAKE_SERVER}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            server.wait(10)


def requests(log: Path) -> list[dict[str, Any]]:
    """What was asked, in order: of each request what decides its answer."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    calls = [json.loads(line) for line in lines if line.endswith("\n")]
    bodies = [json.loads(c["body"]) for c in calls if c["event"] == "call" and c["path"] == "/api/chat"]
    return [{key: body[key] for key in PICKED if key in body} for body in bodies if body["messages"]]


def make(checkout: Path, name: str, case: Case, base: Path) -> Path | None:
    """Make one case; None where this version does not know its sidecar."""
    spool, log = base / "spool", base / "log"
    env = {key: value for key, value in os.environ.items() if not key.startswith("SPOOLAMA_")}
    env |= {
        "PYTHONPATH": str(checkout / "daemon"),
        "SPOOLAMA_SPOOL": str(spool),
        "SPOOLAMA_QUIET_S": "0.1",
        "SPOOLAMA_LANES": "1",
        "SPOOLAMA_MIN_FREE_BYTES": "0",
    }
    python = [sys.executable, "-P", "-m", "spoolama"]
    subprocess.run([*python, "init", str(spool)], env=env, check=True, capture_output=True)
    (spool / "incoming" / f"{name}{case.ending}").write_text(case.data, encoding="utf-8")
    (spool / "incoming" / f"{name}.yaml").write_text(case.sidecar, encoding="utf-8")
    with fake_ollama(base / "calls-before", 150) as url, log.open("wb") as out:
        env["SPOOLAMA_BACKEND__URL"] = url
        command = [sys.executable, "-P", "-c", KILL_WHILE_READING] if case.calls is None else python
        process = subprocess.Popen([*command, "run"], env=env, stdout=out, stderr=out)
        until = time.monotonic() + LONGEST_S
        while process.poll() is None and time.monotonic() < until:
            if case.calls is not None and len(requests(base / "calls-before")) >= case.calls:
                break
            time.sleep(0.01)
        late = time.monotonic() >= until
        process.kill()
        process.wait()
    jobs = [path for path in (spool / "processing").iterdir() if path.is_dir()]
    if late or process.returncode != -signal.SIGKILL or len(jobs) != 1:
        raise SystemExit(f"{name}: the service was not killed in time.\n{log.read_text()}")
    with contextlib.closing(sqlite3.connect(jobs[0] / "ledger.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it in one file
        number = db.execute("PRAGMA user_version").fetchone()[0]
    if number < case.since:
        return None
    target = HERE / f"format-{number}" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(spool / "processing", target / "processing")
    with fake_ollama(base / "calls-after", 0) as url:
        env["SPOOLAMA_BACKEND__URL"] = url
        done = subprocess.run(
            [*python, "run", "--once"], env=env, capture_output=True, text=True, check=False
        )
    if not list((spool / "done").iterdir()):
        shutil.rmtree(target)
        raise SystemExit(f"{name}: this version did not finish its own job.\n{done.stdout}\n{done.stderr}")
    expected = requests(base / "calls-after")
    lines = [json.dumps(request, ensure_ascii=False) + "\n" for request in expected]
    (target / "expected.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{target.relative_to(HERE)}: killed, then finished by {len(expected)} requests", flush=True)
    return target


def main() -> None:
    """Make all cases, or those that are named."""
    parser = argparse.ArgumentParser(description="Make the ledgers in tests/data/ledgers.")
    parser.add_argument("checkout", type=Path, help="a working tree of the version that writes the ledgers")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}; default: all")
    given = parser.parse_args()
    for name in given.cases or CASES:
        with tempfile.TemporaryDirectory() as base:
            if make(given.checkout.resolve(), name, CASES[name], Path(base)) is None:
                print(f"{name}: this version does not know its sidecar", flush=True)


if __name__ == "__main__":
    main()
