"""`spoolama gpu`: shows memory use and estimates the memory that loading a model takes."""

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
    from spoolama.cli.gpu_look import GpuReport
    from spoolama.service.settings import Settings

__all__ = ["gpu"]

DEFAULT_WINDOW = 4096
"""The default of `num_ctx` in a sidecar."""


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
    help="The kind of model server. Overrides the settings.",
)
@click.option("--url", help="The address of the model server. Overrides the settings.")
@click.option("--model", help="Estimate the memory that this model takes, and whether it fits.")
@click.option(
    "--num-ctx",
    type=click.IntRange(128, 10_000_000),
    help=f"Context window in tokens. Default: {DEFAULT_WINDOW}.",
)
@click.option("--slots", type=click.IntRange(1, 256), help="Parallel slots. Default: the settings' lanes.")
@click.option("--watch", is_flag=True, help="Update every second until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes; --watch: one line each.")
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
    """Show the memory in use on each GPU, by process, and the memory pressure by the limits in the settings.

    Also shows this machine's memory, the processes that have loaded a model, and the models that the model
    server lists as loaded.

    With --model it estimates the memory that the model takes, and whether it fits now. Does not load it.
    The exit status is 1 if the server does not have the model.
    """
    if model is None and (num_ctx or slots):
        raise click.UsageError("--num-ctx and --slots need --model")
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
    """Show the state once, or until cancelled if `once` is None; returns the exit status."""
    from spoolama.backends.base import LoadSpec
    from spoolama.cli.gpu_look import GpuReport
    from spoolama.clock import SystemClock
    from spoolama.service.assembly import backend_for

    spec = None if model is None else LoadSpec(model, num_ctx, slots=slots or settings.lanes)
    backend = backend_for(settings, SystemClock())
    look = GpuReport(settings, backend, spec)
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


async def _live(look: GpuReport, looking: asyncio.Task[None]) -> None:
    from rich.live import Live
    from rich.text import Text

    from spoolama.cli.gpu_words import in_words

    with Live(auto_refresh=False) as live:
        await _each_second(
            look, looking, lambda now: live.update(Text("\n".join(in_words(now))), refresh=True)
        )


async def _each_second(
    look: GpuReport, looking: asyncio.Task[None], show: Callable[[dict[str, Any]], None]
) -> None:
    while True:
        show(look.payload())
        await _next(look, looking)


async def _next(look: GpuReport, looking: asyncio.Task[None]) -> None:
    """Wait for the next reading, or raise the exception that ended the readings."""
    looked = asyncio.ensure_future(look.looked())
    try:
        await asyncio.wait({looked, looking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        looked.cancel()
    if looking.done():
        await looking
