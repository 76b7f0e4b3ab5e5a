"""The documents are correct where a program can check it: examples, commands, tables, links and names."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from spoolama.answer.failures import POLICIES
from spoolama.cli.main import COMMANDS, spoolama
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.evaluation.child.templates import FILTERS
from spoolama.evaluation.evaluator import EVALUATION_LIMIT
from spoolama.job.sidecar import STRATEGY_KEYS, Options, Sidecar, Trim
from spoolama.service.events import EVENTS
from support.parameter_table import parameter_table

ROOT = Path(__file__).parents[2]
SITE = sorted((ROOT / "docs").rglob("*.md"))
FOR_USERS = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *SITE)}
"""The pages for users of spoolama."""
ALL = FOR_USERS | {
    name: (ROOT / name).read_text() for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
}


def page(name: str) -> str:
    return FOR_USERS[f"docs/{name}.md"]


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks, also those in lists."""
    found = re.findall(rf"^([ ]*)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def everywhere(pattern: str) -> list[tuple[str, str]]:
    """Return page and match for each match."""
    return [(name, found) for name, text in FOR_USERS.items() for found in re.findall(pattern, text)]


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of all tables with this heading line."""
    found = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for part in text.split(heading)[1:]
        for line in part.split("\n\n")[0].splitlines()[2:]
    ]
    assert found, heading
    return found


# --- examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "block"), [(name, block) for name, text in FOR_USERS.items() for block in blocks(text, "yaml")]
)
def test_every_yaml_block_is_a_sidecar_that_the_service_takes(name: str, block: str) -> None:
    """An example can be copied and works."""
    parse_sidecar(block, f"{name}.yaml", openai="openai" in name)


def command_lines() -> Iterator[tuple[str, str]]:
    for name, text in FOR_USERS.items():
        for line in "\n".join(blocks(text, "sh")).splitlines():
            if found := re.search(r"(?:^|-- )(spoolama .*)", line):
                yield name, found[1]


@pytest.mark.parametrize(("name", "line"), list(command_lines()))
def test_every_command_in_a_shell_block_exists_with_its_options(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line parses the words; files need not exist."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    _, called, *words = shlex.split(line, comments=True)
    command = spoolama.get_command(click.Context(spoolama), called)
    assert command is not None, name
    command.make_context(called, words)


def test_every_command_is_documented() -> None:
    """Every command is in the documentation."""
    text = "\n".join(FOR_USERS.values())
    assert {name for name in COMMANDS if f"spoolama {name}" not in text} == set()


def test_make_targets_in_the_documents_exist() -> None:
    """`make X` works for every X in the documents."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for _, target in everywhere(r"(?:`|^)make ([a-z-]+)")} <= targets


# --- tables -----------------------------------------------------------------------------------------------


def test_the_sidecar_reference_has_every_key_once_and_no_other() -> None:
    """The tables of keys together are complete, options included."""
    table = rows(page("sidecar"), "| key | meaning | default |")
    keys = [cells[0].strip("`") for cells in table]
    assert sorted(keys) == sorted(Sidecar.model_fields)
    (options,) = [cells[1] for cells in table if cells[0] == "`options`"]
    assert set(re.findall(r"`(\w+)`", options)) == set(Options.model_fields)


def test_the_table_of_strategies_has_their_keys() -> None:
    """Each strategy has exactly the keys that it accepts; `high` and `margin` go with all."""
    text = page("what-the-model-sees")
    table = rows(text, "| `strategy` | rows in the prompt | keys (defaults) |")
    shown = {cells[0].strip("`"): set(re.findall(r"`(\w+)`(?!\))", cells[2])) for cells in table}
    shown["budget"].discard("high")  # only gives a default
    assert shown == {name: set(keys) for name, keys in STRATEGY_KEYS.items()}
    shared = set(Trim.model_fields) - {"strategy"} - set().union(*STRATEGY_KEYS.values())
    assert all(re.search(rf"^- .*`{key}` \(", text, re.MULTILINE) for key in shared)


def test_the_table_of_openai_parameters_is_that_of_the_code() -> None:
    """The documented table is generated from the code's table."""
    shown = page("openai-batch").split("<!-- parameters -->")[1].split("<!-- /parameters -->")[0]
    assert shown.strip() == parameter_table().strip()


def test_the_table_of_failures_has_every_class_with_its_owner() -> None:
    """Each class in the code has one line that names its owner and whether it counts."""
    table = rows(page("failures"), "| what | owner | what happens | attempt |")
    lines = {code: cells for cells in table for code in re.findall(r"`(\w+)`", cells[0])}
    assert set(lines) - {"timeout", "format", "incoming", EVALUATION_LIMIT} == set(POLICIES)
    for code, policy in POLICIES.items():
        owner, attempt = lines[code][1], lines[code][3]
        assert owner.startswith(policy.fault), code
        if code not in ("out_of_memory", "request_refused", "context_overflow"):  # their lines have more text
            assert (attempt == "yes") is policy.counts, code


def test_events_in_the_documents_exist() -> None:
    """Every event in a journal query of the documents exists."""
    names = {event for _, event in everywhere(r"SPOOLAMA_EVENT=([\w.]+)")}
    assert names
    assert names <= set(EVENTS)


# --- links and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"), everywhere(r"(?<![\w/])((?:tests|config|packaging)/[\w./-]*\w/?)(?=[`\s:])")
)
def test_paths_in_the_documents_exist(name: str, path: str) -> None:
    """A file that a page names is in the repository."""
    assert (ROOT / path).exists(), name


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as the site and GitHub build them."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in headings}


def links() -> Iterator[tuple[str, str]]:
    for name, text in ALL.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if "://" not in target:
                yield name, target


@pytest.mark.parametrize(("name", "target"), list(links()))
def test_every_link_between_documents_resolves(name: str, target: str) -> None:
    """The file and the heading exist, and pages of the site link only to pages of the site."""
    path, _, anchor = target.partition("#")
    found = (ROOT / name).parent / path if path else ROOT / name
    assert found.is_file()
    if name.startswith("docs/"):
        assert found.resolve().is_relative_to(ROOT / "docs")
    if anchor:
        assert anchor in anchors(found.read_text())


def test_every_page_is_in_the_navigation() -> None:
    """Every entry of the navigation is a page, and the reverse."""
    nav: Any = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from files(part)

    assert sorted(files(nav)) == sorted(str(path.relative_to(ROOT / "docs")) for path in SITE)


# --- size and words ---------------------------------------------------------------------------------------


def test_the_readme_fits_one_screen() -> None:
    """The README has at most 6 KB; everything else is in docs/."""
    assert len(FOR_USERS["README.md"].encode()) <= 6_000


def test_the_glossary_is_short() -> None:
    """The glossary has fewer than thirty terms in alphabetical order, each with one line."""
    table = rows(page("glossary"), "| term | meaning |")
    terms = [cells[0] for cells in table]
    assert len(terms) < 30
    assert terms == sorted(set(terms))
    assert all(len(cells) == 2 and len(" ".join(cells)) <= 120 for cells in table)


@pytest.mark.parametrize("name", FOR_USERS)
def test_replaced_words_are_not_used(name: str) -> None:
    """The documents have none of the words that were replaced by a term of the field."""
    words = r"in sight of|reckon\w*|fares?|mend\w*|told|tells?|so many|set aside|apart from|besides the"
    assert re.findall(rf"\b(?:{words})\b", FOR_USERS[name], re.IGNORECASE) == []


def test_the_filters_of_templates_are_listed() -> None:
    """docs/sidecar.md names each filter of the sandbox and no other."""
    line = re.search(r"^- Filters: (.*)\. Others", FOR_USERS["docs/sidecar.md"], re.M)
    assert line is not None
    assert set(re.findall(r"`(\w+)`", line[1])) == FILTERS
