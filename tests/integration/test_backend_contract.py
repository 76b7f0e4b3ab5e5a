"""Behaviours that every backend has, tested with the fake Ollama and with real models.

`CANNOT` lists what one of them cannot do, with the reason.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from integration.backend_subjects import Bench, Subject, common_beginning
from spoolama.backends.base import ChatRequest, Message
from spoolama.errors import ContextOverflow, RequestRefused, ServerDied, Stalled

pytestmark = pytest.mark.slow

FEW = 8
"""Tokens at the end of a shared prefix that a server may evaluate again (frames, the answer's end)."""

# Behaviours: each gets a subject whose model is loaded.


async def repeats_a_prompt_from_its_cache(subject: Subject) -> None:
    """A repeated prompt has the same length, and nearly all of it is cached."""
    first = await subject.ask("The battery died after two days.")
    second = await subject.ask("The battery died after two days.")

    assert first.prompt_tokens is not None
    assert second.prompt_tokens == first.prompt_tokens
    assert second.cached_tokens is not None
    assert first.prompt_tokens - FEW <= second.cached_tokens < first.prompt_tokens


async def reuses_the_prefix_of_a_longer_conversation(subject: Subject) -> None:
    """An appended turn reuses the whole conversation before it."""
    first = await subject.ask("Great screen, love it.")
    second = await subject.ask("Great screen, love it.", first.text, "Broke at once.")

    assert first.prompt_tokens is not None
    assert second.prompt_tokens is not None
    assert second.cached_tokens is not None
    assert second.prompt_tokens > first.prompt_tokens
    assert second.cached_tokens >= first.prompt_tokens - FEW


async def reuses_the_shared_start_of_another_row(subject: Subject) -> None:
    """Another row after the same instruction reuses the instruction."""
    first = await subject.ask("It is blue.")
    second = await subject.ask("Never again, what a waste of money.")

    assert first.prompt_tokens is not None
    assert second.cached_tokens is not None
    assert second.cached_tokens >= first.prompt_tokens // 2


async def refuses_what_does_not_fit(subject: Subject) -> None:
    """An overflow is refused with exact sizes and does not change the cache."""
    loaded = await subject.backend.load(subject.spec)
    before = await subject.ask("Fine.")
    with pytest.raises(ContextOverflow) as caught:
        await subject.ask("word " * 4000)
    after = await subject.ask("Fine.")

    assert caught.value.num_ctx == loaded.num_ctx
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > subject.spec.num_ctx
    assert before.prompt_tokens is not None
    assert after.cached_tokens is not None
    assert after.cached_tokens >= before.prompt_tokens - FEW


async def reports_an_answer_that_was_cut(subject: Subject) -> None:
    """An answer cut at `num_predict` has exactly that many tokens and ends with `length`."""
    reply = await subject.ask("Tell me a story.", num_predict=3, sampling={"ignore_eos": True})

    assert reply.finish == "length"
    assert reply.completion_tokens == 3


async def answers_by_a_schema(subject: Subject) -> None:
    """A constrained answer parses and fits its schema."""
    schema = {
        "type": "object",
        "properties": {"sentiment": {"enum": ["positive", "negative"]}, "sure": {"type": "boolean"}},
        "required": ["sentiment", "sure"],
        "additionalProperties": False,
    }
    reply = await subject.ask("Love it.", num_predict=48, format=schema)
    answer = json.loads(reply.text)

    assert reply.finish == "stop"
    assert set(answer) == {"sentiment", "sure"}
    assert answer["sentiment"] in {"positive", "negative"}


async def refuses_a_schema_that_it_cannot_follow(subject: Subject) -> None:
    """A wrong schema is reported as the job's error."""
    with pytest.raises(RequestRefused) as caught:
        await subject.ask("Love it.", format={"type": "nosuchtype"})

    assert "format" in caught.value.fix


async def carries_any_text_both_ways(subject: Subject) -> None:
    """Text that is not ASCII is sent and returned unchanged."""
    word = "žluťoučký kůň 日本 🐎"
    reply = await subject.ask(f"Say {word}.", num_predict=64, format={"enum": [word]})

    assert json.loads(reply.text) == word


async def refuses_a_missing_model(subject: Subject) -> None:
    """A missing model is refused with the fix, and the subject's own model still works."""
    with pytest.raises(RequestRefused) as caught:
        await subject.backend.load(replace(subject.spec, model="nosuch:1b"))
    await subject.backend.load(subject.spec)

    assert caught.value.fix
    assert (await subject.ask("Fine.")).finish in {"stop", "length"}


async def counts_tokens_without_evaluating(subject: Subject) -> None:
    """The count in advance equals the count in the reply, for one turn and for several."""
    for texts in (("Fine — 良い.",), ("Fine.", "neutral", "Not so fine.")):
        request = subject.request(*texts)
        counted = await subject.backend.count_tokens(subject.spec, request.messages)
        reply = await subject.backend.chat(request)

        assert counted == reply.prompt_tokens


async def loads_once(subject: Subject) -> None:
    """The same load again does nothing."""
    before = subject.loads()
    again = await subject.backend.load(subject.spec)

    assert subject.loads() == before
    assert again.name == subject.spec.model
    assert again.num_ctx is not None
    assert again.num_ctx >= subject.spec.num_ctx


async def names_the_weights(subject: Subject) -> None:
    """A digest identifies the weights."""
    loaded = await subject.backend.load(subject.spec)

    assert loaded.digest is not None
    assert len(loaded.digest) == 64


async def reports_counts_and_times(subject: Subject) -> None:
    """Counts and times of a reply exist and are plausible."""
    reply = await subject.ask("A row that was never asked before.")

    assert reply.prompt_tokens is not None
    assert reply.completion_tokens is not None
    assert reply.prompt_s is not None
    assert reply.eval_s is not None
    assert 0 < reply.completion_tokens <= 8
    assert reply.prompt_s > 0
    assert reply.eval_s >= 0


async def repeats_answers_at_temperature_zero(subject: Subject) -> None:
    """Repeated requests with a cached prompt get the same answer."""
    texts = [(await subject.ask("It is what it is.", num_predict=16)).text for _ in range(4)]

    assert len(set(texts[1:])) == 1


async def works_on_two_requests_at_once(subject: Subject) -> None:
    """Two conversations on two slots are both answered, and each reuses its own prefix."""
    rows = ["First: " + "one " * 40, "Second: " + "two " * 40]
    first = await asyncio.gather(*(subject.ask(row, slot=n) for n, row in enumerate(rows)))
    second = await asyncio.gather(*(subject.ask(row, slot=n) for n, row in enumerate(rows)))

    for before, after in zip(first, second, strict=True):
        assert before.prompt_tokens is not None
        assert after.cached_tokens is not None
        assert after.cached_tokens >= before.prompt_tokens - FEW


async def frees_a_slot_when_cancelled(subject: Subject) -> None:
    """A request that times out or is cancelled frees its slot long before it would have ended."""
    began = time.monotonic()
    await subject.ask("Count to a thousand.", num_predict=80, sampling={"ignore_eos": True})
    tenth_s = time.monotonic() - began  # of the time that an endless request takes on this machine now
    stalled = [
        subject.backend.chat(subject.endless(slot=n, timeout_s=0.3)) for n in range(subject.spec.slots)
    ]
    results = await asyncio.gather(*stalled, return_exceptions=True)
    cancelled = asyncio.create_task(subject.backend.chat(subject.endless(slot=0)))
    await subject.until_busy()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)

    assert [type(result) for result in results] == [Stalled] * subject.spec.slots
    async with asyncio.timeout(max(5.0, 4 * tenth_s)):
        reply = await subject.ask("Fine.", slot=0)
    assert reply.finish in {"stop", "length"}


