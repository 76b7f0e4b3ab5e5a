"""Forms: what could stand before each row of a job, and how fast that would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spoolama.job.plan import Plan
from spoolama.job.trim import ANCHORS

__all__ = [
    "AGAIN",
    "ALONE",
    "FASTER",
    "FORMS",
    "SEED",
    "AloneCosts",
    "Form",
    "faster",
    "form_named",
    "speed_of",
]

ALONE = "alone"
"""The form without a conversation: each row behind the shared prefix."""

AGAIN = "again"
"""Rows answered alone a second time: how far alone agrees with itself."""

SEED = 1000
"""Added to the sampler's seed for an answer that is compared, and twice for a second one: shared dice would
agree by themselves."""

FASTER = 1.1
"""A form without gold is worth a trial if it is so many times as fast as rows alone."""

_ATTENTION = 5e-5
"""What attention to one more token costs a token, as a share of the rest.

By sizes: 135M parameters read 23 KB of cache for each token before and 270 MB of weights (9e-5), a 12B model
at 4 bits some 400 KB and 7 GB (6e-5), a 70B one 330 KB and 40 GB (8e-6).
"""


@dataclass(frozen=True, slots=True)
class Form:
    """What stands between the shared prefix and a row."""

    name: str
    words: str
    tail: int
    """Earlier rows at most; when they are there, the next row begins anew."""
    anchored: bool
    """Whether the same rows stand in front for the whole job."""

    def plan(self, alone: Plan, anchors: tuple[int, ...], *, gold: bool, prefix_tokens: int | None) -> Plan:
        """The plan under which rows are asked in this form.

        Args:
            alone: The plan under which they are asked alone.
            anchors: Ordinals of the rows that would stand in front.
            gold: Whether they carry their known answers.
            prefix_tokens: Tokens of the shared prefix, at most.
        """
        if not self.anchored:
            return replace(alone, strategy="reset", every=self.tail + 1)
        return replace(
            alone,
            strategy="anchors",
            every=self.tail + 1,
            anchors=anchors,
            gold=gold,
            prefix_tokens=prefix_tokens,
        )


FORMS = (
    Form("anchors", "the same rows before each row", 0, anchored=True),
    Form("anchors-tail-5", "the same rows and up to 5 earlier ones before each row", 5, anchored=True),
    Form("tail-1", "up to 1 earlier row before each row", 1, anchored=False),
    Form("tail-5", "up to 5 earlier rows before each row", 5, anchored=False),
    Form("tail-20", "up to 20 earlier rows before each row", 20, anchored=False),
)
"""In the order in which they are tried where not all can be."""


def form_named(name: str) -> Form | None:
    """The form of this name; None for `ALONE`."""
    return next((form for form in FORMS if form.name == name), None)


@dataclass(frozen=True, slots=True)
class AloneCosts:
    """What a row costs alone, on average, by the server's own counts and times."""

    prompt_tokens: float
    evaluated: float
    """Of the prompt, what did not come from the cache."""
    own_tokens: float
    """Of the prompt, what is the row's own."""
    answer_tokens: float
    prompt_s: float
    eval_s: float

    @property
    def seconds(self) -> float:
        """Evaluation and answer."""
        return self.prompt_s + self.eval_s


def speed_of(form: Form, alone: AloneCosts) -> float:
    """How many times as fast as alone the form is likely to be.

    A row in a conversation evaluates its own tokens, behind more others; what alone fails to find in the
    cache is evaluated once for each beginning. Seconds a token are those of the rows asked alone; attention
    to a further token costs `_ATTENTION` of them. It is reckoned, not measured.
    """
    turn = alone.own_tokens + alone.answer_tokens
    front = ANCHORS * turn if form.anchored else 0.0
    context = 1 + _ATTENTION * (front + form.tail / 2 * turn)
    missing = max(0.0, alone.evaluated - alone.own_tokens)
    if missing > alone.own_tokens / 4:  # the prefix is not cached, so what stands behind it is not either
        missing += front
    evaluated = alone.own_tokens + missing / (form.tail + 1)
    each = alone.prompt_s / max(1.0, alone.evaluated)
    seconds = evaluated * each * context + alone.eval_s * context
    return alone.seconds / seconds if seconds > 0 else 1.0


def faster(alone: AloneCosts | None, forms: Sequence[Form] = FORMS) -> list[Form]:
    """The forms that are likely to be faster by `FASTER`, the fastest first; none where costs are unknown."""
    if alone is None:
        return []
    speeds = [(speed_of(form, alone), form) for form in forms]
    return [form for speed, form in sorted(speeds, key=lambda s: -s[0]) if speed >= FASTER]
