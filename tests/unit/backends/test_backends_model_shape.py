"""The shape of a model, read from GGUF keys, from `/api/show`, and from the list of tensors."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from spoolama.backends.base import LoadSpec
from spoolama.backends.embedded import WHOLE_WINDOW_BYTES, EmbeddedBackend
from spoolama.backends.gguf_header import GgufHeader, Tensor, read_gguf
from spoolama.backends.model_shape import lacks_arrays, shape_of
from spoolama.backends.ollama import OllamaBackend
from spoolama.backends.ollama_wire import read_show
from spoolama.backends.openai import OpenAIBackend
from spoolama.clock import SystemClock
from support.backend import ScriptedBackend
from support.fake_ollama import FakeOllama

RECORDED = Path(__file__).parents[2] / "wire"
SIZE = 98_362_745
LLAMA = {
    "general.architecture": "llama",
    "general.parameter_count": 134_515_008,
    "general.file_type": 3,
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}


def of_kind(kind: str, **keys: Any) -> dict[str, Any]:
    """A model with 12 layers of this architecture; `__` in a name stands for a dot."""
    pairs: dict[str, Any] = {
        "block_count": 12,
        "embedding_length": 512,
        "feed_forward_length": 2048,
        "attention__head_count": 8,
        "attention__head_count_kv": 2,
        **keys,
    }
    return {
        "general.architecture": kind,
        **{f"{kind}.{name.replace('__', '.')}": value for name, value in pairs.items()},
    }


def full_layers(pairs: dict[str, Any]) -> list[int]:
    """Return which layers attend to the whole window."""
    shape = shape_of(pairs, SIZE)
    assert shape is not None
    return [n for n, slides in enumerate(shape.slides) if not slides]


def test_a_recorded_answer_of_ollama_is_read() -> None:
    """SmolLM2-135M's recorded answer gives head length, tied output and vocabulary from keys and tensors."""
    body = json.loads((RECORDED / "show.json").read_text())["response"]["json"]
    tensors = [Tensor(t["name"], t["type"], tuple(t["shape"])) for t in body["tensors"]]

    shape = shape_of(body["model_info"], SIZE, tensors)

    assert shape is not None
    assert (shape.architecture, shape.layers, shape.kv_heads) == ("llama", 30, (3,) * 30)
    assert (shape.key_length, shape.value_length, shape.vocab_size) == (64, 64, 49152)
    assert (shape.trained_ctx, shape.sliding_window, any(shape.slides)) == (8192, None, False)
    assert (shape.host_bytes, shape.repacked_bytes) == (0, 0)
    # Every tensor's type is known, so without the vocabulary they add up to the file.
    assert sum(t.size_bytes or 0 for t in tensors) == pytest.approx(SIZE, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        ("gemma3", {}, [5, 11]),
        ("gemma2", {}, [1, 3, 5, 7, 9, 11]),
        ("gpt-oss", {}, [1, 3, 5, 7, 9, 11]),
        ("gptoss", {}, [1, 3, 5, 7, 9, 11]),
        ("cohere2", {}, [3, 7, 11]),
        ("gemma3n", {}, [4, 9]),
        ("smallthinker", {}, [0, 4, 8]),
        ("gemma3", {"attention__sliding_window_pattern": 4}, [3, 7, 11]),
        ("gemma4", {"attention__sliding_window_pattern": [True, True, False] * 4}, [2, 5, 8, 11]),
        ("gemma3", {"attention__sliding_window": 0}, list(range(12))),
        ("exaone4", {}, list(range(12))),
        ("llama", {}, list(range(12))),
        ("phi3", {}, list(range(12))),
        ("qwen2", {}, list(range(12))),
    ],
)
def test_layers_slide_as_llama_cpp_has_it(kind: str, keys: dict[str, Any], expected: list[int]) -> None:
    """Every second, fourth or sixth layer attends to all, and all layers do where llama.cpp
    ignores a window.
    """
    assert full_layers(of_kind(kind, **{"attention__sliding_window": 1024, **keys})) == expected


