"""The questions and the strategies: what the measured configurations share and where they differ."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoolama.backends.base import Message

WINDOW = 4096
NUM_PREDICT = 8
SAMPLING: dict[str, Any] = {"temperature": 0, "seed": 7, "stop": ["\n", "<"]}
"""Gemma 3 270M is a base model, which would continue with a tag of its template."""
LABELS = ("negative", "neutral", "positive")
FORMAT = {"enum": ["positive", "negative", "neutral"]}
"""For the one configuration that shows the cost of a schema: a grammar is checked at every token."""

RUBRIC = (
    "Judge the sentiment of a sentence from a product review, as a careful reader would. Answer with one "
    "word: positive, negative or neutral. Look at what the customer says about the product, not at the mood "
    "of single words."
)
EXAMPLES = (
    ("I love the bright screen and the long battery life.", "positive"),
    ("It broke after two days and nobody answered my mails.", "negative"),
    ("I bought it in March for my brother.", "neutral"),
    ("Works great, I would buy it again.", "positive"),
    ("What a waste of money.", "negative"),
)
"""Few-shot turns, so that both models answer with one word and an end without a schema."""

PREFIX = (
    Message("system", RUBRIC),
    *(
        message
        for user, assistant in EXAMPLES
        for message in (Message("user", user), Message("assistant", assistant))
    ),
)
"""The shared prefix: about 150 tokens with the chat template."""

_REVIEWS = Path(__file__).parents[3] / "config" / "data" / "reviews.csv"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One strategy of the engine."""

    name: str
    sidecar: str
    """The lines of the sidecar that make it."""
    segments: bool = True
    """Whether rows share conversations, so that several lanes need several segments."""


@dataclass(frozen=True, slots=True)
class Review:
    """One row."""

    ordinal: int
    text: str
    rating: float
    """The human rating, from -4 to +4."""


CONFIGURATIONS = (
    Configuration("alone", "mode: isolated\nprime: never", segments=False),
    Configuration("alone-primed", "mode: isolated\nprime: always", segments=False),
    Configuration("alone-schema", f"mode: isolated\nformat: {json.dumps(FORMAT)}", segments=False),
    Configuration("reset", "trim: {strategy: reset, every: 20}"),
    Configuration("window", "trim: {strategy: window, keep: 10, every: 10}"),
    Configuration("anchors", "trim: {strategy: anchors, anchors: 6}"),
    Configuration("anchors-tail", "trim: {strategy: anchors, anchors: 6, every: 10}"),
    Configuration("important", "trim: {strategy: important, keep: 10, every: 10}"),
    Configuration("hybrid", "trim: {strategy: hybrid, anchors: 6, keep: 5, every: 10}"),
    Configuration("budget", "trim: {strategy: budget, tokens: 800}"),
)


def sidecar_text(configuration: Configuration, model: str, segment: int) -> str:
    """Return a user's sidecar for it. A JSON string is a YAML string as well."""
    schema = "format" in configuration.sidecar
    # A stop sequence for words would end JSON at its first line.
    sampling = {key: value for key, value in SAMPLING.items() if key != "stop" or not schema}
    lines = [
        f"model: {model}",
        f"system: {json.dumps(RUBRIC)}",
        f"examples: {json.dumps([{'user': user, 'assistant': answer} for user, answer in EXAMPLES])}",
        'prompt: "{{ text }}"',
        f"options: {json.dumps({'num_ctx': WINDOW, 'num_predict': NUM_PREDICT, **sampling})}",
        configuration.sidecar,
        "audit: off",  # requests of the audit are not part of a strategy
    ]
    if configuration.segments:
        lines.append(f"segment: {segment}")
    return "\n".join(lines) + "\n"


def alone(text: str) -> tuple[Message, ...]:
    """Return the request for a row after the shared prefix only, as the sidecars above send it."""
    return (*PREFIX, Message("user", text))


def read_reviews(number: int) -> tuple[Review, ...]:
    """Read the first rows of the shipped reviews.

    Raises:
        SystemExit: there are not enough.
    """
    with _REVIEWS.open(newline="") as file:
        found = tuple(
            Review(n, row["text"], float(row["human_rating"])) for n, row in enumerate(csv.DictReader(file))
        )
    if not 0 < number <= len(found):
        raise SystemExit(f"--rows {number}: there are {len(found)} reviews")
    return found[:number]
