"""Real uploads over a real sshd into a running service."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, results, wait_for

DATA = Path(__file__).parents[2] / "config" / "data"
_MISSING = [
    t for t in ("sshd", "ssh-keygen", "scp", "rsync") if not shutil.which(t, path="/usr/bin:/usr/sbin:/bin")
]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd on loopback needs root"),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]


@dataclass(frozen=True)
class Sshd:
    """An sshd on loopback with its own keys."""

    port: int
    key: Path
    known: Path

    @property
    def options(self) -> list[str]:
        """Return the options of ssh and scp to reach it, without the user's own configuration."""
        known = f"UserKnownHostsFile={self.known}"
        settings = (known, "BatchMode=yes", "StrictHostKeyChecking=no", "LogLevel=ERROR")
        return ["-F", "none", "-i", str(self.key), *(part for text in settings for part in ("-o", text))]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A real sshd that accepts the current user by key."""
    base = tmp_path / "ssh"
    base.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)], check=True)
    shutil.copy(base / "user.pub", base / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (base / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {base / 'host'}\n"
        f"AuthorizedKeysFile {base / 'authorized'}\n"
        f"PidFile none\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation directory, missing where sshd never ran
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(base / "config")], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _open(port))
        yield Sshd(port, base / "user", base / "known")
    finally:
        server.terminate()
        server.wait(10)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class PublicationWatcher:
    """Watches done/ and checks that a job is complete when it first appears."""

    def __init__(self, done: Path) -> None:
        self._done = done
        self._stop = threading.Event()
        self.job: Path | None = None
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PublicationWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            # At its start the service checks with a hidden probe file that a rename to done/ works.
            for job in self._done.glob("reviews-*"):
                self.wrong = self._differ(job)
                self.job = job
                return
            time.sleep(0.0005)

    @staticmethod
    def _differ(job: Path) -> list[str]:
        wrong = []
        for line in (job / "SHA256SUMS").read_text().splitlines():
            digest, _, name = line.partition("  ")
            if hashlib.sha256((job / name).read_bytes()).hexdigest() != digest:
                wrong.append(name)
        return wrong


@pytest.mark.parametrize("client", ["scp", "rsync"])
def test_two_hundred_reviews_are_published_in_one_step(tmp_path: Path, sshd: Sshd, client: str) -> None:
    """Reviews uploaded by scp to a running service appear complete in done/, in order, and the
    counts add up.
    """
    spool = make_spool(tmp_path / "spool")
    log = tmp_path / "log"
    target = f"{getpass.getuser()}@127.0.0.1:{spool / 'incoming'}/"
    files = [str(DATA / "reviews.csv"), str(DATA / "reviews.yaml")]
    if client == "scp":
        command = ["scp", *sshd.options, "-P", str(sshd.port), *files, target]
    else:
        shell = " ".join(["ssh", *sshd.options, "-p", str(sshd.port)])
        command = ["rsync", "-a", "-e", shell, *files, target]
    with (
        fake_ollama() as url,
        daemon(clean_env(spool, url), log=log),
        PublicationWatcher(spool / "done") as watcher,
    ):
        wait_for(lambda: (spool / "status" / "service.json").exists())
        uploaded = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert uploaded.returncode == 0, uploaded.stderr
        job: Path = wait_for(lambda: watcher.job)
        status = wait_for(lambda: _ended(spool / "status" / "reviews.csv.json"))
    assert watcher.wrong == []
    rows = results(job)
    ids = [line.split(",")[0] for line in (DATA / "reviews.csv").read_text().splitlines()[1:]]
    assert [row["id"] for row in rows] == ids
    metrics = json.loads((job / "metrics.json").read_text())
    assert metrics["total"] == 200 == metrics["completed"] + metrics["failed"] + metrics["skipped"]
    assert (job / "uploaded" / "reviews.csv").read_bytes() == (DATA / "reviews.csv").read_bytes()
    assert (status["state"], status["job"], status["where"]) == ("done", job.name, f"done/{job.name}")
    assert status["message"] == "200 rows in = 200 ok + 0 failed + 0 skipped"
    assert list((spool / "incoming").iterdir()) == []
    assert list((spool / "processing").iterdir()) == []


def _ended(path: Path) -> dict[str, object] | None:
    if not path.exists():
        return None
    status: dict[str, object] = json.loads(path.read_text())
    return status if "ended_at" in status else None
