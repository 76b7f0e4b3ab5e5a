"""Splits a byte stream into physical lines with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spoolama.job.rows.stream import EndlessLine

__all__ = ["Lines", "content"]

_MOST_WITHOUT_ROW = 256 * 1024 * 1024
"""Within this many bytes a non-blank line must end."""
_MOST_BLANK = 1_000_000
"""Maximum number of consecutive blank lines."""


class Lines:
    """The lines of a stream with their line ends (`\\n`, `\\r\\n`, `\\r`), without a byte order mark.

    A line longer than `max_bytes` is cut to `max_bytes + 1` bytes without its end, so a line is oversized if
    and only if it is longer than `max_bytes`.

    Args:
        chunks: The stream.
        max_bytes: Maximum length of a line.

    Raises:
        EndlessLine: while iterating: no row ends within 256 MiB or a million lines.
    """

    def __init__(self, chunks: Iterable[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._max = max_bytes
        self.ended_with_newline = True
        """Whether the last byte was a line end; valid after the last line."""

    def __iter__(self) -> Iterator[bytes]:
        without_row = blank = 0
        for line in self._each():
            if isinstance(line, int):
                without_row += line
                if without_row > _MOST_WITHOUT_ROW:
                    raise EndlessLine(f"the next {_MOST_WITHOUT_ROW // 2**20} MiB do not contain a row end")
            else:
                if not line.isspace():
                    without_row = blank = 0
                elif (blank := blank + 1) > _MOST_BLANK:
                    raise EndlessLine(f"{_MOST_BLANK:,} blank lines follow")
                yield line

    def _each(self) -> Iterator[bytes | int]:
        """Yield the length of each chunk, followed by its lines."""
        limit = self._max
        tail = b""
        head: bytes | None = None  # the beginning of an oversized line whose end is not yet seen
        for chunk in _without_mark(self._chunks):
            yield len(chunk)
            lines = (tail + chunk).splitlines(keepends=True)
            # A \r at the end of a chunk may be the first half of \r\n: wait for the next chunk.
            tail = b"" if lines[-1].endswith(b"\n") else lines.pop()
            for line in lines:
                if head is not None:
                    yield head
                    head = None
                else:
                    yield line if len(line) <= limit else line[: limit + 1]
            if head is None and len(tail) > limit + 1:
                head = tail[: limit + 1]
            if head is not None:
                tail = tail[-1:] if tail.endswith(b"\r") else b""
            self.ended_with_newline = head is None and not tail
        if tail.endswith(b"\r"):
            self.ended_with_newline = True
        if head is not None:
            yield head
        elif tail:
            yield tail if len(tail) <= limit else tail[: limit + 1]


def _without_mark(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the non-empty chunks without a UTF-8 byte order mark at the beginning."""
    first = b""
    begun = False
    for chunk in chunks:
        if begun:
            if chunk:
                yield chunk
            continue
        first += chunk
        if len(first) >= 3:
            begun = True
            if rest := first.removeprefix(b"\xef\xbb\xbf"):
                yield rest
    if not begun and first:
        yield first


def content(line: bytes) -> bytes:
    """Return the line without its line end."""
    if line.endswith(b"\r\n"):
        return line[:-2]
    if line.endswith((b"\n", b"\r")):
        return line[:-1]
    return line
