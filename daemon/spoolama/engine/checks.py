"""Whether what the server sent is an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from spoolama.backends.base import Reply
from spoolama.engine.budget import message_bytes
from spoolama.engine.conversation import Conversation, Prompt
from spoolama.errors import RowError
from spoolama.job.answer import AnswerCheck

__all__ = ["AnswerChecks", "check_reply"]

Format = Mapping[str, Any] | Literal["json"] | None

_BYTES_PER_TOKEN = 32
"""No ordinary text has longer tokens on average; runs of blanks may, so short prompts are not judged."""
_JUDGED_FROM_BYTES = 4096
_MOST_FORMATS = 64


class AnswerChecks:
    """One compiled check per schema; OpenAI lines may bring many."""

    def __init__(self) -> None:
        self._checks: dict[str, AnswerCheck] = {}

    def of(self, wanted: Format) -> AnswerCheck:
        """The check for answers of this form."""
        key = json.dumps(wanted, sort_keys=True)
        check = self._checks.get(key)
        if check is None:
            if len(self._checks) >= _MOST_FORMATS:
                self._checks.clear()
            check = self._checks[key] = AnswerCheck(wanted)
        return check


def check_reply(reply: Reply, prompt: Prompt, conversation: Conversation) -> None:
    """See by the server's own counts that the whole prompt was read and the whole answer written.

    Raises:
        RowError: `prompt_truncated` or `answer_cut`.
    """
    if reply.prompt_tokens is not None:
        floor = _least_tokens(prompt, conversation)
        if reply.prompt_tokens < floor:
            raise RowError(
                "prompt_truncated",
                f"the server read {reply.prompt_tokens} tokens of a prompt that has at least {floor}: "
                "it cut the prompt without saying so",
                details={
                    "prompt_tokens": reply.prompt_tokens,
                    "at_least": floor,
                    "num_ctx": prompt.budget.num_ctx,
                },
            )
    if reply.finish == "length":
        raise RowError(
            "answer_cut",
            f"the answer was cut after {_count(reply.completion_tokens)} tokens (num_predict is "
            f"{prompt.budget.num_predict})",
            details={
                "completion_tokens": reply.completion_tokens,
                "prompt_tokens": reply.prompt_tokens,
                "num_predict": prompt.budget.num_predict,
                "num_ctx": prompt.budget.num_ctx,
            },
            answer=reply.text,
        )


def _least_tokens(prompt: Prompt, conversation: Conversation) -> int:
    """A prompt that only grew has more tokens than before; a long one is not all blanks."""
    if prompt.appended and conversation.last_prompt is not None:
        return conversation.last_prompt + 1
    size = message_bytes(prompt.messages)
    return size // _BYTES_PER_TOKEN if size >= _JUDGED_FROM_BYTES else 0


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else str(tokens)
