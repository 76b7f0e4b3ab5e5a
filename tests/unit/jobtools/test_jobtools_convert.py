"""Conversion of rows to OpenAI batch requests and of batch outputs to CSV."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from spoolama.errors import InputError
from spoolama.evaluation.child.openai_lines import PARAMETERS
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.rows.data_file import detect, read_rows
from spoolama.jobtools.convert import OPENAI_SAMPLING, answers_to_csv, job_to_batch, requests_of
from spoolama.jobtools.published import open_published
from support.evaluation import inline_job_evaluator
from support.published import publish_job

SIDECAR = """
model: m
system: Be kind.
prompt: "Say {{ text }}"
id: id
examples: [{user: hi, assistant: ho}]
options: {num_predict: 9, temperature: 0.5, seed: 3, top_k: 4}
format: {type: object, properties: {word: {type: string}}, required: [word]}
"""
DATA = 'id,text\na,"one, ""1"""\nb,žluť\nragged\na,again\n'.encode()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def output_line(name: str, content: str | None, **extra: Any) -> bytes:
    body = {"choices": [{"message": {"content": content}, "finish_reason": extra.pop("finish", "stop")}]}
    line = {
        "id": "x",
        "custom_id": name,
        "response": {"status_code": 200, "body": body},
        "error": None,
        **extra,
    }
    return json.dumps(line).encode() + b"\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.csv"
    path.write_bytes(DATA)
    return path


def test_requests_are_those_that_spoolama_itself_reads(data: Path, tmp_path: Path) -> None:
    """Each line is a valid request with the row's prompt, and a row that cannot be one is named
    with its line.
    """
    target = tmp_path / "r.jsonl"
    sidecar = parse_sidecar(SIDECAR, "d.yaml")
    converted = asyncio.run(requests_of(data, sidecar, target, inline_job_evaluator()))

    assert (converted.written, converted.left_out) == (2, 2)
    assert "line 4" in converted.problems[0]
    assert "the id 'a' is used twice" in converted.problems[1]
    assert "top_k" in converted.problems[2]
    with read_rows(target, detect(target, target.name)) as rows:
        assert [(row.id, row.fault) for row in rows] == [("a", None), ("b", None)]
    body = lines_of(target)[0]["body"]
    assert [m["content"] for m in body["messages"]] == ["Be kind.", "hi", "ho", 'Say one, "1"']
    assert body["max_completion_tokens"] == 9
    assert (body["temperature"], body["seed"]) == (0.5, 3)
    assert "top_k" not in body
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["word"]


def test_a_round_trip_keeps_rows_and_order(data: Path, tmp_path: Path) -> None:
    """Outputs in any order come back beside their rows, and missing ones are listed."""
    sidecar = parse_sidecar(SIDECAR, "d.yaml")
    asyncio.run(requests_of(data, sidecar, tmp_path / "r.jsonl", inline_job_evaluator()))
    names = [line["custom_id"] for line in lines_of(tmp_path / "r.jsonl")]
    answers = tmp_path / "o.jsonl"
    answers.write_bytes(b"".join(output_line(n, json.dumps({"word": f"{n} é, \n"})) for n in reversed(names)))

    converted = answers_to_csv([answers], tmp_path / "a.csv", data=data, sidecar=sidecar)

    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["text"] for row in table] == ['one, "1"', "žluť", "", "again"]
    assert [row["answer.word"] for row in table] == ["a é, \n", "b é, \n", "", ""]
    assert [row["status"] for row in table] == ["ok", "ok", "failed", "failed"]
    assert (converted.written, converted.left_out) == (2, 2)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (output_line("a", "cut", finish="length"), "answer_cut"),
        (output_line("a", "no json"), "answer_invalid"),
        (output_line("a", None), "no_answer"),
        (output_line("a", None, error={"code": "batch_expired", "message": "late"}), "batch_expired: late"),
        (b'{"custom_id": "a", "response": {"status_code": 400, "body": {"error": {"code": "x"}}}}\n', "x"),
        (b'{"custom_id": "a", "response": [], "error": null}\n', "no_answer"),
    ],
)
def test_any_batch_output_gives_answers_or_errors(
    data: Path, tmp_path: Path, line: bytes, error: str
) -> None:
    """Errors, cuts and odd forms become the row's error and raise nothing."""
    answers = tmp_path / "o.jsonl"
    answers.write_bytes(line)
    answers_to_csv([answers], tmp_path / "a.csv", data=data, sidecar=parse_sidecar(SIDECAR, "d.yaml"))
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert first["status"] == "failed"
    assert error in first["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (output_line("a", "x") * 2, "has two answers"),
        (b'{"a": 1}\n', "not the output of a batch"),
        (b"{\n", "line 1 is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """A file that is not a batch output is refused by name."""
    answers = tmp_path / "o.jsonl"
    answers.write_bytes(content)
    with pytest.raises(InputError, match=words):
        answers_to_csv([answers], tmp_path / "a.csv")


def test_a_job_becomes_batch_output_and_comes_back(tmp_path: Path) -> None:
    """A published job's results as OpenAI lines have the same answers."""
    job = tmp_path / "j"
    data = b"id,text\na,x\nb,y\n"
    publish_job(
        job,
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: json.dumps({"word": row.fields["id"]}),  # type: ignore[index]
    )
    converted = job_to_batch(open_published(job), tmp_path / "o.jsonl")
    answers_to_csv([tmp_path / "o.jsonl"], tmp_path / "a.csv", sidecar=parse_sidecar(SIDECAR, "d.yaml"))
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [(r["custom_id"], r["answer.word"]) for r in csv.DictReader(file)] == [("a", "a"), ("b", "b")]
    assert converted.written == 2


def test_convert_keeps_each_option_that_openai_lines_can_have() -> None:
    """Options that are read from OpenAI lines can be converted to them."""
    mapped = {parameter.option for parameter in PARAMETERS.values() if parameter.option}
    assert set(OPENAI_SAMPLING) == mapped
