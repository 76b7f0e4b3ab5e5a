"""`spoolama gpu`: memory of cards and machine now, and what a load of a model would take of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoolama.cli.settings_options import config_option, settings_from

if TYPE_CHECKING:
    from spoolama.cli.gpu_look import Look
    from spoolama.service.settings import Settings

__all__ = ["gpu"]

DEFAULT_WINDOW = 4096
"""As in a sidecar."""


@click.command(
    epilog="""\b
Examples:
  spoolama gpu
  spoolama gpu --model gemma3:12b --num-ctx 8192 --slots 4
  spoolama gpu --watch --config /etc/spoolama/spoolama.yaml""",
)
@config_option
@click.option(
    "--backend",
    type=click.Choice(["ollama", "embedded", "openai"]),
    help="Who answers, instead of the settings'.",
)
@click.option("--url", help="The model server's address, instead of the settings'.")
@click.option("--model", help="Estimate what a load of this model takes, and whether it fits.")
@click.option(
    "--num-ctx",
    type=click.IntRange(128, 10_000_000),
    help=f"Its window in tokens; default: {DEFAULT_WINDOW}.",
)
@click.option("--slots", type=click.IntRange(1, 256), help="Requests at once; default: the settings' lanes.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs, sizes in bytes; with --watch in lines.")
def gpu(
    config: Path | None,
    backend: str | None,
    url: str | None,
    model: str | None,
    num_ctx: int | None,
    slots: int | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Show what is in use on each GPU, by whom, and how tense that is by the settings' limits.

    Also this machine's memory, the processes that hold a model, and what the model server lists as loaded.

    With --model it says what a load of it is estimated to take and whether that fits now. Nothing is loaded.
    The exit status is 1 where the server does not have the model.
    """
    if model is None and (num_ctx or slots):
        raise click.UsageError("--num-ctx and --slots say how a model is loaded: name it with --model")
    settings = settings_from(config, backend__kind=backend, backend__url=url)
    show = _as_json if as_json else _as_text
    work = _show(settings, model, num_ctx or DEFAULT_WINDOW, slots, None if watch else show, as_json=as_json)
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(work))


def _as_json(now: dict[str, Any]) -> None:
    click.echo(json.dumps(now, indent=2, ensure_ascii=False))


def _as_text(now: dict[str, Any]) -> None:
    from spoolama.cli.gpu_words import in_words

    click.echo("\n".join(in_words(now)))


async def _show(
    settings: Settings,
    model: str | None,
    num_ctx: int,
    slots: int | None,
    once: Callable[[dict[str, Any]], None] | None,
    *,
    as_json: bool,
) -> int:
    """Show it once, or until cancelled where `once` is None; the exit status."""
    from spoolama.backends.base import LoadSpec
    from spoolama.cli.gpu_look import Look
    from spoolama.clock import SystemClock
    from spoolama.service.assembly import backend_for

    spec = None if model is None else LoadSpec(model, num_ctx, slots=slots or settings.lanes)
    backend = backend_for(settings, SystemClock())
    look = Look(settings, backend, spec)
    looking = asyncio.create_task(look.run(keep_on=once is None), name="looking")
    try:
        await _next(look, looking)
        if once is not None:
            once(look.payload())
            return 1 if look.no_such_model else 0
        if as_json:
            await _each_second(look, looking, lambda now: click.echo(json.dumps(now, ensure_ascii=False)))
        else:
            await _live(look, looking)
        return 0
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await backend.aclose()


async def _live(look: Look, looking: asyncio.Task[None]) -> None:
    from rich.live import Live
    from rich.text import Text

    from spoolama.cli.gpu_words import in_words

    with Live(auto_refresh=False) as live:
        await _each_second(
            look, looking, lambda now: live.update(Text("\n".join(in_words(now))), refresh=True)
        )


async def _each_second(
    look: Look, looking: asyncio.Task[None], show: Callable[[dict[str, Any]], None]
) -> None:
    while True:
        show(look.payload())
        await _next(look, looking)


async def _next(look: Look, looking: asyncio.Task[None]) -> None:
    """Wait for the next look, or raise what ended them."""
    looked = asyncio.ensure_future(look.looked())
    try:
        await asyncio.wait({looked, looking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        looked.cancel()
    if looking.done():
        await looking
