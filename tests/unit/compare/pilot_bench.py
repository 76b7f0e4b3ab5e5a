"""Run pilots to their end with given answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from spoolama.compare.pilot import (
    FORMS,
    ISOLATED,
    Decision,
    PilotAnswers,
    PilotRules,
    Step,
    blocks_of,
    form_named,
    next_step,
)
from spoolama.job.sidecar import CANDIDATES

WORDS = ("negative", "neutral", "positive")

Says = Callable[[str, int], str]
"""The answer to a row, by kind and ordinal; the same each time."""


def plain(kind: str, n: int) -> str:
    """Answer as in isolation."""
    return WORDS[n * 7 % 3]


def right(n: int) -> str:
    """Gold for isolated rows that are right two times in three."""
    return WORDS[(n * 7 + (n % 3 == 0)) % 3]


def rules_of(
    asks: int = 200, *, total: int = 10_000, seed: int = 1, longest: int | None = None
) -> PilotRules:
    """The rules of a job with three labels."""
    return PilotRules(blocks_of(total, asks, seed), asks, WORDS, longest=longest)


@dataclass(slots=True)
class Run:
    """A pilot in progress."""

    rules: PilotRules
    says: Says
    gold: Callable[[int], str] = right
    labels: dict[str, dict[int, str]] = field(default_factory=dict)
    done: list[tuple[int, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    left: dict[str, frozenset[int]] = field(default_factory=dict)
    barren: bool = False
    """The candidates give no anchors, which is known once they were asked."""
    no_anchors: bool = False

    @property
    def asked(self) -> int:
        """Counted here, not in the pilot."""
        anchored = any(form.anchored for form in FORMS if form.name in self.labels)
        return sum(map(len, self.labels.values())) + (CANDIDATES if anchored or self.no_anchors else 0)

    def next(self) -> Step | Decision:
        """The next decision of the pilot."""
        gold = {n: self.gold(n) for labels in self.labels.values() for n in labels}
        return next_step(
            self.rules, PilotAnswers(self.labels, gold, frozenset(self.done), self.left, self.no_anchors)
        )

    def ask(self, block: int, kind: str, rows: int | None = None) -> None:
        """Answer a block in one form; only its first rows if the service dies in it."""
        ordinals = self.rules.blocks[block]
        assert kind == ISOLATED or form_named(kind)
        self.labels.setdefault(kind, {}).update({n: self.says(kind, n) for n in ordinals[:rows]})
        if rows is None:
            self.done.append((block, kind))

    def to_end(self, dies: random.Random | None = None) -> Decision:
        """Run until the pilot decides; `dies` says where the service dies inside blocks."""
        while isinstance(step := self.next(), Step):
            self.steps.append(step)
            assert step.kinds, "a step asks something"
            if self.barren and any((form := form_named(kind)) and form.anchored for kind in step.kinds):
                assert not self.no_anchors, "without anchors nothing with anchors is tried"
                self.no_anchors = True
            for kind in step.kinds:
                assert (step.block, kind) not in self.done, "nothing is asked twice"
                form = form_named(kind)
                if form is not None and form.anchored and self.no_anchors:
                    self.done.append((step.block, kind))
                    continue
                if dies is not None and dies.random() < 0.3:
                    self.ask(step.block, kind, dies.randrange(1, 20))
                    break
                self.ask(step.block, kind)
        return step


def run(rules: PilotRules, says: Says = plain, **more: object) -> Decision:
    """Return how a pilot ends."""
    return Run(rules, says, **more).to_end()  # type: ignore[arg-type]
