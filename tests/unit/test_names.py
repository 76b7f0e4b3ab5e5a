"""Every public name consists of terms of the field or of the glossary."""

from __future__ import annotations

import ast
import re
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from spoolama.job.sidecar import Sidecar
from spoolama.publish import metrics
from spoolama.service.settings import Settings
from support.module_index import PACKAGE

DOCS = PACKAGE.parents[1] / "docs"
TERMS: dict[str, str] = yaml.safe_load(
    Path(__file__).parent.with_name("data").joinpath("terms.yaml").read_text()
)
"""Words of public names by the field that they come from."""
REPLACED = (
    *("sight", "seen", "aside", "apart", "bare", "solo", "lonely", "tries", "won", "lost", "besides"),
    *("conduct", "tally", "standing", "patience", "keeper", "holder", "rung", "footprint", "mend", "told"),
    *("surprise", "likeness", "blind", "look", "mark"),
)
"""Words of our own that names no longer use, because the field has other words for them."""


def glossary() -> set[str]:
    """Return the words of the glossary's terms."""
    rows = re.findall(r"^\| ([a-z ]+) \|", (DOCS / "glossary.md").read_text(), re.M)
    return {singular(word) for term in rows for word in term.split()}


def words(name: str) -> list[str]:
    """Return the words of a name, in lower case and singular, without digits."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", name)
    return [singular(word) for part in spaced.lower().split() if (word := part.strip("0123456789"))]


def singular(word: str) -> str:
    """Return a noun without its plural ending, approximately."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def classes() -> Iterator[str]:
    """Return the public classes of the package."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Return the keys of a file that users write, with nested ones."""
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys(part)


def metric_names() -> Iterator[str]:
    """Return the names of the metrics, with nested ones."""
    for value in vars(metrics).values():
        if isinstance(value, type) and is_dataclass(value):
            yield from (field.name for field in fields(value))


NAMES = {
    "class": sorted(classes()),
    "setting": sorted(set(keys(Settings))),
    "sidecar key": sorted(set(keys(Sidecar))),
    "metric": sorted(set(metric_names())),
}


def known() -> set[str]:
    """Return the words that a reader knows from the field or the glossary."""
    return glossary() | {singular(word) for text in TERMS.values() for word in text.split()}


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_made_of_terms(kind: str) -> None:
    """Every word is in the list of terms or in the glossary."""
    unknown = {
        name: missing for name in NAMES[kind] if (missing := [w for w in words(name) if w not in known()])
    }
    assert unknown == {}


def test_no_name_has_a_replaced_word() -> None:
    """One concept, one name."""
    used = {word for names in NAMES.values() for name in names for word in words(name)}
    assert used & set(REPLACED) == set()


def test_each_term_is_needed_and_has_one_field() -> None:
    """Every listed term is used by a name, is listed once, and is not in the glossary."""
    used = {word for names in NAMES.values() for name in names for word in words(name)}
    listed = Counter(singular(word) for text in TERMS.values() for word in text.split())
    assert [word for word, count in listed.items() if count > 1] == []
    assert set(listed) - used == set()
    assert set(listed) & glossary() == set()