def test_windows_that_the_file_does_not_decide() -> None:
    """Gemma 2 has 4096 by default, and Llama 4 always has 8192."""
    gemma = shape_of(of_kind("gemma2"), SIZE)
    llama = shape_of(of_kind("llama4", attention__sliding_window=512), SIZE)

    assert gemma is not None
    assert llama is not None
    assert (gemma.sliding_window, llama.sliding_window) == (4096, 8192)


def test_each_layer_has_its_own_heads() -> None:
    """A list of heads is read, and layers without heads keep a state instead (LFM2: 2 x 512 floats)."""
    heads = [0, 0, 8, 0] * 3
    shape = shape_of(of_kind("lfm2", attention__head_count_kv=heads, shortconv__l_cache=3), SIZE)

    assert shape is not None
    assert shape.kv_heads == tuple(heads)
    assert shape.state_bytes == 9 * 512 * 2 * 4


def test_layers_that_share_keys_store_none() -> None:
    """In Gemma 3n the layers after the twentieth share keys, in Gemma 4 as many at the end as
    its header says.
    """
    nano = shape_of(of_kind("gemma3n", block_count=30, attention__sliding_window=512), SIZE)
    pattern = [True, False] * 6
    four = shape_of(
        of_kind(
            "gemma4",
            attention__sliding_window=512,
            attention__sliding_window_pattern=pattern,
            attention__shared_kv_layers=5,
            attention__key_length=512,
            attention__value_length=512,
            attention__key_length_swa=256,
            attention__value_length_swa=256,
        ),
        SIZE,
    )

    assert nano is not None
    assert four is not None
    assert nano.kv_heads == (2,) * 20 + (0,) * 10
    assert four.kv_heads == (2,) * 7 + (0,) * 5
    assert (four.key_length, four.sliding_key_length, four.sliding_value_length) == (512, 256, 256)


def test_latent_attention_stores_only_keys() -> None:
    """Where values are made from keys (`key_length_mla`), only keys are stored."""
    latent = {"attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192}
    shape = shape_of(of_kind("deepseek2", attention__head_count_kv=1, **latent), SIZE)

    assert shape is not None
    assert (shape.key_length, shape.value_length) == (576, 0)


@pytest.mark.parametrize(
    "pairs",
    [
        {},
        {"general.architecture": 7},
        of_kind("deepseek4"),
        of_kind("llama", block_count=0),
        of_kind("llama", block_count=1 << 30),
        of_kind("llama", embedding_length=None),
        of_kind("llama", attention__head_count=None),
        of_kind("llama", attention__head_count_kv=None),
        of_kind("llama", attention__head_count_kv=["2"] * 12),
        of_kind("mamba", attention__head_count=0, attention__head_count_kv=0),
        of_kind("gemma4", attention__sliding_window=512, attention__sliding_window_pattern=None),
    ],
    ids=str,
)
def test_unknown_values_are_not_guessed(pairs: dict[str, Any]) -> None:
    """If a needed key is missing or broken, or the model keeps more than keys and values, the
    shape is None.
    """
    assert shape_of(pairs, SIZE) is None


def test_embeddings_stay_in_main_memory_unless_they_are_the_output() -> None:
    """An untied table is not on the card, a tied one is copied to it, and Gemma 3n has one more table."""
    tokens = Tensor("token_embd.weight", "Q6_K", (576, 49152))
    output = Tensor("output.weight", "Q6_K", (576, 49152))
    layers = Tensor("per_layer_token_embd.weight", "Q8_0", (256, 49152))
    up = Tensor("blk.0.ffn_up.weight", "Q4_K", (512, 1536))
    unknown = Tensor("token_embd.weight", "Q9_Z", (576, 49152))

    def host(*tensors: Tensor) -> int | None:
        shape = shape_of(LLAMA, SIZE, tensors)
        assert shape is not None
        return shape.host_bytes

    assert host(tokens, output) == tokens.size_bytes == 576 * 49152 * 210 // 256
    assert host(tokens) == 0
    assert host(tokens, layers) == layers.size_bytes == 256 * 49152 * 34 // 32
    assert host() is None
    assert host(unknown, output) is None
    repacked = shape_of(LLAMA, SIZE, (tokens, up))
    assert repacked is not None
    assert repacked.repacked_bytes == up.size_bytes == 512 * 1536 * 144 // 256


def text(value: str) -> bytes:
    """A string in GGUF encoding."""
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, heads: int = 3, tensors: bytes = b"", count: int = 0) -> bytes:
    """A file with a list of heads, a long list of numbers and three tokens."""
    row = struct.pack(f"<IQ{heads}I", 4, heads, *range(1, heads + 1))
    scores = struct.pack("<IQ", 6, 2000) + b"\0" * 8000
    tokens = struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("c")
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.attention.head_count_kv") + struct.pack("<I", 9) + row,
        text("tokenizer.ggml.tokens") + struct.pack("<I", 9) + tokens,
        text("tokenizer.ggml.scores") + struct.pack("<I", 9) + scores,
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(pairs)) + b"".join(pairs) + tensors


