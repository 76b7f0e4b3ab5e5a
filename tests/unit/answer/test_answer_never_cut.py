"""Random conversations in every script through every strategy: nothing is ever cut.

The server counts exactly and refuses what does not fit. If an answer does not fit, the server spoils it
without an error, like a server that drops the beginning of its window.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.model_shape import ModelShape
from spoolama.clock import SystemClock
from spoolama.errors import ContextOverflow
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.sidecar import Sidecar
from spoolama.progress import Progress, Pulse
from spoolama.run.runner import JobRunner
from spoolama.stopping import Stop
from support.evaluation import inline_job_evaluator
from support.store import MemoryStore

CONVERSATIONS = int(os.environ.get("SPOOLAMA_CONVERSATIONS", "2000"))
"""The total over all strategies; set `SPOOLAMA_CONVERSATIONS=10000` for the long run."""

SEGMENTS, ROWS = 36, 8
LEARNED = 28
"""From this segment on the bound of tokens per byte is a learned one, so rows may be denser than it."""
NUM_PREDICT = 12
SPOILED = "~"

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
    """Count a token for four Latin, two Cyrillic or Arabic, or one other character, and one per byte for the
    rest.
    """
    return sum(len(p.encode()) if ord(p[0]) > 0xFFFF else 1 for p in _SCRIPTS.findall(text))


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Add five tokens for each message, for the start and for the opened answer."""
    return 4 + sum(5 + tokens_of(m.content) for m in messages)


@dataclass
class Exact:
    """A server that counts exactly."""

    num_ctx: int
    kind: str = "exact"
    releases: bool = True
    uses_gpus: bool = False
    sets_slots: bool = False
    pid: int | None = None
    refused: Counter[str] = field(default_factory=Counter)
    spoiled: int = 0
    """Answers that exceeded the window."""

    async def probe(self) -> ServerInfo:
        return ServerInfo("exact", None)

    async def load(self, spec: LoadSpec) -> LoadedModel:
        return LoadedModel(spec.model, None, spec.num_ctx, 1, ServerInfo("exact", None))

    async def chat(self, request: ChatRequest) -> Reply:
        tokens = prompt_tokens(request.messages)
        if tokens >= request.load.num_ctx:
            self.refused[request.messages[-1].content] += 1
            raise ContextOverflow("too long", prompt_tokens=tokens, num_ctx=request.load.num_ctx)
        text = "abc"[len(request.messages[-1].content) % 3] * (1 + tokens % 40)
        answered = min(1 + tokens_of(text), request.num_predict)
        if request.num_predict > 1 and tokens + answered >= request.load.num_ctx:
            self.spoiled += 1
            text = SPOILED
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

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        return None

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        return None

    async def release(self, *, keep: str | None = None, also: str | None = None) -> tuple[str, ...]:
        return ()

    async def aclose(self) -> None:
        pass


alphabets = st.sampled_from(
    ["abc def ghi. ", "абв где ёжз. ", "汉字かなカナ。", "עברית", "العربية", "🐎🎈🧭", "aé汉🐎 "]
)
texts = st.tuples(alphabets, st.integers(0, 400), st.randoms(use_true_random=False)).map(
    lambda t: "".join(t[2].choice(t[0]) for _ in range(t[1]))
)
jobs = st.lists(texts, min_size=5, max_size=20)
plain = st.lists(st.integers(0, 400).map(lambda n: ("abc def ghi. " * 40)[:n]), min_size=5, max_size=20)


def answer_all(sidecar: Sidecar, store: MemoryStore, server: Exact) -> None:
    clock = SystemClock()
    runner = JobRunner(
        evaluator=inline_job_evaluator(),
        sidecar=sidecar,
        store=store,
        backend=server,
        clock=clock,
        progress=Progress("job", clock, Pulse(clock)),
        lanes=2,
        stop=Stop(),
    )
    asyncio.run(runner.run())


