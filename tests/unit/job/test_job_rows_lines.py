"""Physical lines, independent of the chunks in which the bytes arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolama.job.rows.stream import Lines, content

MAX = 6


@given(st.lists(st.text(st.sampled_from("ab\n\r\ufeff"), max_size=12).map(str.encode), max_size=8))
def test_lines_do_not_depend_on_how_the_stream_is_cut(chunks: list[bytes]) -> None:
    """Line ends across chunks, byte order marks across chunks and oversized lines give the same lines."""
    data = b"".join(chunks)
    text = data.removeprefix(b"\xef\xbb\xbf")
    whole = [line if len(line) <= MAX else line[: MAX + 1] for line in text.splitlines(keepends=True)]

    for pieces in (chunks, [data[n : n + 1] for n in range(len(data))], [data] if data else []):
        lines = Lines(pieces, MAX)
        # An oversized line may lose only its end by the cut.
        assert [content(line)[:MAX] for line in lines] == [content(line)[:MAX] for line in whole]
        assert lines.ended_with_newline == (not text or text.endswith((b"\n", b"\r")))


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_a_line_is_oversized_by_its_length(chunks: list[bytes]) -> None:
    """A line is oversized exactly if it is longer than the limit."""
    text = b"".join(chunks).removeprefix(b"\xef\xbb\xbf")

    got = [len(line) > MAX for line in Lines(chunks, MAX)]

    assert got == [len(line) > MAX for line in text.splitlines(keepends=True)]
