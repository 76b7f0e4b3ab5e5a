"""Names in incoming: their meaning, for any name."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.spool.names import command_of, data_name, ignored, is_sidecar, job_name, pair, readable
from spoolama.spool.status_files import SERVICE_JSON, SERVICE_TEXT, status_name

# Any name that a Linux directory can hold: bytes without / and NUL, not only UTF-8.
NAMES = (
    st.binary(min_size=1, max_size=255)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
    .map(os.fsdecode)
)
DATA_NAMES = st.builds(
    lambda stem, ending: os.fsdecode(os.fsencode(stem)[: 255 - len(ending)]) + ending,
    NAMES,
    st.sampled_from([".csv", ".jsonl.gz", ".TSV", ".ndjson.zst"]),
)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.csv", ("a", ".csv", None)),
        ("a.b.CSV", ("a.b", ".csv", None)),
        ("a.tsv.gz", ("a", ".tsv", "gzip")),
        ("a.jsonl.zst", ("a", ".jsonl", "zstd")),
        ("-rf.ndjson", ("-rf", ".ndjson", None)),
        ("two words.csv", ("two words", ".csv", None)),
        ("a.csv.csv", ("a.csv", ".csv", None)),
        ("a.csv.bz2", None),
        ("a.xlsx", None),
        ("csv", None),
        ("a.yaml", None),
    ],
)
def test_data_names(name: str, parts: tuple[str, str, str | None] | None) -> None:
    """The name of a data file is split into its parts, and any other name is refused."""
    found = data_name(name)
    assert (found and (found.stem, found.ending, found.compression)) == parts


@pytest.mark.parametrize(
    "name", [".a.csv.Xy12ab", "a.csv.part", "a.csv.filepart", "a.tmp", "a.csv~", "A.PART"]
)
def test_ignored_names(name: str) -> None:
    """Names that clients use while they write a file are ignored."""
    assert ignored(name)
    assert not ignored("a.csv")


def test_controls() -> None:
    """A command names a target; a bare command names none."""
    assert command_of("a.cancel") == ("a", "cancel")
    assert command_of("a.csv.PAUSE") == ("a.csv", "pause")
    assert command_of("cancel") is None
    assert command_of("a.cancelled") is None


PAIRS: list[tuple[list[str], dict[str, str | None], set[str], set[str]]] = [
    # names; data and its sidecar; ambiguous; unpaired
    (["a.csv", "a.yaml"], {"a.csv": "a.yaml"}, set(), set()),
    (["a.csv", "a.yml"], {"a.csv": "a.yml"}, set(), set()),
    (["a.csv", "a.csv.yaml"], {"a.csv": "a.csv.yaml"}, set(), set()),
    (["A.CSV", "A.YAML"], {"A.CSV": "A.YAML"}, set(), set()),
    (["a.csv.gz", "a.yaml"], {"a.csv.gz": "a.yaml"}, set(), set()),
    (["a.csv.gz", "a.csv.yml"], {"a.csv.gz": "a.csv.yml"}, set(), set()),
    (["a.csv.gz", "a.csv.gz.yaml"], {"a.csv.gz": "a.csv.gz.yaml"}, set(), set()),
    (["a.csv", "b.yaml"], {"a.csv": None}, set(), {"b.yaml"}),
    (["a.csv", "A.yaml"], {"a.csv": None}, set(), {"A.yaml"}),
    (["a.csv", "a.yaml", "a.yml"], {}, {"a.csv", "a.yaml", "a.yml"}, set()),
    (["a.csv", "a.yaml", "a.csv.yaml"], {}, {"a.csv", "a.yaml", "a.csv.yaml"}, set()),
    (["a.csv", "a.jsonl", "a.yaml"], {}, {"a.csv", "a.jsonl", "a.yaml"}, set()),
    (["a.csv", "a.csv.gz", "a.yaml"], {}, {"a.csv", "a.csv.gz", "a.yaml"}, set()),
    (
        ["a.csv", "a.jsonl", "a.csv.yaml", "a.jsonl.yaml"],
        {"a.csv": "a.csv.yaml", "a.jsonl": "a.jsonl.yaml"},
        set(),
        set(),
    ),
    (["a.csv", "a.jsonl"], {"a.csv": None, "a.jsonl": None}, set(), set()),
]


@pytest.mark.parametrize(
    ("names", "sidecars", "ambiguous", "unpaired"), PAIRS, ids=[" ".join(p[0]) for p in PAIRS]
)
def test_pairing(
    names: list[str], sidecars: dict[str, str | None], ambiguous: set[str], unpaired: set[str]
) -> None:
    """Each data file gets its sidecar, and ambiguous names are not decided."""
    found = pair(names)
    assert (dict(found.sidecar), set(found.ambiguous), set(found.unpaired)) == (sidecars, ambiguous, unpaired)


def test_ambiguous_names_are_reported() -> None:
    """The message names the conflicting files and how to separate them."""
    shared = pair(["a.csv", "a.jsonl", "a.yaml"]).ambiguous["a.yaml"]
    assert shared == (
        "a.yaml matches 2 data files (a.csv, a.jsonl). "
        "Give each file its own sidecar, for example a.csv.yaml."
    )
    double = pair(["a.csv", "a.yaml", "a.yml"]).ambiguous["a.csv"]
    assert double == "a.csv has 2 sidecars (a.yaml, a.yml). Keep one."


@given(st.lists(DATA_NAMES | NAMES | NAMES.map(lambda n: n[:200] + ".yaml"), max_size=8))
def test_every_name_is_classified_once(names: list[str]) -> None:
    """Every name is exactly one of paired, ambiguous or unpaired."""
    found = pair(set(names))
    placed = [*found.sidecar, *(s for s in found.sidecar.values() if s), *found.ambiguous, *found.unpaired]
    assert sorted(placed) == sorted(n for n in set(names) if data_name(n) or is_sidecar(n))


def test_job_name() -> None:
    """A job's name contains the upload's name and the time."""
    assert job_name("reviews.csv.gz", 1_790_000_000.0, "k3f9") == "reviews-20260921T141320Z-k3f9"
    assert job_name("-two words\n.csv", 1_790_000_000.0, "k3f9") == "two_words-20260921T141320Z-k3f9"
    assert job_name("Zoë 評価.csv", 1_790_000_000.0, "k3f9").startswith("Zoë_評価-")
    assert job_name("...csv", 0.0, "k3f9") == "job-19700101T000000Z-k3f9"


@given(DATA_NAMES)
def test_job_names_are_safe(name: str) -> None:
    """For any upload the job's name is UTF-8, short, one path component, not hidden and not an option."""
    made = job_name(name, 1_790_000_000.0, "k3f9")
    assert len(made.encode()) <= 130
    assert made[0] not in ".-_"
    assert made.isprintable()
    assert not set(made) & set("/ \\'\"$*?~\n")


