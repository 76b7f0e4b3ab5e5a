"""An emulation of the first loop: what a user wrote before the engine existed.

One conversation with one request at a time; after every 50 rows it is cut to the system message and the last
40 messages. Where the prompt would fill the window, the oldest messages are left out of the request one at a
time, never the system message or the last, as Ollama does it; the loop's own list keeps them.
"""

from __future__ import annotations

from bench.engine.job_run import TimedBackend
from bench.engine.machine import Neighbours
from bench.engine.measured import Measured, RowCount
from bench.engine.settings import NUM_PREDICT, PREFIX, SAMPLING, WINDOW, Review
from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.clock import Clock

TRIM_ROWS = 50
KEPT_MESSAGES = 40
_OVERHEAD = 16
"""Upper bound of tokens around a message; with one token a byte no prompt exceeds it."""


async def run_loop(
    model: str,
    reviews: tuple[Review, ...],
    own: tuple[int, ...],
    *,
    slots: int,
    number: int,
    backend: TimedBackend,
    clock: Clock,
) -> Measured:
    """Run the rows through the loop once, without a cache. See `run_job` for the arguments."""
    spec = LoadSpec(model, WINDOW, slots=slots)
    await backend.cold(spec)
    history: list[Message] = []
    asked: list[int] = []
    """The row of each message in the history."""
    rows: list[RowCount] = []
    dropped, used, counted_s = 0, None, 0.0
    neighbours = Neighbours(backend.pids)
    began = clock.monotonic()
    for review in reviews:
        history.append(Message("user", review.text))
        asked.append(review.ordinal)
        counting = clock.monotonic()
        # What did not fit before does not fit with more behind it, so the search starts at the last cut.
        before = dropped
        dropped = await _cut(backend, spec, history, dropped, used)
        counted_s += clock.monotonic() - counting
        request = ChatRequest(spec, _prompt(history, dropped), NUM_PREDICT, SAMPLING, slot=0, timeout_s=600.0)
        sent = clock.monotonic()
        reply = await backend.chat(request)
        prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
        counted = used is not None and dropped == before
        rows.append(
            RowCount(
                ordinal=review.ordinal,
                segment=0,
                place=review.ordinal,
                visible_rows=tuple(sorted(set(asked[dropped:-1]))),
                prompt=prompt,
                cached=reply.cached_tokens or 0,
                completion=completion,
                own=max(1, prompt - used) if used is not None and counted else own[review.ordinal],
                own_counted=counted,
                answer=reply.text,
                latency_s=clock.monotonic() - sent,
            )
        )
        used = prompt + completion
        history.append(Message("assistant", reply.text))
        asked.append(review.ordinal)
        if len(rows) % TRIM_ROWS == 0:
            del history[:-KEPT_MESSAGES], asked[:-KEPT_MESSAGES]
            dropped, used = 0, None
    return Measured(
        model=model,
        slots=slots,
        name="loop",
        round=number,
        asked=len(reviews),
        seconds=clock.monotonic() - began - counted_s,
        rows=tuple(rows),
        counts=backend.counts,
        counted_s=counted_s,
        others=neighbours.share(),
    )


def _prompt(history: list[Message], dropped: int) -> tuple[Message, ...]:
    return (*PREFIX, *history[dropped:])


async def _cut(
    backend: TimedBackend, spec: LoadSpec, history: list[Message], dropped: int, used: int | None
) -> int:
    """Return how many of the oldest messages the request must leave out."""
    messages = history[-1:] if used is not None else _prompt(history, dropped)
    most = (used or 0) + sum(len(message.content.encode()) + _OVERHEAD for message in messages)
    if most < WINDOW:
        return dropped
    while dropped < len(history) - 1:
        # llama.cpp refuses a prompt that fills the window to the last token.
        if (await backend.count_tokens(spec, _prompt(history, dropped)) or 0) < WINDOW:
            break
        dropped += 1
    return dropped
