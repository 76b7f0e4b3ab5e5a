"""Creates the backend that the settings name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from spoolama.backends.base import Backend
from spoolama.clock import Clock

__all__ = ["BackendSettings", "make_backend"]


@dataclass(frozen=True)
class BackendSettings:
    """The model server and how to reach it."""

    kind: Literal["ollama", "embedded", "openai"] = "ollama"
    """`ollama`: its own API. `openai`: vLLM, llama-server and the like. `embedded`: llama.cpp in a child."""
    url: str = "http://127.0.0.1:11434"
    """Address of the server; `embedded` needs none."""
    api_key: str | None = None
    """Sent as a bearer token by `openai`; the others have none."""
    shared: bool = False
    """Others use the same models on that server, so spoolama never unloads them."""
    threads: int | None = None
    """CPU threads of `embedded`; None: one for each core."""
    cache_dir: Path | None = None
    """Where `embedded` stores models assembled from packages; None: the user's cache directory."""


def make_backend(settings: BackendSettings, clock: Clock) -> Backend:
    """Return the backend for these settings; this connects to nothing and starts nothing."""
    match settings.kind:
        case "ollama":
            from spoolama.backends.ollama import OllamaBackend

            return OllamaBackend(settings.url, clock=clock, shared=settings.shared)
        case "openai":
            from spoolama.backends.openai import OpenAIBackend

            return OpenAIBackend(settings.url, api_key=settings.api_key, clock=clock)
        case "embedded":
            from spoolama.backends.embedded import EmbeddedBackend

            return EmbeddedBackend(clock=clock, threads=settings.threads, cache_dir=settings.cache_dir)
        case _:
            assert_never(settings.kind)
