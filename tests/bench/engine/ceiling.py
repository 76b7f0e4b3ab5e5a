"""The raw ceiling: llama.cpp's own time for the tokens that cannot be avoided.

Each row's own tokens (those of its rendered prompt after the shared prefix) are evaluated, and as many answer
tokens are generated as the isolated row had. No engine, chat template, grammar or request for each row is
involved: all rows with equally long answers go in one request, as token numbers, and llama.cpp batches them
over its slots. The shared prefix is put into each slot before the clock starts.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.machine import Neighbours
from bench.engine.measured import Counts, Measured, RowCount
from bench.engine.settings import WINDOW, Review, alone
from spoolama.backends.embedded_models import find_weights
from spoolama.backends.embedded_process import EngineProcess
from spoolama.backends.http import HttpClient
from spoolama.backends.openai_wire import checked, wire_messages
from spoolama.clock import Clock

RAW_PARAMS: Mapping[str, Any] = {"swa_full": True, "n_ctx_checkpoints": 0, "cache_ram_mib": 0}
"""A full cache even for sliding layers, so that the prefix stays usable to its last token and nothing is
copied. On plain attention this does not change what is evaluated.
"""

_KEY = "bench"
_TIMEOUT_S = 3600.0
_GREEDY = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": True}
"""The cheapest sampler; an answer has the requested length."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The isolated rows as token numbers."""

    prefix: tuple[int, ...]
    """Their common beginning."""
    prompts: tuple[tuple[int, ...], ...]

    @property
    def own(self) -> tuple[int, ...]:
        """Return the tokens of each row after the prefix."""
        return tuple(len(prompt) - len(self.prefix) for prompt in self.prompts)


class _Server:
    """A llama-server in a child process."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._http = HttpClient(process.url, headers={"Authorization": f"Bearer {_KEY}"}, reuse=False)

    @classmethod
    async def start(
        cls, model: str, slots: int, params: Mapping[str, Any], threads: int, cache_dir: Path
    ) -> _Server:
        """Start the same child as the embedded backend."""
        weights = await asyncio.to_thread(find_weights, model, cache_dir)
        given = {
            "path": str(weights.path),
            "num_ctx": WINDOW,
            "slots": slots,
            "threads": threads,
            "api_key": _KEY,
            "params": dict(params),
        }
        return cls(await EngineProcess.start(given, timeout_s=600.0))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the payload of a successful reply: `/completion` answers several prompts with a list."""
        reply = await self._http.post(path, body, timeout_s=_TIMEOUT_S)
        return reply.payload if isinstance(reply.payload, list) else checked(reply)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def stop(self) -> None:
        """End the child."""
        await self._http.aclose()
        await self._process.stop()


async def render(model: str, reviews: Sequence[Review], threads: int, cache_dir: Path) -> Rendered:
    """Return the rows as tokens, by the model's template and tokenizer."""
    server = await _Server.start(model, 1, {}, threads, cache_dir)
    try:
        # Two texts with different beginnings keep similar rows from lengthening the prefix.
        prompts = [await _tokens(server, text) for text in (*(r.text for r in reviews), "A", "?")]
    finally:
        await server.stop()
    common = 0
    while len({prompt[: common + 1] for prompt in prompts}) == 1:
        common += 1
    return Rendered(prompts[0][:common], tuple(prompts[:-2]))


async def _tokens(server: _Server, text: str) -> tuple[int, ...]:
    messages = wire_messages(alone(text))
    body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    rendered = (await server.post("/apply-template", body))["prompt"]
    found = await server.post("/tokenize", {"content": rendered, "add_special": True, "parse_special": True})
    return tuple(found["tokens"])


async def run_raw(
    name: str,
    model: str,
    rendered: Rendered,
    answers: Sequence[int],
    params: Mapping[str, Any],
    *,
    slots: int,
    number: int,
    threads: int,
    cache_dir: Path,
    clock: Clock,
) -> Measured:
    """Run the tokens through llama.cpp once, in a new child.

    Args:
        name: The name in the report.
        model: The model.
        rendered: The rows.
        answers: Answer tokens of each row.
        params: Parameters of llama.cpp beyond those that the engine sets.
        slots: Slots of the server.
        number: Of the round, from 0.
        threads: CPU threads.
        cache_dir: Where models are joined.
        clock: Time.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for ordinal, tokens in enumerate(answers):
        groups[tokens].append(ordinal)
    server = await _Server.start(model, slots, params, threads, cache_dir)
    try:
        priming = clock.monotonic()
        for slot in range(slots):
            body = {**_GREEDY, "prompt": list(rendered.prefix), "n_predict": 0, "id_slot": slot}
            await server.post("/completion", body)
        neighbours = Neighbours([server.pid])
        began = clock.monotonic()
        # All at once, so that the slots have work until the last row.
        replies = await asyncio.gather(
            *(_generate(server, rendered, ordinals, tokens) for tokens, ordinals in groups.items())
        )
        ended, others = clock.monotonic(), neighbours.share()
    finally:
        await server.stop()
    rows = tuple(sorted((row for reply in replies for row in reply), key=lambda row: row.ordinal))
    return Measured(
        model=model,
        slots=slots,
        name=name,
        round=number,
        asked=len(rendered.prompts),
        seconds=ended - began,
        wrong=_wrong(rows, answers),
        rows=rows,
        counts=Counts(
            requests=len(groups),
            prompt=sum(row.prompt for row in rows),
            cached=sum(row.cached for row in rows),
            evaluated=sum(row.prompt - row.cached for row in rows),
            completion=sum(row.completion for row in rows),
        ),
        primed_s=began - priming,
        others=others,
    )


async def _generate(
    server: _Server, rendered: Rendered, ordinals: Sequence[int], tokens: int
) -> list[RowCount]:
    prompts = [list(rendered.prompts[ordinal]) for ordinal in ordinals]
    payload = await server.post("/completion", {**_GREEDY, "prompt": prompts, "n_predict": tokens})
    found = []
    for reply in payload if isinstance(payload, list) else [payload]:
        ordinal, timings = ordinals[reply["index"]], reply["timings"]
        found.append(
            RowCount(
                ordinal=ordinal,
                segment=ordinal,
                place=0,
                visible_rows=(),
                prompt=timings["prompt_n"] + timings["cache_n"],
                cached=timings["cache_n"],
                completion=timings["predicted_n"],
                own=rendered.own[ordinal],
                own_counted=False,
                answer="",
                latency_s=(timings["prompt_ms"] + timings["predicted_ms"]) / 1000,
            )
        )
    return found


def _wrong(rows: Sequence[RowCount], answers: Sequence[int]) -> str | None:
    """Return why the ceiling did other work than it should."""
    if len(rows) != len(answers):
        return f"{len(answers) - len(rows)} rows are missing"
    other = sum(row.completion != answers[row.ordinal] for row in rows)
    return f"{other} answers have another length than they should" if other else None
