"""Logs: one call, three output formats."""

from __future__ import annotations

import ast
import json
import os
import socket
import string
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from spoolama.service import logs
from spoolama.service.events import EVENTS, sentence
from spoolama.service.logs import JournalSocket, connected_to_journal, encode_entry

SERVICE = Path(logs.__file__).parent


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    logs.set_level("info")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a test journal's socket; the test that binds it reads the entries."""
    sender = JournalSocket(tmp_path / "j")
    monkeypatch.setattr(logs, "JournalSocket", lambda: sender)
    yield tmp_path / "j"
    sender.close()


def calls() -> list[tuple[str, set[str | None]]]:
    """Return every `say("name", ...)` in the service with its field names (None for `**fields`)."""
    return [
        (node.args[0].value, {keyword.arg for keyword in node.keywords})
        for file in SERVICE.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "say"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def test_every_message_id_is_unique() -> None:
    """No two events share a message id."""
    ids = [kind.message_id for kind in EVENTS.values()]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 32 and set(i) <= set(string.hexdigits.lower()) for i in ids)


def test_every_logged_event_is_in_the_table_with_the_fields_of_its_sentence() -> None:
    """Every event has a sentence whose fields the call provides, so that no `?` is logged."""
    for name, given in calls():
        wanted = {field for _, field, _, _ in string.Formatter().parse(EVENTS[name].text) if field}
        assert None in given or wanted <= given, f"{name} lacks {wanted - given}"
    assert len(calls()) > 15


def test_json_lines_carry_event_fields_and_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """JSON lines have a stable event name for programs and a sentence for people."""
    logs.configure("info", env={}, rendering="json")
    logs.say("job.claimed", name="a.csv", job="a-1")
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["job"], line["level"]) == ("job.claimed", "a-1", "info")
    assert line["message"] == "a.csv was claimed as job a-1."


def test_the_level_can_be_changed_while_the_service_runs(capfd: pytest.CaptureFixture[str]) -> None:
    """SIGHUP can change the level."""
    logs.configure("info", env={}, rendering="json")
    logs.set_level("error")
    logs.say("job.claimed", name="a.csv", job="a-1")
    logs.say("job.held", job="a-1", error="no room")
    assert [json.loads(x)["event"] for x in capfd.readouterr().err.splitlines()] == ["job.held"]


def test_warnings_of_libraries_are_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings of libraries are logged, because watchdog reports lost events only so."""
    import logging

    logs.configure("info", env={}, rendering="json")
    logging.getLogger("watchdog.observers").warning("queue overflow")
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["text"]) == ("library.message", "queue overflow")


def test_a_terminal_shows_the_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal shows the sentence, not the fields."""
    logs.configure("info", env={"NO_COLOR": "1"}, rendering="console")
    logs.say("job.claimed", name="a.csv", job="a-1")
    assert "a.csv was claimed as job a-1." in capfd.readouterr().err


def test_a_missing_field_does_not_break_the_log() -> None:
    """A missing field in a log call raises nothing."""
    assert sentence("job.claimed", {"name": "a.csv"}) == "a.csv was claimed as job ?."


def test_the_journal_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    """A redirected stderr is not a journal, whatever the environment says."""
    with (tmp_path / "f").open("w") as file:
        found = os.fstat(file.fileno())
        env = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert connected_to_journal(env, file.fileno())
        assert not connected_to_journal({"JOURNAL_STREAM": "1:2"}, file.fileno())
        assert not connected_to_journal({}, file.fileno())


def test_values_with_line_ends_go_with_their_length() -> None:
    """A value with line ends uses the journal's binary form: name, newline, 64 bits of length, value."""
    entry = encode_entry({"message": "one", "spoolama_trace": "a\nb", "_PID": "1"})
    assert entry == b"MESSAGE=one\nSPOOLAMA_TRACE\n" + struct.pack("<Q", 3) + b"a\nb\nPID=1\n"


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_an_entry_of_any_size_arrives(tmp_path: Path, size: int) -> None:
    """Small entries are sent in the datagram, large ones in a sealed memfd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "j"))
        server.settimeout(5)
        sender = JournalSocket(tmp_path / "j")
        sender.send({"MESSAGE": "x" * size})
        sender.close()
        data, fds, _, _ = socket.recv_fds(server, 65536, 1)
    if fds:
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            data = file.read()
    assert data == b"MESSAGE=" + b"x" * size + b"\n"


def test_the_journal_gets_real_fields(journal: Path) -> None:
    """`journalctl SPOOLAMA_JOB=…` finds everything about a job."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(journal))
        server.settimeout(5)
        logs.configure("info", env={}, rendering="journal")
        logs.say("job.held", job="a-1", error="no room")
        fields = dict(x.split("=", 1) for x in server.recv(65536).decode().splitlines())
    assert fields["SPOOLAMA_JOB"] == "a-1"
    assert fields["SPOOLAMA_EVENT"] == "job.held"
    assert fields["MESSAGE_ID"] == EVENTS["job.held"].message_id
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE"] == "a-1 cannot continue for now: no room"


@pytest.mark.usefixtures("journal")
def test_without_a_journal_the_line_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a journal a line on stderr begins with the priority."""
    logs.configure("info", env={}, rendering="journal")
    logs.say("job.held", job="a-1", error="no room")
    assert capfd.readouterr().err == "<3>a-1 cannot continue for now: no room\n"
