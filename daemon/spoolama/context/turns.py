"""Creates the turns of a conversation: a row and its answer, with label and score for trims."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from spoolama.backends.base import Message
from spoolama.context.budget import bound
from spoolama.context.trimming import Turn
from spoolama.errors import RowError
from spoolama.evaluation.asking import MessageBuilder
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.job.answer import gold_answers, label_of_answer
from spoolama.job.plan import Plan
from spoolama.job.row import StoredRow
from spoolama.job.sidecar import BUILT_IN_SCORES, Sidecar


class Turns:
    """Creates turns with the settings of a job's sidecar.

    Args:
        sidecar: Defines the label of an answer and the score of a row.
        asker: Renders the rows' own messages.
        evaluator: Scores rows, and checks answers against `format`.
    """

    def __init__(self, sidecar: Sidecar, asker: MessageBuilder, evaluator: JobEvaluator) -> None:
        self._sidecar = sidecar
        self._asker = asker
        self._evaluator = evaluator

    @property
    def logprobs(self) -> bool:
        """Whether log probabilities are needed."""
        return self._sidecar.trim.score == "uncertain"

    async def of(self, row: StoredRow, own: tuple[Message, ...], answer: str, tokens: int) -> Turn:
        """Return the turn of an answered row.

        Of `row` it uses the fields and `logprob` only: a row that was just answered has no counts yet, and a
        resume must build the same turn.
        """
        return Turn(
            row.ordinal,
            (*own, Message("assistant", answer)),
            tokens,
            self.label(answer),
            await self.score(row, answer, row.logprob),
        )

    async def anchor(self, row: StoredRow, plan: Plan) -> Turn:
        """Return the turn of a row that was answered in isolation; with its gold answer, if it has one."""
        own = (await self._asker.ask(row.fields, row.line, row.request)).own
        text = await self._gold(row) if plan.gold else None
        answer = Message("assistant", row.answer or "" if text is None else text)
        tokens = bound(plan, (*own, answer))
        if text is None and row.prompt_tokens is not None and row.completion_tokens is not None:
            tokens = min(tokens, row.prompt_tokens + row.completion_tokens)
        return Turn(row.ordinal, (*own, answer), tokens, self.label(answer.content))

    async def _gold(self, row: StoredRow) -> str | None:
        """Return the row's answer with its gold value, in the first spelling that `format` accepts."""
        for text in gold_answers(self._sidecar, row.fields, row.answer or ""):
            with contextlib.suppress(RowError):
                await self._evaluator.check(self._sidecar.format, text, row.line)
                return text
        return None

    def gold_fits(self, rows: Sequence[StoredRow]) -> bool:
        """Whether gold has the format of these rows' answers; otherwise it would teach another format."""
        answers = [self.label(row.answer or "") for row in rows]
        golds = [str(row.fields.get(self._sidecar.gold or "") or "").strip() for row in rows]
        golds = [gold for gold in golds if gold]
        if not golds:
            return False
        if self._sidecar.format is not None:
            return True  # `_gold` validates each one
        if all(map(_is_number, golds)):
            return all(map(_is_number, answers))
        return bool(set(golds) & set(answers))

    def label(self, answer: str) -> str:
        """Return the label of an answer."""
        return label_of_answer(answer, self._sidecar)

    async def score(self, row: StoredRow, answer: str, logprob: float | None) -> float:
        """Return the importance of a row by the sidecar's score."""
        score = self._sidecar.trim.score
        if score is None or score == "spread":
            return 0.0
        if score == "uncertain":
            return -(logprob or 0.0)
        assert score not in BUILT_IN_SCORES
        return await self._evaluator.score(score, row.fields, answer, row.line)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
