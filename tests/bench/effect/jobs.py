"""Whole jobs, simulated at the level of decisions: no server, no ledger, no time.

Rows are answered by a made behaviour; pilot, guard and audit are the ones of `spoolama.effect`, called as the
engine calls them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from spoolama.context.anchors import candidates, choose
from spoolama.context.spread import Choice
from spoolama.effect.audit import Audit, audit, rows_to_audit
from spoolama.effect.forms import AGAIN, ALONE, FORMS, AloneCosts, Form, faster, form_named
from spoolama.effect.gold import compare
from spoolama.effect.guard import (
    CHECKS,
    GOLD_CHECKS,
    Settled,
    rows_to_check,
    settle,
    settle_by_gold,
    suspicion,
)
from spoolama.effect.likeness import Likeness, likeness_of
from spoolama.effect.pilot import next_step
from spoolama.effect.sample import Decision, Rules, Seen, again_rows, blocks_of
from spoolama.job.trim import ANCHORS, CANDIDATES
from support.effects import LABELS, Behaviour, Labels, Row, Scores, Sight, file_of

__all__ = ["CACHED", "SLIDING", "Outcome", "Scenario", "run_job"]

SLIDING = AloneCosts(270, 270, 47, 4, 0.2, 0.05)
"""A model whose cache forgets the prefix (sliding-window attention, no primer): alone evaluates it each time,
so that conversations are several times as fast. Counts as in the measurements of the README."""

CACHED = AloneCosts(270, 47, 47, 4, 0.05, 0.05)
"""A model that keeps the prefix: no conversation is faster than alone."""

SEGMENT = 200
MARGIN = 0.05
PILOT_SHARE = 0.02
WINDOW_KEEP, WINDOW_EVERY = 20, 30
AUDIT_AGAIN_EVERY = 4
"""At temperature 0 one audited row in so many is answered alone twice (`engine/auditing.py`)."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of job."""

    name: str
    behaviour: Behaviour
    scale: Labels | Scores
    strategy: Literal["auto", "window"] = "auto"
    gold: bool = False
    order: Literal["shuffled", "sorted"] = "shuffled"
    noisy: bool = False
    """Whether the temperature is above 0."""
    right: float = 0.6
    """Share of the rows that alone answers as gold says."""
    costs: AloneCosts = SLIDING
    rows: int = 10_000
    audit: int = 200


@dataclass(slots=True)
class Outcome:
    """What became of one job."""

    form: str
    harm: float
    """What agreement with alone lacks to that of alone with itself, over the rows answered in company."""
    would_harm: float
    """The same of the form that a pilot had on trial, had it been chosen."""
    suspicions: int = 0
    guarded: int = 0
    """Segments in which the guard found harm."""
    audit: Audit | None = None
    decision: Decision | None = None
    asked: dict[str, int] = field(default_factory=dict)
    """Answers beyond one a row, by what they were for."""


@lru_cache(maxsize=20)
def _file(
    scale: Labels | Scores, rows: int, seed: int, order: Literal["shuffled", "sorted"], right: float
) -> list[Row]:
    """Many kinds of jobs are of the same file."""
    return file_of(scale, rows, seed, order=order, right=right)


class _Job:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.s = scenario
        self.seed = seed
        self.rng = random.Random(f"answers {seed}")
        self.file = _file(scenario.scale, scenario.rows, seed, scenario.order, scenario.right)
        self.fixed: dict[int, str] | None = None

    def alone(self, n: int) -> str:
        return self.s.behaviour.alone(self.file[n], self.rng)

    def anchors(self) -> dict[int, str]:
        """Chosen as the engine does, with the answers they gave alone; in the order in which they stand."""
        if self.fixed is None:
            asked = candidates(len(self.file), CANDIDATES, self.seed)
            answers = {n: self.alone(n) for n in asked}
            chosen = choose([Choice(n, answers[n]) for n in sorted(answers)], ANCHORS, "spread", self.seed)
            self.fixed = {n: answers[n] for n in chosen}
        return self.fixed

    def converse(self, rows: Sequence[int], form: Form | None) -> dict[int, tuple[str, int]]:
        """(Answer, rows in sight) of each in one conversation; no form: the forced window."""
        front = self.anchors() if form is not None and form.anchored else {}
        fixed, tail, depth = list(front.values()), [], 0  # type: tuple[list[str], list[str], int]
        most = WINDOW_KEEP + WINDOW_EVERY if form is None else form.tail + 1
        keep = WINDOW_KEEP if form is None else 0
        given = {}
        answer, file, rng = self.s.behaviour.answer, self.file, self.rng
        for n in rows:
            if n in front:
                continue
            if len(tail) >= most:
                tail = tail[len(tail) - keep :] if keep else []
                depth = depth if keep else 0
            label = answer(file[n], Sight([*fixed, *tail] if fixed else tail, depth), rng)
            given[n] = label, len(fixed) + len(tail)
            tail.append(label)
            depth += 1
        return given

    def pilot(self) -> tuple[Decision, dict[str, dict[int, str]]]:
        asks = int(self.s.rows * PILOT_SHARE)
        listed = LABELS if not isinstance(self.s.scale, Scores) else None
        rules = Rules(
            blocks_of(self.s.rows, asks, self.seed),
            asks,
            MARGIN,
            self.s.noisy,
            self.s.gold,
            listed,
            listed is not None,
        )
        labels: dict[str, dict[int, str]] = {}
        done: set[tuple[int, str]] = set()
        while True:
            gold = {n: self.file[n].gold for given in labels.values() for n in given} if self.s.gold else {}
            step = next_step(rules, Seen(labels, gold, frozenset(done), self.s.costs if done else None))
            if isinstance(step, Decision):
                return step, labels
            for block in step.blocks:
                rows = rules.blocks[block]
                for kind in step.kinds:
                    form = form_named(kind)
                    if form is not None:
                        answers = {n: label for n, (label, _) in self.converse(rows, form).items()}
                    else:
                        again = kind == AGAIN
                        answers = {n: self.alone(n) for n in (again_rows(rows, rules) if again else rows)}
                    labels.setdefault(kind, {}).update(answers)
                    done.add((block, kind))


