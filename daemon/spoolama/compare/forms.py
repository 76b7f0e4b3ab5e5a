"""Forms: what could stand before each row of a job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spoolama.job.plan import Plan

__all__ = ["FORMS", "ISOLATED", "SEED", "Form", "form_named"]

ISOLATED = "isolated"
"""The form without a conversation: each row behind the shared prefix."""

SEED = 1000
"""Added to the sampler's seed for an answer that is compared, and twice for a second one: answers drawn with
the same seed would agree by themselves."""

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

    def plan(
        self, isolated: Plan, anchors: tuple[int, ...], *, gold: bool, prefix_tokens: int | None
    ) -> Plan:
        """The plan under which rows are asked in this form.

        Args:
            isolated: The plan under which they are asked in isolation.
            anchors: Ordinals of the rows that would stand in front.
            gold: Whether they carry their known answers.
            prefix_tokens: Tokens of the shared prefix, at most.
        """
        if not self.anchored:
            return replace(isolated, strategy="reset", every=self.tail + 1)
        return replace(
            isolated,
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
    """The form of this name; None for `ISOLATED`."""
    return next((form for form in FORMS if form.name == name), None)
