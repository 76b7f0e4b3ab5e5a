"""Decides the pilot: which form a job's conversations take, by known answers on a sample of its own rows.

The decision is a pure function of what the sample has answered so far. So a resume decides the same, and only
answers have to be stored.

- Rows come in blocks of consecutive rows spread over the file. A block is answered in isolation, and as one
  conversation in each form that is tried, forms with anchors first.
- A third of the answers selects the form that agrees best with gold; the rest, other rows, must prove it. A
  small sample has room for one form only; then all its rows count as proof.
- Forms for which the job's segments are too short, or for which there are no anchors, are not tried.
- A form is chosen only if it is proved to agree better with gold than isolated rows do (`evidence.ALPHA`).
- A row that had to leave its conversation, or was repaired in it, counts against the form.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from spoolama.compare.evidence import ALPHA, paired_odds
from spoolama.compare.similarity import PairedCounts, compare
from spoolama.job.plan import Plan
from spoolama.job.sidecar import CANDIDATES

ISOLATED = "isolated"
"""The form without a conversation: each row behind the shared prefix."""
SEED = 1000
"""Added to the sampler's seed for a compared answer, and twice for a second one: answers drawn with the same
seed would agree by themselves."""
BLOCK = 20
"""Rows of a block: one conversation of the sample."""
_GIVE_UP = 40
"""Rows after which a form that agrees no better with gold than isolated rows do is given up."""
_LEAST_WINS = 7
"""Won rows, with none lost, that prove a form: `paired_odds` is then above 1 / `ALPHA`."""


@dataclass(frozen=True, slots=True)
class Form:
    """The messages between the shared prefix and a row."""

    name: str
    words: str
    tail: int
    """Maximum number of earlier rows; after that many, the conversation begins again."""
    anchored: bool
    """Whether every prompt of the job has the anchors."""

    def plan(
        self, isolated: Plan, anchors: tuple[int, ...], *, gold: bool, prefix_tokens: int | None
    ) -> Plan:
        """Return the plan under which rows are asked in this form.

        Args:
            isolated: The plan under which they are asked in isolation.
            anchors: Ordinals of the anchors.
            gold: Whether the anchors have their known answers.
            prefix_tokens: Upper bound of the shared prefix.
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
"""If not all can be tried, the first ones are."""


def form_named(name: str) -> Form | None:
    """Return the form of this name; None for `ISOLATED`."""
    return next((form for form in FORMS if form.name == name), None)


@dataclass(frozen=True, slots=True)
class PilotRules:
    """What is known before the first row is asked."""

    blocks: tuple[tuple[int, ...], ...]
    """Ordinals of each block of the sample."""
    asks: int
    """Maximum number of answers."""
    enum: tuple[str, ...] | None = None
    """The labels that the schema lists, in its order."""
    longest: int | None = None
    """Maximum rows of a segment; longer forms are not tried. None: any number."""


@dataclass(frozen=True, slots=True)
class PilotAnswers:
    """What the sample has answered so far."""

    labels: Mapping[str, Mapping[int, str]]
    """By form (or `ISOLATED`), by ordinal."""
    gold: Mapping[int, str]
    """Known answers by ordinal."""
    done: frozenset[tuple[int, str]] = frozenset()
    """Finished blocks, with the form."""
    left: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Rows by form that were not answered in the conversation at the first attempt: they were answered
    outside of it, or after a repair, or not at all. They count against the form, whatever answer they
    have."""
    no_anchors: bool = False
    """Whether no candidate fits as an anchor; then forms with anchors are not tried."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to ask next."""

    block: int
    kinds: tuple[str, ...]
    """Names of forms, or `ISOLATED`, in the order in which they are asked."""


