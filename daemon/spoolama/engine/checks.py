"""Whether what the server sent is an answer."""

from __future__ import annotations

from spoolama.backends.base import Reply
from spoolama.context.budget import message_bytes
from spoolama.context.conversation import Conversation, Prompt
from spoolama.errors import ContextOverflow, RowError

__all__ = ["check_reply", "check_room", "cut_error", "looks_halved", "overflow"]

_BYTES_PER_TOKEN = 32
"""No ordinary text has longer tokens on average; runs of blanks may, so short prompts are not judged."""
_JUDGED_FROM_BYTES = 4096
_HALF_SLACK = 8
"""A cut prompt keeps a few tokens beyond half of the window."""


def check_reply(reply: Reply, prompt: Prompt, conversation: Conversation) -> None:
    """See by the server's own counts that the whole prompt was read and the whole answer written.

    Raises:
        RowError: `prompt_truncated` or `answer_cut`.
    """
    if reply.prompt_tokens is not None and reply.prompt_tokens < _least_tokens(prompt, conversation):
        raise cut_error(reply, prompt)
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


def check_room(reply: Reply, prompt: Prompt) -> None:
    """See that the answer had its room, where the prompt turned out longer than its bound said.

    Behind such a prompt a server ends the answer early, or drops the beginning of what it reads and goes on
    without a word. An answer that came to its end inside the window met neither.

    Raises:
        ContextOverflow: it may have run out of room, or nobody can tell.
    """
    tokens, answered, budget = reply.prompt_tokens, reply.completion_tokens, prompt.budget
    if tokens is None or budget.fits(tokens):
        return
    if reply.finish == "stop" and answered is not None and tokens + answered < budget.num_ctx:
        return
    raise overflow(tokens, prompt)


def overflow(tokens: int | None, prompt: Prompt) -> ContextOverflow:
    """The prompt leaves no room for the answer; without a count: it may leave none."""
    budget = prompt.budget
    length = f"has {tokens}" if tokens is not None else f"may have {prompt.tokens} (uncounted)"
    return ContextOverflow(
        f"the prompt {length} tokens and the answer may have {budget.num_predict}, "
        f"together too many for num_ctx {budget.num_ctx}",
        prompt_tokens=tokens,
        num_ctx=budget.num_ctx,
    )


def cut_error(reply: Reply, prompt: Prompt) -> RowError:
    """The row's error when the server read less than it was sent."""
    return RowError(
        "prompt_truncated",
        f"the server counted only {reply.prompt_tokens} tokens: it cut the prompt without saying so",
        details={"prompt_tokens": reply.prompt_tokens, "num_ctx": prompt.budget.num_ctx},
    )


def looks_halved(reply: Reply, prompt: Prompt) -> bool:
    """Whether the count is just what Ollama leaves of a prompt that it cuts: half of the window and a little.

    A whole prompt may have that length too; whoever asks must find out whether a longer one counts more.
    """
    if reply.prompt_tokens is None or prompt.fits:
        return False
    return 0 <= reply.prompt_tokens - prompt.budget.num_ctx // 2 <= _HALF_SLACK


def _least_tokens(prompt: Prompt, conversation: Conversation) -> int:
    """A prompt that only grew has more tokens than before; a long one is not all blanks."""
    if prompt.appended and conversation.last_prompt is not None:
        return conversation.last_prompt + 1
    size = message_bytes(prompt.messages)
    return size // _BYTES_PER_TOKEN if size >= _JUDGED_FROM_BYTES else 0


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else str(tokens)