def test_a_header_gives_short_lists_the_vocabulary_and_tensors(tmp_path: Path) -> None:
    """Lists of one number a layer are kept, scores of tokens are skipped, and tokens are counted."""
    path = tmp_path / "model.gguf"
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 256, 3, 14, 0)
    path.write_bytes(header(tensors=tensor, count=1))

    read = read_gguf(path)

    assert dict(read.pairs) == {
        "general.architecture": "llama",
        "llama.attention.head_count_kv": [1, 2, 3],
        "llama.vocab_size": 3,
    }
    assert read.tensors == (Tensor("token_embd.weight", "Q6_K", (256, 3)),)


@pytest.mark.parametrize(
    ("tensors", "count"),
    [
        (b"", 1),
        (text("x") + struct.pack("<I", 9), 1),
        (b"", 1 << 40),
        (text("x" * 2000) + struct.pack("<IIQ", 0, 0, 0), 1),
    ],
    ids=["ends early", "too many dimensions", "too many", "a long name"],
)
def test_a_header_with_broken_tensors_is_none(tmp_path: Path, tensors: bytes, count: int) -> None:
    """A header that cannot be read completely gives nothing."""
    path = tmp_path / "model.gguf"
    path.write_bytes(header(tensors=tensors, count=count))

    assert read_gguf(path) == GgufHeader()


def test_bytes_of_a_token_are_those_of_each_layer(tmp_path: Path) -> None:
    """With a list of heads the cache bound of the embedded engine counts its KV heads, not all
    query heads.
    """
    numbers = {"block_count": 3, "embedding_length": 64, "attention.head_count": 8}
    pairs = [text(f"llama.{name}") + struct.pack("<II", 4, value) for name, value in numbers.items()]
    content = header()
    path = tmp_path / "model.gguf"
    path.write_bytes(content[:16] + struct.pack("<Q", 4 + len(pairs)) + content[24:] + b"".join(pairs))

    shape = shape_of(read_gguf(path).pairs, 1)
    assert shape is not None
    assert shape.token_bytes == (1 + 2 + 3) * (8 + 8) * 2


def test_lists_that_ollama_leaves_out_are_detected() -> None:
    """A list that is null or empty counts as left out, and a missing key does not."""
    assert lacks_arrays(of_kind("lfm2", attention__head_count_kv=None))
    assert lacks_arrays(of_kind("gemma4", attention__sliding_window_pattern=[]))
    assert not lacks_arrays(of_kind("llama"))
    assert not lacks_arrays({"general.architecture": "llama"})


def shape_by(answer: Any) -> Any:
    """Return the shape that an Ollama client makes of these answers."""

    async def inside() -> Any:
        transport = httpx.MockTransport(answer)
        backend = OllamaBackend("http://ollama.invalid", transport=transport, clock=SystemClock())
        try:
            return await backend.shape(LoadSpec("lfm2", 4096))
        finally:
            await backend.aclose()

    return asyncio.run(inside())