def test_rows_denser_than_the_learned_bound_are_answered_completely_or_fail() -> None:
    """A prompt that exceeds its room although the bound allows it never gets a spoiled answer."""
    sidecar = parse_sidecar(
        "model: m\nsystem: Judge.\nprompt: '{{ text }}'\nsegment: 8\ntrim: {strategy: reset}\n"
        f"options: {{num_ctx: 512, num_predict: {NUM_PREDICT}}}\n",
        "job.yaml",
    )
    latin = ["abc def ghi. " * 20] * LEARNED * ROWS
    dense = ["汉" * n for n in range(470, 502)]
    store, server = MemoryStore([{"text": text} for text in latin + dense]), Exact(512)
    answer_all(sidecar, store, server)
    assert store.plan_bodies[-1]["tokens_per_byte"] < 0.3
    assert server.spoiled > 5
    assert not [a for a in store.results.values() if SPOILED in a.answer]
    assert len(store.results) + len(store.failures) == len(store.rows)
    assert f"tokens and the answer may have {NUM_PREDICT}, together too many for num_ctx 512" in " ".join(
        store.attempt_messages
    )
    # An answer that ended inside the window counts; a failed row reports its length.
    assert len(store.results) > len(latin) + 12
    assert {f.code for f in store.failures.values()} == {"context_overflow"}
    assert min(int(str(f.details["prompt_tokens"])) for f in store.failures.values()) > 512 - NUM_PREDICT - 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_cut_and_a_row_is_refused_at_most_once(strategy: str) -> None:
    """In every conversation an answer fits or is not accepted, and a refused row's length is known."""
    rows_that_fit = bound_failures = 0

    @settings(
        max_examples=max(1, CONVERSATIONS // len(STRATEGIES) // SEGMENTS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a smaller job would take minutes to find and would show no more
    )
    @given(plain | jobs, jobs, st.integers(160, 700), texts)
    def run(early: list[str], late: list[str], num_ctx: int, system: str) -> None:
        nonlocal rows_that_fit, bound_failures
        sidecar = parse_sidecar(
            f"model: m\nprompt: 'Row {{{{ n }}}}: {{{{ text }}}}'\nsegment: {ROWS}\ntrim: {strategy}\n"
            f"options: {{num_ctx: {num_ctx}, num_predict: {NUM_PREDICT}}}\n",
            "job.yaml",
        ).model_copy(update={"system": system[:150]})
        pools = [early] * LEARNED * ROWS + [late] * (SEGMENTS - LEARNED) * ROWS
        store = MemoryStore([{"n": n, "text": pool[n * 7 % len(pool)]} for n, pool in enumerate(pools)])
        server = Exact(num_ctx)
        try:
            answer_all(sidecar, store, server)
        except Exception as error:
            if "first 10 rows" not in str(error):  # none of them fits behind this prefix
                raise
            return
        assert not [a for a in store.results.values() if SPOILED in a.answer]
        bounds = {plan["version"]: plan["tokens_per_byte"] for plan in store.plan_bodies}
        for answer in store.results.values():
            room = (answer.prompt_tokens or 0) + NUM_PREDICT < num_ctx
            assert room or bounds[answer.plan_version] < 1.0, "a byte makes no two tokens"
        for text, times in server.refused.items():
            # A learned bound may let a row be refused behind other rows first, which gives no length for the
            # row itself.
            assert times <= 1 + (int(text.split()[1][:-1]) >= LEARNED * ROWS)
        assert len(store.results) + len(store.failures) == len(store.rows)
        prefix = (Message("system", sidecar.system),) if sidecar.system else ()
        for row in store.rows:
            own = Message("user", f"Row {row.fields['n']}: {row.fields['text']}")
            fits = prompt_tokens((*prefix, own)) + NUM_PREDICT < num_ctx
            rows_that_fit += fits
            bound_failures += fits and row.state != "ok"
            # Under a learned bound, a prompt without full room for its answer counts if the answer ended
            # inside the window.
            assert fits or row.state == "failed" or row.ordinal >= LEARNED * ROWS
        for failure in store.failures.values():
            assert failure.code == "context_overflow"
            assert failure.details["prompt_tokens"]

    run()
    assert rows_that_fit > 100
    assert bound_failures < 0.01 * rows_that_fit, "the bound refuses next to nothing that would have fitted"
