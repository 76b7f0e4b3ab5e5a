"""Creates the backend of a kind of model server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from spoolama.backends.base import Backend
from spoolama.clock import Clock

BackendKind = Literal["ollama", "embedded", "openai"]
"""`ollama`: its own API. `openai`: vLLM, llama-server and the like. `embedded`: llama.cpp in a child."""


def make_backend(
    kind: BackendKind,
    clock: Clock,
    *,
    url: str = "",
    api_key: str | None = None,
    shared: bool = False,
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Backend:
    """Return the backend; this connects to nothing and starts nothing.

    Args:
        kind: The kind of server.
        clock: Measures loads.
        url: Address of the server; `embedded` needs none.
        api_key: Bearer token for `openai`.
        shared: Others use the same models on an `ollama` server, so spoolama never unloads them.
        threads: CPU threads of `embedded`; None: one for each core.
        cache_dir: Where `embedded` stores models from packages; None: the user's cache directory.

    Raises:
        ImportError: a package that this kind needs is not installed.
    """
    match kind:
        case "ollama":
            from spoolama.backends.ollama import OllamaBackend

            return OllamaBackend(url, clock=clock, shared=shared)
        case "openai":
            from spoolama.backends.openai import OpenAIBackend

            return OpenAIBackend(url, api_key=api_key, clock=clock)
        case "embedded":
            from spoolama.backends.embedded import EmbeddedBackend

            return EmbeddedBackend(clock=clock, threads=threads, cache_dir=cache_dir)
        case _:
            assert_never(kind)
