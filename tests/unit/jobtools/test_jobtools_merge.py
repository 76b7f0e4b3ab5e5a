"""Second answers brought home."""

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
def home(tmp_path: Path) -> Path:
    """A job of six rows: b failed, row 3 could not be read, row 5 has an id that was used before."""
    publish_job(tmp_path / "home", data_name="d.csv", data=DATA, sidecar=SIDECAR, answer=fail_b)
    return tmp_path / "home"


def fix(home: Path) -> bytes:
    lines = lines_of(home / "errors.jsonl")
    assert [line["_spoolama"]["code"] for line in lines] == ["answer_invalid", "ragged", "duplicate_id"]
    lines[1] |= {"id": "c", "text": "three"}
    lines[2]["id"] = "d2"
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def retry(home: Path, data: bytes, answer: Script, name: str = "retry") -> Path:
    path = home.parent / name
    sidecar = (home / "errors.yaml").read_text()
    publish_job(path, data_name="errors.jsonl", data=data, sidecar=sidecar, answer=answer)
    return path


def test_the_result_is_whole_and_in_order(home: Path) -> None:
    """Mended rows have their answers in their places, in both forms, and the books balance."""
    out = home.parent / "out"
    summary = merge_jobs(home, retry(home, fix(home), lambda row: f"second {row.ordinal}"), out)

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
    assert records[1]["by"] == ["retry", 1]
    assert (records[1]["attempts"], records[0]["attempts"]) == (2, 1)
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "text", "answer", "status", "error"]
    assert [(row["id"], row["text"]) for row in table][1:3] == [("b", "two"), ("c", "three")]
    assert (out / "errors.jsonl").read_bytes() == b""
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert set(metrics.pop("how")) == set(metrics)
    assert "3 answers from retry" in summary.text


def test_what_is_left_can_be_dropped_and_merged_again(home: Path) -> None:
    """A second retry, of the merged job's errors, finds its home in the merged job."""
    first = home.parent / "first"
    merge_jobs(home, retry(home, fix(home), fail_b), first)
    left = lines_of(first / "errors.jsonl")
    assert [(line["_spoolama"]["job"], line["_spoolama"]["row"]) for line in left] == [("home", 2)]

    second = retry(first, (first / "errors.jsonl").read_bytes(), lambda _: "at last", "retry2")
    whole = home.parent / "whole"
    summary = merge_jobs(first, second, whole)

    assert summary.balance == "6 rows in = 6 ok + 0 failed + 0 skipped"
    records = lines_of(whole / "results.jsonl")
    assert [r["answer"] for r in records] == ["first", "at last", "first", "first", "first", "first"]
    with (whole / "results.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)][2] == "three"


def test_a_retry_of_a_retry_finds_the_first_job(home: Path) -> None:
    """The note of a row remembers every job it came through."""
    one = retry(home, fix(home), fail_b)
    two = retry(one, (one / "errors.jsonl").read_bytes(), lambda _: "at last", "two")
    summary = merge_jobs(home, two, home.parent / "out")
    assert (summary.ok, summary.failed) == (4, 2)
    assert lines_of(home.parent / "out" / "results.jsonl")[1]["answer"] == "at last"


def test_retries_may_be_merged_with_each_other_first(home: Path) -> None:
    """Two retries become one, and that one still knows where its rows come from."""
    one = retry(home, fix(home), fail_b)
    two = retry(one, (one / "errors.jsonl").read_bytes(), lambda _: "at last", "two")
    merge_jobs(one, two, home.parent / "both")
    summary = merge_jobs(home, home.parent / "both", home.parent / "out")
    assert summary.balance == "6 rows in = 6 ok + 0 failed + 0 skipped"
    assert lines_of(home.parent / "out" / "results.jsonl")[1]["by"] == ["two", 1]


def test_ids_bring_rows_home_without_the_note(home: Path) -> None:
    """Whoever drops plain rows again is understood by their ids; an answer that was there stays."""
    data = b"id,text\nb,two\na,one\n"
    path = home.parent / "plain"
    publish_job(path, data_name="again.csv", data=data, sidecar=SIDECAR, answer=lambda _: "second")
    summary = merge_jobs(home, path, home.parent / "out")
    answers = [r["answer"] for r in lines_of(home.parent / "out" / "results.jsonl")]
    assert answers[:2] == ["first", "second"]
    assert "1 rows of it had an answer already, which stays" in " ".join(summary.text.split())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"id": "x", "text": "y"}\n', "no row with the id 'x'"),
        (b'{"id": "b", "text": "y", "_spoolama": {"job": "other", "row": 2}}\n', "it comes from other"),
        (b'{"id": "b", "text": "y", "_spoolama": {"job": "home", "row": 99}}\n', "has no row 99"),
        (
            b'{"id": "b", "text": "y", "_spoolama": {"job": "home", "row": 2}}\n'
            b'{"id": "b2", "text": "y", "_spoolama": {"job": "home", "row": 2}}\n',
            "row 2 of home is answered twice",
        ),
    ],
)
def test_rows_of_elsewhere_are_refused(home: Path, data: bytes, words: str) -> None:
    """What does not belong together is not merged; nothing is written, and the message says which row."""
    path = retry(home, data, lambda _: "second")
    with pytest.raises(InputError, match=words):
        merge_jobs(home, path, home.parent / "out")
    assert sorted(p.name for p in home.parent.iterdir() if p.is_dir()) == ["home", "retry"]


