"""OpenAI batch files end to end: results in OpenAI's form, and refused lines that are fixed and merged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemons import clean_env, daemon, fake_ollama, make_spool, run_once, wait_for

pytestmark = pytest.mark.slow

MODEL = "smollm2:135m"
Line = dict[str, Any]


def request(name: str, *turns: str, model: str | None = MODEL, **body: Any) -> Line:
    """A line of a batch: a system message, then alternating turns of user and assistant."""
    messages = [{"role": "system", "content": "Judge."}]
    messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    asked = {"messages": messages, "max_tokens": 16, **body}
    if model is not None:
        asked["model"] = model
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": asked}


SCHEMA = {"type": "object", "properties": {"label": {"enum": ["good", "bad"]}}, "required": ["label"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA}}
ODD = {
    "warm": request("warm", "odd: warm", temperature=0.7),
    "history": request("history", "odd: first", "an answer of old", "odd: second"),
    "schema": request("schema", "odd: schema", response_format=FORMAT),
    "other model": request("other model", "odd: gemma", model="gemma3:270m"),
}
"""Lines that are answered, each in isolation."""
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "unknown": (json.dumps(request("unknown", "x", top_z=1)).encode(), "unsupported_request", "top_z"),
    "two": (json.dumps(request("two", "x", n=2)).encode(), "unsupported_request", "n: "),
    "empty": (json.dumps(request("empty", " ")).encode(), "empty_prompt", "empty"),
    "again": (json.dumps(request("row 0", "x")).encode(), "duplicate_id", "line 1"),
    "broken": (b'{"custom_id": "broken", "method": "PO', "bad_json", "ends too early"),
    "no such model": (
        json.dumps(request("no such model", "x", model="gpt-4o")).encode(),
        "request_refused",
        "ollama pull gpt-4o",
    ),
    "no model": (
        json.dumps(request("no model", "x", model=None)).encode(),
        "unsupported_request",
        "model: ",
    ),
}
"""The line, the class of its error, and words of its message."""


def batch() -> list[tuple[str, bytes]]:
    """Thirty lines of one shape, with the odd and the refused ones between them."""
    lines = [(f"row {n}", json.dumps(request(f"row {n}", f"review {n}")).encode()) for n in range(30)]
    for place, (name, line) in enumerate(ODD.items()):
        lines.insert(5 + 3 * place, (name, json.dumps(line).encode()))
    for place, (name, (raw, _, _)) in enumerate(REFUSED.items()):
        lines.insert(6 + 4 * place, (name, raw))
    return lines


def lines_of(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chats(log: Path) -> list[Line]:
    """The bodies of all chat calls, in order."""
    calls = lines_of(log)
    return [json.loads(c["body"]) for c in calls if c["event"] == "call" and c["path"] == "/api/chat"]


def texts(body: Line) -> list[str]:
    return [message["content"] for message in body["messages"]]


def check_answered(line: Line, *, model: str = MODEL) -> str:
    """Check OpenAI's output format key by key; return the answer's text."""
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert line["id"].startswith("batch_req_")
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    assert line["response"]["request_id"]
    body = line["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["created"] > 1_600_000_000
    assert body["model"] == model
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    text: str = choice["message"]["content"]
    assert text
    return text


def fixed(line: Line, number: int) -> Line:
    """Return a refused line as a user fixes it, with its note unchanged."""
    return request(f"corrected {number}", f"corrected {number}") | {"_spoolama": line["_spoolama"]}


@pytest.mark.timeout(600)
def test_a_batch_without_a_sidecar_is_published_in_the_form_of_openai(tmp_path: Path) -> None:
    """Each line is asked in isolation, and refused lines have reasons, are fixed and are merged."""
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    sent = batch()
    with fake_ollama(log) as url:
        env = clean_env(spool, url, SPOOLAMA_OPENAI_WAIT_S="0.3")
        with daemon(env, log=tmp_path / "log"):
            (spool / "incoming" / "batch.jsonl").write_bytes(b"".join(raw + b"\n" for _, raw in sent))
            job: Path = wait_for(lambda: next((spool / "done").glob("batch-*"), None))
        asked = chats(log)

        results = lines_of(job / "results.jsonl")
        wanted = [name for name, _ in sent if name not in REFUSED]
        assert [line["custom_id"] for line in results] == wanted
        answers = {
            line["custom_id"]: check_answered(
                line, model="gemma3:270m" if line["custom_id"] == "other model" else MODEL
            )
            for line in results
        }
        assert json.loads(answers["schema"])["label"] in ("good", "bad")

        errors = lines_of(job / "errors.jsonl")
        at = {name: number for number, (name, _) in enumerate(sent, 1)}
        assert [(e["error"]["line"], e["error"]["code"]) for e in errors] == [
            (at[name], code) for name, (_, code, _) in REFUSED.items()
        ]
        for error, (_, _, words) in zip(errors, REFUSED.values(), strict=True):
            assert words in error["error"]["message"]
            assert error["response"] is None

        assert len(asked) == len(wanted)
        rows = [body for body in asked if texts(body)[-1].startswith("review")]
        assert [len(texts(body)) for body in rows] == [2] * 30, "each alone behind the shared message"
        assert not any("odd" in text for body in rows for text in texts(body))
        odd = {body["messages"][-1]["content"]: body for body in asked if body not in rows}
        assert {text: texts(body) for text, body in odd.items()} == {
            line["body"]["messages"][-1]["content"]: texts(line["body"]) for line in ODD.values()
        }
        assert odd["odd: warm"]["options"]["temperature"] == 0.7
        assert odd["odd: schema"]["format"] == SCHEMA
        assert odd["odd: gemma"]["model"] == "gemma3:270m"
        assert all(body["options"]["num_predict"] == 16 for body in asked)

        refused_lines = lines_of(job / "retry.jsonl")
        assert len(refused_lines) == len(REFUSED)
        lines = "".join(json.dumps(fixed(line, n)) + "\n" for n, line in enumerate(refused_lines))
        (spool / "incoming" / "retry.jsonl").write_text(lines)
        done = run_once(clean_env(spool, url))
        assert done.returncode == 0, done.stderr
    second = next((spool / "done").glob("retry-*"))
    assert [check_answered(line) != "" for line in lines_of(second / "results.jsonl")] == [True] * len(
        refused_lines
    )
    assert (second / "errors.jsonl").read_text() == ""

    whole = tmp_path / "whole"
    merge = [sys.executable, "-m", "spoolama", "merge", str(job), str(second), "-o", str(whole)]
    finished = subprocess.run(merge, env=env, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    merged = {line["custom_id"]: line["response"] for line in lines_of(whole / "results.jsonl")}
    fixed_at = {line["_spoolama"]["row"]: f"corrected {n}" for n, line in enumerate(refused_lines)}
    assert list(merged) == [fixed_at.get(at[name], name) for name, _ in sent]
    first = {line["custom_id"]: line["response"] for line in results}
    assert {name: merged[name] for name in first} == first, "first answers stay as they are"
    assert (whole / "errors.jsonl").read_text() == ""


@pytest.mark.timeout(600)
def test_a_sidecar_names_the_models_and_gives_defaults(tmp_path: Path) -> None:
    """A line's value overrides the sidecar's, except that the sidecar's model overrides the line's."""
    spool, log = make_spool(tmp_path / "spool"), tmp_path / "calls"
    sidecar = """