async def survives_the_death_of_its_engine(subject: Subject) -> None:
    """A request in flight raises `ServerDied`, and the next load loads the model again."""
    before = subject.loads()
    flying = asyncio.create_task(subject.backend.chat(subject.endless(slot=0)))
    await subject.until_busy()
    subject.kill()
    with pytest.raises(ServerDied):
        await flying
    await subject.backend.load(subject.spec)

    assert subject.loads() != before
    assert (await subject.ask("Fine.")).finish in {"stop", "length"}


async def renders_a_prompt_without_evaluating(subject: Subject) -> None:
    """The common beginning of two renderings contains the system message and ends where the rows differ."""
    one, other = subject.request("Fine screen."), subject.request("Fine colour.")
    first = await subject.backend.render(subject.spec, one.messages)
    second = await subject.backend.render(subject.spec, other.messages)

    assert first is not None
    assert second is not None
    common = common_beginning([first, second])
    assert one.messages[0].content in common
    assert common.endswith("Fine ")
    assert first[len(common) :].startswith("screen.")
    assert second[len(common) :].startswith("colour.")


async def keeps_a_primed_prefix(subject: Subject) -> None:
    """The common beginning of the renderings, evaluated once, is nearly all cached for every row after it."""
    rules = " ".join(f"Rule {n}: a complaint counts for {n}." for n in range(20))
    system = Message("system", f"Priming. {rules}")
    rows = [f"Review: {word} and so on, {'on and ' * 30}" for word in ("Bent", "Lost", "Good")]
    asked = [
        ChatRequest(subject.spec, (system, Message("user", row)), 4, {"temperature": 0}, slot=0)
        for row in rows
    ]
    renderings = [await subject.backend.render(subject.spec, request.messages) for request in asked]
    assert None not in renderings
    common = common_beginning([text for text in renderings if text is not None])

    primed = await subject.backend.prime(subject.spec, common, slot=0)
    replies = [await subject.backend.chat(request) for request in asked]

    assert primed is not None
    assert primed.prompt_tokens is not None
    assert primed.prompt_tokens > 100
    for reply in replies:
        assert reply.prompt_tokens is not None
        assert reply.cached_tokens is not None
        assert primed.prompt_tokens - FEW <= reply.cached_tokens < reply.prompt_tokens


