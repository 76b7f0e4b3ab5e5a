"""CSV and TSV: each record or its error, with its line, for any file."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.errors import InputError
from spoolama.job.row import Row
from spoolama.job.rows.data_file import InputKind, detect, read_rows
from spoolama.job.rows.reader import RowLimits
from support.thorough import cases

CSV = InputKind("csv", None)
TSV = InputKind("tsv", None)


def rows_of(tmp_path: Path, data: bytes, kind: InputKind = CSV, limits: RowLimits | None = None) -> list[Row]:
    path = tmp_path / f"a.{kind.format}"
    path.write_bytes(data)
    with read_rows(path, kind, limits=limits) as reader:
        return list(reader)


def brief(rows: list[Row]) -> list[tuple[int, object]]:
    """Return the line, and the values or the code of the error."""
    return [(row.line, row.fault.code if row.fault else list((row.fields or {}).values())) for row in rows]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"a,b\n1,2\n", [(2, ["1", "2"])], id="plain"),
        pytest.param(b"a,b\n1,2", [(2, ["1", "2"])], id="no final newline"),
        pytest.param(b"\xef\xbb\xbfa,b\r\n1,2\r\n", [(2, ["1", "2"])], id="mark and CRLF"),
        pytest.param(b"a,b\r1,2\r3,4\r", [(2, ["1", "2"]), (3, ["3", "4"])], id="lone CR"),
        pytest.param(b"\n\na,b\n\n1,2\n\r\n3,4\n\n", [(5, ["1", "2"]), (7, ["3", "4"])], id="blank lines"),
        pytest.param(b'a,b\n"x\ny\r\nz",2\n3,4\n', [(2, ["x\ny\r\nz", "2"]), (5, ["3", "4"])], id="newlines"),
        pytest.param(b'a,b\n"say ""hi""",5" pipe\n', [(2, ['say "hi"', '5" pipe'])], id="quotes"),
        pytest.param(b"a,b\n1\n1,2,3\n,\n", [(2, "ragged"), (3, "ragged"), (4, ["", ""])], id="ragged"),
        pytest.param(b"a,b\n1,\xff\n3,4\n", [(2, "bad_encoding"), (3, ["3", "4"])], id="bad UTF-8"),
        pytest.param(b'a,b\n"1",\xff\n3,4\n', [(2, "bad_encoding"), (3, ["3", "4"])], id="bad UTF-8, quoted"),
        pytest.param(b"a,b\n1,\0\n3,4\n", [(2, "nul_byte"), (3, ["3", "4"])], id="NUL"),
        pytest.param(b'a,b\n"1"x,2\n3,4\n', [(2, "bad_quotes"), (3, ["3", "4"])], id="text behind quote"),
        pytest.param(
            b'a,b\n"1,2\n3,4\n5,6\n', [(2, "unclosed_quote"), (3, ["3", "4"]), (4, ["5", "6"])], id="end"
        ),
        pytest.param(
            b'a,b\n1,"2\n3,"4"\n5,6\n',
            [(2, "unclosed_quote"), (3, ["3", "4"]), (4, ["5", "6"])],
            id="next quote",
        ),
        pytest.param(
            b'a,b\n"1,2\n3,4\n5,6"\n7,8\n',
            [(2, "unclosed_quote"), (3, ["3", "4"]), (4, ["5", '6"']), (5, ["7", "8"])],
            id="swallowed rows are seen by their shape",
        ),
    ],
)
def test_records_and_faults(tmp_path: Path, data: bytes, expected: list[tuple[int, object]]) -> None:
    """Each record has its own line, and a broken record affects no other."""
    assert brief(rows_of(tmp_path, data)) == expected


def test_a_row_has_its_place_and_its_exact_bytes(tmp_path: Path) -> None:
    """Ordinals count records, and raw is the record without its line end."""
    rows = rows_of(tmp_path, b'a,b\r\n1,2\r\n"x\r\ny",3\r\n1\r\n')

    assert [(r.ordinal, r.raw) for r in rows] == [(0, b"1,2"), (1, b'"x\r\ny",3'), (2, b"1")]
    assert rows[0].fields == {"a": "1", "b": "2"}
    assert rows[2].fault is not None
    assert rows[2].fault.message == "1 cell where the header has 2 columns"


