"""Reads and decompresses a data file in chunks of bounded size, and splits it into lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from spoolama.errors import InputError
from spoolama.regular import open_regular

_CHUNK = 256 * 1024

_ZSTD_FEED = 256
"""Compressed bytes given to zstd at once; at its highest ratio (128 KiB from 4 bytes) they become 8 MiB."""

_MAGIC = {
    "gz": (b"\x1f\x8b",),
    # A frame, or a skippable frame, with which pzstd output begins (RFC 8878, 3.1).
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),
}

_FOREIGN = (
    (b"PK\x03\x04", "a ZIP or Excel file", "Export it as CSV (UTF-8) and upload that file."),
    (b"\xd0\xcf\x11\xe0", "an old Excel file", "Export it as CSV (UTF-8) and upload that file."),
    (b"%PDF-", "a PDF", "Export the table as CSV (UTF-8) and upload that file."),
    (b"PAR1", "a Parquet file", "Export it as CSV or JSONL and upload that file."),
    (b"\x1f\x8b", "gzip data", "Give it a name that ends in .gz, for example .csv.gz."),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Give it a name that ends in .zst, for example .csv.zst."),
    (b"BZh", "bzip2 data", "Compress it with gzip or zstd instead."),
    (b"\xfd7zXZ\x00", "xz data", "Compress it with gzip or zstd instead."),
)


class BrokenStream(Exception):
    """The compressed stream is damaged or incomplete."""


class EndlessLine(BrokenStream):
    """The stream continues without a row end: a few compressed bytes can expand to terabytes."""


def chunks(path: Path, compression: str | None) -> Generator[bytes, None, None]:
    """Yield the bytes of the file after decompression, with bounded memory.

    Raises:
        BrokenStream: the compressed stream is damaged, incomplete or of another format.
        OSError: the file cannot be read or is not a regular file.
    """
    with open_regular(path) as file:
        if compression is None:
            yield from iter(lambda: file.read(_CHUNK), b"")
            return
        head = file.read(4)
        file.seek(0)
        if not head.startswith(_MAGIC[compression]):
            raise BrokenStream("it is empty" if not head else f"it is not .{compression} data")
        yield from _gunzip(file) if compression == "gz" else _unzstd(file)


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as stream:
        while True:
            try:
                piece = stream.read(_CHUNK)
            except EOFError:
                raise BrokenStream("it stops in the middle") from None
            except (OSError, zlib.error) as error:
                raise BrokenStream(str(error)) from None
            if not piece:
                return
            yield piece


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it treats the end of the file as the end of the stream and hides a truncation.
    ended = True
    decoder = zstandard.ZstdDecompressor().decompressobj()
    while data := file.read(_ZSTD_FEED):
        while data:
            ended = False
            try:
                piece = decoder.decompress(data)
            except zstandard.ZstdError as error:
                raise BrokenStream(str(error)) from None
            for start in range(0, len(piece), _CHUNK):
                yield piece[start : start + _CHUNK]
            data = b""
            if decoder.eof:
                ended = True
                data = decoder.unused_data
                decoder = zstandard.ZstdDecompressor().decompressobj()
    if not ended:
        raise BrokenStream("it stops in the middle")


def refuse_foreign(head: bytes, name: str) -> None:
    """Refuse a file that is certainly not UTF-8 text.

    Args:
        head: The first bytes after decompression.
        name: The file's name as the user knows it.

    Raises:
        InputError: it is UTF-16, a spreadsheet, compressed without the matching extension, ...
    """
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"{name} is {what}, not text.", fix=fix, code="not_text")
    wide = _wide_encoding(head[:256])
    if wide:
        raise InputError(
            f"{name} is encoded as {wide}; spoolama reads UTF-8.",
            fix="Save it as UTF-8 (in Excel: “CSV UTF-8”) and upload it again.",
            code="not_utf8",
        )


def _wide_encoding(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    # Without a byte order mark: Latin text in UTF-16 has a NUL in every second byte.
    half = len(head) // 2
    if half >= 4 and (head[1::2].count(0) > half * 0.8 or head[0::2].count(0) > half * 0.8):
        return "UTF-16"
    return None


_MOST_WITHOUT_ROW = 256 * 1024 * 1024
"""Within this many bytes a non-blank line must end."""
_MOST_BLANK = 1_000_000
"""Maximum number of consecutive blank lines."""


class Lines:
    """The lines of a stream with their newlines (`\\n`, `\\r\\n`, `\\r`), without a byte order mark.

    A line longer than `max_bytes` is cut to `max_bytes + 1` bytes without its end, so a line is oversized if
    and only if it is longer than `max_bytes`.

    Args:
        chunks: The stream.
        max_bytes: Maximum length of a line.

    Raises:
        EndlessLine: while iterating: no row ends within 256 MiB, or a million blank lines follow each other.
    """

    def __init__(self, chunks: Iterable[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._max = max_bytes
        self.ended_with_newline = True
        """Whether the last byte was a newline; valid after the last line."""

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
    """Return the line without its newline."""
    if line.endswith(b"\r\n"):
        return line[:-2]
    if line.endswith((b"\n", b"\r")):
        return line[:-1]
    return line