@dataclass(frozen=True, slots=True)
class TriedForm:
    """A form that was tried, compared with isolated answers by gold."""

    form: str
    words: str
    rows: int
    """Rows that were asked in this form and in isolation."""
    conversations: int
    """Blocks of these rows; rows of one conversation depend on one another."""
    wins: int
    losses: int
    compared: int
    how: str
    """What was compared with gold, on rows that had no part in the form's selection."""
    better: bool
    """Whether it was proved to agree better with gold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How the pilot ended."""

    form: str
    """A form's name, or `ISOLATED`."""
    why: str
    """`better`, `no_proof`, `none_fits` or `too_small`; ledgers of earlier versions have other values too."""
    asked: int
    """Answers that were given."""
    tried: tuple[TriedForm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the ledger and metrics.json."""
        return {**asdict(self), "tried": [asdict(tried) for tried in self.tried]}


def blocks_of(total: int, asks: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return blocks of consecutive rows, one at a random place of each equal part of the file, shuffled.

    Args:
        total: Rows of the job.
        asks: Maximum number of answers.
        seed: Seed of the places and the order.
    """
    rng = random.Random(f"pilot {seed}")  # noqa: S311 - not security-relevant
    number = max(1, min(total // BLOCK, asks // (2 * BLOCK)))
    size = min(BLOCK, total)
    found = []
    for part in range(number):
        first, last = total * part // number, total * (part + 1) // number - size
        start = rng.randint(first, last) if last > first else max(0, min(first, total - size))
        found.append(tuple(range(start, start + size)))
    rng.shuffle(found)
    return tuple(found)


def next_step(rules: PilotRules, seen: PilotAnswers) -> Step | Decision:
    """Return what to ask next, or the decision.

    A block that was begun is finished in the same forms, whatever its first answers are; so it makes no
    difference where a pilot is interrupted.
    """
    step: Step | Decision = Step(0, ())
    last = max((block for block, _ in seen.done), default=0)
    first = {(0, ISOLATED)} & seen.done  # asked before the candidates for anchors are
    before = replace(seen, done=frozenset(pair for pair in seen.done if pair[0] < last) | first)
    for view in (before, seen):
        step = _Pilot(rules, view).next()
        if isinstance(step, Decision):
            return step
        block = step.block
        kinds = tuple(kind for kind in step.kinds if (block, kind) not in seen.done)
        if kinds:
            return Step(block, kinds)
    return step


def answers_taken(rules: PilotRules, seen: PilotAnswers) -> int:
    """Return the number of answers so far, including those of candidates for anchors."""
    return _Pilot(rules, seen).asked


def least_answers(total: int, longest: int | None) -> int | None:
    """Return the number of answers below which a pilot cannot prove anything; None: no number is enough.

    Args:
        total: Rows of the job.
        longest: Maximum rows of a segment; None: any number.
    """
    rows = min(BLOCK, total)
    prices = [
        2 * rows + CANDIDATES * form.anchored
        for form in FORMS
        if (longest is None or form.tail < longest) and rows - (not form.anchored) >= _LEAST_WINS
    ]
    return min(prices, default=None)


class _Pilot:
    def __init__(self, rules: PilotRules, seen: PilotAnswers) -> None:
        self.rules = rules
        self.seen = seen
        # The same at every step: candidates for anchors are asked before the first row of any form.
        self.forms = [
            form
            for form in FORMS
            if (rules.longest is None or form.tail < rules.longest)
            and not (form.anchored and seen.no_anchors)
        ]
        self.isolated = self.labels(ISOLATED)

    def next(self) -> Step | Decision:
        """Select the best form on the first blocks, then prove it on other rows."""
        rules = self.rules
        if not rules.blocks or rules.asks < self.price(FORMS[:1]):
            return self.end(ISOLATED, "too_small", [])
        if kinds := self.missing(0, []):
            return Step(0, kinds)
        if not self.forms:
            return self.end(ISOLATED, "none_fits", [])
        blocks, forms = self.selection()
        if len(forms) == 1:
            return self.prove(forms[0], 0, forms)
        for block in range(blocks):
            if kinds := self.missing(block, forms):
                return Step(block, kinds)
        selecting = {n for block in rules.blocks[:blocks] for n in block}
        shown = {form: self.pairs(form, selecting) for form in forms}
        best = max(forms, key=lambda form: (shown[form].wins - shown[form].losses, -forms.index(form)))
        if shown[best].wins <= shown[best].losses:
            return self.end(ISOLATED, "no_proof", forms)
        return self.prove(best, blocks, forms)

    def selection(self) -> tuple[int, list[Form]]:
        """Return the blocks and forms of the selection: as many as a third of the answers allow."""
        forms, third = list(self.forms), self.rules.asks // 3

        def cost(blocks: int) -> int:
            asked = self.seen.no_anchors or any(form.anchored for form in forms)
            return self.price(forms) * blocks + CANDIDATES * asked

        while len(forms) > 1 and cost(1) > third:
            forms.pop()
        blocks = 1
        while blocks < len(self.rules.blocks) - 1 and cost(blocks + 1) <= third:
            blocks += 1
        return blocks, forms

    def prove(self, form: Form, fresh: int, tried: Sequence[Form]) -> Step | Decision:
        """Continue until the form is proved or given up, or no answers are left.

        Args:
            form: The form that must agree better with gold.
            fresh: Number of blocks that had a part in its selection and prove nothing.
            tried: All forms that were tried, for the report.
        """
        pairs = self.pairs(form, self.fresh_rows(fresh))
        if paired_odds(pairs.wins, pairs.losses) >= 1 / ALPHA:
            return self.end(form.name, "better", tried, fresh=fresh)
        if len(self.rows_of(form, fresh)) < _GIVE_UP or pairs.wins > pairs.losses:
            for block in range(len(self.rules.blocks)):
                if kinds := self.missing(block, [form]):
                    if self.affordable(kinds):
                        return Step(block, kinds)
                    break
        begun = [each for each in tried if self.was_tried(each)]
        return self.end(ISOLATED, "no_proof" if begun else "too_small", begun, fresh=fresh)

    def end(self, form: str, why: str, tried: Sequence[Form], *, fresh: int = 0) -> Decision:
        judged = []
        for each in tried:
            rows = self.rows_of(each)
            pairs = self.pairs(each, self.fresh_rows(fresh))
            conversations = sum(not set(rows).isdisjoint(block) for block in self.rules.blocks)
            judged.append(
                TriedForm(
                    each.name,
                    each.words,
                    len(rows),
                    conversations,
                    **asdict(pairs),
                    better=why == "better" and each.name == form,
                )
            )
        return Decision(form, why, self.asked, tuple(judged))

    # --- answers: the rows of a block count when the whole block was answered in one form -----------------

    def labels(self, kind: str) -> dict[int, str]:
        given = self.seen.labels.get(kind, {})
        return {n: given[n] for b in self.blocks_with(kind) for n in self.rules.blocks[b] if n in given}

    def left(self, form: Form) -> frozenset[int]:
        given = self.seen.left.get(form.name, frozenset())
        return frozenset(n for b in self.blocks_with(form.name) for n in self.judged(form, b) if n in given)

    def blocks_with(self, kind: str) -> list[int]:
        return [b for b in range(len(self.rules.blocks)) if (b, kind) in self.seen.done]

    def judged(self, form: Form, block: int) -> tuple[int, ...]:
        """Return the rows of a block that see other rows: without anchors, the first one does not."""
        rows = self.rules.blocks[block]
        return rows if form.anchored else rows[1:]

    def rows_of(self, form: Form, first: int = 0) -> list[int]:
        """Return the rows of blocks from this one on that were asked in this form and in isolation."""
        given = {*self.labels(form.name), *self.left(form)}
        blocks = range(first, len(self.rules.blocks))
        return [n for b in blocks for n in self.judged(form, b) if n in given and n in self.isolated]

    def fresh_rows(self, fresh: int) -> set[int]:
        return {n for block in self.rules.blocks[fresh:] for n in block}

    def pairs(self, form: Form, within: set[int]) -> PairedCounts:
        """Return wins and losses by gold on these rows; a row that left its conversation is a loss."""
        left, gold = self.left(form), self.seen.gold
        given = {n: label for n, label in self.labels(form.name).items() if n in within - left}
        pairs = compare(given, self.isolated, gold, enum=self.rules.enum)
        lost = sum(n in within and n in self.isolated and bool(gold.get(n, "").strip()) for n in left)
        return replace(pairs, losses=pairs.losses + lost, compared=pairs.compared + lost)

    def was_tried(self, form: Form) -> bool:
        return bool(self.labels(form.name) or self.left(form))

    # --- costs -------------------------------------------------------------------------------------------

    @property
    def asked(self) -> int:
        kinds = (ISOLATED, *(form.name for form in FORMS))
        return sum(len(self.labels(kind)) for kind in kinds) + CANDIDATES * self.candidates_asked

    @property
    def candidates_asked(self) -> bool:
        return self.seen.no_anchors or any(form.anchored for form in FORMS if self.was_tried(form))

    def price(self, forms: Sequence[Form]) -> int:
        """Return the answers that a block takes in isolation and in these forms."""
        return len(self.rules.blocks[0]) * (1 + len(forms))

    def affordable(self, kinds: Sequence[str]) -> bool:
        anchored = any(form.anchored for form in FORMS if form.name in kinds)
        candidates = CANDIDATES * (anchored and not self.candidates_asked)
        return self.asked + len(self.rules.blocks[0]) * len(kinds) + candidates <= self.rules.asks

    def missing(self, block: int, forms: Sequence[Form]) -> tuple[str, ...]:
        """Return isolation and the names of these forms as far as the block has not been asked in them."""
        kinds = (ISOLATED, *(form.name for form in forms))
        return tuple(kind for kind in kinds if (block, kind) not in self.seen.done)