def test_bad_encoding_is_reported_with_its_byte(tmp_path: Path) -> None:
    """The byte offset counts from the record's first byte, across its lines."""
    (row,) = rows_of(tmp_path, b'a,b\n"x\ny",\xe9t\xe9\n')

    assert row.fault is not None
    assert row.fault.message == "byte 6 of the record (0xe9) is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    "cell", [b"x" * 300_000, b'"' + b"x\n" * 150_000 + b'"'], ids=["one line", "many lines"]
)
def test_a_cell_of_300_kb_is_its_rows_error(tmp_path: Path, cell: bytes) -> None:
    """A large cell is one error under a configurable limit, and the next row is read."""
    data = b"a,b\n1," + cell + b"\n3,4\n"
    limits = RowLimits(max_quoted_bytes=400_000, max_quoted_lines=200_000)

    large, after = rows_of(tmp_path, data, limits=limits)

    assert large.fault is not None
    assert large.fault.code == "cell_too_large"
    assert "column b has 300000 bytes; the limit is 262144" in large.fault.message
    assert after.fields == {"a": "3", "b": "4"}
    allowed = rows_of(tmp_path, data, limits=RowLimits(max_cell_bytes=400_000, max_quoted_lines=200_000))
    assert [row.fault for row in allowed] == [None, None]


@pytest.mark.parametrize("size", [1000, 300_000, 600_000])
def test_a_line_beyond_its_limit_is_cut_and_skipped(tmp_path: Path, size: int) -> None:
    """A line beyond its limit costs one row and bounded memory, at any place in the read buffer."""
    data = b"a,b\n1,2\n" + b"x" * size + b"\r\n3,4\n"

    rows = rows_of(tmp_path, data, limits=RowLimits(max_line_bytes=500))

    assert brief(rows) == [(2, ["1", "2"]), (3, "line_too_large"), (4, ["3", "4"])]
    assert len(rows[1].raw) == 500


def test_faults_of_csv_say_what_to_do(tmp_path: Path) -> None:
    """A text with a comma, and a quote after which the file has no other."""
    rows = rows_of(tmp_path, b'a,b\n1,two, three\n"4,5\n6,7\n')
    assert [row.fault.message for row in rows if row.fault] == [
        "3 cells where the header has 2 columns. Put a text that contains a comma in quotes",
        "a quote is opened and never closed. Close or remove it. Reading continues at the next line",
    ]


@pytest.mark.parametrize(
    "limits", [RowLimits(max_quoted_lines=50), RowLimits(max_quoted_bytes=500)], ids=["lines", "bytes"]
)
def test_an_unclosed_quote_costs_one_row(tmp_path: Path, limits: RowLimits) -> None:
    """Beyond its limit a quote counts as unclosed, and every later row is read at its own line."""
    body = b"".join(b"%d,word\n" % n for n in range(1000))

    rows = rows_of(tmp_path, b'a,b\n0,"open\n' + body, limits=limits)

    assert brief(rows[:3]) == [(2, "unclosed_quote"), (3, ["0", "word"]), (4, ["1", "word"])]
    assert len(rows) == 1001
    assert sum(row.fault is not None for row in rows) == 1
    assert rows[0].raw == b'0,"open'
    assert [row.line for row in rows] == list(range(2, 1003))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b,a,c,b\n1,2,3,4,5\n", "'a' in columns 1, 3; 'b' in columns 2, 5"),
        (b",,\n1,2,3\n", "names no column"),
        (b"a;b;c\n1;2;3\n", "separated by something else"),
        (b"a,\xe9\n1,2\n", "byte 2 of the record (0xe9) is not UTF-8"),
        (b'a,"b\n1,2\n', "header cannot be read"),
        (b",column_1\n1,2\n", "'column_1' in columns 1, 2"),
    ],
)
def test_an_unusable_header_is_the_jobs_error(tmp_path: Path, data: bytes, words: str) -> None:
    """A file without a usable header fails the job, with what to change."""
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, data)

    assert words in caught.value.message
    assert caught.value.fix


def test_missing_names_are_filled_and_blanks_are_cut(tmp_path: Path) -> None:
    """A column without a name is named by its position."""
    path = tmp_path / "a.csv"
    path.write_bytes(b" a ,,c\n1,2,3\n")

    with read_rows(path, CSV) as reader:
        assert reader.columns == ["a", "column_2", "c"]
        assert next(reader).fields == {"a": "1", "column_2": "2", "c": "3"}


@pytest.mark.parametrize(
    ("data", "ended"), [(b"a\n1\n", True), (b"a\n1", False), (b"a\r1\r", True), (b"a\n" + b"x" * 900, False)]
)
def test_the_final_newline_is_reported(tmp_path: Path, data: bytes, ended: bool) -> None:
    """A missing final newline, the usual sign of a truncated upload, is reported."""
    path = tmp_path / "a.csv"
    path.write_bytes(data)

    reader = read_rows(path, CSV, limits=RowLimits(max_line_bytes=500))
    list(reader)

    assert reader.ended_with_newline is ended


