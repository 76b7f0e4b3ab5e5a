"""The fake Ollama as a process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from support.card_model import CardModel, Habits
from support.fake_ollama import FakeOllama
from support.fake_ollama_answers import named_answer
from support.fake_ollama_script import GEMMA3, SMOLLM2, FakeModel, Fault, Latency, Script

_LOOK_S = 0.02


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT; the first line on stdout is the URL."""
    parser = argparse.ArgumentParser(
        prog="python -m support.fake_ollama",
        description="A fake Ollama. Prints its URL on the first line and serves until it gets SIGTERM.",
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free one (the default)")
    parser.add_argument("--slots", type=int, default=1, help="answers at once, as OLLAMA_NUM_PARALLEL")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="for every answer")
    parser.add_argument("--jitter", type=float, default=0.0, help="share by which waits vary")
    parser.add_argument(
        "--pace", type=float, default=0.0, help="share of token and load times really waited for"
    )
    parser.add_argument("--prompt-token-ms", type=float, default=0.5, help="for each evaluated prompt token")
    parser.add_argument("--answer-token-ms", type=float, default=5.0, help="for each answered token")
    parser.add_argument("--load-ms", type=float, default=0.0, help="for every load")
    parser.add_argument("--seed", type=int, default=7, help="of the jitter")
    parser.add_argument("--server-version", default="0.33.3", help="decides what is counted")
    parser.add_argument("--any-model", action="store_true", help="every model name is there")
    parser.add_argument(
        "--answer", default="", help="echo, labels:a,b,c or words:N; default: three labels by hash"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="JSON",
        help='the fields of a fault, as {"kind": "reset", "calls": [3], "times": 1}; may be repeated',
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="JSON",
        help='the fields of a model, as {"name": "judge:12b", "size_bytes": 7000000000}; may be repeated',
    )
    parser.add_argument(
        "--memory", type=Path, metavar="SCRIPT", help="model memory; the file says what others use"
    )
    parser.add_argument(
        "--proc", type=Path, metavar="DIR", help="with --memory: main memory as in /proc, to be written"
    )
    parser.add_argument(
        "--habits", default="{}", metavar="JSON", help="with --memory: what models take beside their weights"
    )
    parser.add_argument(
        "--call-log", type=Path, help="append every call as JSON lines, before it is answered"
    )
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when stdin is closed")
    given = parser.parse_args(arguments)
    try:
        habits = Habits(**json.loads(given.habits))
        script = Script(
            models=[FakeModel(**json.loads(text)) for text in given.model] or [SMOLLM2, GEMMA3],
            memory=CardModel(given.memory, given.proc, habits) if given.memory else None,
            any_model=given.any_model,
            version=given.server_version,
            slots=given.slots,
            latency=Latency(
                request_s=given.latency_ms / 1000,
                prompt_token_s=given.prompt_token_ms / 1000,
                answer_token_s=given.answer_token_ms / 1000,
                pace=given.pace,
                load_s=given.load_ms / 1000,
                jitter=given.jitter,
                seed=given.seed,
            ),
            answer=named_answer(given.answer),
            faults=[Fault(**json.loads(text)) for text in given.fault],
        )
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    asyncio.run(_serve(script, given.port, given.call_log, given.exit_with_stdin))


async def _serve(script: Script, port: int, call_log: Path | None, exit_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if exit_with_stdin:

        def look() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                ended.set()

        loop.add_reader(sys.stdin.fileno(), look)
    # Memory stays flat during long runs, because the log has the calls.
    async with FakeOllama(script, port=port, call_log=call_log, keep=1) as server:
        followed = asyncio.create_task(_follow(script.memory)) if script.memory is not None else None
        print(server.url, flush=True)
        await ended.wait()
        if followed is not None:
            followed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await followed


async def _follow(memory: CardModel) -> None:
    """Follow what others use at once, also without requests to the server."""
    while True:
        memory.refresh()
        await asyncio.sleep(_LOOK_S)
