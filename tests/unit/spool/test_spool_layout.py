"""The spool's directories and durable writes."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolama.errors import DiskFailed, DiskFull, SpoolError
from spoolama.spool import durable
from spoolama.spool.durable import DISK, Disk, in_words, is_temp, write_atomic, write_replace
from spoolama.spool.layout import Spool
from support.disk import ScriptedDisk


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def entries(spool: Spool) -> list[str]:
    return [str(p.relative_to(spool.root)) for p in spool.root.rglob("*") if p.parent != spool.root]


@pytest.mark.parametrize(("shared", "incoming"), [(False, 0o755), (True, 0o3770)])
def test_create(tmp_path: Path, shared: bool, incoming: int) -> None:
    """The five directories have fixed permissions regardless of the umask, and processing is private."""
    old = os.umask(0o077)
    try:
        spool = Spool(tmp_path / "deep" / "spool")
        spool.create(shared=shared)
    finally:
        os.umask(old)
    modes = {p.name: mode(p) for p in spool.root.iterdir()}
    assert modes == {
        "incoming": incoming,
        "processing": 0o700,
        "done": 0o755,
        "failed": 0o755,
        "status": 0o755,
    }
    spool.prove()


def test_create_again_respects_the_administrator(spool: Spool) -> None:
    """A second create closes processing and keeps all other permissions."""
    spool.incoming.chmod(0o2775)
    spool.processing.chmod(0o755)
    spool.create(shared=True)
    assert (mode(spool.incoming), mode(spool.processing)) == (0o2775, 0o700)


def test_the_check_leaves_nothing_behind(spool: Spool) -> None:
    """The check leaves the spool empty."""
    spool.prove()
    assert entries(spool) == []


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EXDEV, SpoolError, "must be on one mount.*ReadWritePaths="),
        (errno.EROFS, SpoolError, "read-only"),
        (errno.ENOSPC, DiskFull, "is full"),
        (errno.EIO, DiskFailed, "journalctl -k"),
        (errno.EACCES, SpoolError, "must belong to this user"),
    ],
)
def test_the_check_reports_each_failure(
    spool: Spool, number: int, kind: type[SpoolError], words: str
) -> None:
    """If any call fails, the error says what an administrator can do, and no probe file stays."""
    messages = []
    for n in range(1, 20):
        disk = ScriptedDisk(fail_at=n, fail_with=number)
        try:
            spool.prove(disk=disk)
        except kind as e:
            messages.append(str(e))
            assert entries(spool) == []
        else:
            break
    assert len(messages) == 9
    assert all(re.search(words, text) for text in messages)


def spoil(spool: Spool, what: str) -> None:
    if what == "missing":
        spool.failed.rmdir()
    elif what == "open":
        spool.processing.chmod(0o750)
    else:
        spool.incoming.chmod(0o3770)


@pytest.mark.parametrize(
    ("what", "words"),
    [("missing", "failed is missing.*spoolama init"), ("open", "chmod 700"), ("sticky", "sticky bit.*chown")],
)
def test_the_check_finds_what_a_probe_cannot(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    """A missing directory, an open processing/ and a sticky incoming/ of another owner are errors."""
    spoil(spool, what)
    if what == "sticky":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SpoolError, match=words):
        spool.prove()


def test_the_probe_detects_exdev_on_real_mounts(spool: Spool) -> None:
    """A processing/ on another file system is detected by the rename of a probe file."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == spool.root.stat().st_dev:
        pytest.skip("no second file system at hand")
    away = other / f"spoolama-test-{os.getpid()}"
    away.mkdir(0o700)
    try:
        spool.processing.rmdir()
        spool.processing.symlink_to(away)
        with pytest.raises(SpoolError, match="must be on one mount"):
            spool.prove()
        assert list(away.iterdir()) == []
    finally:
        away.rmdir()


def without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_renameat2", lambda *_: errno.ENOSYS)


@pytest.mark.parametrize("prepare", [lambda _: None, without_renameat2], ids=["renameat2", "fallback"])
@pytest.mark.parametrize("directory", [False, True])
def test_rename_new_never_replaces(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[pytest.MonkeyPatch], None],
    directory: bool,
) -> None:
    """Renaming to an existing name, even a dangling link, is an error, and to a free one succeeds."""
    prepare(monkeypatch)
    source, taken = tmp_path / "source", tmp_path / "taken"
    if directory:
        source.mkdir()
        taken.mkdir()
    else:
        source.write_bytes(b"mine")
        taken.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        DISK.rename_new(source, taken)
    assert source.exists()
    DISK.rename_new(source, tmp_path / os.fsdecode(b"free \xff"))
    assert not source.exists()
    with pytest.raises(FileNotFoundError):
        DISK.rename_new(source, tmp_path / "free too")


def test_write_atomic(tmp_path: Path) -> None:
    """A write syncs, renames over the older file with the wanted mode, and syncs the directory."""
    path = tmp_path / ("x" * 255)
    path.write_bytes(b"old")
    disk = ScriptedDisk()
    write_atomic(path, b"new", mode=0o640, disk=disk)
    assert [call for call, _ in disk.calls] == ["create", "write", "fsync", "rename", "fsync_dir"]
    assert is_temp(disk.calls[0][1])
    assert (path.read_bytes(), mode(path)) == (b"new", 0o640)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("write", [write_atomic, write_replace])
@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, write: Callable[..., None], call: str) -> None:
    """If any call fails, the old content stays and no temporary file is left."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    disk = ScriptedDisk(refuse={call: errno.ENOSPC})
    if write is write_replace and call == "fsync":
        write(path, b"old", disk=disk)
        assert "fsync" not in [name for name, _ in disk.calls]
    else:
        with pytest.raises(DiskFull, match="writing a"):
            write(path, b"new", disk=disk)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_close_is_raised(tmp_path: Path) -> None:
    """An error that a network file system reports at close is raised."""

    class Late(Disk):
        def close(self, fd: int) -> None:
            super().close(fd)
            raise OSError(errno.EDQUOT, "over quota")

    with pytest.raises(DiskFull):
        write_atomic(tmp_path / "a", b"new", disk=Late())
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write of the kernel is continued."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    write_atomic(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_other_errors_pass_unchanged() -> None:
    """Errors without a special message pass unchanged."""
    with pytest.raises(NotADirectoryError), in_words("trying"):
        raise NotADirectoryError(errno.ENOTDIR, "x")