def test_missing_lists_of_heads_are_requested() -> None:
    """If the list of heads was left out, the model is requested once more with `verbose`."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/version":
            return httpx.Response(200, json={"version": "0.33.0"})
        if request.url.path == "/api/tags":
            return httpx.Response(200, json={"models": [{"name": "lfm2:latest", "size": SIZE}]})
        body = json.loads(request.content)
        asked.append(body)
        heads = [0, 0, 8] * 4 if body.get("verbose") else None
        info = of_kind("lfm2", attention__head_count_kv=heads)
        return httpx.Response(200, json={"capabilities": ["completion"], "model_info": info})

    shape = shape_by(answer)

    assert asked == [{"model": "lfm2"}, {"model": "lfm2", "verbose": True}]
    assert shape.kv_heads == (0, 0, 8) * 4
    assert shape.weights_bytes == SIZE


def test_vocabularies_are_not_stored() -> None:
    """The lists of tokens in a `verbose` answer are not kept in memory."""
    info = of_kind("lfm2") | {"tokenizer.ggml.tokens": ["x"] * 5000}

    assert read_show("lfm2", {"model_info": info}).info == of_kind("lfm2")


def test_a_model_that_is_not_listed_has_no_shape() -> None:
    """Without the size of its file a model has no shape."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/version":
            return httpx.Response(200, json={"version": "0.33.0"})
        if request.url.path == "/api/tags":
            return httpx.Response(200, json={"models": []})
        return httpx.Response(200, json={"capabilities": ["completion"], "model_info": of_kind("llama")})

    assert shape_by(answer) is None


def test_the_fake_has_a_shape() -> None:
    """The fake reports SmolLM2's shape and its listed size, for tests of estimates."""

    async def inside() -> Any:
        async with FakeOllama() as server:
            backend = OllamaBackend(server.url, clock=SystemClock())
            try:
                return await backend.shape(LoadSpec("smollm2:135m", 2048))
            finally:
                await backend.aclose()

    shape = asyncio.run(inside())

    assert (shape.layers, shape.kv_heads[0], shape.key_length, shape.weights_bytes) == (30, 3, 64, SIZE)


def test_the_embedded_engine_reads_it_from_the_file(tmp_path: Path) -> None:
    """The file gives the size, short windows are kept whole, and a header without keys gives no shape."""
    names = ("block_count", "embedding_length", "attention.head_count", "feed_forward_length")
    pairs = [text(f"llama.{name}") + struct.pack("<II", 4, 3) for name in names]
    content = header()
    whole = content[:16] + struct.pack("<Q", 4 + len(pairs)) + content[24:] + b"".join(pairs)
    path, bare = tmp_path / "model.gguf", tmp_path / "bare.gguf"
    path.write_bytes(whole)
    bare.write_bytes(content)

    async def inside() -> Any:
        backend = EmbeddedBackend(clock=SystemClock(), cache_dir=tmp_path)
        return [await backend.shape(LoadSpec(str(file), 512)) for file in (path, bare)]

    shape, nothing = asyncio.run(inside())

    assert (shape.kv_heads, shape.weights_bytes, shape.vocab_size) == ((1, 2, 3), len(whole), 3)
    assert shape.whole_window_bytes == WHOLE_WINDOW_BYTES
    assert nothing is None


def test_other_servers_have_no_shape() -> None:
    """An OpenAI-compatible server is not asked for a shape, and the scripted one returns the test's value."""
    shape = shape_of(LLAMA, SIZE)

    async def inside() -> Any:
        openai = OpenAIBackend("http://localhost:1", clock=SystemClock())
        scripted = ScriptedBackend(SystemClock(), shape_=shape)
        return await openai.shape(LoadSpec("m", 512)), await scripted.shape(LoadSpec("m", 512))

    assert asyncio.run(inside()) == (None, shape)
