"""Checks which keys of a valid sidecar contradict each other, or name columns that the data does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence, Set

from spoolama.errors import Problem
from spoolama.job.plan import sees_others
from spoolama.job.sidecar import Sidecar, Trim
from spoolama.job.yaml_tree import Tree

Misfit = tuple[tuple[str, ...], str, str]
"""Path of the key, problem, and hint."""


def misfits(
    sidecar: Sidecar, *, openai: bool, begun: bool = False, unknown: Set[str] = frozenset()
) -> Iterator[Misfit]:
    """Return the keys that contradict other keys.

    Args:
        sidecar: The sidecar.
        openai: Whether it belongs to OpenAI batch lines.
        begun: Whether its job has begun. Then an earlier version may have allowed more.
        unknown: Top-level keys with invalid values; no problem that depends on them is returned.
    """
    if "vram" not in unknown:
        yield from _vram(sidecar)
    if "answer_key" not in unknown:
        yield from _answer_key(sidecar)
    if openai:
        yield from _lines(sidecar)
    elif not unknown & {"mode", "trim", "segment", "gold"} and not begun:
        yield from _pilot(sidecar)
        yield from _audit(sidecar)


def _vram(sidecar: Sidecar) -> Iterator[Misfit]:
    """Two shares, or two numbers of GB; others can be compared only if the GPU is known."""
    vram = sidecar.vram
    if vram is None or vram.high is None or vram.critical is None:
        return
    if (vram.high <= 1) == (vram.critical <= 1) and vram.high > vram.critical:
        yield ("vram", "high"), f"{vram.high:g} is above vram.critical {vram.critical:g}", "use a lower value"


def _lines(sidecar: Sidecar) -> Iterator[Misfit]:
    """OpenAI lines: features that they do not have are refused, not ignored."""
    if sidecar.trim.anchor_rows:
        hint = "use strategy reset or window, or put the messages into the lines"
        yield ("trim", "strategy"), "OpenAI lines have no anchors", hint
    if sidecar.audit_rows:
        yield ("audit",), "OpenAI lines have no audit", "remove it"
    if sidecar.on_harm != "report":
        yield ("on_harm",), "OpenAI lines have no audit", "remove it"


def _pilot(sidecar: Sidecar) -> Iterator[Misfit]:
    """A pilot needs known answers."""
    if sidecar.trim.pilot not in ("auto", 0) and sidecar.gold is None:
        hint = "set gold to a column with known answers, or remove pilot"
        yield ("trim", "pilot"), "a pilot needs gold; without gold each row is asked in isolation", hint


def _audit(sidecar: Sidecar) -> Iterator[Misfit]:
    """An audit compares answers of a conversation with isolated ones, so it needs a conversation."""
    by_default = sidecar.trim == Trim()  # without `trim`, the user has not excluded conversations
    if not sidecar.audit_rows or sees_others(sidecar) or (sidecar.mode != "isolated" and by_default):
        return
    why = "mode: isolated" if sidecar.mode == "isolated" else "this trim or segment"
    hint = "remove audit, or set trim so that rows see earlier rows"
    yield ("audit",), f"with {why} each row is asked in isolation, so there is nothing to audit", hint


def _answer_key(sidecar: Sidecar) -> Iterator[Misfit]:
    keys = sidecar.format.get("properties") if isinstance(sidecar.format, dict) else None
    if not isinstance(keys, dict):
        return
    if sidecar.answer_key is not None and sidecar.answer_key not in keys:
        yield ("answer_key",), f"format has no key {sidecar.answer_key!r}", f"one of {', '.join(keys)}"
    elif sidecar.gold is not None and sidecar.answer_key is None and len(keys) > 1:
        hint = f"for example answer_key: {next(iter(keys))}"
        yield ("gold",), "the answer has several keys; answer_key must name the one to compare", hint


_KEYS = ("id", "gold")
"""Keys whose value is a column name."""

_MOST_NAMED = 30
"""Maximum number of columns in a hint."""


def column_problems(tree: Tree, name: str, columns: Sequence[str], data: str) -> list[Problem]:
    """Return a problem for each column that the sidecar names and the header lacks.

    Args:
        tree: The parsed sidecar; it may have other errors.
        name: The sidecar's name as the user knows it.
        columns: The header.
        data: The data file's name as the user knows it.
    """
    found = []
    for key in _KEYS:
        wanted = tree.data.get(key)
        if not isinstance(wanted, str) or not wanted or wanted in columns:
            continue
        place = tree.places.get((key,))
        line, column = (place.line, place.column) if place else (None, None)
        close = difflib.get_close_matches(wanted, columns, 1)
        listed = ", ".join(columns[:_MOST_NAMED]) + (", …" if len(columns) > _MOST_NAMED else "")
        hint = f"did you mean {close[0]!r}?" if close else f"its columns are {listed}"
        message = f"the header of {data} has no column {wanted!r}"
        found.append(Problem(name, line, column, key, message, hint))
    return found
