"""`spoolama gpu`: shows memory use and estimates the memory that loading a model takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from spoolama.backends.base import LoadSpec
from spoolama.cli.gpu_report import GpuReport
from spoolama.cli.settings_options import config_option, settings_from
from spoolama.clock import SystemClock
from spoolama.memory.level import GB, in_gb
from spoolama.service.assembly import backend_for
from spoolama.service.settings import Settings

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
@click.option("--slots", type=click.IntRange(min=1), help="Parallel slots. Default: the settings' lanes.")
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
    spec = (
        None if model is None else LoadSpec(model, num_ctx or DEFAULT_WINDOW, slots=slots or settings.lanes)
    )
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(_show(settings, spec, watch=watch, as_json=as_json)))


async def _show(settings: Settings, spec: LoadSpec | None, *, watch: bool, as_json: bool) -> int:
    """Show the state, and with `watch` again every second until cancelled; returns the exit status."""
    backend = backend_for(settings, SystemClock())
    report = GpuReport(settings, backend, spec)
    reading = asyncio.create_task(report.run(keep_on=watch), name="readings")
    live = Live(auto_refresh=False) if watch and not as_json else None
    try:
        with live or contextlib.nullcontext():
            while True:
                await _next(report, reading)
                found = report.payload()
                if live is not None:
                    live.update(Text("\n".join(in_words(found))), refresh=True)
                elif as_json:
                    click.echo(json.dumps(found, indent=None if watch else 2, ensure_ascii=False))
                else:
                    click.echo("\n".join(in_words(found)))
                if not watch:
                    return 1 if report.no_such_model else 0
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await backend.aclose()


async def _next(report: GpuReport, reading: asyncio.Task[None]) -> None:
    """Wait for the next reading, or raise the exception that ended the readings."""
    looked = asyncio.ensure_future(report.looked())
    try:
        await asyncio.wait({looked, reading}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        looked.cancel()
    if reading.done():
        await reading


# --- text --------------------------------------------------------------------------------------------------


def in_words(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the text from the payload of `cli/gpu_report.py`."""
    if found["level"] is None:
        yield f"Memory pressure is unknown: {found['why']}."
    else:
        yield f"Memory pressure is {found['level']}: {found['why']}."
    yield ""
    for card in found["cards"] or ():
        yield from _card(card)
    if found["no_cards"]:
        yield f"GPUs: no readings, because {found['no_cards']}."
    yield from _machine(found["machine"], here=found["server"]["here"])
    yield from _holders(found["holders"])
    yield from _server(found["server"])
    if found["estimate"] is not None:
        yield ""
        yield from _estimate(found["estimate"])


def _card(card: Mapping[str, Any]) -> Iterator[str]:
    name = f"GPU {card['index']}, {card['name']}"
    if card["mig"] == "on":
        name += ", in MIG mode, instances cannot be read"
    elif card["mig"] is not None:
        name += f", MIG instance {card['mig']}"
    if not card["counts"]:
        name += " (ignored: vram.cards)"
    own = card["reserved_bytes"]
    driver = f", {_size(own)} of it by the driver" if own else ""
    yield f"{name}:"
    yield (
        f"  {_size(card['used_bytes'])} of {_size(card['total_bytes'])} in use{driver}; "
        f"{_size(card['free_bytes'])} free"
    )
    yield f"  {_limits_line(card)}"
    yield f"  at least {card['keep_free_gb']:g} GB stay free for all processes together (vram.keep_free_gb)"
    if state := list(_state(card)):
        yield f"  {', '.join(state)}"
    if card["processes"] is None:
        yield "  by process: unknown (no permission, or not supported by the driver)"
    elif not card["processes"]:
        yield "  no process uses it"
    for process in card["processes"] or ():
        size = "size unknown" if process["bytes"] is None else _size(process["bytes"])
        yield f"  process {process['pid']}{_named(process['name'])}: {size}"


def _limits_line(of: Mapping[str, Any]) -> str:
    high, critical, used = of["high_bytes"], of["critical_bytes"], of["used_bytes"]
    now = "critical" if used >= critical else "high" if used >= high else "ok"
    return f"high from {_size(high)}, critical from {_size(critical)}; now {now}"


def _state(card: Mapping[str, Any]) -> Iterator[str]:
    if card["temperature_c"] is not None:
        yield f"{card['temperature_c']} °C"
    if card["power_w"] is not None:
        of = f" of {card['power_limit_w']:.0f}" if card["power_limit_w"] is not None else ""
        yield f"{card['power_w']:.0f}{of} W"
    if card["throttled"]:
        yield f"clocks throttled: {', '.join(card['throttled'])}"
    elif card["throttled"] is not None:
        yield "clocks not throttled"