async def reports_the_probability_of_its_answer(subject: Subject) -> None:
    """If requested, a reply has the mean log probability of the answer's tokens, and otherwise None."""
    asked = await subject.ask("The battery died after two days.", logprobs=True)
    unasked = await subject.ask("The battery died after two days.")

    assert asked.logprob is not None
    assert -20 < asked.logprob <= 0
    assert unasked.logprob is None
    assert asked.text == unasked.text


async def reports_the_loaded_model(subject: Subject) -> None:
    """An inspection returns the facts of the load and loads nothing."""
    loaded = await subject.backend.load(subject.spec)
    before = subject.loads()
    held = await subject.backend.inspect(subject.spec)

    assert held is not None
    assert replace(held, load_s=None) == replace(loaded, load_s=None)
    assert held.trained_ctx is not None
    assert held.trained_ctx >= subject.spec.num_ctx
    assert subject.loads() == before


async def has_no_model_after_a_release(subject: Subject) -> None:
    """A released model is not in memory, and an inspection does not load it."""
    await subject.backend.release()
    held = await subject.backend.inspect(subject.spec)
    free = not subject.holds_memory()
    await subject.backend.load(subject.spec)

    assert held is None
    assert free
    assert await subject.backend.inspect(subject.spec) is not None


async def reports_no_missing_model(subject: Subject) -> None:
    """A missing model is not in memory, regardless of other models."""
    assert await subject.backend.inspect(replace(subject.spec, model="nosuch:1b")) is None


async def releases_its_memory(subject: Subject) -> None:
    """After a release no model is in memory, and a load loads it again."""
    held = subject.holds_memory()
    await subject.backend.release()
    free = not subject.holds_memory()
    await subject.backend.load(subject.spec)

    assert held
    assert free
    assert subject.holds_memory()


BEHAVIOURS: list[Callable[[Subject], Awaitable[None]]] = [
    repeats_a_prompt_from_its_cache,
    reuses_the_prefix_of_a_longer_conversation,
    reuses_the_shared_start_of_another_row,
    refuses_what_does_not_fit,
    reports_an_answer_that_was_cut,
    answers_by_a_schema,
    refuses_a_schema_that_it_cannot_follow,
    carries_any_text_both_ways,
    refuses_a_missing_model,
    counts_tokens_without_evaluating,
    loads_once,
    names_the_weights,
    reports_counts_and_times,
    repeats_answers_at_temperature_zero,
    works_on_two_requests_at_once,
    frees_a_slot_when_cancelled,
    survives_the_death_of_its_engine,
    renders_a_prompt_without_evaluating,
    keeps_a_primed_prefix,
    reports_the_probability_of_its_answer,
    reports_the_loaded_model,
    has_no_model_after_a_release,
    reports_no_missing_model,
    releases_its_memory,
]

CANNOT: dict[tuple[str, Callable[[Subject], Awaitable[None]]], str] = {
    ("ollama", counts_tokens_without_evaluating): "Ollama has no route that counts without evaluating",
    ("openai", names_the_weights): "no such server tells a digest",
    (
        "openai",
        frees_a_slot_when_cancelled,
    ): "this build of llama-server looks for a lost client only on a stream",
    (
        "openai",
        survives_the_death_of_its_engine,
    ): "the model's process is the server: its death is ServerAway",
    ("openai", has_no_model_after_a_release): "such a server holds its model as long as it runs",
    ("openai", releases_its_memory): "such a server holds its model as long as it runs",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """All subjects of this module, whose engines are started once."""
    found = Bench(tmp_path_factory.mktemp("models"))
    with found.runner:
        yield found
        found.runner.run(found.close())


REAL = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None,
        reason="xllamacpp, the embedded engine, is not installed",
    ),
]


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
@pytest.mark.parametrize(
    "name",
    ["ollama", *(pytest.param(name, marks=REAL) for name in ("smollm2:135m", "gemma3:270m", "openai"))],
)
def test_contract(name: str, behaviour: Callable[[Subject], Awaitable[None]], bench: Bench) -> None:
    """The named backend has the named behaviour."""
    if (reason := CANNOT.get((name, behaviour))) is not None:
        pytest.skip(reason)
    bench.run(name, behaviour)
