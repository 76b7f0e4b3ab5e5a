"""The published files of a job, from a real ledger."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spoolama.errors import LedgerError, RowError
from spoolama.evaluation.child.templates import PromptTemplate
from spoolama.job.row import Row
from spoolama.job.rows.data_file import detect, read_rows
from spoolama.job.sidecar import Sidecar
from spoolama.publish.build import build_outputs
from spoolama.spool.ledger_reader import LedgerReader
from support.evaluation import load_sidecar
from support.published import publish_job

SIDECAR = 'model: m\nprompt: "{{ text }}"\nid: id\n'
WORD = (
    SIDECAR
    + """gold: gold
format:
  type: object
  properties: {sentiment: {enum: [negative, neutral, positive]}}
  required: [sentiment]
"""
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_has_its_line_in_input_order(tmp_path: Path) -> None:
    """results.jsonl has answered, failed and unreadable rows in input order, and the counts add up."""

    def answer(row: Row) -> str | RowError:
        if row.ordinal == 1:
            return RowError("answer_invalid", "$: no", details={"sizes": [1]}, answer="??")
        return '{"sentiment": "positive"}'

    data = b"id,text,gold\na,one,1\nb,two,2\nc\nd,four,-1\n"
    summary = publish_job(tmp_path / "j", data_name="d.csv", data=data, sidecar=WORD, answer=answer)

    records = lines_of(tmp_path / "j" / "results.jsonl")
    assert [(r["row"], r["line"], r["id"], r["status"]) for r in records] == [
        (1, 2, "a", "ok"),
        (2, 3, "b", "failed"),
        (3, 4, None, "failed"),
        (4, 5, "d", "ok"),
    ]
    assert records[0]["answer"] == {"sentiment": "positive"}
    assert records[1]["error"] == {"code": "answer_invalid", "message": "$: no"}
    assert records[3]["visible_rows"] == [[1, 3]]
    assert summary.balance == "4 rows in = 2 ok + 2 failed + 0 skipped"
    assert summary.balance in summary.text
    assert (tmp_path / "j" / "summary.txt").read_text() == summary.text


def test_an_errors_line_can_be_dropped_again(tmp_path: Path) -> None:
    """errors.jsonl has the job's own sidecar, and its template renders the failed row as before."""
    sidecar = SIDECAR + "expect: {rows: 2}\nsystem: |\n  Be kind.\n  Be short.\noptions: {num_ctx: 2048}\n"
    data = b'id,text\na,"one, ""1"""\nb,\x00\n'
    failing = RowError("context_overflow", "too long", details={"prompt_tokens": 9}, answer="x")
    publish_job(tmp_path / "j", data_name="d.csv", data=data, sidecar=sidecar, answer=lambda _: failing)

    again = load_sidecar(tmp_path / "j" / "errors.yaml")
    first = load_sidecar(tmp_path / "j" / "uploaded" / "job.yaml")
    path = tmp_path / "j" / "errors.jsonl"
    with read_rows(path, detect(path, path.name)) as rows:
        fields = [dict(row.fields or {}) for row in rows]

    assert again == first.model_copy(update={"expect": None})
    assert again.prompt is not None
    assert PromptTemplate(again.prompt).render(fields[0]) == 'one, "1"'
    assert fields[0]["_spoolama"] == {
        "job": "j",
        "directory": "done/j",
        "row": 1,
        "line": 2,
        "id": "a",
        "code": "context_overflow",
        "message": "too long",
        "attempts": 1,
        "answer": "x",
        "details": {"prompt_tokens": 9},
    }


@pytest.mark.parametrize(
    ("raw", "expected", "encoding"),
    [(b"only one cell", "only one cell", "utf-8"), (b"\xff\xfe,x", "//4seA==", "base64")],
)
def test_an_unreadable_row_keeps_its_bytes(tmp_path: Path, raw: bytes, expected: str, encoding: str) -> None:
    """Text stays text, other bytes are base64, and no field is invented."""
    data = b"id,text\n" + raw + b"\na,b\n"
    publish_job(tmp_path / "j", data_name="d.csv", data=data, sidecar=SIDECAR, answer=lambda _: "ok")

    (line,) = lines_of(tmp_path / "j" / "errors.jsonl")
    assert list(line) == ["_spoolama"]
    assert (line["_spoolama"]["raw"], line["_spoolama"]["raw_encoding"]) == (expected, encoding)


