"""Trials: what the sample of a pilot has answered so far says of each form, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spoolama.effect.evidence import ALPHA, NOISE_STAKES, paired_odds, refuted_below, share_interval
from spoolama.effect.forms import AGAIN, ALONE, FORMS, Form, speed_of
from spoolama.effect.gold import Pairs, compare
from spoolama.effect.likeness import Likeness, likeness_of
from spoolama.effect.sample import Judged, Rules, Seen, again_rows
from spoolama.job.trim import CANDIDATES

__all__ = ["Trials"]


class Trials:
    """The answers of a sample; those of a block count when all of it was answered in one way.

    Args:
        rules: Of the sample.
        seen: What it has answered.
    """

    def __init__(self, rules: Rules, seen: Seen) -> None:
        self.rules = rules
        self.seen = seen
        self.labels = {
            kind: {
                n: given[n]
                for b, block in enumerate(rules.blocks)
                if (b, kind) in seen.done
                for n in block
                if n in given
            }
            for kind, given in seen.labels.items()
        }
        self.left = {
            form.name: frozenset(
                n
                for b, block in enumerate(rules.blocks)
                if (b, form.name) in seen.done
                for n in (block if form.anchored else block[1:])
                if n in seen.left.get(form.name, ())
            )
            for form in FORMS
        }
        self.alone, self.again = self.labels.get(ALONE, {}), self.labels.get(AGAIN, {})
        self.like: Likeness = likeness_of(list(self.alone.values()), listed=rules.listed)
        self.floor_values = [
            self.like.of(self.alone[n], self.again[n]) for n in sorted(self.again) if n in self.alone
        ]

    @property
    def asked(self) -> int:
        """Answers that the sample has taken so far, those of which anchors were chosen among them."""
        given = sum(len(labels) for labels in self.labels.values())
        return given + (CANDIDATES if self._anchored else 0)

    @property
    def _anchored(self) -> bool:
        return self.seen.no_anchors or any(form.anchored for form in FORMS if self.was_tried(form))

    def was_tried(self, form: Form) -> bool:
        """Whether any of its rows came to something, be it that they had to leave the conversation."""
        return bool(self.labels.get(form.name) or self.left[form.name])

    def price(self, kinds: Sequence[str]) -> int:
        """Answers that a block takes, asked in these ways."""
        rows = self.rules.blocks[0]
        again = len(again_rows(rows, self.rules))
        return sum(again if kind == AGAIN else len(rows) for kind in kinds)

    def candidates(self, kinds: Sequence[str]) -> int:
        """Answers needed to choose anchors first, if one of these forms is the first to have some."""
        first = any(form.anchored for form in FORMS if form.name in kinds) and not self._anchored
        return CANDIDATES if first else 0

    def affordable(self, kinds: Sequence[str]) -> bool:
        """Whether a block may still be asked in these ways."""
        return self.asked + self.price(kinds) + self.candidates(kinds) <= self.rules.asks

    def missing(self, block: int, kinds: Sequence[str]) -> tuple[str, ...]:
        """Which of these the block was not yet asked in."""
        return tuple(kind for kind in kinds if (block, kind) not in self.seen.done)

    def rows_of(self, form: Form, first: int = 0) -> list[int]:
        """Rows of blocks from this one on that were asked in this form and answered alone, as they came.

        The first of a conversation sees none, and is left out.
        """
        given = {*self.labels.get(form.name, {}), *self.left[form.name]}
        return [
            n
            for block in self.rules.blocks[first:]
            for n in (block if form.anchored else block[1:])
            if n in given and n in self.alone
        ]

    def like_alone(self, form: Form, n: int, label: str) -> float:
        """How far the form's answer to this row is the one given alone; 0 where it left the conversation."""
        return 0.0 if n in self.left[form.name] else self.like.of(self.labels[form.name][n], label)

    def odds(self, form: Form, more: int = 0) -> float:
        """Odds against "it does harm beyond the margin", were so many rows more to agree.

        The plain proof looks at agreement with alone. Where alone differs from alone, half the money goes on
        what the form adds to that: how far two answers alone agree, less how far the form's agrees with each
        of them, on average. It lies between -1/2 and 1 (a likeness keeps the triangle's inequality; texts'
        does so nearly, and is cut off there, which costs proof but never makes one).
        """
        margin = self.rules.margin
        rows = self.rows_of(form)
        plain = [self.like_alone(form, n, self.alone[n]) for n in rows]
        odds = refuted_below([*plain, *[1.0] * more], 1 - margin)
        if not self.rules.noisy:
            return odds
        lost = [
            self.like.of(self.alone[n], self.again[n])
            - (self.like_alone(form, n, self.alone[n]) + self.like_alone(form, n, self.again[n])) / 2
            for n in rows
            if n in self.again
        ]
        kept = [min(1.0, (1 - value) / 1.5) for value in (*lost, *[0.0] * more)]
        # The bets on what the form adds are the only ones with a chance if alone seldom agrees with alone.
        return odds / 2 + refuted_below(kept, (1 - margin) / 1.5, NOISE_STAKES) / 2

    def judge(self, form: Form, tests: int) -> Judged:
        """How far the form's answers are those given alone."""
        rows = self.rows_of(form)
        values = [self.like_alone(form, n, self.alone[n]) for n in rows]
        low, high = share_interval(sum(values), len(values)) if values else (0.0, 1.0)
        floor = 1.0
        if self.rules.noisy and self.floor_values:
            floor = sum(self.floor_values) / len(self.floor_values)
        return Judged(
            form.name,
            form.words,
            len(values),
            sum(not set(rows).isdisjoint(block) for block in self.rules.blocks),
            round(sum(values) / len(values), 4) if values else 0.0,
            round(low, 4),
            round(high, 4),
            None if self.seen.costs is None else round(speed_of(form, self.seen.costs), 2),
            proof=bool(values) and self.odds(form) >= tests / ALPHA,
            harm=high < floor - self.rules.margin,
        )

    def pairs(self, form: Form, *, within: set[int]) -> Pairs:
        """Wins and losses against alone on gold, on these rows; a row that left its conversation is lost."""
        left, gold = self.left[form.name], self.seen.gold
        given = {n: label for n, label in self.labels.get(form.name, {}).items() if n in within - left}
        pairs = compare(given, self.alone, gold, enum=self.rules.enum)
        lost = sum(n in within and n in self.alone and bool(gold.get(n, "").strip()) for n in left)
        return replace(pairs, losses=pairs.losses + lost, compared=pairs.compared + lost)

    def rate(self, form: Form, fresh: int) -> tuple[Pairs, bool]:
        """Wins and losses on rows that had no part in the selection, and whether they prove it better."""
        rows = {n for block in self.rules.blocks[fresh:] for n in block}
        pairs = self.pairs(form, within=rows)
        return pairs, paired_odds(pairs.wins, pairs.losses) >= 1 / ALPHA