def run_job(scenario: Scenario, seed: int) -> Outcome:
    """One job from its first row to its audit."""
    job = _Job(scenario, seed)
    listed = not isinstance(scenario.scale, Scores)
    reference: dict[int, str] = {}
    found = Outcome("window", 0.0, 0.0)
    form: Form | None = None
    if scenario.strategy == "auto":
        decision, labels = job.pilot()
        found.decision, found.form, found.asked["pilot"] = decision, decision.form, decision.asked
        better = decision.why == "better"
        reference.update(labels.get(decision.form if better else ALONE, {}))
        tried = form_named(decision.form) or next(iter(faster(scenario.costs)), FORMS[0])
        found.would_harm = _harm(job, _whole(job, tried, scenario.rows // 4), listed=listed)
        if decision.form == ALONE:
            return found
        form = tried
    company = _guarded(job, form, reference, found, listed=listed)
    found.harm = _harm(job, {n: label for n, (label, _) in company.items()}, listed=listed)
    if scenario.strategy == "window":
        found.would_harm = found.harm
    _audited(job, company, reference, found, listed=listed)
    return found


def _whole(job: _Job, form: Form, rows: int) -> dict[int, str]:
    """Answers in company of so many rows, spread over the file, in this form."""
    given: dict[int, str] = {}
    for first in range(0, len(job.file), SEGMENT * max(1, len(job.file) // rows)):
        answers = job.converse(range(first, min(first + SEGMENT, len(job.file))), form)
        given.update({n: label for n, (label, sight) in answers.items() if sight})
    return given


def _harm(job: _Job, given: dict[int, str], *, listed: bool) -> float:
    if not given:
        return 0.0
    once, twice = [job.alone(n) for n in given], [job.alone(n) for n in given]
    like = likeness_of(once[:500], listed=listed)
    floor = sum(map(like.of, once, twice)) if job.s.noisy else float(len(once))
    return (floor - sum(map(like.of, given.values(), once))) / len(once)


def _guarded(
    job: _Job, form: Form | None, reference: dict[int, str], found: Outcome, *, listed: bool
) -> dict[int, tuple[str, int]]:
    """Answer segment by segment under the guard's eyes; (answer, rows in sight) of rows in company."""
    company: dict[int, tuple[str, int]] = {}
    earlier: list[Settled] = []
    for segment, first in enumerate(range(0, len(job.file), SEGMENT)):
        answers = job.converse(range(first, min(first + SEGMENT, len(job.file))), form)
        own = {n: pair for n, pair in answers.items() if pair[1]}
        company.update(own)
        others = [label for n, label in reference.items() if n not in own]
        why = suspicion([label for label, _ in own.values()], others)
        if why is None:
            continue
        better = found.decision is not None and found.decision.why == "better"
        asked = rows_to_check(list(own), segment, job.seed, GOLD_CHECKS if better else CHECKS)
        alone = [job.alone(n) for n in asked]
        again = [job.alone(n) for n in asked] if job.s.noisy else []
        given = [own[n][0] for n in asked]
        if better:
            gold = {n: job.file[n].gold for n in asked}
            pairs = compare(dict(zip(asked, given, strict=True)), dict(zip(asked, alone, strict=True)), gold)
            settled = settle_by_gold(segment, why, pairs, earlier)
        else:
            reference.update(zip(asked, alone, strict=True))
            like = likeness_of(list(reference.values()), listed=listed)
            settled = settle(segment, why, given, alone, again, like, MARGIN, earlier)
        earlier.append(settled)
        found.suspicions += 1
        found.asked["guard"] = found.asked.get("guard", 0) + len(alone) + len(again)
        found.guarded += settled.harm
        if settled.harm and job.s.strategy == "auto":
            break  # from here on each row stands alone
    return company


def _audited(
    job: _Job,
    company: dict[int, tuple[str, int]],
    reference: dict[int, str],
    found: Outcome,
    *,
    listed: bool,
) -> None:
    rows = rows_to_audit(sorted(company), job.s.audit, job.seed)
    alone = {n: job.alone(n) for n in rows}
    twice = rows if job.s.noisy else rows[::AUDIT_AGAIN_EVERY]
    again = {n: job.alone(n) for n in twice}
    like: Likeness = likeness_of([*reference.values(), *alone.values()], listed=listed)
    found.asked["audit"] = len(alone) + len(again)
    found.audit = audit(
        {n: company[n][0] for n in rows},
        alone,
        again,
        {n: company[n][1] for n in rows},
        like,
        margin=MARGIN,
    )
