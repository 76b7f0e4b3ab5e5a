"""The status files."""

from __future__ import annotations

import json
import os
import stat

from spoolama.spool.layout import Spool
from spoolama.spool.status_files import StatusBoard


def test_status_is_replaced_readable_by_all_and_only_when_changed(spool: Spool) -> None:
    """New content replaces the file, and the same content does not."""
    board = StatusBoard(spool)
    old = os.umask(0o077)
    try:
        assert board.write("a.csv", {"state": "waiting"})
    finally:
        os.umask(old)
    path = spool.status / "a.csv.json"
    first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o644
    assert not board.write("a.csv", {"state": "waiting"})
    assert path.stat().st_ino == first.st_ino
    with path.open() as reader:
        assert board.write("a.csv", {"state": "done"})
        assert json.load(reader) == {"state": "waiting"}
    assert json.loads(path.read_text()) == {"state": "done"}
    path.unlink()
    assert board.write("a.csv", {"state": "done"})


def test_names_that_are_not_text_are_valid_json(spool: Spool) -> None:
    """Unicode is written unchanged, and bytes that are not UTF-8 as JSON escapes."""
    name = "é" + os.fsdecode(b"\xff") + ".csv"
    StatusBoard(spool).write(name, {"data": name})
    raw = (spool.status / (name + ".json")).read_bytes()
    assert "é".encode() in raw
    assert json.loads(raw.decode("utf-8")) == {"data": name}


def test_the_service_has_two_files(spool: Spool) -> None:
    """The service has one file for programs and one for people."""
    board = StatusBoard(spool)
    assert board.write_service({"jobs": 1}, "One job.\n")
    assert not board.write_service({"jobs": 1}, "One job.\n")
    assert board.write_service({"jobs": 2}, "One job.\n")
    assert json.loads((spool.status / "service.json").read_text()) == {"jobs": 2}
    assert (spool.status / "service.txt").read_text() == "One job.\n"
    assert board.write_service({"jobs": 2}, os.fsdecode(b"\xff"))
    assert (spool.status / "service.txt").read_text() == r"\udcff"


def test_a_status_is_removed(spool: Spool) -> None:
    """A status can be removed, also twice."""
    board = StatusBoard(spool)
    board.write("a.csv", {})
    board.forget("a.csv")
    board.forget("a.csv")
    assert list(spool.status.iterdir()) == []