model: gemma3:270m
models: {gpt-4o-mini: "smollm2:135m"}
system: Answer with one word.
options: {num_ctx: 1024, num_predict: 20, temperature: 0.3, seed: 11}
"""
    plain = [{"role": "user", "content": "plain"}]
    lines = [
        request("mapped", "mapped", model="gpt-4o-mini"),
        request("own bound", "own bound", model="gpt-4o-mini", max_tokens=None, temperature=1),
        request("default", "default", model=None, max_tokens=5),
        request("plain", model=None, max_tokens=None, messages=plain),
    ]
    with fake_ollama(log) as url:
        (spool / "incoming" / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (spool / "incoming" / "batch.yaml").write_text(sidecar)
        done = run_once(clean_env(spool, url))
        assert done.returncode == 0, done.stderr
        asked = {texts(body)[-1]: body for body in chats(log)}
    (job,) = (spool / "done").iterdir()
    models = {"mapped": MODEL, "own bound": MODEL, "default": "gemma3:270m", "plain": "gemma3:270m"}
    found = lines_of(job / "results.jsonl")
    assert [line["custom_id"] for line in found] == list(models)
    for line in found:
        check_answered(line, model=models[line["custom_id"]])
    options = {name: asked[name]["options"] for name in ("mapped", "own bound", "default", "plain")}
    assert {name: (o["num_predict"], o["temperature"], o["seed"]) for name, o in options.items()} == {
        "mapped": (16, 0.3, 11),
        "own bound": (20, 1, 11),
        "default": (5, 0.3, 11),
        "plain": (20, 0.3, 11),
    }
    assert {o["num_ctx"] for o in options.values()} == {1024}
    assert asked["plain"]["messages"][0] == {"role": "system", "content": "Answer with one word."}
    assert texts(asked["mapped"]) == ["Judge.", "mapped"]
    assert not (job / "retry.jsonl").exists()
