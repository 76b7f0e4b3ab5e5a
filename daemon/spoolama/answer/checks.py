"""Checks by token counts that the server read the whole prompt and wrote the whole answer."""

from __future__ import annotations

from spoolama.backends.base import Reply
from spoolama.context.budget import message_bytes
from spoolama.context.conversation import Conversation, Prompt
from spoolama.errors import ContextOverflow, RowError

__all__ = ["check_reply", "check_room", "cut_error", "looks_halved", "overflow"]

_BYTES_PER_TOKEN = 32
"""Maximum average token length of ordinary text; runs of spaces exceed it, so short prompts are exempt."""
_JUDGED_FROM_BYTES = 4096
_HALF_SLACK = 8
"""A truncated prompt keeps a few tokens more than half of the window."""


def check_reply(reply: Reply, prompt: Prompt, conversation: Conversation) -> None:
    """Check by the server's counts that the whole prompt was read and the whole answer was written.

    Raises:
        RowError: `prompt_truncated` or `answer_cut`.
    """
    if reply.prompt_tokens is not None and reply.prompt_tokens < _least_tokens(prompt, conversation):
        raise cut_error(reply, prompt)
    if reply.finish == "length":
        raise RowError(
            "answer_cut",
            f"the answer was cut off after {_count(reply.completion_tokens)} tokens (num_predict is "
            f"{prompt.budget.num_predict})",
            details={
                "completion_tokens": reply.completion_tokens,
                "prompt_tokens": reply.prompt_tokens,
                "num_predict": prompt.budget.num_predict,
                "num_ctx": prompt.budget.num_ctx,
            },
            answer=reply.text,
        )


def check_room(reply: Reply, prompt: Prompt) -> None:
    """Check that the answer had enough room if the prompt was longer than its computed bound.

    After such a prompt a server ends the answer early, or silently drops the beginning of the context. An
    answer that ended by itself within the window is not affected.

    Raises:
        ContextOverflow: the answer may have run out of room.
    """
    tokens, answered, budget = reply.prompt_tokens, reply.completion_tokens, prompt.budget
    if tokens is None or budget.fits(tokens):
        return
    if reply.finish == "stop" and answered is not None and tokens + answered < budget.num_ctx:
        return
    raise overflow(tokens, prompt)


def overflow(tokens: int | None, prompt: Prompt) -> ContextOverflow:
    """Return the error for a prompt that leaves too little room for the answer, or may do so."""
    budget = prompt.budget
    length = f"has {tokens}" if tokens is not None else f"may have {prompt.tokens} (upper bound)"
    return ContextOverflow(
        f"the prompt {length} tokens and the answer may have {budget.num_predict}, "
        f"together too many for num_ctx {budget.num_ctx}",
        prompt_tokens=tokens,
        num_ctx=budget.num_ctx,
    )


def cut_error(reply: Reply, prompt: Prompt) -> RowError:
    """Return the row's error if the server read only a part of the prompt."""
    return RowError(
        "prompt_truncated",
        f"the server counted only {reply.prompt_tokens} tokens: it silently truncated the prompt",
        details={"prompt_tokens": reply.prompt_tokens, "num_ctx": prompt.budget.num_ctx},
    )


def looks_halved(reply: Reply, prompt: Prompt) -> bool:
    """Whether the count is that of a prompt truncated by Ollama: slightly more than half of the window.

    A complete prompt can have that length too, so the caller must check whether a longer one counts more.
    """
    if reply.prompt_tokens is None or prompt.fits:
        return False
    return 0 <= reply.prompt_tokens - prompt.budget.num_ctx // 2 <= _HALF_SLACK


def _least_tokens(prompt: Prompt, conversation: Conversation) -> int:
    """Return a lower bound of the prompt tokens: more than in the prompt that it extends, or by its bytes."""
    if prompt.appended and conversation.last_prompt is not None:
        return conversation.last_prompt + 1
    size = message_bytes(prompt.messages)
    return size // _BYTES_PER_TOKEN if size >= _JUDGED_FROM_BYTES else 0


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else str(tokens)
