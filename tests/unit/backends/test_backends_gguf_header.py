"""What is read from a GGUF header; a foreign or broken header gives unknown values."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from spoolama.backends.gguf_header import read_gguf

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    """A string in GGUF encoding."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key-value pair."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, items: list[bytes], *, count: int | None = None) -> bytes:
    """The value of an array; `count` states a wrong length."""
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def gguf(*pairs: bytes, version: int = 3, count: int | None = None, magic: bytes = b"GGUF") -> bytes:
    """A file with these pairs; `count` states a wrong number of pairs."""
    return magic + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


ARCHITECTURE = pair("general.architecture", STRING, text("gemma3"))
TRAINED = pair("gemma3.context_length", UINT32, struct.pack("<I", 32768))
SLIDING = pair("gemma3.attention.sliding_window", UINT32, struct.pack("<I", 512))
TOKENS = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, [text("<bos>"), text(""), text("žluť")]))
SCORES = pair("tokenizer.ggml.scores", ARRAY, array(FLOAT32, [struct.pack("<f", 0.5)] * 3))
TEMPLATE = pair("tokenizer.chat_template", STRING, text("{{ x }}" * 40_000))
FLAG = pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01")
Facts = tuple[str | None, int | None, int | None]
UNKNOWN: Facts = (None, None, None)
GEMMA: Facts = ("gemma3", 32768, 512)


def facts_of(path: Path) -> Facts:
    """Architecture, trained context and sliding window of a file."""
    header = read_gguf(path)
    return header.architecture, header.trained_ctx, header.sliding_window


def read(tmp_path: Path, content: bytes) -> Facts:
    """The facts of a file with this content."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return facts_of(path)


@pytest.mark.parametrize("version", [2, 3])
def test_windows_are_read_between_other_values(tmp_path: Path, version: int) -> None:
    """Arrays, long texts and flags around the windows are skipped."""
    content = gguf(TOKENS, FLAG, TEMPLATE, ARCHITECTURE, SCORES, TRAINED, SLIDING, version=version)

    assert read(tmp_path, content + b"tensors" * 1000) == GEMMA


@pytest.mark.parametrize(
    ("pairs", "facts"),
    [
        ([ARCHITECTURE], ("gemma3", None, None)),
        ([TRAINED, SLIDING], UNKNOWN),  # of whom?
        ([pair("general.architecture", STRING, text("llama")), TRAINED], ("llama", None, None)),
        (
            [ARCHITECTURE, pair("gemma3.context_length", UINT64, struct.pack("<Q", 131072))],
            ("gemma3", 131072, None),
        ),
        (
            [ARCHITECTURE, TRAINED, pair("gemma3.attention.sliding_window", UINT32, struct.pack("<I", 0))],
            ("gemma3", 32768, None),  # 0 means none
        ),
        (
            [ARCHITECTURE, TRAINED, pair("gemma3.attention.sliding_window", BOOL, b"\x01")],
            ("gemma3", 32768, None),
        ),
        ([pair("general.architecture", UINT32, struct.pack("<I", 3)), TRAINED], UNKNOWN),
    ],
)
def test_missing_values_stay_unknown(tmp_path: Path, pairs: list[bytes], facts: Facts) -> None:
    """A key that is missing, belongs to another architecture or is no token count gives no value."""
    assert read(tmp_path, gguf(*pairs)) == facts


def test_a_header_that_ends_early_is_unknown(tmp_path: Path) -> None:
    """A header that is cut before the end of its last pair gives nothing and raises nothing."""
    whole = gguf(ARCHITECTURE, TRAINED, TOKENS, SLIDING)

    assert read(tmp_path, whole) == GEMMA
    assert {read(tmp_path, whole[:size]) for size in range(len(whole))} == {UNKNOWN}


HUGE = 2**63
FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "other magic": gguf(ARCHITECTURE, TRAINED, magic=b"GGML"),
    "first version": gguf(ARCHITECTURE, TRAINED, version=1),
    "later version": gguf(ARCHITECTURE, TRAINED, version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 2) + ARCHITECTURE + TRAINED,
    "huge count of pairs": gguf(ARCHITECTURE, TRAINED, count=HUGE),
    "huge key": gguf(ARCHITECTURE, struct.pack("<Q", HUGE) + b"x"),
    "huge text": gguf(ARCHITECTURE, pair("x", STRING, struct.pack("<Q", HUGE) + b"x")),
    "huge array": gguf(ARCHITECTURE, pair("x", ARRAY, array(UINT32, [], count=HUGE))),
    "huge array of texts": gguf(ARCHITECTURE, pair("x", ARRAY, array(STRING, [], count=HUGE))),
    "array of arrays": gguf(ARCHITECTURE, pair("x", ARRAY, array(ARRAY, [array(UINT32, [])]))),
    "unknown type": gguf(ARCHITECTURE, pair("x", 99, b"")),
    "many arrays": gguf(
        ARCHITECTURE, *[pair("x", ARRAY, array(BOOL, [], count=0))] * 5, pair("y", ARRAY, b"\x07")
    ),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.timeout(20)
def test_a_foreign_file_is_unknown(tmp_path: Path, content: bytes) -> None:
    """For any length that a file claims, no more is read, kept or waited for than exists."""
    assert read(tmp_path, content) == UNKNOWN


def test_an_endless_text_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header longer than any real one is given up."""
    monkeypatch.setattr("spoolama.backends.gguf_header.MOST_HEADER", 100_000)
    long = pair("tokenizer.chat_template", STRING, text("x" * 100_000))

    assert read(tmp_path, gguf(long, ARCHITECTURE, TRAINED)) == UNKNOWN
    assert read(tmp_path, gguf(ARCHITECTURE, TRAINED)) == ("gemma3", 32768, None)


def test_arrays_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short texts are a vocabulary up to a limit and refused beyond it."""
    texts = pair("x", ARRAY, array(STRING, [text("")] * 5))

    monkeypatch.setattr("spoolama.backends.gguf_header.MOST_ITEMS", 10)
    assert read(tmp_path, gguf(ARCHITECTURE, texts, texts)) == ("gemma3", None, None)
    monkeypatch.setattr("spoolama.backends.gguf_header.MOST_ITEMS", 9)
    assert read(tmp_path, gguf(ARCHITECTURE, texts, texts)) == UNKNOWN


def test_a_file_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """A missing file gives no facts and no error."""
    assert facts_of(tmp_path / "nosuch.gguf") == UNKNOWN


@pytest.mark.parametrize(("number", "known"), [(1, True), (4096, True), (4097, False)])
def test_pairs_are_bounded(tmp_path: Path, number: int, known: bool) -> None:
    """The maximum number of pairs is read, and one more is refused."""
    pairs: list[Any] = [ARCHITECTURE, *[pair("x", BOOL, b"\x00")] * (number - 1)]

    assert (read(tmp_path, gguf(*pairs)) == ("gemma3", None, None)) is known
