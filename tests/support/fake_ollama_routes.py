"""The routes of the fake, with the statuses, keys and texts of the recorded replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from support.card_model import CardsFull
from support.fake_ollama_bodies import (
    chat_body,
    generate_body,
    lines,
    rendered_body,
    v1_body,
    v1_options,
)
from support.fake_ollama_catalog import ps_entry, show_body, tags_entry
from support.fake_ollama_chat import Generation, Generator, now
from support.fake_ollama_checks import (
    Refused,
    check_format,
    check_options,
    check_think,
    find_model,
    keep_alive,
    read_body,
)
from support.fake_ollama_engine import Engine, Prompt, QueueFull, Runner, segments_of
from support.fake_ollama_faults import EARLY, QUEUE_FULL, early, struck_by
from support.fake_ollama_http import TEXT, Connection, Incoming
from support.fake_ollama_script import Call, Fault, Script
from support.fake_ollama_template import parse_raw, render

Watcher = Callable[[Call], None]

RENDER = "/api/chat (render)"
"""Path of a call that was only rendered, which does not count as a chat and has no faults."""


class Routes:
    """Answers requests.

    Args:
        script: What the server is and does.
        received: Told of each chat and generate call once it is there in full, before the answer.
        ended: Told of it again when it ended.
    """

    def __init__(self, script: Script, *, received: Watcher, ended: Watcher) -> None:
        self.script = script
        self.engine = Engine(script)
        self.generator = Generator(script, self.engine)
        self._received = received
        self._ended = ended
        self._numbers: dict[str, int] = {}

    async def handle(self, incoming: Incoming, connection: Connection) -> None:
        """Answer one request."""
        match incoming.method, incoming.path:
            case "GET" | "HEAD", "/":
                connection.reply(200, "Ollama is running", content_type=TEXT)
            case "GET", "/api/version":
                connection.reply(200, {"version": self.script.version})
            case "GET", "/api/status":
                disabled = self.script.cloud_disabled
                connection.reply(
                    200, {"cloud": {"disabled": disabled, "source": "env" if disabled else "none"}}
                )
            case "GET", "/api/tags":
                connection.reply(200, {"models": [tags_entry(model) for model in self.script.models]})
            case "GET", "/api/ps":
                runners = reversed(self.engine.runners.values())
                connection.reply(200, {"models": [ps_entry(runner, self.script) for runner in runners]})
            case "POST", "/api/show":
                self._show(incoming, connection)
            case "GET", "/v1/models":
                data = [
                    {"id": m.name, "object": "model", "created": int(time.time()), "owned_by": "library"}
                    for m in self.script.models
                ]
                connection.reply(200, {"object": "list", "data": data}, content_type="application/json")
            case "POST", "/api/chat" | "/api/generate" | "/v1/chat/completions":
                await self._call(incoming, connection)
            case _:
                connection.reply(404, "404 page not found", content_type="text/plain")

    def _show(self, incoming: Incoming, connection: Connection) -> None:
        try:
            model = find_model(self.script, str(read_body(incoming.body).get("model", "")), show=True)
        except Refused as refused:
            connection.reply(refused.status, {"error": refused.text})
        else:
            connection.reply(200, show_body(model))

    async def _call(self, incoming: Incoming, connection: Connection) -> None:
        problem: Refused | None = None
        body: dict[str, Any] = {}
        try:
            body = read_body(incoming.body)
        except Refused as refused:
            problem = refused
        path = incoming.path
        if path == "/api/chat" and self.script.render_only and body.get("_debug_render_only"):
            path = RENDER
        number = self._numbers[path] = self._numbers.get(path, 0) + 1
        call = Call(number, time.time(), path, incoming.body, body, incoming.headers)
        self._received(call)
        try:
            if problem is not None:
                raise problem
            await self._answer(call, connection)
            if call.outcome is None:
                call.outcome = "ok"
        except CardsFull as full:
            call.outcome = "500"
            self._refuse(Refused(500, str(full)), call, connection)
        except Refused as refused:
            call.outcome = call.outcome or str(refused.status)
            self._refuse(refused, call, connection)
        except asyncio.CancelledError:
            call.outcome = call.outcome or "cancelled"
            raise
        finally:
            self._ended(call)

    @staticmethod
    def _refuse(refused: Refused, call: Call, connection: Connection) -> None:
        if call.path.startswith("/v1/"):
            kind = "not_found_error" if refused.status == 404 else "api_error"
            error = {"message": refused.text, "type": kind, "param": None, "code": None}
            connection.reply(refused.status, {"error": error}, content_type="application/json")
        else:
            connection.reply(refused.status, {"error": refused.text})

    async def _answer(self, call: Call, connection: Connection) -> None:
        body = call.body
        model = find_model(self.script, str(body.get("model", "")))
        options = body.get("options") or {}
        check_options(options)
        check_think(model, body.get("think"))
        generate = call.path == "/api/generate"
        if call.path != "/v1/chat/completions" and not (
            body.get("prompt") if generate else body.get("messages")
        ):
            await self._load_only(call, connection, generate=generate)
            return
        check_format(body.get("format"))
        if call.path == RENDER:
            await self._runner(call)  # the real server loads the model first
            text = render(segments_of(call.messages), model.template)
            connection.reply(200, rendered_body(body["model"], text))
            return
        fault = None if generate else struck_by(self.script, call)
        if fault is not None and fault.kind in EARLY:
            await early(fault, call, connection)
            return
        if generate and body.get("raw"):
            prompt = parse_raw(str(body["prompt"]), model.template)
        elif generate:
            system = (("system", str(body["system"])),) if body.get("system") else ()
            prompt = Prompt((*system, ("user", str(body["prompt"]))), True)
        else:
            prompt = Prompt(segments_of(call.messages), True)
        await self._generate(call, connection, prompt, fault)

    async def _generate(
        self, call: Call, connection: Connection, prompt: Prompt, fault: Fault | None
    ) -> None:
        model = find_model(self.script, str(call.body.get("model", "")))
        builders: dict[str, Callable[[Mapping[str, Any], Generation, Generator], dict[str, Any]]] = {
            "/api/chat": chat_body,
            "/api/generate": generate_body,
            "/v1/chat/completions": v1_body,
        }
        build = builders[call.path]
        if call.path.startswith("/v1/"):
            call.body = {**call.body, "options": v1_options(call.body)}
        try:
            done = await self.generator.answer(
                call, connection, model, prompt, fault, lambda found: build(call.body, found, self.generator)
            )
        except QueueFull:
            raise Refused(503, QUEUE_FULL) from None
        if done is None:
            return
        if fault is not None:
            call.outcome = fault.kind
        call.answer = done.text
        if keep_alive(call.body) == 0:
            self.engine.unload(model.name)
        reply = build(call.body, done, self.generator)
        if call.path.startswith("/v1/"):
            connection.reply(200, reply, content_type="application/json")
        elif call.body.get("stream", True):
            connection.stream(lines(reply))
        else:
            connection.reply(200, reply)

    async def _runner(self, call: Call) -> Runner:
        model = find_model(self.script, str(call.body.get("model", "")))
        options = call.body.get("options") or {}
        try:
            return (await self.engine.runner(model, options, call.body.get("shift", True)))[0]
        except QueueFull:
            raise Refused(503, QUEUE_FULL) from None

    async def _load_only(self, call: Call, connection: Connection, *, generate: bool) -> None:
        """Without a prompt: load, or with `keep_alive: 0` unload."""
        model = find_model(self.script, str(call.body.get("model", "")))
        if keep_alive(call.body) == 0:
            self.engine.unload(model.name)
            reason = "unload"
        else:
            runner = await self._runner(call)
            runner.forever = (keep_alive(call.body) or 0) < 0
            reason = "load"
        empty: dict[str, Any] = (
            {"response": ""} if generate else {"message": {"role": "assistant", "content": ""}}
        )
        connection.reply(
            200,
            {"model": call.body["model"], "created_at": now(), **empty, "done": True, "done_reason": reason},
        )
