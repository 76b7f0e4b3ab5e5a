"""The decisions of a scan of incoming."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from spoolama.spool.layout import Spool
from spoolama.spool.names import cut
from spoolama.spool.scanner import CommandFile, ReadyRules, Scanner, can_read, free_bytes, remove_command
from support.hand_clock import HandClock

BATCH = (
    json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}).encode()
    + b"\n"
)


def drop(spool: Spool, clock: HandClock, *names: str, data: bytes = b"name\nAnna\n") -> None:
    """Put files into incoming and set both clocks to their ctime, because no test can set a ctime."""
    for name in names:
        (spool.incoming / name).write_bytes(data)
        clock.move((spool.incoming / name).stat().st_ctime - clock.wall)


def codes(scanner: Scanner) -> dict[str, str]:
    """Return each held name's code, with a question mark if it may become ready without a change."""
    return {h.name: h.code + ("?" if h.waiting else "") for h in scanner.scan().held}


def ready(scanner: Scanner) -> list[tuple[str, str | None]]:
    return [(d.data, d.sidecar) for d in scanner.scan().ready]


def test_a_pair_is_ready_when_it_is_quiet(spool: Spool, clock: HandClock) -> None:
    """A pair is ready two seconds after the last change of both files, and the scan gives the
    time of the next one.
    """
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv", "a.yaml")
    look = scanner.scan()
    assert look.ready == []
    assert look.rescan_s == pytest.approx(2.0, abs=0.9)
    clock.move(1.9)
    assert codes(scanner) == {"a.csv": "arriving?"} or codes(scanner) == {"a.yaml": "arriving?"}
    clock.move(0.2)
    (found,) = scanner.scan().ready
    assert (found.data, found.sidecar, found.bytes) == ("a.csv", "a.yaml", 10)
    assert found.arrived == max((spool.incoming / n).stat().st_ctime for n in ("a.csv", "a.yaml"))


def test_of_many_held_files_only_the_oldest_are_listed(
    spool: Spool, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many held files the oldest are listed, and the others are counted, ready soon or not."""
    monkeypatch.setattr("spoolama.spool.scanner.MOST_HELD", 3)
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.txt", "b.yaml", "c.txt")
    clock.move(3600)
    look = scanner.scan()
    assert [h.name for h in look.held] == ["a.txt", "b.yaml", "c.txt"]
    assert (look.more_held, look.more_waiting) == (0, 0)
    before = (spool.incoming / "c.txt").stat().st_ctime_ns
    for name in ("0.txt", "d.yaml", "e.csv", "e.yaml", "f.cancel"):
        drop(spool, clock, name, data=b"")
        while (spool.incoming / name).stat().st_ctime_ns <= before:  # a file system's clock is coarse
            drop(spool, clock, name, data=b"")
    clock.move(5)
    look = scanner.scan()
    assert [h.name for h in look.held] == ["a.txt", "b.yaml", "c.txt"]
    assert (look.more_held, look.more_waiting) == (2, 1)
    assert [control.file for control in look.commands] == ["f.cancel"]
    (spool.incoming / "a.txt").unlink()
    assert [h.name for h in scanner.scan().held] == ["0.txt", "b.yaml", "c.txt"]


def test_an_old_mtime_does_not_make_a_file_old(spool: Spool, clock: HandClock) -> None:
    """A file that arrives with an old mtime, as by rsync -a and scp -p, counts as new."""
    drop(spool, clock, "a.csv", "a.yaml")
    for name in ("a.csv", "a.yaml"):
        os.utime(spool.incoming / name, (1_600_000_000, 1_600_000_000))
        clock.move((spool.incoming / name).stat().st_ctime - clock.wall)
    scanner = Scanner(spool, ReadyRules(), clock)
    assert ready(scanner) == []
    clock.move(2.1)
    assert ready(scanner) == [("a.csv", "a.yaml")]


def test_quiet_files_at_the_start_need_no_second_wait(spool: Spool, clock: HandClock) -> None:
    """The first scan takes files that have been quiet long enough."""
    drop(spool, clock, "a.csv", "a.yaml")
    clock.move(3600)
    assert ready(Scanner(spool, ReadyRules(), clock)) == [("a.csv", "a.yaml")]


def test_a_ctime_in_the_future_is_waited_out_by_the_own_clock(spool: Spool, clock: HandClock) -> None:
    """After the wall clock went back an hour, the scanner measures the quiet time by itself."""
    drop(spool, clock, "a.csv", "a.yaml")
    clock.wall -= 3600
    scanner = Scanner(spool, ReadyRules(), clock)
    assert ready(scanner) == []
    clock.move(2.1)
    assert ready(scanner) == [("a.csv", "a.yaml")]
    (found,) = scanner.scan().ready
    assert found.arrived == clock.wall


def test_a_clock_that_jumps_forward_makes_no_file_quiet(spool: Spool, clock: HandClock) -> None:
    """After the wall clock leaps an hour ahead, a file that is still written is not taken."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv", "a.yaml")
    scanner.scan()
    clock.wall += 3600
    clock.mono += 0.1
    assert ready(scanner) == []
    clock.move(2.1)
    assert ready(scanner) == [("a.csv", "a.yaml")]


