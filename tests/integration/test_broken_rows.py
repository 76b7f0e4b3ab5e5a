"""One per cent of broken lines of many kinds: each is its row's error, and the fixed rows are merged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, fake_ollama, make_spool, results, run_once

pytestmark = pytest.mark.slow

ROWS = 1000
SIDECAR = """
model: smollm2:135m
system: Judge.
prompt: "{{ text }}"
id: id
options: {num_ctx: 2048, num_predict: 16}
"""
Kind = tuple[bytes, str]
"""The broken line, and the class of its error."""


def csv_line(n: int) -> bytes:
    """A good line."""
    return b"c%d,review number %d" % (n, n)


CSV_KINDS: list[Kind] = [
    (b"c%d,caf\xe9", "bad_encoding"),
    (b"c%d", "ragged"),
    (b"c%d,too,many", "ragged"),
    (b"c%d,nul \x00 byte", "nul_byte"),
    (b"c%d," + b"x" * 300_000, "cell_too_large"),
    (b"c%d," + b"word " * 10_000, "context_overflow"),
    (b'c%d,"an open quote', "unclosed_quote"),
    (b'c%d,"quoted" and more', "bad_quotes"),
    (b"c1,the first one's name again", "duplicate_id"),
    (b",nobody", "missing_id"),
    (b"c%d,", "empty_prompt"),
]


def json_line(n: int) -> bytes:
    """A good line."""
    return json.dumps({"id": f"c{n}", "text": f"review number {n}"}).encode()


JSON_KINDS: list[Kind] = [
    (b'{"id": "c%d", "text": "cut in the mid', "bad_json"),
    (b'["c%d", "a list"]', "wrong_type"),
    (b"%d", "wrong_type"),
    (b'{"id": "c%d", "text": "caf\xe9"}', "bad_encoding"),
    (b'{"id": "c%d", "text": NaN}', "bad_json"),
    (b'{"id": "c%d", "text": "a", "text": "b"}', "bad_json"),
    (b'{"id": "c%d", "text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_json"),
    (b'{"id": "c%d", "text": "\\ud800"}', "bad_json"),
    (b'{"id": "c%d", "txet": "another key"}', "template_undefined"),
    (b'{"id": "c%d", "text": ""}', "empty_prompt"),
    (b'{"id": true, "text": "no name"}', "missing_id"),
    (b'{"id": "c1", "text": "the first one again"}', "duplicate_id"),
    (b"c%d is no JSON at all", "bad_json"),
]


def broken(line: Callable[[int], bytes], kinds: list[Kind]) -> tuple[list[bytes], dict[int, str]]:
    """Return the lines of a file with every kind in it, and the error class of each broken row."""
    lines = [line(n) for n in range(ROWS)]
    wrong = {}
    for i, (text, code) in enumerate(kinds):
        n = 50 + i * 70
        lines[n] = text.replace(b"%d", b"%d" % n)
        wrong[n] = code
    return lines, wrong


def run_job(spool: Path, url: str) -> Path:
    """Process the spool and return the one new job."""
    before = set((spool / "done").iterdir())
    done = run_once(clean_env(spool, url))
    assert done.returncode == 0, done.stderr
    (job,) = set((spool / "done").iterdir()) - before
    return job


def fixed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a line of errors.jsonl as a user fixes it: correct fields, and the note unchanged."""
    n = entry["_spoolama"]["row"] - 1
    return {"id": f"c{n}", "text": f"corrected {n}", "_spoolama": entry["_spoolama"]}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_broken_lines_are_reported_fixed_and_merged(tmp_path: Path, form: str) -> None:
    """Good rows are answered, each bad one is in errors.jsonl with line and reason, and the
    merge is complete.
    """
    line, kinds = (csv_line, CSV_KINDS) if form == "csv" else (json_line, JSON_KINDS)
    lines, wrong = broken(line, kinds)
    header = [b"id,text"] if form == "csv" else []
    spool = make_spool(tmp_path / "spool")
    (spool / "incoming" / f"job.{form}").write_bytes(b"\n".join([*header, *lines]) + b"\n")
    (spool / "incoming" / "job.yaml").write_text(SIDECAR)
    with fake_ollama() as url:
        job = run_job(spool, url)
        rows = results(job)
        assert {r["row"] - 1: r["error"]["code"] for r in rows if r["status"] != "ok"} == wrong
        assert len(rows) == ROWS
        entries = [json.loads(text) for text in (job / "errors.jsonl").read_text().splitlines()]
        notes = [entry["_spoolama"] for entry in entries]
        assert [(n["line"], n["code"]) for n in notes] == [
            (row + 1 + len(header), code) for row, code in wrong.items()
        ]
        assert all(n["message"] for n in notes)
        (over,) = [n for n in notes if n["code"] == "context_overflow"] or [None]
        if over is not None:
            assert over["details"]["num_ctx"] == 2048
            assert over["details"]["prompt_tokens"] > 2048

        fixed_lines = "".join(json.dumps(fixed(entry)) + "\n" for entry in entries)
        (spool / "incoming" / "errors.jsonl").write_text(fixed_lines)
        (spool / "incoming" / "errors.yaml").write_bytes((job / "errors.yaml").read_bytes())
        second = run_job(spool, url)
    whole = tmp_path / "whole"
    merge = [sys.executable, "-m", "spoolama", "merge", str(job), str(second), "-o", str(whole)]
    done = subprocess.run(merge, env=clean_env(spool, ""), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    merged = results(whole)
    assert [r["id"] for r in merged] == [f"c{n}" for n in range(ROWS)]
    assert all(r["status"] == "ok" for r in merged)
    first = {r["id"]: r["answer"] for r in rows if r["status"] == "ok"}
    assert {r["id"]: r["answer"] for r in merged if r["id"] in first} == first
