"""How many answers a pilot must have to decide anything, and how many it can use at all.

Reckoned by what the pilot itself goes by (`effect/trials.py`), for answers that could not be better: none
that differs from the one given alone, or seven known answers met and none missed.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from spoolama.effect.evidence import ALPHA, paired_odds
from spoolama.effect.forms import AGAIN, ALONE, FORMS, Form
from spoolama.effect.sample import BLOCK, Rules, Seen
from spoolama.effect.trials import Trials
from spoolama.job.trim import CANDIDATES

__all__ = ["PilotSize", "pilot_size"]

_MOST_ROWS = 20_000
"""Of a proof that takes more rows than this it is only said that it takes at least so many."""


@dataclass(frozen=True, slots=True)
class PilotSize:
    """Numbers of answers."""

    least: int | None
    """With fewer nothing can be proved; None: the job has too few rows for any proof."""
    most: int
    """More cannot be used: all rows alone and in every form."""


def pilot_size(total: int, *, margin: float, noisy: bool, gold: bool, longest: int | None) -> PilotSize:
    """What a pilot on a job of so many rows needs and can use.

    Args:
        total: Rows of the job, at least one.
        margin: Share of rows that may be answered differently than alone.
        noisy: Whether the temperature is above 0.
        gold: Whether known answers are there.
        longest: Rows of a segment at most; None: any number.
    """
    block = tuple(range(min(BLOCK, total)))
    trials = Trials(Rules((block,), 0, margin, noisy, gold), Seen({}, {}))
    forms = [form for form in FORMS if longest is None or form.tail < longest]
    blocks = max(1, total // BLOCK)
    needed = [asks for form in forms if (asks := _least(trials, form, blocks, len(block))) is not None]
    every = trials.price((ALONE, AGAIN, *(form.name for form in forms)))
    return PilotSize(min(needed, default=None), blocks * every + CANDIDATES)


def _least(trials: Trials, form: Form, blocks: int, size: int) -> int | None:
    """Answers without which this form cannot be proved to do no harm, nor to agree better with gold."""
    each = size - (not form.anchored)  # the first of a conversation sees none
    most = min(blocks * each, _MOST_ROWS)
    rows = 1 + bisect.bisect_left(range(1, most + 1), 1 / ALPHA, key=lambda n: trials.odds(form, n))
    if trials.rules.gold:
        wins = 1 + bisect.bisect_left(range(1, most + 1), 1 / ALPHA, key=lambda n: paired_odds(n, 0))
        rows = min(rows, wins)
    if rows > blocks * each:
        return None
    price = trials.price((ALONE, AGAIN, form.name))
    return price * -(-rows // each) + CANDIDATES * form.anchored
