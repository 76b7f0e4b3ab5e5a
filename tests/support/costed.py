"""A server that only keeps time: what a conversation costs on machines with known costs, and how the rows
between two trims that are learned from its noisy times compare with the best ones there are.

Nothing is sent anywhere: the prefix cache is reckoned, the times follow `context/costs.CostModel`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from spoolama.context.costs import CostModel, Fit, Sample, fit_costs
from spoolama.context.marks import SAFE_EVERY, best_every

__all__ = [
    "CARD_16GB",
    "CARD_LARGE",
    "CPU",
    "MACHINES",
    "Compared",
    "Machine",
    "around",
    "compare",
    "learn",
    "simulate",
    "sweep",
]

TurnTokens = Callable[[random.Random], int]
"""Draws the tokens of a row and its answer together."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A server with known costs."""

    name: str
    costs: CostModel
    noise: float = 0.2
    """Standard deviation of each time, as a share of it."""
    stalls: float = 0.05
    """Share of times that are ten times as long."""

    @property
    def quiet(self) -> Machine:
        """The same machine without noise."""
        return replace(self, noise=0.0, stalls=0.0)


CPU = Machine("CPU", CostModel(a=0.01, b=4e-3, c=4e-6, d=1.2e-2, e=1.2e-5))
"""Two cores, a small model."""
CARD_16GB = Machine("CARD_16GB", CostModel(a=0.02, b=4e-4, c=4e-8, d=2.2e-2, e=5e-7))
"""A card of 16 GB, a model of 12B parameters at 4 bits. An assumption, not a measurement."""
CARD_LARGE = Machine("CARD_LARGE", CostModel(a=0.01, b=8e-5, c=8e-9, d=9e-3, e=1.2e-7))
"""A card of the 80 GB class, the same model. An assumption, not a measurement."""
MACHINES = (CPU, CARD_16GB, CARD_LARGE)


def around(mean: int, answer_tokens: int) -> TurnTokens:
    """Row lengths that vary like those of texts people write: log-normal, by a third or so."""
    spread = 0.35

    def draw(chance: random.Random) -> int:
        own = (mean - answer_tokens) * chance.lognormvariate(-(spread**2) / 2, spread)
        return answer_tokens + max(1, round(own))

    return draw


def simulate(
    machine: Machine,
    *,
    rows: int,
    keep: int,
    every: int,
    turn_tokens: TurnTokens,
    answer_tokens: int,
    prefix: int,
    seed: int,
    sliding: bool = False,
) -> tuple[float, list[Sample]]:
    """(Seconds in all, what the server counted) of one conversation with a window.

    A row evaluates what is behind the longest cached beginning of its prompt: its own tokens where the
    conversation only grew, the kept rows as well after a trim, the prefix as well at the first row.

    Args:
        machine: The server.
        rows: Rows of the conversation.
        keep: Rows that a trim keeps.
        every: Rows between two trims.
        turn_tokens: Draws the tokens of a row and its answer; the same ones for the same seed.
        answer_tokens: Tokens of each answer.
        prefix: Tokens that stand before all rows.
        seed: Of lengths and noise.
        sliding: The model's attention slides, so the cache cannot go back to the prefix: a trim loses all.
    """
    lengths, luck = random.Random(f"lengths {seed}"), random.Random(f"luck {seed}")

    def noisy(seconds: float) -> float:
        stall = 10.0 if machine.stalls and luck.random() < machine.stalls else 1.0
        return seconds * stall * (max(0.1, luck.gauss(1.0, machine.noise)) if machine.noise else 1.0)

    costs, samples, total = machine.costs, [], 0.0
    tail: list[int] = []
    before, cached = prefix, 0
    for _ in range(rows):
        if len(tail) >= keep + every:
            tail = tail[len(tail) - keep :]
            before, cached = prefix + sum(tail), 0 if sliding else prefix
        turn = turn_tokens(lengths)
        prompt = before + turn - answer_tokens
        prompt_s = noisy(costs.prompt_seconds(prompt - cached, cached))
        eval_s = noisy(costs.answer_seconds(answer_tokens, prompt))
        samples.append(Sample(prompt - cached, cached, answer_tokens, prompt_s, eval_s))
        total += prompt_s + eval_s
        tail.append(turn)
        before = cached = before + turn
    return total, samples


@dataclass(frozen=True, slots=True)
class Compared:
    """Learned rows between two trims beside the best fixed ones."""

    machine: str
    keep: int
    tokens: int
    """Of a row and its answer, on average."""
    best: int
    """The fixed ones that cost least, of those tried."""
    learned: int
    ratio: float
    """Seconds with the learned ones / seconds with the best, without noise."""
    safe: float
    """The same of `SAFE_EVERY`."""


def learn(
    machine: Machine, *, rows: int, keep: int, tokens: int, answer_tokens: int, prefix: int, seed: int
) -> tuple[int, Fit]:
    """(Rows between two trims, fit) as learned from the first rows of a conversation with safe marks."""
    _, samples = simulate(
        machine,
        rows=rows,
        keep=keep,
        every=SAFE_EVERY,
        turn_tokens=around(tokens, answer_tokens),
        answer_tokens=answer_tokens,
        prefix=prefix,
        seed=seed,
    )
    fit = fit_costs(samples)
    if fit.model is None:
        return SAFE_EVERY, fit
    every = best_every(
        fit.model, keep=keep, turn_tokens=tokens, answer_tokens=answer_tokens, prefix_tokens=prefix
    )
    return every, fit


def sweep(step: float) -> list[int]:
    """Rows between two trims from 1 to 1000, each about `step` times the one before."""
    return sorted({round(step**n) for n in range(int(math.log(1000) / math.log(step)) + 1)} | {1000})


def compare(
    machine: Machine,
    *,
    keep: int,
    tokens: int,
    tried: Iterable[int],
    rows: int = 1500,
    learn_rows: int = 64,
    answer_tokens: int = 16,
    prefix: int = 220,
    seed: int = 1,
) -> Compared:
    """Learn on the noisy machine, judge on the quiet one by the same rows."""
    every, _ = learn(
        machine,
        rows=learn_rows,
        keep=keep,
        tokens=tokens,
        answer_tokens=answer_tokens,
        prefix=prefix,
        seed=seed,
    )
    seconds = {
        m: simulate(
            machine.quiet,
            rows=rows,
            keep=keep,
            every=m,
            turn_tokens=around(tokens, answer_tokens),
            answer_tokens=answer_tokens,
            prefix=prefix,
            seed=seed,
        )[0]
        for m in {*tried, every, SAFE_EVERY}
    }
    best = min(seconds, key=lambda m: (seconds[m], m))
    return Compared(
        machine.name,
        keep,
        tokens,
        best,
        every,
        seconds[every] / seconds[best],
        seconds[SAFE_EVERY] / seconds[best],
    )
