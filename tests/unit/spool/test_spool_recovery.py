"""The table of states, row by row, and the recovery of states that are not in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from spoolama.spool.layout import CLAIM_FILE, Claim, DiskState, Spool, state_of
from spoolama.spool.recovery import recover

CLAIM = Claim("a.csv", "a.yaml", None, 20.0, 10.0).to_bytes()
ALONE = Claim("a.csv", None, None, 20.0, 10.0).to_bytes()
DEFAULTED = Claim("a.csv", "default.yaml", "/etc/default.yaml", 20.0, 10.0).to_bytes()
J = "processing/a-1"

TABLE: list[tuple[str, DiskState, dict[str, bytes], DiskState]] = [
    # description; the state; existing files; the state after recovery
    (
        "nothing claimed",
        DiskState.DROPPED,
        {"incoming/a.csv": b"d", "incoming/a.yaml": b"s"},
        DiskState.DROPPED,
    ),
    ("empty directory", DiskState.OPENED, {f"{J}/": b"", "incoming/a.csv": b"d"}, DiskState.DROPPED),
    ("half a claim", DiskState.OPENED, {f"{J}/.1.tmp": b"{", "incoming/a.csv": b"d"}, DiskState.DROPPED),
    (
        "nothing moved",
        DiskState.CLAIMING,
        {f"{J}/claim.json": CLAIM, "incoming/a.csv": b"d"},
        DiskState.DROPPED,
    ),
    ("taken back", DiskState.CLAIMING, {f"{J}/claim.json": CLAIM}, DiskState.DROPPED),
    (
        "default copied, nothing moved",
        DiskState.CLAIMING,
        {f"{J}/claim.json": DEFAULTED, f"{J}/default.yaml": b"s", "incoming/a.csv": b"d"},
        DiskState.DROPPED,
    ),
    (
        "sidecar to follow",
        DiskState.TORN,
        {f"{J}/claim.json": CLAIM, f"{J}/a.csv": b"d", "incoming/a.yaml": b"s"},
        DiskState.SETTLING,
    ),
    ("sidecar gone", DiskState.TORN, {f"{J}/claim.json": CLAIM, f"{J}/a.csv": b"d"}, DiskState.DROPPED),
    (
        "sidecar gone, data dropped anew",
        DiskState.TORN,
        {f"{J}/claim.json": CLAIM, f"{J}/a.csv": b"d", "incoming/a.csv": b"new"},
        DiskState.SETTLING,
    ),
    (
        "all moved",
        DiskState.SETTLING,
        {f"{J}/claim.json": CLAIM, f"{J}/a.csv": b"d", f"{J}/a.yaml": b"s"},
        DiskState.SETTLING,
    ),
    ("alone", DiskState.SETTLING, {f"{J}/claim.json": ALONE, f"{J}/a.csv": b"d"}, DiskState.SETTLING),
    (
        "with a ledger",
        DiskState.CLAIMED,
        {f"{J}/claim.json": ALONE, f"{J}/a.csv": b"d", f"{J}/ledger.sqlite": b""},
        DiskState.CLAIMED,
    ),
    (
        "a report begun",
        DiskState.BUILDING,
        {
            f"{J}/claim.json": ALONE,
            f"{J}/a.csv": b"d",
            f"{J}/ledger.sqlite": b"",
            f"{J}/out/results.jsonl": b"",
        },
        DiskState.CLAIMED,
    ),
    (
        "the only copy in out",
        DiskState.BUILDING,
        {f"{J}/claim.json": ALONE, f"{J}/out/uploaded/a.csv": b"d"},
        DiskState.SETTLING,
    ),
    (
        "published, all left",
        DiskState.PUBLISHED,
        {f"{J}/claim.json": ALONE, f"{J}/ledger.sqlite": b"", "done/a-1/uploaded/a.csv": b"d"},
        DiskState.FINISHED,
    ),
    (
        "published, ledger left",
        DiskState.PUBLISHED,
        {f"{J}/ledger.sqlite": b"", "failed/a-1/uploaded/a.csv": b"d"},
        DiskState.FINISHED,
    ),
    ("finished", DiskState.FINISHED, {"done/a-1/uploaded/a.csv": b"d"}, DiskState.FINISHED),
]

UNKNOWN: dict[str, dict[str, bytes]] = {
    "a file": {J: b"d"},
    "a damaged claim": {f"{J}/claim.json": b"", f"{J}/a.csv": b"d"},
    "a claim that points out of its directory": {
        f"{J}/claim.json": CLAIM.replace(b"a.csv", b"../a.csv"),
        f"{J}/a.csv": b"d",
    },
    "data without a claim": {f"{J}/a.csv": b"d"},
    "a ledger without data": {f"{J}/claim.json": ALONE, f"{J}/ledger.sqlite": b"d"},
    "a ledger without its sidecar": {
        f"{J}/claim.json": CLAIM,
        f"{J}/a.csv": b"d",
        f"{J}/ledger.sqlite": b"",
    },
    "an out without data": {f"{J}/claim.json": ALONE, f"{J}/out/results.jsonl": b"d"},
    "published, and an out": {f"{J}/out/x": b"d", "done/a-1/x": b""},
    "published, but not this upload": {
        f"{J}/claim.json": ALONE,
        f"{J}/a.csv": b"d",
        "done/a-1/uploaded/a.csv": b"another",
    },
    "two different copies": {
        f"{J}/claim.json": ALONE,
        f"{J}/a.csv": b"d",
        f"{J}/out/uploaded/a.csv": b"another",
    },
}


def lay_out(spool: Spool, files: dict[str, bytes]) -> Path:
    """Create these files and return the job's directory."""
    for name, data in files.items():
        path = spool.root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return spool.root / J


