"""Merging the answers of a retry into the original job."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from spoolama.errors import InputError, RowError
from spoolama.job.row import Row
from spoolama.jobtools.merge import merge_jobs
from spoolama.jobtools.published import open_published
from support.published import Script, publish_job

SIDECAR = 'model: m\nprompt: "{{ text }}"\nid: id\n'
DATA = b'id,text\na,one\nb,two\nc\nd,four\nd,five\n"e",six\n'


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def fail_b(row: Row) -> str | RowError:
    return RowError("answer_invalid", "no", answer="?") if row.id == "b" or is_b(row) else "first"


def is_b(row: Row) -> bool:
    return row.fields is not None and row.fields["id"] == "b"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A job of six rows: b failed, row 3 could not be read, row 5 has a duplicate id."""
    publish_job(tmp_path / "original", data_name="d.csv", data=DATA, sidecar=SIDECAR, answer=fail_b)
    return tmp_path / "original"


def fix(original: Path) -> bytes:
    lines = lines_of(original / "errors.jsonl")
    assert [line["_spoolama"]["code"] for line in lines] == ["answer_invalid", "ragged", "duplicate_id"]
    lines[1] |= {"id": "c", "text": "three"}
    lines[2]["id"] = "d2"
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def retry(original: Path, data: bytes, answer: Script, name: str = "retry") -> Path:
    path = original.parent / name
    sidecar = (original / "errors.yaml").read_text()
    publish_job(path, data_name="errors.jsonl", data=data, sidecar=sidecar, answer=answer)
    return path


def test_the_result_is_complete_and_in_order(original: Path) -> None:
    """Fixed rows have their answers in their places, in both forms, and the counts add up."""
    out = original.parent / "out"
    summary = merge_jobs(original, retry(original, fix(original), lambda row: f"second {row.ordinal}"), out)

    assert summary.balance == "6 rows in = 6 ok + 0 failed + 0 skipped"
    records = lines_of(out / "results.jsonl")
    assert [(r["row"], r["line"], r["id"], r["answer"]) for r in records] == [
        (1, 2, "a", "first"),
        (2, 3, "b", "second 0"),
        (3, 4, "c", "second 1"),
        (4, 5, "d", "first"),
        (5, 6, "d2", "second 2"),
        (6, 7, "e", "first"),
    ]
    assert records[1]["answered_by"] == ["retry", 1]
    assert (records[1]["attempts"], records[0]["attempts"]) == (2, 1)
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "text", "answer", "status", "error"]
    assert [(row["id"], row["text"]) for row in table][1:3] == [("b", "two"), ("c", "three")]
    assert (out / "errors.jsonl").read_bytes() == b""
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert set(metrics.pop("how")) == set(metrics)
    assert "3 answers from retry" in summary.text


