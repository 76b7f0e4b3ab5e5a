"""The recorded replies, as tests read them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_HERE = Path(__file__).parent
_SHORTENED = re.compile(r"(?s)(.*)… \((\d+) characters\)")


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded request and its reply."""

    name: str
    method: str
    path: str
    request: bytes
    """The request's body; what was shortened is filled up to its length again."""
    status: int
    content_type: str
    json: Any
    """The reply's body where it is one JSON value; else None."""
    body: bytes
    """The reply's body."""

    def response(self) -> httpx.Response:
        """The reply, to be handed out by a mock transport."""
        return httpx.Response(self.status, headers={"Content-Type": self.content_type}, content=self.body)


def case(name: str) -> Case:
    """One case by its name."""
    recorded = json.loads((_HERE / f"{name}.json").read_text())
    request, response = recorded["request"], recorded["response"]
    if "raw_body" in request:
        sent = request["raw_body"].encode()
    else:
        sent = json.dumps(_lengthened(request["json"])).encode() if "json" in request else b""
    if "lines" in response:
        body = b"".join(json.dumps(line).encode() + b"\n" for line in response["lines"] if line != "…")
    elif "json" in response:
        body = json.dumps(response["json"]).encode()
    else:
        body = response["text"].encode()
    return Case(
        name=name,
        method=request["method"],
        path=request["path"],
        request=sent,
        status=response["status"],
        content_type=response["content_type"],
        json=response.get("json"),
        body=body,
    )


def all_cases() -> list[str]:
    """Every name."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def _lengthened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lengthened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_lengthened(item) for item in value]
    if isinstance(value, str) and (match := _SHORTENED.fullmatch(value)):
        start, length = match[1], int(match[2])
        return (start * (length // len(start) + 1))[:length]
    return value