def ids(rows: Sequence[tuple[str, DiskState, dict[str, bytes], DiskState]]) -> list[str]:
    return [name for name, *_ in rows]


@pytest.mark.parametrize(("name", "state", "files", "after"), TABLE, ids=ids(TABLE))
def test_each_state_is_recognised_and_recovered(
    spool: Spool, name: str, state: DiskState, files: dict[str, bytes], after: DiskState
) -> None:
    """The existing files identify each state of the table, and recovery leads to its target."""
    job = lay_out(spool, files)
    assert state_of(spool, job) is state
    found = recover(spool)
    assert state_of(spool, job) is after
    assert [j.name for j in found.jobs] == (
        ["a-1"] if after in (DiskState.SETTLING, DiskState.CLAIMED) else []
    )
    data = [p for p in spool.root.rglob("a.csv") if p.read_bytes() == b"d"]
    assert len(data) == (1 if b"d" in files.values() else 0)


def test_the_table_is_complete() -> None:
    """Every state except UNKNOWN has a row above and a line in the module's table."""
    import spoolama.spool.layout as module

    assert {state for _, state, _, _ in TABLE} == set(DiskState) - {DiskState.UNKNOWN}
    assert module.__doc__ is not None
    assert all(f"\n{state.name} " in module.__doc__ for state in DiskState)


@pytest.mark.parametrize(("name", "files"), UNKNOWN.items(), ids=UNKNOWN.keys())
def test_an_unknown_directory_is_quarantined_completely(
    spool: Spool, name: str, files: dict[str, bytes]
) -> None:
    """A directory in no known state goes to the quarantine with all its files, and this is reported."""
    job = lay_out(spool, files)
    # Two of them look like states of the table until their files are compared.
    compared = {
        "published, but not this upload": DiskState.PUBLISHED,
        "two different copies": DiskState.BUILDING,
    }
    assert state_of(spool, job) is compared.get(name, DiskState.UNKNOWN)
    found = recover(spool)
    assert found.jobs == []
    assert any("was moved to" in action for action in found.actions)
    for path, data in files.items():
        if path.startswith("processing/"):
            moved = spool.quarantine / path.removeprefix("processing/")
            assert moved.read_bytes() == data
    assert not (spool.root / J).exists()
    lay_out(spool, {J: b"again"})
    recover(spool)
    assert (spool.quarantine / "a-1.1").read_bytes() == b"again"


def test_a_job_without_its_sidecar_is_reported(spool: Spool) -> None:
    """A torn claim whose data was uploaded again keeps both files and does not wait for a sidecar."""
    lay_out(
        spool, {f"{J}/claim.json": CLAIM, f"{J}/a.csv": b"old", "incoming/a.csv": b"new", "incoming/b": b""}
    )
    (job,) = recover(spool).jobs
    assert (job.data.read_bytes(), job.sidecar) == (b"old", None)
    assert (spool.incoming / "a.csv").read_bytes() == b"new"
    assert json.loads((job.path / CLAIM_FILE).read_bytes())["sidecar"] is None


def test_recovered_jobs_keep_the_order_of_arrival(spool: Spool) -> None:
    """Recovered jobs keep the order of their arrival."""
    for name, arrived in (("a-1", 30.0), ("b-1", 10.0), ("c-1", 20.0)):
        note = Claim("a.csv", None, None, 40.0, arrived).to_bytes()
        lay_out(spool, {f"processing/{name}/claim.json": note, f"processing/{name}/a.csv": b"d"})
    assert [job.name for job in recover(spool).jobs] == ["b-1", "c-1", "a-1"]


def test_only_leftovers_of_the_service_are_removed(spool: Spool) -> None:
    """Probe files and half-written status files are removed, and a user's dot file stays."""
    lay_out(
        spool,
        {
            "incoming/.spoolama-probe-01234567": b"",
            "status/.0123.tmp": b"{",
            "incoming/.a.csv.Xy12ab": b"uploading",
        },
    )
    recover(spool)
    left = [p.name for p in spool.root.rglob("*") if p.is_file()]
    assert left == [".a.csv.Xy12ab"]
