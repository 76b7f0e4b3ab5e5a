"""What frees memory of a loaded model: fewer concurrent requests, shorter prompts, or only a release.

On the embedded engine with a real model: resident memory of its process after the load, with one and with all
slots filled by long prompts, after short prompts in all of them, and after the release. `make bench-frees`
runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "daemon")]

from spoolama.backends.base import ChatRequest, LoadSpec, Message  # noqa: E402 - it is run as a script
from spoolama.backends.embedded import EmbeddedBackend  # noqa: E402
from spoolama.clock import SystemClock  # noqa: E402
from spoolama.memory.host import HostProbe  # noqa: E402

MIB = 1 << 20


async def measure(model: str, num_ctx: int, slots: int, long_tokens: int) -> list[tuple[str, float]]:
    """Return the steps with the MiB of anonymous memory after each."""
    backend, host = EmbeddedBackend(clock=SystemClock()), HostProbe()
    spec = LoadSpec(model, num_ctx, slots=slots)

    def now() -> float:
        runners = host.runners([backend.pid] if backend.pid else [])
        return sum(runner.anonymous_bytes or 0 for runner in runners) / MIB

    async def ask(slot: int, words: int) -> None:
        text = " ".join(f"word{slot}-{n % 7}" for n in range(words))
        request = ChatRequest(spec, (Message("user", text),), 4, {"temperature": 0}, slot=slot)
        await backend.chat(request)

    steps: list[tuple[str, float]] = []
    try:
        await backend.load(spec)
        steps.append(("loaded", now()))
        await ask(0, long_tokens // 5)
        steps.append((f"1 slot filled with {long_tokens} tokens", now()))
        await asyncio.gather(*(ask(slot, long_tokens // 5) for slot in range(slots)))
        steps.append((f"{slots} slots filled", now()))
        for slot in range(slots):
            await ask(slot, 3)
        steps.append(("a short prompt in each slot (all trimmed, one request at a time)", now()))
        await backend.release()
        steps.append(("released", now()))
    finally:
        await backend.aclose()
    return steps


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="smollm2:135m,gemma3:270m", help="separated by commas")
    parser.add_argument("--num-ctx", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=3000, help="of a long prompt, about")
    given = parser.parse_args()
    for model in given.models.split(","):
        print(f"\n{model}, {given.slots} slots of {given.num_ctx:,} tokens\n")
        print("| after | MiB |\n|---|---:|")
        for step, size in asyncio.run(measure(model, given.num_ctx, given.slots, given.tokens)):
            print(f"| {step} | {size:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