def test_remaining_errors_can_be_dropped_and_merged_again(original: Path) -> None:
    """A second retry, of the merged job's errors, is merged into the merged job."""
    first = original.parent / "first"
    merge_jobs(original, retry(original, fix(original), fail_b), first)
    left = lines_of(first / "errors.jsonl")
    assert [(line["_spoolama"]["job"], line["_spoolama"]["row"]) for line in left] == [("original", 2)]

    second = retry(first, (first / "errors.jsonl").read_bytes(), lambda _: "at last", "retry2")
    whole = original.parent / "whole"
    summary = merge_jobs(first, second, whole)

    assert summary.balance == "6 rows in = 6 ok + 0 failed + 0 skipped"
    records = lines_of(whole / "results.jsonl")
    assert [r["answer"] for r in records] == ["first", "at last", "first", "first", "first", "first"]
    with (whole / "results.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)][2] == "three"


def test_the_next_command_of_a_merged_directory_names_that_directory(original: Path) -> None:
    """Merging the next retry into the first job again would drop the answers that were merged before."""
    whole = original.parent / "my whole"
    summary = merge_jobs(original, retry(original, fix(original), fail_b), whole)
    command = f"spoolama merge '{whole}' done/RETRY -o OUT"
    assert summary.text.splitlines()[-1].strip() == command
    assert command in (whole / "errors.yaml").read_text()


def test_the_next_command_of_a_retry_merges_it_into_its_origin(original: Path) -> None:
    """Also if all of its rows have answers; a retry without any answer is corrected first."""
    assert next_of(original).endswith("into the job: spoolama merge done/original done/RETRY -o OUT")
    done, left, empty = (
        next_of(retry(original, fix(original), answer, name))
        for name, answer in (
            ("done", lambda _: "yes"),
            ("left", fail_b),
            ("empty", lambda _: RowError("answer_empty", "nothing")),
        )
    )
    assert done.startswith(
        "Merge these answers into original: spoolama merge done/original done/done -o OUT If you have"
    )
    assert done.endswith("use the merged directory instead of done/original.")
    assert "spoolama merge done/original done/left -o OUT" in left
    assert left.endswith("The summary.txt in OUT says what to do with the rows that have no answer.")
    assert empty.startswith("Correct errors.jsonl")
    assert empty.endswith("spoolama merge done/original done/RETRY -o OUT")


def test_a_retry_of_a_merged_directory_is_merged_into_that_directory(original: Path) -> None:
    """Its rows name the first job, and the directory with the answers that were merged before."""
    whole = original.parent / "my whole"
    merge_jobs(original, retry(original, fix(original), fail_b), whole)
    second = retry(whole, (whole / "errors.jsonl").read_bytes(), lambda _: "at last", "second")
    assert next_of(second).startswith(
        f"Merge these answers into original: spoolama merge '{whole}' done/second -o OUT"
    )


def test_merged_retries_are_merged_into_the_first_job_next(original: Path) -> None:
    """They still are a retry of it."""
    one = retry(original, fix(original), fail_b)
    two = retry(one, (one / "errors.jsonl").read_bytes(), lambda _: "at last", "two")
    assert "spoolama merge done/retry done/two -o OUT" in next_of(two)
    merge_jobs(one, two, original.parent / "both")
    assert f"spoolama merge done/original {original.parent / 'both'} -o OUT" in next_of(
        original.parent / "both"
    )


@pytest.mark.parametrize("name", ["x\nspoolama evil", "y" * 300])
def test_an_origin_that_cannot_be_a_job_is_in_no_command(tmp_path: Path, name: str) -> None:
    """The key `_spoolama` is part of the uploaded data."""
    line = {"id": "b", "text": "y", "_spoolama": {"job": "a", "directory": name * 20, "row": 2}}
    path = tmp_path / "retry"
    data = json.dumps(line).encode()
    publish_job(path, data_name="r.jsonl", data=data, sidecar=SIDECAR, answer=lambda _: "second")
    assert next_of(path) == "Nothing: every row has an answer."


def next_of(job: Path) -> str:
    return " ".join((job / "summary.txt").read_text().split("\nNext ")[1].split())


def test_a_retry_of_a_retry_finds_the_first_job(original: Path) -> None:
    """The note of a row lists every job that it came through."""
    one = retry(original, fix(original), fail_b)
    two = retry(one, (one / "errors.jsonl").read_bytes(), lambda _: "at last", "two")
    summary = merge_jobs(original, two, original.parent / "out")
    assert (summary.metrics.completed, summary.metrics.failed) == (4, 2)
    assert lines_of(original.parent / "out" / "results.jsonl")[1]["answer"] == "at last"


def test_retries_may_be_merged_with_each_other_first(original: Path) -> None:
    """Two merged retries still know where their rows come from."""
    one = retry(original, fix(original), fail_b)
    two = retry(one, (one / "errors.jsonl").read_bytes(), lambda _: "at last", "two")
    merge_jobs(one, two, original.parent / "both")
    summary = merge_jobs(original, original.parent / "both", original.parent / "out")
    assert summary.balance == "6 rows in = 6 ok + 0 failed + 0 skipped"
    assert lines_of(original.parent / "out" / "results.jsonl")[1]["answered_by"] == ["two", 1]


def test_rows_without_the_key_are_found_by_their_ids(original: Path) -> None:
    """Rows that are dropped again without the key are matched by id, and existing answers stay."""
    data = b"id,text\nb,two\na,one\n"
    path = original.parent / "plain"
    publish_job(path, data_name="again.csv", data=data, sidecar=SIDECAR, answer=lambda _: "second")
    summary = merge_jobs(original, path, original.parent / "out")
    answers = [r["answer"] for r in lines_of(original.parent / "out" / "results.jsonl")]
    assert answers[:2] == ["first", "second"]
    assert "1 row of it already had an answer, which stays" in " ".join(summary.text.split())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"id": "x", "text": "y"}\n', "no row with the id 'x'"),
        (b'{"id": "b", "text": "y", "_spoolama": {"job": "other", "row": 2}}\n', "it comes from other"),
        (b'{"id": "b", "text": "y", "_spoolama": {"job": "original", "row": 99}}\n', "has no row 99"),
        (
            b'{"id": "b", "text": "y", "_spoolama": {"job": "original", "row": 2}}\n'
            b'{"id": "b2", "text": "y", "_spoolama": {"job": "original", "row": 2}}\n',
            "row 2 of original has two answers",
        ),
    ],
)
def test_rows_of_another_job_are_refused(original: Path, data: bytes, words: str) -> None:
    """Rows of another job are refused with the row in the message, and nothing is written."""
    path = retry(original, data, lambda _: "second")
    with pytest.raises(InputError, match=words):
        merge_jobs(original, path, original.parent / "out")
    assert sorted(p.name for p in original.parent.iterdir() if p.is_dir()) == ["original", "retry"]


