"""Classifies names in incoming/ as data files, sidecars and commands, pairs them, and names jobs.

Data: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, each also as `.gz` and `.zst`. The ending may be upper case.
Sidecars of `a.csv.gz`: `a.yaml`, `a.csv.yaml`, `a.csv.gz.yaml`, and each as `.yml`.
Commands: `a.cancel`, `a.pause`, `a.resume`, where `a` is a stem, a data file's name or a job's name.
A name may have any bytes except `/` and NUL; bytes that are not UTF-8 become Python's surrogate escapes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_SIDECAR_ENDINGS = (".yaml", ".yml")
_CONTROLS = ("cancel", "pause", "resume")
_IGNORED_ENDINGS = (".part", ".filepart", ".tmp", "~")
# NAME_MAX is 255 bytes; a job name is much shorter, so that tools can use it in their own file names.
_STEM_BYTES = 100


@dataclass(frozen=True, slots=True)
class DataName:
    """A data file's name, split into its parts."""

    name: str
    """As dropped: `a.csv.gz`."""
    stem: str
    """Without the endings: `a`."""
    ending: str
    """One of DATA_ENDINGS."""
    compression: str | None
    """`gzip`, `zstd` or None."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which sidecar belongs to which data file."""

    sidecar: Mapping[str, str | None]
    """Each unambiguous data name, with its sidecar or None."""
    ambiguous: Mapping[str, str]
    """Each ambiguous name (data or sidecar), with the reason as a sentence."""
    unpaired: Collection[str]
    """Sidecars without a data file."""


def cut(name: str) -> tuple[str, str]:
    """A name without its last ending, and that ending with its dot; `("a", "")` for `a`."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if dot else (name, "")


def ignored(name: str) -> bool:
    """Whether to ignore a name: dot files and the temporary names of upload clients."""
    return name.startswith(".") or name.lower().endswith(_IGNORED_ENDINGS)


def data_name(name: str) -> DataName | None:
    """Split a data file's name into its parts; None if it is not the name of a data file."""
    rest, compression = name, None
    base, dot = cut(rest)
    if dot.lower() in _PACKED:
        rest, compression = base, _PACKED[dot.lower()]
    stem, ending = cut(rest)
    if not stem or ending.lower() not in DATA_ENDINGS:
        return None
    return DataName(name, stem, ending.lower(), compression)


def is_sidecar(name: str) -> bool:
    """Whether a name has a sidecar's ending."""
    return name.lower().endswith(_SIDECAR_ENDINGS)


def command_of(name: str) -> tuple[str, str] | None:
    """`(target, command)` if the name is a command's, else None."""
    target, _, command = name.rpartition(".")
    return (target, command.lower()) if target and command.lower() in _CONTROLS else None


def sidecar_names(data: DataName) -> tuple[str, ...]:
    """Possible names of this data file's sidecar; the case of the ending does not matter."""
    stems = [data.stem]
    whole, packed = cut(data.name)
    stems += [whole, data.name] if packed.lower() in _PACKED else [data.name]
    return tuple(stem + ending for stem in stems for ending in _SIDECAR_ENDINGS)


def pair(names: Collection[str]) -> Pairing:
    """Find each data file's sidecar. A data file with two sidecars, or with a shared one, is ambiguous."""
    data = {d.name: d for d in map(data_name, names) if d is not None}
    sidecars: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_sidecar(name):
            stem, ending = cut(name)
            sidecars.setdefault(stem + ending.lower(), []).append(name)
    fits = {
        name: [s for candidate in sidecar_names(d) for s in sidecars.get(candidate, ())]
        for name, d in sorted(data.items())
    }
    users: dict[str, list[str]] = {}
    for name, found in fits.items():
        for sidecar in found:
            users.setdefault(sidecar, []).append(name)
    ambiguous: dict[str, str] = {}
    for name, found in fits.items():
        if len(found) > 1:
            why = f"{readable(name)} has {len(found)} sidecars ({_list(found)}). Keep one."
            ambiguous.update(dict.fromkeys([name, *found], why))
    for sidecar, shared in users.items():
        if len(shared) > 1:
            why = (
                f"{readable(sidecar)} matches {len(shared)} data files ({_list(shared)}). "
                f"Give each file its own sidecar, for example {readable(shared[0])}.yaml."
            )
            for name in [sidecar, *shared]:
                ambiguous.setdefault(name, why)
    return Pairing(
        sidecar={n: (found[0] if found else None) for n, found in fits.items() if n not in ambiguous},
        ambiguous=ambiguous,
        unpaired=[s for found in sidecars.values() for s in found if s not in users],
    )


def readable(name: str) -> str:
    """A name for a message: unprintable characters are escaped and a long name is shortened."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name
    )
    return shown if len(shown) <= 120 else shown[:80] + "…" + shown[-30:]


def job_name(dropped: str, now: float, token: str) -> str:
    """Build a job's name from the data file's stem, the time of the claim and a few random characters.

    Args:
        dropped: The data file's name.
        now: Seconds since the epoch.
        token: Random characters that make the name unique within a second.

    Returns:
        A directory name of letters, digits, `.`, `_` and `-`, such as `reviews-20261123T141500Z-k3f9`.
        Names with the same stem sort by time.
    """
    taken_apart = data_name(dropped)
    stem = unicodedata.normalize("NFC", taken_apart.stem if taken_apart else dropped)
    safe = re.sub(r"[^\w.-]+", "_", stem).strip("._-") or "job"
    safe = safe.encode("utf-8", "ignore")[:_STEM_BYTES].decode("utf-8", "ignore")
    return f"{safe}-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{token}"


def _list(names: Collection[str]) -> str:
    shown = [readable(n) for n in sorted(names)]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
