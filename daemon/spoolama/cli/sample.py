"""`spoolama sample`: creates sample data with a sidecar."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import click

from spoolama.publish.encoding import csv_line

_ROLES: dict[str, tuple[str, ...]] = {
    "backend engineer": ("Python", "Go", "PostgreSQL", "Kafka", "Docker", "REST", "Redis", "gRPC"),
    "data engineer": ("SQL", "Spark", "Airflow", "dbt", "Python", "Snowflake", "Kafka", "Terraform"),
    "nurse": ("triage", "wound care", "ward rounds", "medication plans", "first aid", "night shifts"),
    "electrician": ("switchgear", "PLC", "wiring plans", "safety checks", "solar", "fault finding"),
    "accountant": ("annual accounts", "VAT", "SAP", "payroll", "audits", "Excel", "IFRS"),
    "teacher": ("lesson plans", "maths", "physics", "special needs", "parents' evenings", "e-learning"),
    "warehouse lead": ("forklift licence", "SAP EWM", "shift plans", "stocktaking", "ISO 9001"),
    "product designer": ("Figma", "user interviews", "prototypes", "design systems", "accessibility"),
}
_EDUCATION = (
    "no degree, learned on the job",
    "apprenticeship",
    "technical college",
    "bachelor's degree",
    "master's degree",
    "doctorate",
)
_PLACES = ("Leipzig", "Lyon", "Porto", "Gdansk", "Turin", "Ghent", "Malmö", "Brno", "Cork", "Graz")
_NOTES = (
    "Led a team of {n}.",
    "Migrated a system that was {n} years old without an outage.",
    "Out of work for {n} months, wants to come back.",
    "Can start in {n} weeks.",
    "Changed employer {n} times in the last five years.",
    "Wants to work from home {n} days a month.",
    "Trained {n} newcomers.",
    'Says: "I like what others call boring".',
    "",
)
_CANDIDATES_YAML = """\
# Synthetic candidate profiles from a random generator, without real people.
model: gemma3:12b
system: |
  You are a strict recruiter for a logistics company that hires a data engineer.
  Score each candidate from 0 to 100.
  40 points: experience as a data engineer; 5 points for each year, fewer for a neighbouring role.
  40 points: skills; SQL, Python, Spark and Airflow count most.
  10 points: education that fits the work, or proof that it was learned on the job.
  10 points: what the note says about their work.
  Score what is written, nothing else. Where they live does not count.
prompt: |
  Role: {{ role }}, {{ years }} years
  Skills: {{ skills }}
  Education: {{ education }}
  Location: {{ location }}
  Note: {{ note }}
id: candidate_id
mode: conversation
options: {num_ctx: 8192, num_predict: 60, temperature: 0, seed: 7}
format:
  type: object
  properties:
    score: {type: integer, minimum: 0, maximum: 100}
    reason: {type: string, maxLength: 120}
  required: [score, reason]
  additionalProperties: false
answer_key: score
"""
_REVIEWS_YAML = """\
# Sentences of real product reviews with human ratings; license and source: LICENSE-reviews.txt.
# Above 200 rows the sentences repeat in another order, with a number after the id.
model: smollm2:135m
system: |
  You judge the sentiment of sentences from product reviews.
  Answer with the one word that fits the sentence best: negative, neutral or positive.
prompt: "Sentence: {{ text }}"
id: review_id
gold: human_rating
mode: conversation
options: {num_ctx: 4096, num_predict: 16, temperature: 0, seed: 7}
format: {type: string, enum: [negative, neutral, positive]}
"""


@click.command(epilog="Example: spoolama sample candidates --rows 1000 --seed 7 -o /tmp/try")
@click.argument("kind", type=click.Choice(["candidates", "reviews"]))
@click.option("--rows", type=click.IntRange(1, 10_000_000), default=1000, show_default=True, help="Rows.")
@click.option("--seed", type=int, default=7, show_default=True, help="The same seed gives the same rows.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The directory to write to. Default: the current directory.",
)
def sample(kind: Literal["candidates", "reviews"], rows: int, seed: int, out: Path) -> None:
    """Create sample data with a sidecar.

    candidates: synthetic profiles without names (role, years, skills, education, location, note) to score.
    reviews: 200 sentences of real reviews with human ratings; more rows repeat them.
    """
    try:
        written = write_sample(kind, rows, seed, out)
    except FileExistsError as error:
        raise click.ClickException(
            f"{error.filename} already exists. Use another directory with -o."
        ) from error
    for path in written:
        click.echo(f"Written: {path}")
    if kind == "reviews" and rows > 200:
        click.echo(f"The {rows} rows repeat 200 real sentences in different orders.")


def write_sample(kind: Literal["candidates", "reviews"], rows: int, seed: int, into: Path) -> list[Path]:
    """Write a data file and its sidecar.

    Args:
        kind: Which data.
        rows: How many rows.
        seed: The same seed gives the same rows.
        into: The directory; made if absent. Files of these names must not exist.

    Raises:
        FileExistsError: one of the files exists.
    """
    into.mkdir(parents=True, exist_ok=True)
    header: tuple[str, ...]
    if kind == "candidates":
        header = ("candidate_id", "role", "years", "skills", "education", "location", "note")
        lines, sidecar = _candidates(rows, random.Random(seed)), _CANDIDATES_YAML  # noqa: S311 - sample data
    else:
        header = ("review_id", "text", "human_rating")
        lines, sidecar = _reviews(rows, random.Random(seed)), _REVIEWS_YAML  # noqa: S311 - sample data
    data = into / f"{kind}.csv"
    written = [data, into / f"{kind}.yaml"]
    with data.open("xb") as file:
        file.write(csv_line(header))
        file.writelines(csv_line(line) for line in lines)
    with written[1].open("x", encoding="utf-8") as file_yaml:
        file_yaml.write(sidecar)
    if kind == "reviews":
        licence = into / "LICENSE-reviews.txt"
        licence.write_text(str(_reviews_file()["licence"]), encoding="utf-8")
        written.append(licence)
    return written


def _candidates(rows: int, rng: random.Random) -> Iterator[tuple[str, ...]]:
    for number in range(1, rows + 1):
        role = rng.choice(list(_ROLES))
        skills = rng.sample(_ROLES[role], k=rng.randint(2, 5))
        if rng.random() < 0.4:
            skills.append(rng.choice(_ROLES[rng.choice(list(_ROLES))]))
        notes = [rng.choice(_NOTES).format(n=rng.randint(2, 12)) for _ in range(rng.randint(1, 2))]
        yield (
            f"C{number:06d}",
            role,
            str(min(40, int(rng.expovariate(1 / 8)))),
            "; ".join(dict.fromkeys(skills)),
            rng.choice(_EDUCATION),
            rng.choice(_PLACES),
            " ".join(note for note in notes if note),
        )


def _reviews(rows: int, rng: random.Random) -> Iterator[tuple[str, ...]]:
    texts = reviews()
    for number in range(rows):
        again, place = divmod(number, len(texts))
        if place == 0:
            rng.shuffle(texts)
        name, text, rating = texts[place]
        yield (f"{name}-{again + 1}" if again else name, text, rating)


def reviews() -> list[tuple[str, str, str]]:
    """The 200 reviews: id, text, mean rating by 20 people."""
    return [(name, text, rating) for name, text, rating in _reviews_file()["rows"]]


def _reviews_file() -> dict[str, list[list[str]]]:
    text = resources.files("spoolama.cli").joinpath("reviews.json").read_text(encoding="utf-8")
    loaded: dict[str, list[list[str]]] = json.loads(text)
    return loaded