def test_an_answer_of_another_form_is_refused(original: Path, tmp_path: Path) -> None:
    """A retry with another schema is refused."""
    sidecar = SIDECAR + "format: {type: object, properties: {x: {type: string}}}\n"
    publish_job(
        tmp_path / "retry", data_name="r.csv", data=b"id,text\nb,x\n", sidecar=sidecar, answer=lambda _: "{}"
    )
    with pytest.raises(InputError, match="have other keys"):
        merge_jobs(original, tmp_path / "retry", tmp_path / "out")


def test_openai_requests_are_merged_too(tmp_path: Path) -> None:
    """A dropped and merged retry.jsonl gives OpenAI's output for every request."""

    def request(name: str) -> bytes:
        body = {"model": "m", "messages": [{"role": "user", "content": name}]}
        line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    data = b"".join(request(name) for name in "abc")
    original = tmp_path / "original"
    publish_job(
        original,
        data_name="d.jsonl",
        data=data,
        sidecar="",
        answer=lambda row: RowError("answer_cut", "cut") if row.id == "b" else "first",
    )
    again = (original / "retry.jsonl").read_bytes()
    publish_job(
        tmp_path / "retry", data_name="retry.jsonl", data=again, sidecar="", answer=lambda _: "second"
    )

    merge_jobs(original, tmp_path / "retry", tmp_path / "out")

    ok = lines_of(tmp_path / "out" / "results.jsonl")
    contents = [line["response"]["body"]["choices"][0]["message"]["content"] for line in ok]
    assert [line["custom_id"] for line in ok] == ["a", "b", "c"]
    assert contents == ["first", "second", "first"]
    assert (tmp_path / "out" / "errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize(("bound", "code"), [(None, None), (100, "cell_too_large")])
def test_the_data_is_read_again_with_the_limits_of_the_first_job(
    tmp_path: Path, bound: int | None, code: str | None
) -> None:
    """Merge reads the data by the limits of the first job, not by those of today's settings."""
    data = b"id,text\na," + b"x" * 200 + b"\n"
    publish_job(
        tmp_path / "original",
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: "first",
        max_cell_bytes=bound,
    )
    with open_published(tmp_path / "original").rows() as rows:
        (row,) = rows
    assert (row.fault and row.fault.code) == code


def test_a_warning_of_the_first_job_is_in_the_merged_summary(original: Path, tmp_path: Path) -> None:
    """The merged summary begins with the harm that the first job's audit found."""
    metrics = json.loads((original / "metrics.json").read_bytes())
    metrics["audit"] = {"harm": "the conversation changes about 30 % of the answers"}
    (original / "metrics.json").write_text(json.dumps(metrics))
    second = retry(original, (original / "errors.jsonl").read_bytes(), lambda _: "second")

    summary = merge_jobs(original, second, tmp_path / "whole")

    assert summary.text.splitlines()[3].startswith("Warning: the conversation changes about 30 %")
    assert summary.metrics.audit is not None
    assert open_published(tmp_path / "whole").metrics.audit == summary.metrics.audit


def test_a_job_that_an_earlier_version_published_with_a_retired_setting_is_opened(original: Path) -> None:
    """The stored sidecar in metrics.json is read without the retired setting."""
    metrics = json.loads((original / "metrics.json").read_bytes())
    metrics["sidecar"]["trim"] = {"strategy": "window", "keep": 4, "every": "auto"}
    (original / "metrics.json").write_text(json.dumps(metrics))

    job = open_published(original)

    assert (job.sidecar.trim.keep, job.sidecar.trim.every) == (4, None)
