"""The pilot: which form a job's conversations take, decided by a sample of its own rows.

A pure function: from what the sample has answered so far follows what to ask next, or what was decided. So a
resume decides the same, and nothing but answers has to be kept.

- Rows come in blocks of consecutive rows spread over the file. A block is answered alone, some of it twice,
  and as one conversation in each form on trial.
- Without gold only forms are tried that are likely to be faster (`forms.faster`); with gold, all of them: a
  third of the sample shows which one agrees best, the rest, fresh rows, has to prove it.
- A form is chosen on proof alone: that its answers are those given alone, but for a margin (`no_harm`), or
  that they agree better with gold (`better`). No proof, no conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from spoolama.effect.evidence import (
    ALPHA,
    NOISE_STAKES,
    paired_odds,
    refuted_below,
    share_interval,
)
from spoolama.effect.forms import AGAIN, ALONE, FORMS, Form, faster, speed_of
from spoolama.effect.gold import Pairs, compare
from spoolama.effect.likeness import Likeness, likeness_of
from spoolama.effect.sample import BLOCK, Decision, Judged, Rules, Seen, Step, again_rows

__all__ = ["next_step"]

_CANDIDATES = 24
"""Rows answered alone of which anchors are chosen; they count as asked."""
_GIVE_UP = 40
"""Rows or pairs after which a form that is no better than alone is given up."""


def next_step(rules: Rules, seen: Seen) -> Step | Decision:
    """What to ask next, or what was decided."""
    pilot = _Pilot(rules, seen)
    return pilot.next()


class _Pilot:
    def __init__(self, rules: Rules, seen: Seen) -> None:
        self.rules = rules
        self.seen = seen
        self.alone = dict(seen.labels.get(ALONE, {}))
        self.again = dict(seen.labels.get(AGAIN, {}))
        self.like: Likeness = likeness_of(list(self.alone.values()), listed=rules.listed)
        self.floor_values = [
            self.like.of(self.alone[n], self.again[n]) for n in sorted(self.again) if n in self.alone
        ]
        self.noisy = rules.noisy or any(value < 1 for value in self.floor_values)

    @property
    def asked(self) -> int:
        anchored = any(form.anchored for form in FORMS if self.seen.labels.get(form.name))
        given = sum(len(labels) for labels in self.seen.labels.values())
        return given + (_CANDIDATES if anchored else 0)

    def cost(self, forms: Sequence[Form]) -> int:
        """Answers that one block more takes."""
        size = len(self.rules.blocks[0]) if self.rules.blocks else BLOCK
        again = len(again_rows(range(size), self.rules))
        return size * (1 + len(forms)) + again

    def next(self) -> Step | Decision:
        rules, seen = self.rules, self.seen
        if not rules.blocks or rules.asks < self.cost([]) + len(rules.blocks[0]):
            return self.end(ALONE, "too_small", [])
        if (0, ALONE) not in seen.done:
            return Step((0,), (ALONE, AGAIN))
        if (0, AGAIN) not in seen.done:
            return Step((0,), (AGAIN,))
        fast = faster(seen.costs)
        if not rules.gold:
            if not fast:
                return self.end(ALONE, "costs_unknown" if seen.costs is None else "none_faster", [])
            return self.prove(fast[:1], [], 0)
        return self.with_gold(fast)

    def with_gold(self, fast: list[Form]) -> Step | Decision:
        """First a look at all forms, then proofs on fresh rows for the best of them."""
        rules, seen = self.rules, self.seen
        look = self.look()
        forms = [form for form in FORMS if form.name in {f.name for f in look[1]}]
        if not forms:
            return self.end(ALONE, "too_small", [])
        for block in range(look[0]):
            kinds = tuple(
                kind
                for kind in (ALONE, AGAIN, *(form.name for form in forms))
                if (block, kind) not in seen.done
            )
            if kinds:
                return Step((block,), kinds)
        first = {n for block in rules.blocks[: look[0]] for n in block}
        shown = {form: self.pairs(form, within=first) for form in forms}
        best = max(forms, key=lambda form: (shown[form].wins - shown[form].losses, -forms.index(form)))
        on_gold = [best] if shown[best].wins > shown[best].losses else []
        on_speed = [
            form for form in fast[:1] if form in forms and self.judge(form, 1).high >= 1 - rules.margin
        ]
        if not on_gold and not on_speed:
            return self.end(ALONE, "no_proof", forms, fresh=look[0])
        return self.prove(on_speed, on_gold, look[0], also=forms)

    def look(self) -> tuple[int, list[Form]]:
        """Blocks of the first look, and the forms in it: as many as a third of the answers allow."""
        forms = list(FORMS)
        third = self.rules.asks // 3
        while len(forms) > 1 and self.cost(forms) + self._extra(forms) > max(third, self.cost(forms[:1])):
            forms.pop()
        if self.cost(forms) + self._extra(forms) > self.rules.asks:
            return 1, []
        blocks = max(1, (third - self._extra(forms)) // self.cost(forms))
        return min(blocks, max(1, len(self.rules.blocks) - 1)), forms

    @staticmethod
    def _extra(forms: Sequence[Form]) -> int:
        return _CANDIDATES if any(form.anchored for form in forms) else 0

    def prove(
        self, on_speed: list[Form], on_gold: list[Form], fresh: int, also: Sequence[Form] = ()
    ) -> Step | Decision:
        """Go on until something is proved, or can no longer be.

        Args:
            on_speed: Forms to be shown to do no harm.
            on_gold: Forms to be shown to agree better with gold.
            fresh: Blocks before this one had a part in the selection of `on_gold`.
            also: Further forms that were tried, for the report.
        """
        rules, seen = self.rules, self.seen
        tests = len(on_speed) + len(on_gold)
        shown = [*on_speed, *(form for form in on_gold if form not in on_speed)]
        report = [*shown, *(form for form in also if form not in shown)]
        judged = {form: self.judge(form, tests) for form in on_speed}
        rated = {form: self.rate(form, fresh, tests) for form in on_gold}
        better = next((form for form, (_, won) in rated.items() if won), None)
        if better is not None:
            return self.end(better.name, "better", report, tests=tests, fresh=fresh)
        open_gold = [
            form
            for form, (pairs, _) in rated.items()
            if pairs.compared < _GIVE_UP or pairs.wins > pairs.losses
        ]
        harmless = next((form for form, j in judged.items() if j.proof), None)
        open_speed = [form for form, j in judged.items() if not j.proof and not j.harm]
        going = [form for form in shown if form in open_gold or (form in open_speed and harmless is None)]
        block = next(
            (
                b
                for b in range(len(rules.blocks))
                if (b, ALONE) not in seen.done or any((b, form.name) not in seen.done for form in going)
            ),
            None,
        )
        affordable = self.asked + self.cost(going) <= rules.asks
        if not going or block is None or not affordable:
            if harmless is not None:
                return self.end(harmless.name, "no_harm", report, tests=tests, fresh=fresh)
            return self.end(ALONE, "no_proof", report, tests=tests, fresh=fresh)
        kinds = (ALONE, AGAIN, *(form.name for form in going))
        return Step((block,), tuple(kind for kind in kinds if (block, kind) not in seen.done))

    def judge(self, form: Form, tests: int) -> Judged:
        """How far the form's answers are those given alone. The first row of a conversation sees none."""
        given = self.seen.labels.get(form.name, {})
        firsts = set() if form.anchored else {block[0] for block in self.rules.blocks if block}
        rows = [n for n in sorted(given) if n in self.alone and n not in firsts]
        order = {n: i for i, n in enumerate(n for block in self.rules.blocks for n in block)}
        rows.sort(key=lambda n: order.get(n, n))
        values = [self.like.of(given[n], self.alone[n]) for n in rows]
        mean = sum(values) / len(values) if values else 0.0
        low, high = share_interval(sum(values), len(values)) if values else (0.0, 1.0)
        proof, harm = False, False
        if values:
            if self.noisy:
                # Alone differs from alone: only what the form adds to that counts, row by row.
                more = [
                    (1 + self.like.of(given[n], self.alone[n]) - self.like.of(self.again[n], self.alone[n]))
                    / 2
                    for n in rows
                    if n in self.again
                ]
                proof = refuted_below(more, (1 - self.rules.margin) / 2, NOISE_STAKES) >= tests / ALPHA
                floor = sum(self.floor_values) / len(self.floor_values) if self.floor_values else 1.0
                harm = high < floor - self.rules.margin
            else:
                proof = refuted_below(values, 1 - self.rules.margin) >= tests / ALPHA
                harm = high < 1 - self.rules.margin
        speed = None if self.seen.costs is None else round(speed_of(form, self.seen.costs), 2)
        return Judged(
            form.name,
            form.words,
            len(values),
            round(mean, 4),
            round(low, 4),
            round(high, 4),
            speed,
            proof,
            harm,
        )

    def pairs(self, form: Form, *, within: set[int]) -> Pairs:
        """Wins and losses against alone on gold, on these rows."""
        given = {n: label for n, label in self.seen.labels.get(form.name, {}).items() if n in within}
        return compare(given, self.alone, self.seen.gold, enum=self.rules.enum)

    def rate(self, form: Form, fresh: int, tests: int) -> tuple[Pairs, bool]:
        """Wins and losses on rows that had no part in the selection, and whether they prove it better."""
        rows = {n for block in self.rules.blocks[fresh:] for n in block}
        pairs = self.pairs(form, within=rows)
        return pairs, paired_odds(pairs.wins, pairs.losses) >= tests / ALPHA

    def end(self, form: str, why: str, tried: Sequence[Form], *, tests: int = 1, fresh: int = 0) -> Decision:
        judged = []
        for each in tried:
            one = self.judge(each, tests)
            pairs, better = self.rate(each, fresh, tests)
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
        floor = sum(self.floor_values) / len(self.floor_values) if self.floor_values else None
        return Decision(
            form,
            why,
            self.asked,
            None if floor is None else round(floor, 4),
            len(self.floor_values),
            self.like.words,
            tuple(judged),
        )
