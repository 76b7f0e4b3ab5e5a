"""The packages are as ARCHITECTURE.md describes them."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from functools import cache
from pathlib import Path

from support.module_index import BEGIN, with_index

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemon" / "spoolama"


def package_of(module: str) -> str | None:
    """`spoolama.spool.claim` is in the package `spool`; top modules (errors, clock, ...) are the `ground`."""
    parts = module.split(".")
    if parts[0] != "spoolama" or len(parts) < 2:
        return None
    return parts[1] if (PACKAGE / parts[1]).is_dir() else "ground"


def imports_of(file: Path) -> set[str]:
    """Return the packages that a file imports from, lazily or not."""
    packages: set[str | None] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            packages.add(package_of(node.module))
        elif isinstance(node, ast.Import):
            packages.update(package_of(alias.name) for alias in node.names)
    return {package for package in packages if package}


@cache
def arrows() -> frozenset[tuple[str, str]]:
    """Return the arrows between packages in the code, except those to the top modules."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        here = file.relative_to(PACKAGE).parts[0] if file.parent != PACKAGE else "ground"
        found |= {(here, there) for there in imports_of(file) if there not in (here, "ground")}
    return frozenset(arrow for arrow in found if arrow[0] != "ground")


def drawn() -> set[tuple[str, str]]:
    """Return the arrows between packages in the diagram of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    picture = re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert picture, "ARCHITECTURE.md has a picture"
    pairs: set[tuple[str, str]] = set()
    for left, right in re.findall(r"^\s*(\w+) --> (.+)$", picture[1], re.MULTILINE):
        pairs |= {(left, there.strip()) for there in right.split("&")}
    return pairs


def test_the_diagram_shows_exactly_the_imports() -> None:
    """No arrow is missing and none is wrong."""
    assert drawn() == arrows()


def test_packages_have_no_import_cycles() -> None:
    """Packages can be read in an order in which each follows those it imports."""
    graph: dict[str, set[str]] = {}
    for here, there in arrows():
        graph.setdefault(here, set()).add(there)
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_answer_does_not_import_files_and_spool_does_not_import_models() -> None:
    """The packages keep the separations that ARCHITECTURE.md promises."""
    packages = ("answer", "model", "compare", "run")
    forbidden = {
        *((package, "spool") for package in packages),
        *(("spool", package) for package in (*packages, "backends")),
    }
    assert forbidden & arrows() == set()


def modules_of(file: Path) -> set[str]:
    """Return every module that a file imports, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_user_code_is_evaluated_only_in_the_process() -> None:
    """Only `evaluation/child/` imports Jinja2, JSON Schema, or a module of that directory."""
    inside = PACKAGE / "evaluation" / "child"
    evaluating = ("jinja2", "jsonschema", "referencing", "spoolama.evaluation.child")
    found = {
        (str(file.relative_to(PACKAGE)), name)
        for file in PACKAGE.rglob("*.py")
        if inside not in file.parents
        for name in modules_of(file)
        if name.startswith(evaluating)
    }
    assert found == set()


def test_no_module_has_more_than_600_lines() -> None:
    """A module has one noun and at most 600 lines, which none has needed so far."""
    long = {
        str(f.relative_to(ROOT)): n
        for f in PACKAGE.rglob("*.py")
        if (n := len(f.read_text().splitlines())) > 600
    }
    assert long == {}


def test_every_module_and_package_that_the_page_names_exists() -> None:
    """A path in backticks is a file or a directory of the package or the repository."""
    text = (ROOT / "ARCHITECTURE.md").read_text().partition(BEGIN)[0]
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/))`", text))
    roots = (PACKAGE, PACKAGE / "evaluation", PACKAGE / "job", ROOT)
    own = {path.name for path in PACKAGE.rglob("*.py")}
    spool = {"processing/", "failed/", "out/", "done/", "incoming/"}
    missing = {name for name in named - own - spool if not any((root / name).exists() for root in roots)}
    assert missing == set()
    dotted = re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", text)
    modules: dict[str, str] = {}
    for path in PACKAGE.rglob("*.py"):
        modules[path.stem] = modules.get(path.stem, "") + path.read_text()
    gone = {
        f"{module}.{name}"
        for module, name in dotted
        if module in modules and name not in ("py", "json") and name not in modules[module]
    }
    assert gone == set()


def test_the_index_of_modules_is_the_one_of_their_docstrings() -> None:
    """ARCHITECTURE.md lists every module, as `make index` writes it."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert with_index(text) == text, "run: make index"


def test_no_two_classes_share_a_name() -> None:
    """Every class has its own name."""
    names = Counter(
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_package_is_described() -> None:
    """ARCHITECTURE.md says what each package is for."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = {f.name for f in PACKAGE.iterdir() if f.is_dir() and f.name != "__pycache__"}
    assert {package for package in packages if f"`{package}/`" not in text} == set()


def test_every_module_that_a_docstring_names_exists() -> None:
    """A module named in a docstring or comment, such as `compare/audit.py`, exists."""
    known = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    heads = {name.split("/")[0] for name in known}
    missing = {
        (file.name, name)
        for file in PACKAGE.rglob("*.py")
        for name in re.findall(r"`([a-z_]+/[a-z_/]+)(?:\.py)?(?:\.[A-Za-z_]+)?`", file.read_text())
        if name.split("/")[0] in heads and f"{name}.py" not in known and not (PACKAGE / name).is_dir()
    }
    assert missing == set()
