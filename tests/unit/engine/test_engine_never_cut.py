"""Random conversations in every script through every strategy: nothing is ever cut.

The server counts exactly, refuses what does not fit, and would have to cut an answer that finds no room.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.clock import SystemClock
from spoolama.engine.progress import Progress, Pulse
from spoolama.engine.runner import JobRunner
from spoolama.errors import ContextOverflow
from spoolama.job.sidecar_file import parse_sidecar
from spoolama.service.model import StopSignal
from spoolama.testing.store import MemoryStore

CONVERSATIONS = int(os.environ.get("SPOOLAMA_CONVERSATIONS", "2000"))
"""Over all strategies; `SPOOLAMA_CONVERSATIONS=10000` for the long run."""

SEGMENTS, ROWS = 20, 8
NUM_PREDICT = 12

STRATEGIES = [
    "{strategy: reset, every: 5}",
    "{strategy: window, keep: 2, every: 3}",
    "{strategy: anchors, anchors: 3}",
    "{strategy: anchors, anchors: 2, every: 3}",
    "{strategy: important, keep: 2, every: 3}",
    "{strategy: hybrid, anchors: 2, keep: 2, every: 2}",
    "{strategy: hybrid, important: 2, keep: 1, every: 2}",
    "{strategy: budget, tokens: 90}",
]

_SCRIPTS = re.compile(r"[ -~]{1,4}|[\u0400-\u04ff]{1,2}|[\u0600-\u06ff]{1,2}|.", re.DOTALL)


def tokens_of(text: str) -> int:
    """Four Latin characters, two Cyrillic or Arabic ones, one of another alphabet; a token a byte beyond."""
    return sum(len(p.encode()) if ord(p[0]) > 0xFFFF else 1 for p in _SCRIPTS.findall(text))


def prompt_tokens(messages: Sequence[Message]) -> int:
    """With five tokens around each message, a first one and an opened answer."""
    return 4 + sum(5 + tokens_of(m.content) for m in messages)


@dataclass
class Exact:
    """A server that counts exactly."""

    num_ctx: int
    kind: str = "exact"
    refused: Counter[str] = field(default_factory=Counter)
    overfull: list[int] = field(default_factory=list)
    """Answered prompts that left no room for a whole answer."""

    async def probe(self) -> ServerInfo:
        return ServerInfo("exact", None)

    async def load(self, spec: LoadSpec) -> LoadedModel:
        return LoadedModel(spec.model, None, spec.num_ctx, 1, ServerInfo("exact", None))

    async def chat(self, request: ChatRequest) -> Reply:
        tokens = prompt_tokens(request.messages)
        if tokens >= request.load.num_ctx:
            self.refused[request.messages[-1].content] += 1
            raise ContextOverflow("too long", prompt_tokens=tokens, num_ctx=request.load.num_ctx)
        if request.num_predict > 1 and tokens + request.num_predict >= request.load.num_ctx:
            self.overfull.append(tokens)
        text = "abc"[len(request.messages[-1].content) % 3] * (1 + tokens % 9)
        answered = min(1 + tokens_of(text), request.num_predict)
        return Reply(text, "stop", tokens, None, answered)

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        return None

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        return None

    async def prime(
        self, spec: LoadSpec, text: str, *, slot: int | None = None, timeout_s: float = 1.0
    ) -> Reply | None:
        return None

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        return None

    async def release(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


alphabets = st.sampled_from(
    ["abc def ghi. ", "абв где ёжз. ", "汉字かなカナ。", "עברית", "العربية", "🐎🎈🧭", "aé汉🐎 "]
)
texts = st.tuples(alphabets, st.integers(0, 400), st.randoms(use_true_random=False)).map(
    lambda t: "".join(t[2].choice(t[0]) for _ in range(t[1]))
)
jobs = st.lists(texts, min_size=5, max_size=20)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_cut_and_a_row_is_refused_at_most_once(strategy: str) -> None:
    """In every conversation each answer has its room; after a refusal the row's length is known."""
    rows_that_fit = bound_failures = 0

    @settings(
        max_examples=max(1, CONVERSATIONS // len(STRATEGIES) // SEGMENTS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs, st.integers(160, 700), texts)
    def run(pool: list[str], num_ctx: int, system: str) -> None:
        nonlocal rows_that_fit, bound_failures
        sidecar = parse_sidecar(
            f"model: m\nprompt: 'Row {{{{ n }}}}: {{{{ text }}}}'\nsegment: {ROWS}\ntrim: {strategy}\n"
            f"options: {{num_ctx: {num_ctx}, num_predict: {NUM_PREDICT}}}\n",
            "job.yaml",
        ).model_copy(update={"system": system[:150]})
        store = MemoryStore([{"n": n, "text": pool[n * 7 % len(pool)]} for n in range(SEGMENTS * ROWS)])
        server = Exact(num_ctx)
        clock = SystemClock()
        runner = JobRunner(
            sidecar=sidecar,
            openai=False,
            store=store,
            backend=server,
            clock=clock,
            progress=Progress("job", clock, Pulse(clock)),
            lanes=2,
            stop=StopSignal(),
        )
        try:
            asyncio.run(runner.run())
        except Exception as error:
            if "first 10 rows" not in str(error):  # none of them fits behind this prefix
                raise
            return
        assert not server.overfull
        assert max(server.refused.values(), default=0) <= 1
        assert len(store.results) + len(store.failures) == len(store.rows)
        prefix = (Message("system", sidecar.system),) if sidecar.system else ()
        for row in store.rows:
            own = Message("user", f"Row {row.fields['n']}: {row.fields['text']}")
            fits = prompt_tokens((*prefix, own)) + NUM_PREDICT < num_ctx
            rows_that_fit += fits
            bound_failures += fits and row.state != "ok"
            assert fits or row.state == "failed"
        for failure in store.failures.values():
            assert failure.code == "context_overflow"
            assert failure.details["prompt_tokens"]

    run()
    assert rows_that_fit > 100
    assert bound_failures < 0.01 * rows_that_fit, "the bound refuses next to nothing that would have fitted"