def test_rows_that_were_never_asked_can_be_dropped_again(tmp_path: Path) -> None:
    """A cancelled job writes its unasked rows to skipped.jsonl, separate from the failed ones."""
    data = b"id,text\n" + b"".join(b"%d,x\n" % n for n in range(3))
    summary = publish_job(
        tmp_path / "j",
        data_name="d.csv",
        data=data,
        sidecar=SIDECAR,
        answer=lambda row: "fine" if row.ordinal == 0 else None,
    )
    assert summary.balance == "3 rows in = 1 ok + 0 failed + 2 skipped"
    assert (tmp_path / "j" / "errors.jsonl").read_bytes() == b""
    assert not (tmp_path / "j" / "errors.yaml").exists()
    assert [line["id"] for line in lines_of(tmp_path / "j" / "skipped.jsonl")] == ["1", "2"]
    assert load_sidecar(tmp_path / "j" / "skipped.yaml").prompt == "{{ text }}"
    assert "Ended early: cancelled by NAME.cancel." in summary.text
    assert " ".join(summary.text.split("Next ")[1].split()) == (
        "The results have 1 answer so far. Upload skipped.jsonl and skipped.yaml to continue. Then merge the"
        " new answers into the job: spoolama merge failed/j done/RETRY -o OUT"
    )


def test_a_job_that_could_not_begin_says_what_to_correct(tmp_path: Path) -> None:
    """The fix of the error comes first, then the files in which to correct it and to upload again."""
    fix = "Set `model` to smollm2:135m."
    (tmp_path / "out").mkdir()
    publish_job(
        tmp_path / "j", data_name="d.csv", data=b"id,text\na,b\n", sidecar=SIDECAR, answer=lambda _: None
    )
    early = {"code": "model_missing", "message": "the engine has no model 'm'", "fix": fix}
    with LedgerReader(tmp_path / "j.sqlite") as ledger:
        sidecar = load_sidecar(tmp_path / "j" / "uploaded" / "job.yaml")
        text = build_outputs(tmp_path / "out", ledger, sidecar, ended_early=early).text
    assert "Ended early: the engine has no model 'm'.\n" in text
    assert " ".join(text.split("Next ")[1].split()).startswith(
        f"{fix} Correct the settings in skipped.yaml where needed, and upload skipped.jsonl and skipped.yaml"
        " again. Then merge"
    )
    harm = {"code": "harm", "message": "harm", "fix": "Upload again with mode: isolated."}
    with LedgerReader(tmp_path / "j.sqlite") as ledger:
        text = build_outputs(tmp_path / "out", ledger, sidecar, ended_early=harm).text
    assert text.endswith("\nNext       Upload again with mode: isolated.\n")


