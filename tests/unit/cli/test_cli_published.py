"""The commands on published jobs, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from spoolama.cli.convert import convert
from spoolama.cli.published import analyze, compare, merge
from spoolama.cli.sample import sample
from spoolama.errors import RowError
from support.published import publish_job

SIDECAR = 'model: m\nprompt: "{{ text }}"\nid: id\n'
DATA = b"id,text\na,one\nb,two\n"


def call(command: click.Command, *arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def job(tmp_path: Path) -> Path:
    publish_job(
        tmp_path / "home",
        data_name="d.csv",
        data=DATA,
        sidecar=SIDECAR,
        answer=lambda row: RowError("answer_empty", "nothing [at all]") if row.ordinal else "yes",
    )
    return tmp_path / "home"


@pytest.mark.parametrize("command", [analyze, compare, convert, merge, sample], ids=lambda c: c.name)
def test_help_teaches_with_an_example(command: click.Command) -> None:
    """Every command's help has an example that begins with the command."""
    assert f"spoolama {command.name} " in call(command, "--help")


def test_analyze_shows_and_writes(job: Path, tmp_path: Path) -> None:
    """`analyze` prints tables, writes the same as CSV, and shows brackets as text."""
    output = call(analyze, job, "--csv", tmp_path / "a.csv")
    assert "2 rows in = 1 ok + 1 failed + 0 skipped" in output
    assert "answer_empty" in output
    assert "[at all]" in output
    assert "\n\nFailures" in output
    assert (tmp_path / "a.csv").read_text().startswith("section,item,value,note\n")


def test_analyze_shows_the_effect_of_earlier_rows(job: Path) -> None:
    """The terminal shows the summary's entries about earlier rows under the same names."""
    output = " ".join(call(analyze, job).split())
    assert "Pilot: None: a pilot needs known answers" in output
    (job / "metrics.json").write_text(
        (job / "metrics.json").read_text().replace('"asked": "auto"', '"asked": "reset"')
    )
    assert "Trims: strategy reset" in " ".join(call(analyze, job).split())


def test_analyze_names_the_labels_that_no_row_was_answered(tmp_path: Path) -> None:
    """Table and CSV list each label of the schema, also one with 0 rows."""
    sidecar = SIDECAR + 'format: {type: string, enum: ["yes", "no", maybe]}\n'
    publish_job(tmp_path / "j", data_name="d.csv", data=DATA, sidecar=sidecar, answer=lambda _: '"yes"')
    output = call(analyze, tmp_path / "j", "--csv", tmp_path / "a.csv")
    line = next(line for line in output.splitlines() if "maybe" in line)
    assert "never" in line
    assert "answers,maybe,0,0.0000\n" in (tmp_path / "a.csv").read_text()


def test_merge_prints_counts_that_add_up(job: Path, tmp_path: Path) -> None:
    """Errors that are dropped again and merged give a result whose counts add up."""
    publish_job(
        tmp_path / "retry",
        data_name="errors.jsonl",
        data=(job / "errors.jsonl").read_bytes(),
        sidecar=(job / "errors.yaml").read_text(),
        answer=lambda _: "no",
    )
    output = call(merge, job, tmp_path / "retry", "-o", tmp_path / "out")
    assert "2 rows in = 2 ok + 0 failed + 0 skipped" in output
    assert call(analyze, tmp_path / "out")


def test_compare_prints_one_table_and_two_sentences(job: Path, tmp_path: Path) -> None:
    """One table shows both jobs."""
    publish_job(tmp_path / "other", data_name="d.csv", data=DATA, sidecar=SIDECAR, answer=lambda _: "no")
    output = call(compare, job, tmp_path / "other")
    assert "home" in output
    assert "other" in output
    assert "1 of 1 rows (100 %) got different answers." in output


def test_a_sample_is_converted_to_requests_and_back(tmp_path: Path) -> None:
    """A sample becomes requests with the sidecar beside it, and their answers become a table."""
    call(sample, "reviews", "--rows", "3", "-o", tmp_path)
    requests, answers, table = (tmp_path / name for name in ("r.jsonl", "o.jsonl", "a.csv"))
    assert "3 written, 0 left out" in call(convert, tmp_path / "reviews.csv", "-o", requests)
    with answers.open("w") as file:
        for line in requests.read_text().splitlines():
            message = {"content": '"neutral"'}
            body = {"choices": [{"message": message, "finish_reason": "stop"}]}
            name = json.loads(line)["custom_id"]
            out = {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
            file.write(json.dumps(out) + "\n")
    assert "3 written, 0 left out" in call(convert, answers, "--rows", tmp_path / "reviews.csv", "-o", table)
    assert table.read_text().count("neutral,ok,") == 3


def test_nothing_is_overwritten(job: Path, tmp_path: Path) -> None:
    """An existing file or directory stays, and the message asks for another name."""
    (tmp_path / "d.jsonl").touch()
    result = CliRunner().invoke(convert, [str(job), "-o", str(tmp_path / "d.jsonl")])
    assert result.exit_code == 1
    assert "already exists" in result.output
    call(sample, "candidates", "--rows", "1", "-o", tmp_path / "s")
    again = CliRunner().invoke(sample, ["candidates", "-o", str(tmp_path / "s")])
    assert again.exit_code == 1
    assert "already exists" in again.output
