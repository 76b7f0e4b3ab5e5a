"""Chat and generate: from a request to a reply with the counters of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from support.card_model import CardsFull
from support.fake_ollama_answers import hashed
from support.fake_ollama_checks import Refused, nested
from support.fake_ollama_engine import LOAD_OPTIONS, Engine, Prompt, Runner, Slot
from support.fake_ollama_faults import ON_THE_ANSWER, RUNNER_DIED, late
from support.fake_ollama_http import Connection
from support.fake_ollama_script import Asked, Call, FakeModel, Fault, Script


@dataclass(slots=True)
class Generation:
    """An answer and its counters."""

    text: str
    reason: str
    prompt_tokens: int
    cached: int
    answered: int
    load_s: float
    total_s: float
    prompt_s: float
    eval_s: float
    pieces: list[bytes]
    """The text, token by token."""

    def counters(self, version: tuple[int, ...]) -> dict[str, Any]:
        """Return the counters that this version reports; zeros are left out, as by the real one."""
        counted = self.prompt_tokens - self.cached if version == (0, 30, 0) else self.prompt_tokens
        found: dict[str, Any] = {
            "total_duration": _ns(self.total_s),
            "load_duration": _ns(self.load_s),
            "prompt_eval_count": counted,
            "prompt_eval_duration": _ns(self.prompt_s),
            "eval_count": self.answered,
            "eval_duration": _ns(self.eval_s),
        }
        found = {key: value for key, value in found.items() if value}
        if version >= (0, 33, 3):
            found["prompt_eval_cached_count"] = self.cached
        return found


class Generator:
    """Processes prompts, slot by slot."""

    def __init__(self, script: Script, engine: Engine) -> None:
        self._script = script
        self._engine = engine
        self._chance = random.Random(script.latency.seed)
        self.in_flight = 0
        self.peak_in_flight = 0
        self.version = version_of(script.version)

    async def answer(
        self,
        call: Call,
        connection: Connection,
        model: FakeModel,
        prompt: Prompt,
        fault: Fault | None,
        build: Any,
    ) -> Generation | None:
        """Return the generation, or None if a fault has answered instead.

        Args:
            build: From a generation to the body of the reply, for faults that change it.
        """
        options = call.body.get("options") or {}
        runner, load_s = await self._engine.runner(model, options, call.body.get("shift", True))
        prompt, counted = self._fitted(prompt, runner, call.body, fault)
        try:
            async with self._slot(runner, prompt, call) as (slot, cached):
                cached = min(cached, max(0, counted - 1))
                call.cached_tokens = cached
                self._take_memory(model, counted)
                done = self._generate(call, model, runner, prompt, counted, cached, load_s, fault)
                if fault is not None and fault.kind not in ON_THE_ANSWER:
                    call.outcome = fault.kind
                    await late(fault, connection, self._engine, runner, lambda: build(done))
                    return None
                await self._wait(done)
                self._engine.leave(slot, prompt, done.text, cached)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if runner.dead and not connection.gone and task is not None:
                task.uncancel()
                raise Refused(500, RUNNER_DIED) from None
            raise
        return done

    def _take_memory(self, model: FakeModel, tokens: int) -> None:
        """Take the memory for a prompt; without it every loaded model is unloaded (`sched.go`)."""
        if self._script.memory is None:
            return
        try:
            self._script.memory.answered(model.name, tokens)
        except CardsFull as full:
            for runner in list(self._engine.runners.values()):
                self._engine.kill(runner)
            raise Refused(500, str(full)) from None

    @contextlib.asynccontextmanager
    async def _slot(self, runner: Runner, prompt: Prompt, call: Call) -> AsyncIterator[tuple[Slot, int]]:
        task = asyncio.current_task()
        assert task is not None
        runner.tasks.add(task)
        runner.idle.clear()
        try:
            async with runner.gate:
                slot, cached = self._engine.take(runner, prompt)
                call.slot = slot.number
                self.in_flight += 1
                self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
                try:
                    yield slot, cached
                finally:
                    slot.busy = False
                    self.in_flight -= 1
        finally:
            runner.tasks.discard(task)
            if not runner.tasks:
                runner.idle.set()

    def _fitted(
        self, prompt: Prompt, runner: Runner, body: Mapping[str, Any], fault: Fault | None
    ) -> tuple[Prompt, int]:
        """Return the prompt that fits the window and its length: refused, or cut silently as by
        the real server.
        """
        total = self._engine.prompt_tokens(prompt)
        window = runner.num_ctx
        if fault is not None and fault.kind == "silent_cut":
            return prompt, min(total, window // 2 + 2)
        if total < window:
            return prompt, total
        if body.get("truncate", True) is False:
            message = (
                f"request ({total} tokens) exceeds the available context size ({window} tokens), "
                "try increasing it"
            )
            raise Refused(
                400, nested(400, message, "exceed_context_size_error", n_prompt_tokens=total, n_ctx=window)
            )
        segments = list(prompt.segments)
        while self._engine.prompt_tokens(Prompt(tuple(segments), prompt.opened)) > window:
            oldest = next((i for i, (role, _) in enumerate(segments[:-1]) if role != "system"), None)
            if oldest is None:
                break
            del segments[oldest]
        prompt = Prompt(tuple(segments), prompt.opened)
        total = self._engine.prompt_tokens(prompt)
        if total < window:
            return prompt, total
        keep = int((body.get("options") or {}).get("num_keep", 4))
        return prompt, window - (window - keep) // 2

    def _generate(
        self,
        call: Call,
        model: FakeModel,
        runner: Runner,
        prompt: Prompt,
        counted: int,
        cached: int,
        load_s: float,
        fault: Fault | None,
    ) -> Generation:
        text, reason, answered = self._text(call, model, prompt, runner.num_ctx - counted, fault)
        latency = self._script.latency
        prompt_s = (counted - cached) * latency.prompt_token_s
        eval_s = answered * latency.answer_token_s
        waited = max(0.0, time.time() - call.at)
        return Generation(
            text=text,
            reason=reason,
            prompt_tokens=counted,
            cached=cached,
            answered=answered,
            load_s=load_s,
            total_s=load_s + prompt_s + eval_s + latency.request_s + waited,
            prompt_s=prompt_s,
            eval_s=eval_s,
            pieces=self._engine.pieces(text),
        )

    def _text(
        self, call: Call, model: FakeModel, prompt: Prompt, room: int, fault: Fault | None
    ) -> tuple[str, str, int]:
        """Return the answer, its stop reason, and its tokens."""
        body = call.body
        options = body.get("options") or {}
        messages = body.get("messages") or [{"role": role, "content": text} for role, text in prompt.segments]
        skipped = (*LOAD_OPTIONS, "num_predict")
        asked = Asked(
            model.name,
            messages,
            {key: value for key, value in options.items() if key not in skipped},
            body.get("format") or None,
            body.get("think"),
        )
        if fault is not None and fault.kind == "empty":
            text = ""
        elif fault is not None and fault.kind == "text":
            text = fault.body
        elif self._script.answer is not None:
            text = self._script.answer(asked)
        else:
            text = hashed(asked, self._script.labels)
        bound = int(options.get("num_predict", -1))
        limit = min(bound, room) if bound > 0 else room
        answered = self._engine.tokens(text) + 1
        if answered <= limit:
            return text, "stop", answered
        kept = b"".join(self._engine.pieces(text)[:limit])
        return kept.decode("utf-8", "ignore"), "length", limit

    async def _wait(self, done: Generation) -> None:
        latency = self._script.latency
        seconds = latency.request_s + latency.pace * (done.prompt_s + done.eval_s)
        if latency.jitter:
            seconds *= 1 + latency.jitter * self._chance.uniform(-1, 1)
        if seconds > 0:
            await asyncio.sleep(seconds)


def version_of(text: str) -> tuple[int, ...]:
    """Return `0.33.3-rc1` as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def now() -> str:
    """Return the time in Ollama's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