def test_openai_requests_give_openai_lines(tmp_path: Path) -> None:
    """Answers, errors and the requests to drop again have the forms of OpenAI's batch API."""

    def request(name: str) -> bytes:
        body = {"model": "m", "messages": [{"role": "user", "content": f"say {name}"}]}
        line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    data = request("a") + b"{broken\n" + request("b") + request("c")

    def answer(row: Row) -> str | RowError:
        return RowError("answer_cut", "cut") if row.id == "b" else f"answer {row.id}"

    publish_job(tmp_path / "j", data_name="d.jsonl", data=data, sidecar="", answer=answer)

    out = tmp_path / "j"
    ok = lines_of(out / "results.jsonl")
    assert [line["custom_id"] for line in ok] == ["a", "c"]
    assert set(ok[0]) == {"id", "custom_id", "response", "error"}
    assert ok[0]["response"]["status_code"] == 200
    body = ok[0]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "answer a"
    assert body["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 5,
        "total_tokens": 105,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    errors = lines_of(out / "errors.jsonl")
    assert [(e["custom_id"], e["response"], e["error"]["code"]) for e in errors] == [
        (None, None, "bad_json"),
        ("b", None, "answer_cut"),
    ]
    assert [r["status"] for r in lines_of(out / "rows.jsonl")] == ["ok", "failed", "failed", "ok"]
    retry = out / "retry.jsonl"
    assert detect(retry, retry.name).format == "openai"
    with read_rows(retry, detect(retry, retry.name)) as rows:
        assert [(row.id, row.fault is None) for row in rows] == [("b", True), (None, True)]
    assert not (out / "retry.yaml").exists()
    assert [row["answer"] for row in table_of(out / "results.csv")] == ["answer a", "", "", "answer c"]


def test_columns_never_clash(tmp_path: Path) -> None:
    """If input columns have our names, they keep them, and ours get a number."""
    data = b"id,text,answer,status,answer_2\na,x,old,s,t\n"
    publish_job(tmp_path / "j", data_name="d.csv", data=data, sidecar=SIDECAR, answer=lambda _: "new")

    (row,) = table_of(tmp_path / "j" / "results.csv")
    assert row == {
        "id": "a",
        "text": "x",
        "answer": "old",
        "status": "s",
        "answer_2": "t",
        "answer_3": "new",
        "status_2": "ok",
        "error": "",
    }


def test_keys_of_late_rows_have_their_column(tmp_path: Path) -> None:
    """Every key of any JSONL row has a column, with values other than text as JSON."""
    rows: list[dict[str, Any]] = [{"id": 1, "text": "a"}, {"id": 2, "text": "b", "late": {"x": [1, None]}}]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    publish_job(tmp_path / "j", data_name="d.jsonl", data=data, sidecar=SIDECAR, answer=lambda _: "ok")

    table = table_of(tmp_path / "j" / "results.csv")
    assert list(table[0]) == ["id", "text", "late", "answer", "status", "error"]
    assert [row["late"] for row in table] == ["", '{"x":[1,null]}']


def test_too_many_keys_share_a_column(tmp_path: Path) -> None:
    """Beyond 500 different keys the rest of a row is one JSON object, so that memory stays bounded."""
    rows = [{"id": n, "text": "a", f"k{n}": n} for n in range(510)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    publish_job(tmp_path / "j", data_name="d.jsonl", data=data, sidecar=SIDECAR, answer=lambda _: "ok")

    table = table_of(tmp_path / "j" / "results.csv")
    assert len(table[0]) == 500 + 4
    assert table[509]["more"] == '{"k509":509}'


def test_output_selects_the_formats(tmp_path: Path) -> None:
    """`output: [csv]` writes no results.jsonl, and `[jsonl]` no results.csv."""
    for form, other in (("csv", "jsonl"), ("jsonl", "csv")):
        sidecar = SIDECAR + f"output: [{form}]\n"
        publish_job(
            tmp_path / form, data_name="d.csv", data=b"id,text\na,b\n", sidecar=sidecar, answer=lambda _: "x"
        )
        assert (tmp_path / form / f"results.{form}").exists()
        assert not (tmp_path / form / f"results.{other}").exists()


@pytest.mark.parametrize(
    "answer", ["x" * 5_000_000, '["NaN"]', "NaN", "1e999", "[" * 5000, "\u2028\x00", '{"a":1}']
)
def test_any_answer_is_written_as_json(tmp_path: Path, answer: str) -> None:
    """Any answer is read back equal from lines that strict parsers accept."""
    for form in ("", "format: json\n"):
        name = "json" if form else "text"
        publish_job(
            tmp_path / name,
            data_name="d.csv",
            data=b"id,text\na,b\n",
            sidecar=SIDECAR + form,
            answer=lambda _: answer,
        )
        (record,) = lines_of(tmp_path / name / "results.jsonl")
        lines_of(tmp_path / name / "errors.jsonl")
        if not form:
            assert record["answer"] == answer


def test_a_row_left_open_stops_the_publication(tmp_path: Path) -> None:
    """A job whose counts do not add up is not published (rule 7)."""
    publish_job(
        tmp_path / "j", data_name="d.csv", data=b"id,text\na,b\n", sidecar=SIDECAR, answer=lambda _: None
    )
    db = sqlite3.connect(tmp_path / "j.sqlite")
    db.execute("UPDATE rows SET state='pending'")
    db.commit()
    db.close()
    with LedgerReader(tmp_path / "j.sqlite") as ledger:
        asked = Sidecar(model="m", prompt="x")
        with pytest.raises(LedgerError, match="neither an answer nor an error"):
            build_outputs(tmp_path / "j", ledger, asked, ended_early=None)
        ended = {"code": "max_failed", "message": "too many", "fix": ""}
        assert build_outputs(tmp_path / "j", ledger, asked, ended_early=ended).metrics.skipped == 1


class _Miscounted(LedgerReader):
    def counts(self) -> dict[str, int]:
        return {**super().counts(), "failed": 1}


def test_counts_are_checked_against_the_ledger(tmp_path: Path) -> None:
    """If the written counts and the ledger's counts differ, nothing is published."""
    publish_job(
        tmp_path / "j", data_name="d.csv", data=b"id,text\na,b\n", sidecar=SIDECAR, answer=lambda _: "x"
    )
    with _Miscounted(tmp_path / "j.sqlite") as ledger, pytest.raises(LedgerError, match="do not add up"):
        build_outputs(tmp_path / "j", ledger, Sidecar(model="m", prompt="x"), ended_early=None)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """After a crash while writing, writing again gives the same bytes."""
    job = tmp_path / "j"
    data = b"id,text,gold\na,b,1\nc,d,-1\n"
    publish_job(job, data_name="d.csv", data=data, sidecar=WORD, answer=lambda _: '{"sentiment":"neutral"}')
    before = {path.name: path.read_bytes() for path in job.iterdir() if path.is_file()}
    with LedgerReader(tmp_path / "j.sqlite") as ledger:
        build_outputs(job, ledger, load_sidecar(job / "uploaded" / "job.yaml"), ended_early=None)
    assert {path.name: path.read_bytes() for path in job.iterdir() if path.is_file()} == before


_CELL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[("a\rb", "\r"), ("\n", '"'), ("\r\n,", ",")])
@given(rows=st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=4))
def test_cells_are_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    """A CSV reader gets any text of a row and of its answer back from results.csv."""
    data = b"".join(json.dumps({"text": text, "n": n}).encode() + b"\n" for n, (text, _) in enumerate(rows))
    job = tmp_path_factory.mktemp("cells") / "j"
    sidecar = 'model: m\nprompt: "{{ text }}"\n'
    publish_job(job, data_name="d.jsonl", data=data, sidecar=sidecar, answer=lambda row: rows[row.ordinal][1])

    text = (job / "results.csv").read_bytes().decode()
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert [(row[0], row[2]) for row in read[1:]] == rows