def _machine(machine: Mapping[str, Any] | None, *, here: bool) -> Iterator[str]:
    if machine is None:
        yield "This machine: its memory cannot be read (/proc/meminfo)."
        return
    whose = "" if here else " (not the server's)"
    bound = f", bound by {machine['bound']}" if machine["bound"] else ""
    swap = machine["swap_total_bytes"]
    used = swap - machine["swap_free_bytes"]
    swapped = f"swap: {_size(used)} of {_size(swap)} in use" if swap else "no swap"
    yield f"This machine{whose}:"
    yield (
        f"  {_size(machine['used_bytes'])} of {_size(machine['total_bytes'])} in use{bound}; "
        f"{_size(machine['available_bytes'])} available; {swapped}"
    )
    if here:
        yield f"  {_limits_line(machine)}"


def _holders(holders: list[Mapping[str, Any]]) -> Iterator[str]:
    if not holders:
        yield "Processes on this machine with a loaded model: none found."
        return
    yield "Processes on this machine with a loaded model:"
    for one in holders:
        own = one["anonymous_bytes"]
        part = f", {_size(own)} of it anonymous" if own is not None else ""
        yield f"  process {one['pid']}{_named(one['name'])}: {_size(one['rss_bytes'])} resident{part}"


def _server(server: Mapping[str, Any]) -> Iterator[str]:
    name, address, error = f"Model server {server['kind']}", server["address"], server["error"]
    if address and address not in (error or ""):
        name += f" at {address}"
    if error:
        yield f"{name}: cannot list its loaded models: {error}."
    elif server["address"] is None:
        yield f"{name}: a process of the service, listed above while it has a model loaded."
    elif server["models"] is None:
        yield f"{name}: cannot list its loaded models."
    elif not server["models"]:
        yield f"{name}: no model is loaded."
    else:
        yield f"{name} has loaded (sizes from its own estimate, which is lower than the real use of a GPU):"
        for model in server["models"]:
            yield f"  {model['name']}: {', '.join(_listed(model))}"


def _listed(model: Mapping[str, Any]) -> Iterator[str]:
    size, on_cards = model["size_bytes"], model["vram_bytes"]
    yield "size unknown" if size is None else _size(size)
    if size and on_cards is not None:
        yield "all on GPUs" if on_cards >= size else f"{_size(on_cards)} of it on GPUs"
    if model["num_ctx"] is not None:
        yield f"num_ctx {model['num_ctx']:,}"


def _estimate(load: Mapping[str, Any]) -> Iterator[str]:
    slots = "1 slot" if load["slots"] == 1 else f"{load['slots']} slots"
    title = f"Estimate for {load['model']} with num_ctx {load['num_ctx']:,} and {slots}"
    if load["unknown"]:
        yield f"{title}: not possible, because {load['unknown']}."
        return
    card, parts = load["where"] == "card", load["estimate"]
    yield f"{title}, on {'a GPU' if card else 'the CPU'} (no model was loaded):"
    yield (
        f"  about {_size(parts['total_bytes'])}: weights {_size(parts['weights_bytes'])}, KV cache "
        f"{_size(parts['kv_bytes'])}, compute buffers {_size(parts['compute_bytes'])}, "
        f"{'CUDA' if card else 'the process'} {_size(parts['overhead_bytes'])}"
    )
    if load["trained_ctx"] is not None and load["trained_ctx"] < load["num_ctx"]:
        yield f"  It was trained with a context of {load['trained_ctx']:,} tokens, which limits the window."
    yield from _fit(load, card=card)


def _fit(load: Mapping[str, Any], *, card: bool) -> Iterator[str]:
    free = load["may_be_taken_bytes"]
    if free is None:
        yield "  Whether it fits is unknown: the memory where it would run cannot be read."
        return
    all_of_them = f" on all {load['cards']} GPUs together" if card and load["cards"] > 1 else ""
    may = f"{_size(free)} available{all_of_them} below the critical limit"
    if load["fits"] and (card or load["fits_whole"]):
        yield f"  It should fit: {may}."
    elif load["fits"]:
        yield f"  It can be loaded, but is slow because not all weights stay in memory: {may}."
    else:
        yield f"  It does not fit now: {may}."


def _named(name: str | None) -> str:
    return f" ({name})" if name else ""


def _size(size: int) -> str:
    return in_gb(size) if not size or size >= GB // 10 else f"{max(1, size >> 20)} MB"
