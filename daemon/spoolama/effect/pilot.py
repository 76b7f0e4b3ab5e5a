"""The pilot: which form a job's conversations take, decided by a sample of its own rows.

A pure function: from what the sample has answered so far follows what to ask next, or what was decided. So a
resume decides the same, and nothing but answers has to be kept.

- Rows come in blocks of consecutive rows spread over the file. A block is answered alone, some of it twice,
  and as one conversation in each form on trial.
- Without gold only forms are tried that are likely to be faster (`forms.faster`), the fastest first: one, and
  one more for each `_ASKS_A_FORM` answers. With gold any form may be tried: a third of the sample shows which
  one agrees best, the rest, fresh rows, has to prove it. A third of a small sample has room for one form.
- Forms that the job's segments are too short for, or for which there are no anchors, are not tried.
- A form is chosen on proof alone: that its answers are those given alone, but for a margin (`no_harm`), or
  that they agree better with gold (`better`). No proof, no conversation; and where the answers that are left
  can no longer bring one, no more are asked.
- A row that had to leave its conversation, or was repaired in it, counts against the form.

How often a proof is wrong is bounded (`evidence.ALPHA`) where rows of a conversation do not lean on one
another. Where they do it is wrong more often: if one conversation in ten locks onto one answer, the few
of the sample may well have none of these. Guard and audit are there for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from spoolama.effect.evidence import ALPHA
from spoolama.effect.forms import AGAIN, ALONE, FORMS, Form, faster
from spoolama.effect.sample import Decision, Judged, Rules, Seen, Step
from spoolama.effect.trials import Trials
from spoolama.job.trim import CANDIDATES

__all__ = ["next_step"]

_GIVE_UP = 40
"""Rows after which a form that agrees no better with gold than alone does is given up."""
_ASKS_A_FORM = 300
"""Answers that a sample must allow for each form that is tried for speed."""


def next_step(rules: Rules, seen: Seen) -> Step | Decision:
    """What to ask next, or what was decided.

    A block that was begun is first finished as it was begun, whatever its first answers say; so it makes no
    difference where a pilot is interrupted.
    """
    step: Step | Decision = Step((), ())
    for view in (_before(seen), seen):
        step = _Pilot(rules, view).next()
        if isinstance(step, Decision):
            return step
        blocks = step.blocks
        kinds = tuple(kind for kind in step.kinds if any((b, kind) not in seen.done for b in blocks))
        if kinds:
            return Step(blocks, kinds)
    return step


def _before(seen: Seen) -> Seen:
    """What was seen before the latest block was begun; of the very first one, before any form was tried."""
    last = max((block for block, _ in seen.done), default=0)
    done = frozenset(pair for pair in seen.done if pair[0] < last)
    if last == 0 and {(0, ALONE), (0, AGAIN)} <= seen.done:
        done = frozenset({(0, ALONE), (0, AGAIN)})
    return replace(seen, done=done)


class _Pilot:
    def __init__(self, rules: Rules, seen: Seen) -> None:
        self.rules = rules
        self.seen = seen
        self.trials = Trials(rules, seen)
        # The same at every step: candidates are asked before the first row of any form is.
        self.forms = [
            form
            for form in FORMS
            if (rules.longest is None or form.tail < rules.longest)
            and not (form.anchored and seen.no_anchors)
        ]

    def next(self) -> Step | Decision:
        rules, seen = self.rules, self.seen
        if not rules.blocks or rules.asks < self.trials.price((ALONE, AGAIN, FORMS[0].name)):
            return self.end(ALONE, "too_small", [])
        if kinds := self.trials.missing(0, (ALONE, AGAIN)):
            return Step((0,), kinds)
        fast = [form for form in faster(seen.costs) if form in self.forms]
        if not self.forms or (not rules.gold and not fast and faster(seen.costs)):
            return self.end(ALONE, "none_fits", [])
        if rules.gold:
            return self.with_gold(fast)
        if not fast:
            return self.end(ALONE, "costs_unknown" if seen.costs is None else "none_faster", [])
        return self.prove(fast[: self.most], [], 0)

    @property
    def most(self) -> int:
        """Forms that may be tried for speed: each one more takes rows, and makes proof harder for all."""
        return max(1, self.rules.asks // _ASKS_A_FORM)

    def with_gold(self, fast: list[Form]) -> Step | Decision:
        """First a look at all forms, then proofs on fresh rows for the best of them.

        Where the answers allow but one form there is nothing to select: all its rows are proof.
        """
        rules = self.rules
        blocks, forms = self.look(fast)
        on_speed = [form for form in fast if form in forms][: self.most]
        if len(forms) == 1:
            return self.prove(on_speed, forms, 0)
        for block in range(blocks):
            if kinds := self.trials.missing(block, (ALONE, AGAIN, *(form.name for form in forms))):
                return Step((block,), kinds)
        first = {n for block in rules.blocks[:blocks] for n in block}
        shown = {form: self.trials.pairs(form, within=first) for form in forms}
        best = max(forms, key=lambda form: (shown[form].wins - shown[form].losses, -forms.index(form)))
        on_gold = [best] if shown[best].wins > shown[best].losses else []
        if not on_gold and not on_speed:
            return self.end(ALONE, "no_proof", forms, fresh=blocks)
        return self.prove(on_speed, on_gold, blocks, also=forms)

    def look(self, fast: Sequence[Form]) -> tuple[int, list[Form]]:
        """Blocks of the first look, and the forms in it: as many as a third of the answers allow.

        The fastest comes first, if it is faster than alone: its rows can prove either of two things.
        """
        forms = [*fast[:1], *(form for form in self.forms if form not in fast[:1])]
        third = self.rules.asks // 3
        while len(forms) > 1 and self._look_cost(forms, 1) > third:
            forms.pop()
        blocks = 1
        while blocks < len(self.rules.blocks) - 1 and self._look_cost(forms, blocks + 1) <= third:
            blocks += 1
        return blocks, forms

    def _look_cost(self, forms: Sequence[Form], blocks: int) -> int:
        """Whatever was asked already: the look is the same at every step."""
        each = self.trials.price((ALONE, AGAIN, *(form.name for form in forms)))
        asked = self.seen.no_anchors or any(form.anchored for form in forms)
        return each * blocks + CANDIDATES * asked

    def prove(
        self, on_speed: list[Form], on_gold: list[Form], fresh: int, also: Sequence[Form] = ()
    ) -> Step | Decision:
        """Go on until something is proved, or can no longer be.

        Args:
            on_speed: Forms to be shown to do no harm, the fastest first.
            on_gold: Forms to be shown to agree better with gold.
            fresh: Blocks before this one had a part in the selection of `on_gold`.
            also: Further forms that were tried, for the report.
        """
        shown = [*on_speed, *(form for form in on_gold if form not in on_speed)]
        report = [*shown, *(form for form in also if form not in shown)]
        tests = max(1, len(on_speed))
        judged = {form: self.trials.judge(form, tests) for form in on_speed}
        rated = {form: self.trials.rate(form, fresh) for form in on_gold}
        better = next((form for form, (_, won) in rated.items() if won), None)
        if better is not None:
            return self.end(better.name, "better", report, tests=tests, fresh=fresh)
        open_gold = [
            form
            for form, (pairs, _) in rated.items()
            if len(self.trials.rows_of(form, fresh)) < _GIVE_UP or pairs.wins > pairs.losses
        ]
        harmless = next((form for form, j in judged.items() if j.proof), None)
        alive = [form for form, j in judged.items() if not j.harm] if harmless is None else []
        open_speed = [form for form in alive if self.hopeful(form, tests)]
        going = [form for form in shown if form in open_gold or form in open_speed]
        kinds: tuple[str, ...] = ()
        for block in range(len(self.rules.blocks)):
            if kinds := self.trials.missing(block, (ALONE, AGAIN, *(form.name for form in going))):
                break
        if not going or not kinds or not self.trials.affordable(kinds):
            if harmless is not None:
                return self.end(harmless.name, "no_harm", report, tests=tests, fresh=fresh)
            tried = [form for form in report if self.trials.was_tried(form)]
            return self.end(ALONE, "no_proof" if tried else "too_small", tried, tests=tests, fresh=fresh)
        return Step((block,), kinds)

    def hopeful(self, form: Form, tests: int) -> bool:
        """Whether a proof would come if from now on every row agreed, and no other form took any."""
        blocks, done = self.rules.blocks, self.seen.done
        left = self.rules.asks - self.trials.asked - self.trials.candidates([form.name])
        more = 0
        for block in sorted(range(len(blocks)), key=lambda b: (b, ALONE) not in done):  # those begun first
            kinds = self.trials.missing(block, (ALONE, AGAIN, form.name))
            left -= self.trials.price(kinds)
            if kinds and left >= 0:
                more += len(blocks[0]) - (not form.anchored)
        return self.trials.odds(form, more) >= tests / ALPHA

    def end(self, form: str, why: str, tried: Sequence[Form], *, tests: int = 1, fresh: int = 0) -> Decision:
        judged = []
        for each in tried:
            one = self.trials.judge(each, tests)
            pairs, better = self.trials.rate(each, fresh)
            judged.append(
                Judged(
                    **{
                        **asdict(one),
                        "wins": pairs.wins,
                        "losses": pairs.losses,
                        "compared": pairs.compared,
                        "how": pairs.how if self.rules.gold else "",
                        "better": better and why == "better" and each.name == form,
                    }
                )
            )
        twice = self.trials.floor_values
        floor = sum(twice) / len(twice) if twice else None
        return Decision(
            form,
            why,
            self.trials.asked,
            None if floor is None else round(floor, 4),
            len(twice),
            self.trials.like.words,
            tuple(judged),
        )
