"""How rarely a window is trimmed: what a trim costs against what a longer conversation costs.

A window keeps k rows of t tokens at a trim and lets m more come before the next. Behind P tokens of prefix,
with o of the t tokens answered, a period of m rows (j = 0 ... m - 1 rows came since the trim) takes, by the
terms of `costs.CostModel` and with u = t - o for what a row evaluates by itself (the answers before it are
cached already where nothing was trimmed):

    the k rows again, once:   k t (b + c (P + k t / 2))
    each row's evaluation:    a + u (b + c (P + (k + j) t + u / 2))
    each row's answer:        o (d + e (P + (k + j) t + u + o / 2))

j is (m - 1) / 2 on average. So seconds a row are a constant and

    k t (b + c (P + k t / 2)) / m  +  (m / 2) t (e o + c u)

which is least where both terms are equal:

    m = sqrt(2 k (b + c (P + k t / 2)) / (e o + c (t - o)))

The derivation is our own. The shorter form m = sqrt(2 k (b + c k t / 2) / (e o + c t)) differs in two places:
it leaves out the prefix, before which the kept rows never stand, and it lets a row evaluate its answer too.
"""

from __future__ import annotations

import math

from spoolama.context.costs import CostModel
from spoolama.job.trim import SAFE_EVERY

__all__ = ["MAX_EVERY", "SAFE_EVERY", "best_every", "cost_per_row"]

MAX_EVERY = 1000
"""More rows between two trims are never wished for; the high mark on tokens comes long before."""


def best_every(
    costs: CostModel, *, keep: int, turn_tokens: float, answer_tokens: float, prefix_tokens: float
) -> int:
    """Rows between two trims that cost the least time a row, from 1 to `MAX_EVERY`.

    Where context is free (c and e are 0) trims are pure loss, so it is `MAX_EVERY`.

    Args:
        costs: Costs of the server.
        keep: Rows that a trim keeps.
        turn_tokens: Tokens of a row and its answer together, on average.
        answer_tokens: Tokens of the answer alone, on average.
        prefix_tokens: Tokens that stand before all rows.
    """
    again = 2 * keep * (costs.b + costs.c * (prefix_tokens + keep * turn_tokens / 2))
    longer = costs.e * answer_tokens + costs.c * max(0.0, turn_tokens - answer_tokens)
    if again >= longer * MAX_EVERY**2:
        return MAX_EVERY
    return max(1, round(math.sqrt(again / longer)))


def cost_per_row(
    costs: CostModel,
    keep: int,
    every: int,
    turn_tokens: float,
    answer_tokens: float,
    prefix_tokens: float,
) -> float:
    """Seconds a row, on average over a period of a window that keeps `keep` rows and trims each `every` rows.

    Arguments as in `best_every`; `every` is at least 1.
    """
    kept, own = keep * turn_tokens, turn_tokens - answer_tokens
    before = prefix_tokens + kept + (every - 1) / 2 * turn_tokens
    again = costs.prompt_seconds(kept, prefix_tokens) - costs.a  # the row behind them is asked anyway
    return (
        again / every + costs.prompt_seconds(own, before) + costs.answer_seconds(answer_tokens, before + own)
    )
