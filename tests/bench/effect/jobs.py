"""Whole jobs, simulated at the level of decisions: no server, no ledger, no time.

Rows are answered by a scripted behaviour; pilot and audit are the real ones, called as the engine calls them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from spoolama.compare.audit import (
    CHECKS,
    AuditedRow,
    Evidence,
    budget_of,
    looks_odd,
    needed_in_segment,
    rows_to_audit,
    sure_of_segment,
    weigh,
    weigh_by_gold,
)
from spoolama.compare.pilot import (
    ISOLATED,
    Decision,
    Form,
    PilotAnswers,
    PilotRules,
    blocks_of,
    form_named,
    next_step,
)
from spoolama.compare.similarity import similarity_of
from spoolama.context.selection import Candidate, candidates, choose
from spoolama.job.sidecar import ANCHORS, CANDIDATES
from support.effects import (
    LABELS,
    Behaviour,
    FollowsPrevious,
    Ignores,
    Labels,
    Row,
    Scores,
    VisibleRows,
    file_of,
)

SEGMENT = 200
MARGIN = 0.05
PILOT_SHARE = 0.02
WINDOW_KEEP, WINDOW_EVERY = 20, 30


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of job."""

    name: str
    behaviour: Behaviour
    scale: Labels | Scores
    gold: bool = False
    """With gold, and so with a pilot; without it a fixed window."""
    order: Literal["shuffled", "sorted"] = "shuffled"
    noisy: bool = False
    """Whether the temperature is above 0."""
    locks: float = 0.0
    """Share of the conversations that repeat their first answer until the end."""
    begins: float = 0.0
    """Share of the job before the behaviour begins."""
    right: float = 0.6
    """Share of the rows whose isolated answer is the gold one."""
    rows: int = 10_000


@dataclass(slots=True)
class Outcome:
    """The result of one job."""

    form: str
    lost: float
    """Agreement of isolated answers with themselves minus that of conversation answers with them."""
    better: bool = False
    """Whether the pilot chose a form for its agreement with gold."""
    known_after: int | None = None
    """Rows answered when harm was known; None: not found."""
    found_by: str = ""
    """`sample`, `segment` or `end`."""
    asked_again: int = 0
    """Isolated answers that the audit took."""
    pilot: int = 0
    """Answers that the pilot took."""


@lru_cache(maxsize=8)
def _file(
    scale: Labels | Scores, rows: int, seed: int, order: Literal["shuffled", "sorted"], right: float
) -> list[Row]:
    """Cached, because many kinds of jobs use the same file."""
    return file_of(scale, rows, seed, order=order, right=right)


class _Job:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.s = scenario
        self.seed = seed
        self.rng = random.Random(f"answers {seed}")
        self.file = _file(scenario.scale, scenario.rows, seed, scenario.order, scenario.right)
        self.fixed: dict[int, str] | None = None

    def isolated(self, n: int) -> str:
        return self.s.behaviour.alone(self.file[n], self.rng)

    def anchors(self) -> dict[int, str]:
        """Return the anchors as the engine chooses and orders them, with their gold answers."""
        if self.fixed is None:
            asked = candidates(len(self.file), CANDIDATES, self.seed)
            answers = {n: self.isolated(n) for n in asked}
            chosen = choose([Candidate(n, answers[n]) for n in sorted(answers)], ANCHORS, "spread", self.seed)
            self.fixed = {n: self.file[n].gold for n in chosen}
        return self.fixed

    def behaviour_at(self, first: int) -> Behaviour:
        """Return the behaviour of the conversation from this row on."""
        if self.s.locks and random.Random(f"lock {self.seed} {first}").random() < self.s.locks:
            return FollowsPrevious(1.0)
        return Ignores() if first < self.s.begins * self.s.rows else self.s.behaviour

    def converse(self, rows: Sequence[int], form: Form | None) -> dict[int, tuple[str, int]]:
        """Return answer and visible rows of each row of a conversation; no form: the fixed window."""
        front = self.anchors() if form is not None and form.anchored else {}
        fixed, tail, depth = list(front.values()), [], 0  # type: tuple[list[str], list[str], int]
        most = WINDOW_KEEP + WINDOW_EVERY if form is None else form.tail + 1
        keep = WINDOW_KEEP if form is None else 0
        given = {}
        answer, file, rng = self.behaviour_at(rows[0]).answer, self.file, self.rng
        for n in rows:
            if n in front:
                continue
            if len(tail) >= most:
                tail = tail[len(tail) - keep :] if keep else []
                depth = depth if keep else 0
            label = answer(file[n], VisibleRows([*fixed, *tail] if fixed else tail, depth), rng)
            given[n] = label, len(fixed) + len(tail)
            tail.append(label)
            depth += 1
        return given

    def pilot(self) -> Decision:
        asks = int(self.s.rows * PILOT_SHARE)
        listed = LABELS if not isinstance(self.s.scale, Scores) else None
        rules = PilotRules(blocks_of(self.s.rows, asks, self.seed), asks, listed, longest=SEGMENT)
        labels: dict[str, dict[int, str]] = {}
        done: set[tuple[int, str]] = set()
        while True:
            gold = {n: self.file[n].gold for given in labels.values() for n in given}
            step = next_step(rules, PilotAnswers(labels, gold, frozenset(done)))
            if isinstance(step, Decision):
                return step
            rows = rules.blocks[step.block]
            for kind in step.kinds:
                form = form_named(kind)
                if form is not None:
                    answers = {n: label for n, (label, _) in self.converse(rows, form).items()}
                else:
                    answers = {n: self.isolated(n) for n in rows}
                labels.setdefault(kind, {}).update(answers)
                done.add((step.block, kind))


