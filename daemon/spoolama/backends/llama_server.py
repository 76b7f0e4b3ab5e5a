"""Calls llama-server's own routes: properties, rendering, token counts, raw completions, slot copies.

Sources: llama.cpp (tools/server/README.md, server-context.cpp), tested with the embedded engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.backends.base import Message, Reply
from spoolama.backends.http import HttpClient
from spoolama.backends.openai_wire import checked, read_completion, wire_messages
from spoolama.errors import BackendError, ServerAway, ServerDied, UnexpectedReply

COUNT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LlamaServerFacts:
    """The values in `/props`."""

    version: str | None
    num_ctx: int | None
    """Window of one slot."""
    slots: int | None
    can_think: bool
    """Whether the chat template has a switch for thinking."""


def read_facts(props: Mapping[str, Any]) -> LlamaServerFacts:
    """Parse the body of `/props`; missing values are None."""
    settings = props.get("default_generation_settings")
    window = settings.get("n_ctx") if isinstance(settings, dict) else None
    version = props.get("build_info")
    slots = props.get("total_slots")
    return LlamaServerFacts(
        version=version if isinstance(version, str) else None,
        num_ctx=window if isinstance(window, int) else None,
        slots=slots if isinstance(slots, int) else None,
        can_think="enable_thinking" in str(props.get("chat_template", "")),
    )


async def render(http: HttpClient, messages: Sequence[Message]) -> str | None:
    """Render the prompt with the model's own template, as the chat route does with thinking off."""
    rendered = checked(
        await http.post(
            "/apply-template",
            {"messages": wire_messages(messages), "chat_template_kwargs": {"enable_thinking": False}},
            timeout_s=COUNT_TIMEOUT_S,
        )
    ).get("prompt")
    return rendered if isinstance(rendered, str) else None


async def count_tokens(http: HttpClient, messages: Sequence[Message]) -> int | None:
    """Count the tokens of a prompt with llama-server's own template and tokenizer."""
    rendered = await render(http, messages)
    if rendered is None:
        return None
    tokens = checked(
        await http.post(
            "/tokenize",
            # As in the chat route: add a begin-of-sequence token if the model uses one.
            {"content": rendered, "add_special": True, "parse_special": True},
            timeout_s=COUNT_TIMEOUT_S,
        )
    ).get("tokens")
    return len(tokens) if isinstance(tokens, list) else None


async def prime(http: HttpClient, text: str, *, slot: int | None, timeout_s: float) -> Reply:
    """Evaluate a rendered text with an answer of one token. It is tokenized like a chat prompt."""
    body: dict[str, Any] = {"prompt": text, "n_predict": 1, "cache_prompt": True, "stream": False}
    if slot is not None:
        body["id_slot"] = slot
    return read_completion(checked(await http.post("/completion", body, timeout_s=timeout_s)))


async def _save(http: HttpClient, name: str, *, slot: int, timeout_s: float) -> None:
    """Save the content of an idle slot to a file of the server."""
    checked(await http.post(f"/slots/{slot}?action=save", {"filename": name}, timeout_s=timeout_s))


async def _restore(http: HttpClient, name: str, *, slot: int, timeout_s: float) -> Reply:
    """Restore saved content into an idle slot; all tokens of the returned reply count as cached."""
    found = checked(await http.post(f"/slots/{slot}?action=restore", {"filename": name}, timeout_s=timeout_s))
    tokens, timings = found.get("n_restored"), found.get("timings")
    if not isinstance(tokens, int) or tokens < 1:
        raise UnexpectedReply("the server did not restore the slot", status=200)
    took = timings.get("restore_ms") if isinstance(timings, dict) else None
    return Reply(
        text="",
        finish="length",
        prompt_tokens=tokens,
        cached_tokens=tokens,
        completion_tokens=0,
        prompt_s=took / 1000 if isinstance(took, int | float) else None,
        raw=found,
    )


class PrefixCopies:
    """Primes slots: evaluates a prefix once and copies it into the other slots.

    The slots share nothing: each evaluates the prefix again, although keys and values are the same. The
    `/slots` routes save a slot and restore it into another one. Measured on a CPU with 162 tokens of
    SmolLM2-135M: restoring takes 5 ms, evaluating takes 950 ms.

    Args:
        http: The server.
        name: The file that it saves to and restores from.
        most_tokens: Longer prefixes are not copied, because a copy takes as much memory as a slot.
    """

    def __init__(self, http: HttpClient, name: str, *, most_tokens: int) -> None:
        self._http = http
        self._name = name
        self._most_tokens = most_tokens
        self._lock = asyncio.Lock()
        self._saved: str | None = None
        self._too_long: str | None = None

    async def prime(self, text: str, *, slot: int, timeout_s: float) -> Reply:
        """Put this text into the slot. Lanes that prime at the same time wait for the first one.

        Args:
            text: The rendered text.
            slot: An idle slot.
            timeout_s: Timeout of each request.
        """
        if text == self._too_long:
            return await prime(self._http, text, slot=slot, timeout_s=timeout_s)
        async with self._lock:
            if self._saved == text:
                try:
                    return await _restore(self._http, self._name, slot=slot, timeout_s=timeout_s)
                except (ServerAway, ServerDied):
                    raise
                except BackendError:
                    self._saved = None  # evaluate it instead
            reply = await prime(self._http, text, slot=slot, timeout_s=timeout_s)
            if reply.prompt_tokens is None or reply.prompt_tokens > self._most_tokens:
                self._too_long = text
            else:
                self._saved = None  # saving overwrites the old copy even if it fails
                try:
                    await _save(self._http, self._name, slot=slot, timeout_s=timeout_s)
                except (ServerAway, ServerDied):
                    raise
                except BackendError:
                    return reply
                self._saved = text
            return reply
