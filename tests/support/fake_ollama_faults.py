"""The bytes that each scripted fault sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from support.fake_ollama_checks import Refused
from support.fake_ollama_engine import Engine, Runner
from support.fake_ollama_http import Connection
from support.fake_ollama_script import Call, Fault, Script

EARLY = {"http", "busy", "cloud", "missing"}
"""Kinds that act before a slot is taken."""

ON_THE_ANSWER = {"empty", "text", "silent_cut"}
"""Kinds that change an answer instead of preventing it."""

QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
OUT_OF_MEMORY = (
    "llama-server process has terminated: exit status 1: "
    "CUDA error: out of memory; cudaMalloc failed: out of memory"
)


def struck_by(script: Script, call: Call) -> Fault | None:
    """Return the first fault that applies to this call."""
    return next((fault for fault in script.faults if fault.strikes(call)), None)


async def early(fault: Fault, call: Call, connection: Connection) -> None:
    """Refuse with the server's text."""
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    match fault.kind:
        case "busy":
            raise Refused(503, QUEUE_FULL)
        case "cloud":
            raise Refused(403, "ollama cloud is disabled: remote model is unavailable")
        case "missing":
            raise Refused(404, f"model '{call.body.get('model')}' not found")
        case _:
            text = fault.body or "internal server error"
            call.outcome = str(fault.status)
            connection.reply(fault.status, text if text.startswith("{") else {"error": text})


async def late(
    fault: Fault,
    connection: Connection,
    engine: Engine,
    runner: Runner,
    whole: Callable[[], Mapping[str, Any]],
) -> None:
    """Spoil an answer that uses a slot.

    Args:
        whole: The correct reply.
    """
    if fault.delay_s and fault.kind != "drip":
        await asyncio.sleep(fault.delay_s)
    match fault.kind:
        case "reset":
            connection.reset()
        case "reset_body" | "cut_body":
            data = json.dumps(whole()).encode()
            connection.begin(200, len(data))
            connection.write(data[: len(data) // 2])
            if fault.kind == "cut_body":
                connection.close()
                return
            # A reset overtakes unread data, so the client gets a moment to read the first half.
            await asyncio.sleep(0.05)
            connection.reset()
        case "garbage":
            connection.write(bytes(range(128, 256)) + b"\r\n\r\n")
            connection.close()
        case "not_json":
            connection.reply(200, fault.body or "<html>It works!</html>")
        case "hang":
            await asyncio.Event().wait()
        case "drip":
            data = json.dumps(whole()).encode()
            connection.begin(200, len(data))
            for place in range(len(data)):
                connection.write(data[place : place + 1])
                await asyncio.sleep(fault.delay_s)
            connection.close()
        case "not_done":
            kept = ("model", "created_at", "message", "response")
            connection.reply(200, {**{k: v for k, v in whole().items() if k in kept}, "done": False})
        case "no_reason":
            connection.reply(200, {k: v for k, v in whole().items() if k != "done_reason"})
        case "remote":
            connection.reply(
                200, {**whole(), "remote_model": "gpt-oss:20b", "remote_host": "https://remote.invalid"}
            )
        case "runner_killed":
            engine.kill(runner)
            raise Refused(500, RUNNER_DIED)
        case "out_of_memory":
            engine.kill(runner)
            raise Refused(500, OUT_OF_MEMORY)
        case _:
            raise AssertionError(f"{fault.kind} is not a fault of an answer in work")