@given(st.integers(0, 4_000_000_000), st.integers(0, 4_000_000_000))
def test_job_names_sort_by_time(one: int, two: int) -> None:
    """Jobs of one name sort by the time of their claims."""
    first, second = (job_name("a.csv", float(t), "k3f9") for t in (one, two))
    assert (first < second) == (one < two)


@given(NAMES)
def test_readable_is_one_printable_line(name: str) -> None:
    """Any name is shown as one printable line of UTF-8."""
    shown = readable(name)
    assert shown.isprintable()
    assert len(shown) <= 120
    shown.encode()


@given(st.lists(NAMES | DATA_NAMES, min_size=2, max_size=20, unique=True))
def test_status_names_are_unique_and_possible(names: list[str]) -> None:
    """Every name has its own status file, of a valid length, and never the service's."""
    made = [status_name(n) for n in names]
    assert len(set(made)) == len(names)
    assert max(len(os.fsencode(m)) for m in made) <= 255
    assert not {SERVICE_JSON, SERVICE_TEXT, "daemon.json"} & set(made)


@pytest.mark.parametrize("name", ["service", "daemon", "x" * 251, "é" * 127 + ".csv"])
def test_status_names_at_the_edge(name: str) -> None:
    """Names that would collide or be too long get a suffix."""
    made = status_name(name)
    assert "~" in made
    assert len(os.fsencode(made)) <= 255
    assert made.endswith(".json")


def test_a_common_status_name_is_the_file_name() -> None:
    """The status of `reviews.csv` is in `reviews.csv.json`."""
    assert status_name("reviews.csv") == "reviews.csv.json"