def test_tabs_separate_in_tsv(tmp_path: Path) -> None:
    """In .tsv a comma is text, and quotes work as in CSV."""
    assert brief(rows_of(tmp_path, b'a\tb\n1,5\t"x\ty"\n', TSV)) == [(2, ["1,5", "x\ty"])]


CELLS = st.text(st.sampled_from('ab,"\n\r é\t€\U0001f600'), max_size=8)


@settings(max_examples=cases(100, 300), deadline=None)
@given(
    table=st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=12), end=st.sampled_from(["\n", "\r\n"])
)
def test_output_of_the_csv_module_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], end: str
) -> None:
    """Any text in any cell is read back equal, at its line."""
    out = io.StringIO(newline="")
    # With \n as its line end Python 3.11 leaves a lone \r in a cell without quotes.
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL)
    writer.writerow(["a", "b"])
    lines = []
    for cells in table:
        text = out.getvalue()
        lines.append(len(text.encode().splitlines()) + 1)
        writer.writerow(cells)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(out.getvalue().encode())

    rows = list(read_rows(path, CSV))

    assert brief(rows) == list(zip(lines, table, strict=True))


@settings(max_examples=cases(100, 300), deadline=None)
@given(data=st.binary(max_size=60) | st.text(st.sampled_from('ab,"\n\r'), max_size=60).map(str.encode))
def test_no_input_ends_in_anything_but_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Every byte after the header belongs to one record or is a line end, in order."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(b"a,b\n" + data)

    rows = list(read_rows(path, CSV))

    # Without line ends, the records and the file hold the same bytes.
    assert b"".join(b"".join(r.raw.split()) for r in rows) == b"".join(data.split())
    assert all(row.fault or len(row.fields or {}) == 2 for row in rows)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Fifty times the rows take no more memory."""

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        with path.open("w") as file:
            file.write("a,b\n")
            file.writelines(f'{n},"some text, with {n}"\n' for n in range(rows))
        tracemalloc.start()
        try:
            for _ in read_rows(path, CSV):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(1000), peak(50_000)

    assert large < small + 4_000_000


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zst)])
def test_compressed_files(tmp_path: Path, ending: str, compress) -> None:  # type: ignore[no-untyped-def]
    """Several streams in a row are one file, and a cut or damaged one reports after how many rows."""
    text = b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 100_003) for n in range(50_000))
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(compress(text[:1000]) + compress(text[1000:]))
    kind = detect(path, path.name)
    assert (kind.format, kind.compression) == ("csv", ending)
    with read_rows(path, kind) as reader:
        assert sum(1 for row in reader if row.fault is None) == 50_000
        assert reader.ended_with_newline

    if ending == "zst":  # pzstd begins with a skippable frame
        path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compress(text))
        with read_rows(path, kind) as reader:
            assert sum(1 for _ in reader) == 50_000
    whole = compress(text)
    for data in (whole[: len(whole) // 2], whole[:-3], whole[:2000] + b"\xff" * 500 + whole[2500:]):
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            list(read_rows(path, kind))
        assert caught.value.code == "damaged_stream"
    path.write_bytes(whole[:-3])
    with pytest.raises(InputError, match=r"after 4[0-9]{4} rows|after 50000 rows"):
        list(read_rows(path, kind))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.xlsx", b"", "unsupported file extension"),
        ("a.csv", b"PK\x03\x04...", "Excel"),
        ("a.csv", b"\x1f\x8b\x08...", "gzip data"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "UTF-16"),
        ("a.csv.gz", b"a,b\n1,2\n", "it is not .gz data"),
        ("a.csv.zst", b"", "it is empty"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:5], "it stops in the middle"),
    ],
)
def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    """A file of another kind is identified, with what to do."""
    path = tmp_path / name
    path.write_bytes(data)

    with pytest.raises(InputError) as caught:
        detect(path, name)

    assert words in caught.value.message
    assert caught.value.fix


def test_a_decompression_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """200 MB of zeros in a few kilobytes are one oversized line."""
    path = tmp_path / "a.csv.zst"
    path.write_bytes(zst(b"a,b\n" + bytes(200_000_000) + b"\n1,2\n"))
    tracemalloc.start()
    try:
        rows = list(read_rows(path, InputKind("csv", "zst")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert brief(rows) == [(2, "line_too_large"), (3, ["1", "2"])]
    assert peak < 80_000_000
