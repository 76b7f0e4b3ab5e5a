"""The index of modules in ARCHITECTURE.md, made from the first line of each module's docstring.

`python -m support.module_index` writes it, with `daemon` and `tests` on PYTHONPATH (`make index`).
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemon" / "spoolama"
BEGIN, END = "<!-- modules: made by `make index` -->", "<!-- end of modules -->"


def summary_of(file: Path) -> str:
    """The first sentence of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def index() -> str:
    """Return each package's modules with their summaries."""
    rooms: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name in ("__init__.py", "__main__.py"):
            continue
        path = file.relative_to(PACKAGE)
        room = str(path.parent) if path.parent != Path() else "spoolama"
        rooms.setdefault(room, []).append(f"- `{path.name}`: {summary_of(file)}")
    return "\n\n".join(f"### {room}/\n" + "\n".join(lines) for room, lines in sorted(rooms.items()))


def with_index(text: str) -> str:
    """Return ARCHITECTURE.md with the present index."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{index()}\n{END}{after}"


if __name__ == "__main__":
    target = ROOT / "ARCHITECTURE.md"
    target.write_text(with_index(target.read_text()))
