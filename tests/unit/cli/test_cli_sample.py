"""Sample data, and the reviews that the project includes."""

from __future__ import annotations

import asyncio
import csv
from pathlib import Path

import pytest

from spoolama.cli.sample import reviews, write_sample
from spoolama.evaluation.asking import MessageBuilder
from spoolama.job.plan import pilot_asks
from spoolama.job.rows.data_file import detect, read_rows
from support.evaluation import inline_job_evaluator, load_sidecar

CONFIG = Path(__file__).parents[3] / "config" / "data"


@pytest.mark.parametrize("kind", ["candidates", "reviews"])
def test_samples_are_valid_jobs(tmp_path: Path, kind: str) -> None:
    """Every sample row can be read and asked, ids are unique, and one seed gives the same bytes."""
    for name in ("one", "two"):
        write_sample(kind, 450, 3, tmp_path / name)  # type: ignore[arg-type]
    data = tmp_path / "one" / f"{kind}.csv"
    sidecar = load_sidecar(data.with_suffix(".yaml"))
    asker = MessageBuilder(sidecar, inline_job_evaluator())
    with read_rows(data, detect(data, data.name)) as rows:
        read = list(rows)
    assert len(read) == 450
    assert sidecar.id is not None
    assert len({row.fields[sidecar.id] for row in read if row.fields}) == 450
    asks = [asyncio.run(asker.ask(row.fields or {}, row.line)) for row in read]
    assert all(ask.own[0].content.strip() for ask in asks)
    assert data.read_bytes() == (tmp_path / "two" / f"{kind}.csv").read_bytes()


def test_other_seeds_give_other_rows(tmp_path: Path) -> None:
    """Another seed gives other rows."""
    for seed in (1, 2):
        write_sample("candidates", 50, seed, tmp_path / str(seed))
    assert (tmp_path / "1" / "candidates.csv").read_bytes() != (
        tmp_path / "2" / "candidates.csv"
    ).read_bytes()


def test_notes_of_candidates_are_possible(tmp_path: Path) -> None:
    """The numbers in the notes go up to 12, so none of them counts the days of a week."""
    write_sample("candidates", 300, 1, tmp_path)
    text = (tmp_path / "candidates.csv").read_text()
    assert " days a month." in text
    assert " a week" not in text


def test_reviews_bring_their_licence(tmp_path: Path) -> None:
    """Every sample of the reviews includes their licence."""
    paths = write_sample("reviews", 3, 1, tmp_path)
    assert "LICENSE-reviews.txt" in [path.name for path in paths]
    assert (tmp_path / "LICENSE-reviews.txt").read_text() == (CONFIG / "LICENSE-reviews.txt").read_text()


def test_the_package_has_the_reviews_of_the_project() -> None:
    """The package and config/ have the same 200 reviews."""
    with (CONFIG / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = [(r["review_id"], r["text"], r["human_rating"]) for r in csv.DictReader(file)]
    assert rows == reviews()
    assert len({row[0] for row in rows}) == 200


def test_the_demo_has_a_pilot_though_it_is_small() -> None:
    """The sidecar of the demo asks for a pilot and an audit, which 200 rows do not have by default."""
    sidecar = load_sidecar(CONFIG / "reviews.yaml")
    assert (sidecar.mode, sidecar.trim.strategy) == ("conversation", "auto")
    assert pilot_asks(sidecar, 200) > 0
    assert sidecar.audit_rows == 20