def test_an_answer_of_another_form_is_refused(home: Path, tmp_path: Path) -> None:
    """A retry with another schema would not fit the table."""
    sidecar = SIDECAR + "format: {type: object, properties: {x: {type: string}}}\n"
    publish_job(
        tmp_path / "retry", data_name="r.csv", data=b"id,text\nb,x\n", sidecar=sidecar, answer=lambda _: "{}"
    )
    with pytest.raises(InputError, match="another form"):
        merge_jobs(home, tmp_path / "retry", tmp_path / "out")


def test_openai_requests_come_home_too(tmp_path: Path) -> None:
    """retry.jsonl dropped again and merged gives OpenAI's output for every request."""

    def request(name: str) -> bytes:
        body = {"model": "m", "messages": [{"role": "user", "content": name}]}
        line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    data = b"".join(request(name) for name in "abc")
    home = tmp_path / "home"
    publish_job(
        home,
        data_name="d.jsonl",
        data=data,
        sidecar="",
        answer=lambda row: RowError("answer_cut", "cut") if row.id == "b" else "first",
    )
    again = (home / "retry.jsonl").read_bytes()
    publish_job(
        tmp_path / "retry", data_name="retry.jsonl", data=again, sidecar="", answer=lambda _: "second"
    )

    merge_jobs(home, tmp_path / "retry", tmp_path / "out")

    ok = lines_of(tmp_path / "out" / "results.jsonl")
    contents = [line["response"]["body"]["choices"][0]["message"]["content"] for line in ok]
    assert [line["custom_id"] for line in ok] == ["a", "b", "c"]
    assert contents == ["first", "second", "first"]
    assert (tmp_path / "out" / "errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize(("bound", "code"), [(None, None), (100, "cell_too_large")])
def test_the_data_is_read_again_by_the_bounds_of_the_first_reading(
    tmp_path: Path, bound: int | None, code: str | None
) -> None:
    """What the service's setting made unreadable is so for merge too, years later and elsewhere."""
    data = b"id,text\na," + b"x" * 200 + b"\n"
    publish_job(
        tmp_path / "home",
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: "first",
        max_cell_bytes=bound,
    )
    with open_published(tmp_path / "home").rows() as rows:
        (row,) = rows
    assert (row.fault and row.fault.code) == code


def test_a_warning_of_the_first_job_comes_along(home: Path, tmp_path: Path) -> None:
    """What the guard found wrong with its answers is said first in the merged summary, too."""
    metrics = json.loads((home / "metrics.json").read_bytes())
    metrics["guard"] = {"warning": "Warning: rows 1 to 30 went wrong."}
    (home / "metrics.json").write_text(json.dumps(metrics))
    second = retry(home, (home / "errors.jsonl").read_bytes(), lambda _: "second")

    summary = merge_jobs(home, second, tmp_path / "whole")

    assert summary.text.splitlines()[3] == "Warning: rows 1 to 30 went wrong."
    assert summary.metrics["guard"]["warning"] == "Warning: rows 1 to 30 went wrong."


def test_a_job_that_an_earlier_version_published_with_a_retired_setting_is_opened(home: Path) -> None:
    """Its sidecar is in metrics.json as it was used; the setting is left out."""
    metrics = json.loads((home / "metrics.json").read_bytes())
    metrics["sidecar"]["trim"] = {"strategy": "window", "keep": 4, "every": "auto"}
    (home / "metrics.json").write_text(json.dumps(metrics))

    job = open_published(home)

    assert (job.sidecar.trim.keep, job.sidecar.trim.every) == (4, None)
    assert job.metrics == metrics
