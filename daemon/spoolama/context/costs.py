"""What a token costs on this server: a model of two lines, fitted to the server's own counters.

    evaluation = a + n * (b + c * context)    n evaluated prompt tokens, the mean one behind `context` tokens
    answer     = o * (d + e * context)        o answer tokens, likewise

b and d are the weights at work, c and e the attention, which looks at every token before; so both times are
linear in context for plain attention. The derivation is our own. Only requests that ran alone tell these
times: what runs beside another one is slowed by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ATTENTION", "MAX_ERROR", "MIN_SAMPLES", "CostModel", "Fit", "Sample", "fit_costs"]

MIN_SAMPLES = 40
"""Usable requests that a fit needs."""
MAX_ERROR = 0.35
"""A fit is taken only if half of the requests took what it says within this share."""

_SPREAD = 0.2
"""A count differs if it is this share away from the median count, ..."""
_DIFFERENT = 4
"""... and there is a spread if so many do: a single one may be the one that stalled."""

ATTENTION = 5e-5
"""What attention to one more token costs a token, as a share of the rest, where times cannot tell.

By sizes: 135M parameters read 23 KB of cache for each token before and 270 MB of weights (9e-5), a 12B model
at 4 bits some 400 KB and 7 GB (6e-5), a 70B one 330 KB and 40 GB (8e-6).
"""
_LEAST_NOISE = 0.01
"""No server's times repeat better; without it a perfect fit would divide by zero."""
_FIRST_NOISE = 0.2
"""Share by which times are taken to vary until the first fit has shown it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server counted of one request that ran alone."""

    evaluated: int
    """Prompt tokens that were evaluated."""
    cached: int
    """Prompt tokens before them, taken from the server's cache."""
    answered: int
    """Answer tokens."""
    prompt_s: float
    """Seconds that the evaluation took."""
    eval_s: float
    """Seconds that the answer took."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of this server, model and window. Never negative."""

    a: float
    """Seconds of an evaluation, whatever its length."""
    b: float
    """Seconds per evaluated token."""
    c: float
    """Seconds per evaluated token and token before it."""
    d: float
    """Seconds per answer token."""
    e: float
    """Seconds per answer token and token before it."""
    samples: int = 0
    """Requests it was fitted to; 0: it was not fitted."""
    error: float = 0.0
    """Median over these requests of |predicted - measured| / measured, both times together."""

    def prompt_seconds(self, evaluated: float, cached: float) -> float:
        """Seconds to evaluate tokens behind `cached` ones; half of them stand before the mean one as well."""
        return self.a + evaluated * (self.b + self.c * (cached + evaluated / 2))

    def answer_seconds(self, answered: float, prompt: float) -> float:
        """Seconds of an answer of so many tokens to a prompt of `prompt` tokens."""
        return answered * (self.d + self.e * (prompt + answered / 2))

    def seconds(self, sample: Sample) -> float:
        """Seconds of a whole request, by its counts."""
        return self.prompt_seconds(sample.evaluated, sample.cached) + self.answer_seconds(
            sample.answered, sample.evaluated + sample.cached
        )

    def to_json(self) -> dict[str, Any]:
        """The model as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostModel:
        """The model that `to_json` gave.

        Raises:
            ValueError: a key is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"not a cost model: {sorted(set(data) ^ names)} missing or unknown")
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Fit:
    """A cost model, or why there is none."""

    model: CostModel | None
    reason: str = ""
    """For people; empty where there is a model."""


def fit_costs(samples: Sequence[Sample]) -> Fit:
    """Costs from measured requests, robust against noise and stalls.

    The two times are fitted apart, each by the logarithm of predicted / measured, so that a short request
    counts as much as a long one, with a loss that grows linearly once a request is off by more than the
    noise (`soft_l1`). The noise is measured by a first fit. c and e are sought as shares of b and d, with a
    pull towards `ATTENTION` that weighs as much as one request (a factor of ten off is as far as one request
    off by the noise). Where noisy rows cannot tell them from nothing, they would else come out as nothing,
    and a window would hardly ever be trimmed.

    There is no model where
    - fewer than `MIN_SAMPLES` requests have all counts and times above zero;
    - evaluated counts are all alike: a is then not to be told from b, and b is what a trim pays;
    - context is all alike: c and e are then not to be told from b and d, and they are what waiting pays;
    - the model misses the times by more than `MAX_ERROR`.
    """
    usable = [s for s in samples if min(s.evaluated, s.answered, s.prompt_s, s.eval_s) > 0]
    if len(usable) < MIN_SAMPLES:
        return Fit(None, f"only {len(usable)} requests could be measured, {MIN_SAMPLES} are needed")
    if not _spread([s.evaluated for s in usable]):
        return Fit(None, "all requests evaluated about the same number of tokens")
    if not _spread([s.evaluated + s.cached for s in usable]):
        return Fit(None, "all requests had about the same number of tokens before them")
    costs = _fit(usable)
    error = median(abs(costs.seconds(s) / (s.prompt_s + s.eval_s) - 1) for s in usable)
    if not error <= MAX_ERROR:
        return Fit(
            None, f"the times are off by {error:.0%} from any model, at most {MAX_ERROR:.0%} is of use"
        )
    return Fit(CostModel(costs.a, costs.b, costs.c, costs.d, costs.e, len(usable), error))


def _spread(counts: Sequence[int]) -> bool:
    middle = median(counts)
    return sum(abs(n - middle) > _SPREAD * middle for n in counts) >= _DIFFERENT


def _fit(samples: Sequence[Sample]) -> CostModel:
    import numpy as np  # scipy brings it

    evaluated, cached, answered, prompt_s, eval_s = np.array(
        [(s.evaluated, s.cached, s.answered, s.prompt_s, s.eval_s) for s in samples], dtype=float
    ).T
    none = np.zeros(len(samples))
    _, d, e = _line(none, answered, evaluated + cached + answered / 2, eval_s)
    a, b, c = _line(none + 1, evaluated, cached + evaluated / 2, prompt_s)
    return CostModel(a, b, c, d, e)


def _line(
    requests: NDArray[Any], tokens: NDArray[Any], context: NDArray[Any], seconds: NDArray[Any]
) -> tuple[float, float, float]:
    """(Per request, per token, per token and token before it) of `seconds`, all positive."""
    import numpy as np
    from scipy.optimize import least_squares

    measured = np.log(seconds)

    def off(x: NDArray[Any]) -> NDArray[Any]:
        once, each, share = np.exp(x)
        return np.asarray(np.log(requests * once + tokens * each * (1 + share * context)) - measured)

    def residuals(x: NDArray[Any], noise: float) -> NDArray[Any]:
        return np.append(off(x) / noise, (x[2] - math.log(ATTENTION)) / math.log(10))

    each = float(np.median(seconds / tokens)) / 2
    x = np.log([each * float(np.median(tokens)), each, ATTENTION])
    low, high = x - math.log(1e6), x + math.log(1e6)
    for noise in (_FIRST_NOISE, None):
        scale = noise or max(_LEAST_NOISE, 1.4826 * float(np.median(np.abs(off(x)))))  # MAD to deviation
        x = least_squares(residuals, x, bounds=(low, high), loss="soft_l1", kwargs={"noise": scale}).x
        x = np.clip(x, low + 1e-9, high - 1e-9)  # a start on a bound is refused
    once, each, share = (float(v) for v in np.exp(x))
    return once, each, each * share