def run_job(scenario: Scenario, seed: int) -> Outcome:
    """Run one job from its first row to the end of its audit."""
    job = _Job(scenario, seed)
    found = Outcome("window", 0.0)
    form: Form | None = None
    if scenario.gold:
        decision = job.pilot()
        found.form, found.better, found.pilot = decision.form, decision.why == "better", decision.asked
        if decision.form == ISOLATED:
            return found
        form = form_named(decision.form)
    company: dict[int, str] = {}
    audit = _Audit(job, found)
    for segment, first in enumerate(range(0, len(job.file), SEGMENT)):
        last = min(first + SEGMENT, len(job.file)) - 1
        answers = job.converse(range(first, last + 1), form)
        own = {n: label for n, (label, visible) in answers.items() if visible}
        company.update(own)
        if found.known_after is None:
            audit.look(segment, first, last, own)
    if found.known_after is None:
        audit.finish()
    found.lost = _lost(job, company)
    return found


class _Audit:
    """Works like `compare/audit_phase.py` with one lane, until harm is known."""

    def __init__(self, job: _Job, found: Outcome) -> None:
        self.job = job
        self.found = found
        budget = budget_of(None, job.s.rows, noisy=job.s.noisy)
        self.budget = replace(budget, random=budget.rows, odd=0) if found.better else budget
        self.sample: dict[int, AuditedRow] = {}
        self.odd: dict[int, AuditedRow] = {}
        self.unfounded = 0
        self.listed = not isinstance(job.s.scale, Scores)

    def look(self, segment: int, first: int, last: int, own: dict[int, str]) -> None:
        number = needed_in_segment(first, last, self.job.s.rows, self.budget.random)
        drawn = {n: self.ask(n, own[n]) for n in rows_to_audit(list(own), (), number, segment, self.job.seed)}
        self.sample.update(drawn)
        why = None
        if not self.found.better:
            others = [row.isolated for row in (*self.sample.values(), *self.odd.values())]
            why = looks_odd(list(own.values()), [row.isolated for row in drawn.values()], others)
        more: dict[int, AuditedRow] = {}
        if why is not None:
            spare = min(CHECKS - len(drawn), self.budget.odd - len(self.odd))
            rest = [n for n in own if n not in drawn]
            chosen = rows_to_audit(rest, (), max(0, spare), segment, self.job.seed)
            more = {n: self.ask(n, own[n]) for n in chosen}
            self.odd.update(more)
        if self.weigh(self.sample.values()).shows():
            self.harm(last, "sample")
        elif why is not None and (drawn or more):
            if self.weigh([*drawn.values(), *more.values()]).shows(sure_of_segment(self.unfounded)):
                self.harm(last, "segment")
            self.unfounded += 1

    def finish(self) -> None:
        if self.weigh(self.sample.values()).shows_at_end():
            self.harm(self.job.s.rows - 1, "end")

    def harm(self, last: int, by: str) -> None:
        self.found.known_after, self.found.found_by = last + 1, by

    def ask(self, n: int, given: str) -> AuditedRow:
        isolated = self.job.isolated(n)
        twice = self.job.s.noisy or given != isolated
        self.found.asked_again += 1 + twice
        again = self.job.isolated(n) if twice else None
        return AuditedRow(n, given, isolated, again, self.job.file[n].gold)

    def weigh(self, rows: Iterable[AuditedRow]) -> Evidence:
        if self.found.better:
            return weigh_by_gold(list(rows), LABELS if self.listed else None)
        known = [row.isolated for row in (*self.sample.values(), *self.odd.values())]
        like = similarity_of(known, listed=self.listed)
        return weigh(list(rows), like, MARGIN, noisy=self.job.s.noisy)


def _lost(job: _Job, given: dict[int, str]) -> float:
    once = [job.isolated(n) for n in given]
    like = similarity_of(once[:500], listed=not isinstance(job.s.scale, Scores))
    floor = float(len(once))
    if job.s.noisy:
        floor = sum(map(like.of, once, [job.isolated(n) for n in given]))
    return (floor - sum(map(like.of, given.values(), once))) / len(once)