def test_a_file_that_grows_is_not_quiet(spool: Spool, clock: HandClock) -> None:
    """Each write restarts the quiet time."""
    drop(spool, clock, "a.csv", "a.yaml")
    clock.wall -= (
        3600  # real ctimes do not follow a manual clock, so only the scanner's own measurement counts
    )
    scanner = Scanner(spool, ReadyRules(), clock)
    scanner.scan()
    for _ in range(3):
        clock.move(1.5)
        with (spool.incoming / "a.csv").open("ab") as file:
            file.write(b"Ben\n")
        assert ready(scanner) == []
    clock.move(2.1)
    assert ready(scanner) == [("a.csv", "a.yaml")]


def two_names(path: Path) -> None:
    path.write_bytes(b"x\n")
    path.parents[1].joinpath("other").hardlink_to(path)


def special(kind: str) -> Callable[[Path], None]:
    """Create a special file at a path."""
    return {
        "directory": lambda p: p.mkdir(),
        "link": lambda p: p.symlink_to("/etc/hostname"),
        "dangling link": lambda p: p.symlink_to("/nonexistent"),
        "fifo": lambda p: os.mkfifo(p),
        "empty": lambda p: p.touch(),
        "two names": two_names,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("directory", "directory"),
        ("link", "not_regular"),
        ("dangling link", "not_regular"),
        ("fifo", "not_regular"),
        ("empty", "empty"),
        ("two names", "hard_linked"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.yaml"])
def test_odd_files_are_held(spool: Spool, clock: HandClock, kind: str, code: str, name: str) -> None:
    """A data file or sidecar that is not a plain, single, nonempty file is held with a reason."""
    drop(spool, clock, "a.yaml" if name == "a.csv" else "a.csv")
    special(kind)(spool.incoming / name)
    clock.move(3600)
    scanner = Scanner(spool, ReadyRules(), clock)
    look = scanner.scan()
    assert look.ready == []
    (held,) = (h for h in look.held if h.name == name)
    assert held.code == code
    assert held.message.startswith(name)
    assert not held.waiting
    assert os.path.lexists(spool.incoming / name)


def test_unreadable_files_are_held_until_they_are_opened(spool: Spool, clock: HandClock) -> None:
    """An unreadable file is held with the command that opens it, and is taken once it is readable."""
    closed = {"a.yaml"}
    scanner = Scanner(spool, ReadyRules(), clock, readable=lambda p: p.name not in closed)
    drop(spool, clock, "a.csv", "a.yaml")
    clock.move(3)
    (held,) = scanner.scan().held
    assert (held.name, held.code) == ("a.yaml", "unreadable")
    assert held.message.endswith("Run: chmod 644 a.yaml")
    closed.clear()
    assert ready(scanner) == [("a.csv", "a.yaml")]


def test_can_read(tmp_path: Path) -> None:
    """Plain files are readable, links are not, a missing file is an error, and a FIFO does not block."""
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    assert can_read(tmp_path / "a")
    assert not can_read(tmp_path / "link")
    assert can_read(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        can_read(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights for a moment")
def test_can_read_without_rights(tmp_path: Path) -> None:
    """A private file of another user cannot be read."""
    (tmp_path / "a").touch(0o600)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        assert not can_read(tmp_path / "a")
    finally:
        os.seteuid(0)


def test_too_large(spool: Spool, clock: HandClock) -> None:
    """A file beyond the administrator's limit is held with both sizes."""
    scanner = Scanner(spool, ReadyRules(max_bytes=1000), clock)
    drop(spool, clock, "a.csv", "a.yaml", data=b"x" * 1500)
    clock.move(3)
    (held,) = scanner.scan().held
    assert held.code == "too_large"
    assert "1.5 kB; the limit is 1.0 kB" in held.message


def test_a_sidecar_of_a_terabyte_is_held_without_being_opened(spool: Spool, clock: HandClock) -> None:
    """A sparse sidecar of a terabyte is not read, which would take all memory."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv", "a.yaml")
    os.truncate(spool.incoming / "a.yaml", 1 << 40)
    clock.move(3)
    scanner.scan()
    clock.move(3)
    (held,) = scanner.scan().held
    assert (held.name, held.code) == ("a.yaml", "too_large")
    assert "the file has 1,099,511,627,776 bytes; the limit is 1,000,000" in held.message


@pytest.mark.parametrize(
    ("floor", "free", "taken"), [(0, 19, False), (0, 20, True), (500, 499, False), (500, 500, True)]
)
def test_a_full_disk_holds_everything(
    spool: Spool, clock: HandClock, floor: int, free: int, taken: bool
) -> None:
    """With less room than the minimum, or than twice the data (10 bytes here), every file is held."""
    scanner = Scanner(spool, ReadyRules(min_free_bytes=floor), clock, free=lambda _: free)
    drop(spool, clock, "a.csv", "a.yaml")
    clock.move(3)
    assert bool(scanner.scan().ready) is taken
    assert codes(scanner) == ({} if taken else {"a.csv": "disk_full?"})
    assert free_bytes(spool.root) > 0


def test_incomplete_uploads_wait_and_are_then_reported(spool: Spool, clock: HandClock) -> None:
    """Data without a sidecar, or the reverse, is expected for ten minutes and then reported as incomplete."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv", "b.yaml")
    clock.move(3)
    look = scanner.scan()
    assert codes(scanner) == {"a.csv": "no_sidecar?", "b.yaml": "no_data?"}
    assert look.rescan_s is not None
    clock.move(look.rescan_s + 1)
    assert codes(scanner) == {"a.csv": "no_sidecar", "b.yaml": "no_data"}
    drop(spool, clock, "a.yaml", "b.csv")
    clock.move(3)
    assert ready(scanner) == [("a.csv", "a.yaml"), ("b.csv", "b.yaml")]


def test_held_since_is_the_start_of_the_reason(spool: Spool, clock: HandClock) -> None:
    """The same reason keeps its start time, and another one restarts it."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv")
    clock.move(3)
    began = clock.wall
    (first,) = scanner.scan().held
    clock.move(30)
    (second,) = scanner.scan().held
    drop(spool, clock, "a.jsonl", "a.yaml")
    clock.move(3)
    third = {h.name: h for h in scanner.scan().held}["a.csv"]
    assert (first.since, second.since) == (began, began)
    assert (third.code, third.since) == ("ambiguous", clock.wall)


def test_ambiguous_drops_are_held(spool: Spool, clock: HandClock) -> None:
    """Two data files with one sidecar are all held."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv", "a.jsonl", "a.yaml")
    clock.move(3)
    assert ready(scanner) == []
    assert codes(scanner) == dict.fromkeys(["a.csv", "a.jsonl", "a.yaml"], "ambiguous")


def test_unsupported_files_are_reported_with_the_supported_formats(spool: Spool, clock: HandClock) -> None:
    """An unsupported file is reported only when it is quiet, because it may be a client's temporary name."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.xlsx")
    assert codes(scanner) == {"a.xlsx": "arriving?"}
    clock.move(3)
    (held,) = scanner.scan().held
    assert held.code == "unsupported"
    assert ".csv, .tsv, .jsonl, .ndjson" in held.message


@pytest.mark.parametrize(
    "name",
    [
        "two words.csv",
        "-rf.csv",
        "é評価.csv",
        "new\nline.csv",
        os.fsdecode(b"\xff\xfe.csv"),
        "x" * 250 + ".csv",
    ],
)
def test_any_name_is_accepted(spool: Spool, clock: HandClock, name: str) -> None:
    """Any name is accepted."""
    sidecar = cut(name)[0] + ".yml"
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, name, sidecar)
    clock.move(3)
    assert ready(scanner) == [(name, sidecar)]


def test_an_openai_batch_waits_a_while_for_a_sidecar(spool: Spool, clock: HandClock) -> None:
    """An OpenAI batch waits a while for an optional sidecar with defaults."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.jsonl", "b.jsonl", data=BATCH)
    clock.move(9)
    assert codes(scanner) == {"a.jsonl": "no_sidecar?", "b.jsonl": "no_sidecar?"}
    drop(spool, clock, "b.yaml")
    clock.move(2.5)
    assert ready(scanner) == [("b.jsonl", "b.yaml")]
    clock.move(8)
    assert sorted(ready(scanner)) == [("a.jsonl", None), ("b.jsonl", "b.yaml")]


def test_a_default_sidecar_replaces_a_missing_one(spool: Spool, clock: HandClock, tmp_path: Path) -> None:
    """An upload without a needed sidecar gets the administrator's, and an OpenAI batch needs none."""
    scanner = Scanner(spool, ReadyRules(default_sidecar=tmp_path / "default.yaml"), clock)
    drop(spool, clock, "a.csv")
    drop(spool, clock, "b.jsonl", data=BATCH)
    clock.move(9)
    assert ready(scanner) == []
    clock.move(2)
    found = {d.data: (d.sidecar, d.default_sidecar) for d in scanner.scan().ready}
    assert found == {"a.csv": (None, tmp_path / "default.yaml"), "b.jsonl": (None, None)}


@pytest.mark.parametrize(
    ("name", "data", "batch"),
    [
        ("a.jsonl", BATCH, True),
        ("a.ndjson", b"\xef\xbb\xbf\r\n\n" + BATCH, True),
        ("a.jsonl.gz", gzip.compress(BATCH, mtime=0), True),
        ("a.jsonl.zst", zstandard.compress(BATCH), True),
        ("a.jsonl.gz", gzip.compress(BATCH, mtime=0)[:-12], False),
        ("a.jsonl.zst", b"not zstd at all", False),
        ("a.jsonl", BATCH.replace(b'"body": {', b'"body": {"x": "' + b"x" * 400_000 + b'"'), True),
        ("a.jsonl", b'{"custom_id": "1", "body": {}}\n', False),
        ("a.jsonl", b'{"text": "' + b"x" * 400_000 + b'", "custom_id": "1", "body": {}}\n', False),
        ("a.jsonl", b'{"text": "custom_id and body"}\n', False),
        ("a.jsonl", b'{"custom_id": "1", "bo', False),
        ("a.jsonl", b'["custom_id", "body"]\n', False),
        ("a.jsonl", b"[" * 100_000 + b"\n", False),
        ("a.jsonl", b"\xff\xfe\n", False),
        ("a.jsonl", b"", False),
        ("a.csv", BATCH, False),
    ],
    ids=range(16),
)
def test_openai_lines_need_no_sidecar(
    spool: Spool, clock: HandClock, name: str, data: bytes, batch: bool
) -> None:
    """The first readable line decides, in any compression, and an unreadable file is not a batch."""
    drop(spool, clock, name, data=data)
    clock.move(11)
    assert ready(Scanner(spool, ReadyRules(), clock)) == ([(name, None)] if batch else [])


def test_first_come_first_served(spool: Spool, clock: HandClock) -> None:
    """Jobs are ordered by the arrival of the complete upload, not by name."""
    for name in ("b.csv", "b.yaml", "a.csv", "a.yaml"):
        # The kernel sets ctime in ticks of some milliseconds, so write until it differs.
        before = clock.wall
        while clock.wall == before:
            drop(spool, clock, name)
    clock.move(3)
    assert [d.data for d in Scanner(spool, ReadyRules(), clock).scan().ready] == ["b.csv", "a.csv"]


def test_controls_are_reported_and_taken(spool: Spool, clock: HandClock) -> None:
    """A small quiet file NAME.cancel is a command and is removed when read; a large one is not a command."""
    scanner = Scanner(spool, ReadyRules(), clock)
    drop(spool, clock, "a.csv.cancel", data=b"")
    drop(spool, clock, "big.pause", data=b"x" * 5000)
    clock.move(3)
    look = scanner.scan()
    assert look.commands == [CommandFile("a.csv.cancel", "a.csv", "cancel")]
    assert codes(scanner) == {"big.pause": "unsupported"}
    remove_command(spool, look.commands[0])
    remove_command(spool, look.commands[0])
    assert [p.name for p in spool.incoming.iterdir()] == ["big.pause"]


def test_an_upload_removed_during_the_scan_is_ignored(spool: Spool, clock: HandClock) -> None:
    """A file that vanishes during the scan is neither an error nor reported."""

    def vanish(path: Path) -> bool:
        path.unlink()
        raise FileNotFoundError(path)

    drop(spool, clock, "a.csv", "a.yaml")
    clock.move(3)
    look = Scanner(spool, ReadyRules(), clock, readable=vanish).scan()
    assert (look.ready, look.held) == ([], [])
