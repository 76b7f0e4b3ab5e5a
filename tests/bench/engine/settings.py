"""What is asked, and in which orders: everything that the measured configurations share or differ in."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from spoolama.backends.base import Message

__all__ = [
    "CONFIGURATIONS",
    "FORMAT",
    "LABELS",
    "NUM_PREDICT",
    "RUBRIC",
    "SAMPLING",
    "WINDOW",
    "Configuration",
    "Review",
    "alone",
    "read_reviews",
    "sidecar_text",
]

WINDOW = 4096
NUM_PREDICT = 16
SAMPLING = {"temperature": 0, "seed": 7}
LABELS = ("negative", "neutral", "positive")
FORMAT = {"enum": ["positive", "negative", "neutral"]}

RUBRIC = (
    "You judge the sentiment of sentences from product reviews. Read the sentence as a careful human rater "
    "would. Answer with exactly one word: positive, negative or neutral. Positive means that the customer "
    "likes the product or something about it. Negative means that the customer complains, reports a defect, "
    "or regrets the purchase. Neutral means that the sentence states a fact, asks a question or is about "
    "something else. Look at what the customer says about the product, not at the mood of single words. "
    "Irony counts as what is meant. A sentence that praises one thing and blames another is judged by its "
    "main point. Prices count as negative only where the customer finds them too high. Do not explain, do "
    "not repeat the sentence, do not add punctuation. If you are not sure, choose the answer that most "
    "people would give."
)
"""The shared prefix: with the chat template about 180 tokens."""

_REVIEWS = Path(__file__).parents[3] / "config" / "data" / "reviews.csv"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way of the engine to order its work."""

    name: str
    sidecar: str
    """The lines of the sidecar that make it."""
    segments: bool = True
    """Whether rows share conversations, so that segments are needed to give several lanes work."""


@dataclass(frozen=True, slots=True)
class Review:
    """One row."""

    ordinal: int
    text: str
    rating: float
    """What people gave it, from -4 to +4."""


CONFIGURATIONS = (
    Configuration("alone", "mode: isolated", segments=False),
    Configuration("alone-unprimed", "mode: isolated\nprime: never", segments=False),
    Configuration("alone-primed", "mode: isolated\nprime: always", segments=False),
    Configuration("reset", "trim: {strategy: reset, every: 20}"),
    Configuration("window", "trim: {strategy: window, keep: 20, every: auto}"),
    Configuration("anchors", "trim: {strategy: anchors, anchors: 6}"),
    Configuration("anchors-tail", "trim: {strategy: anchors, anchors: 6, every: 10}"),
    Configuration("important", "trim: {strategy: important, keep: 10, every: auto}"),
    Configuration("hybrid", "trim: {strategy: hybrid, anchors: 6, keep: 10, every: auto}"),
    Configuration("budget", "trim: {strategy: budget, tokens: 800}"),
)


def sidecar_text(configuration: Configuration, model: str, segment: int) -> str:
    """The sidecar a user would write for it. A JSON string is a YAML string as well."""
    lines = [
        f"model: {model}",
        f"system: {json.dumps(RUBRIC)}",
        'prompt: "{{ text }}"',
        f"options: {json.dumps({'num_ctx': WINDOW, 'num_predict': NUM_PREDICT, **SAMPLING})}",
        f"format: {json.dumps(FORMAT)}",
        configuration.sidecar,
    ]
    if configuration.segments:
        lines.append(f"segment: {segment}")
    return "\n".join(lines) + "\n"


def alone(text: str) -> tuple[Message, ...]:
    """A row behind the shared prefix alone, as the sidecars above ask it."""
    return (Message("system", RUBRIC), Message("user", text))


def read_reviews(number: int) -> tuple[Review, ...]:
    """The first rows of the shipped reviews.

    Raises:
        SystemExit: there are not so many.
    """
    with _REVIEWS.open(newline="") as file:
        found = tuple(
            Review(n, row["text"], float(row["human_rating"])) for n, row in enumerate(csv.DictReader(file))
        )
    if not 0 < number <= len(found):
        raise SystemExit(f"--rows {number}: there are {len(found)} reviews")
    return found[:number]
