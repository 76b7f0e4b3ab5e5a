"""Answers that depend only on the request, so that a run can be repeated and compared."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any

from support.fake_ollama_script import Answer, Asked

_TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}
_SHAPES = (
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "properties",
    "items",
    "pattern",
    "format",
)


def hashed(asked: Asked, labels: Sequence[str]) -> str:
    """Return a label, or an instance of the format, by a hash of messages, options and format."""
    text = json.dumps([asked.model, list(asked.messages), dict(asked.options), asked.format], sort_keys=True)
    chance = random.Random(hashlib.sha256(text.encode()).digest())
    if asked.format is None:
        return chance.choice(labels)
    if isinstance(asked.format, dict):
        return json.dumps(_instance(asked.format, asked.format, chance, labels), ensure_ascii=False)
    return json.dumps({"answer": chance.choice(labels)})


def named_answer(name: str) -> Answer | None:
    """Return answers by name for the command line: `echo`, `labels:a,b,c`, `words:N`; empty: the default."""
    kind, _, rest = name.partition(":")
    match kind:
        case "":
            return None
        case "echo":
            return lambda asked: asked.row
        case "labels":
            labels = rest.split(",")
            return lambda asked: hashed(asked, labels)
        case "words":
            text = " ".join(f"word{number}" for number in range(int(rest)))
            return lambda _: text
        case _:
            raise ValueError(f"no answer is called {name!r}: use echo, labels:a,b,c or words:N")


def bad_schema(schema: Any) -> str | None:
    """Return llama.cpp's error for a schema that it cannot turn into a grammar, or None."""
    if not isinstance(schema, dict):
        return None
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    known = (
        all(k in _TYPES for k in kinds)
        if kind is not None
        else not schema or any(k in schema for k in _SHAPES)
    )
    if not known:
        return f"Unrecognized schema: {json.dumps(schema, separators=(',', ':'))}"
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and not (pattern.startswith("^") and pattern.endswith("$")):
        return "Pattern must start with '^' and end with '$'"
    inner: list[Any] = [schema.get("items")]
    for key in ("properties", "$defs", "definitions"):
        found = schema.get(key)
        inner += found.values() if isinstance(found, dict) else ()
    for key in ("anyOf", "oneOf", "allOf"):
        found = schema.get(key)
        inner += found if isinstance(found, list) else ()
    return next((problem for part in inner if (problem := bad_schema(part))), None)


def _instance(
    schema: Mapping[str, Any], root: Mapping[str, Any], chance: random.Random, labels: Sequence[str]
) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if reference := schema.get("$ref"):
        return _instance(_resolve(reference, root), root, chance, labels)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(chance.choice(schema[key]), root, chance, labels)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = chance.choice(kind)
    match kind:
        case "object":
            return {
                key: _instance(part, root, chance, labels)
                for key, part in schema.get("properties", {}).items()
            }
        case "array":
            count = max(schema.get("minItems", 1), min(1, schema.get("maxItems", 1)))
            return [_instance(schema.get("items", {}), root, chance, labels) for _ in range(count)]
        case "integer" | "number":
            return _number(schema, kind, chance)
        case "boolean":
            return chance.random() < 0.5
        case "null":
            return None
        case _:
            text = chance.choice(labels)
            while len(text) < schema.get("minLength", 0):
                text += chance.choice(string.ascii_lowercase)
            return text[: schema.get("maxLength", len(text))]


def _number(schema: Mapping[str, Any], kind: str, chance: random.Random) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1 if kind == "integer" else 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 101))
    if kind == "number":
        return float(round(low + (high - low) * (0.01 + 0.98 * chance.random()), 3))
    low += "exclusiveMinimum" in schema or not any(key in schema for key in ("minimum", "exclusiveMinimum"))
    return chance.randint(int(low), int(high) - ("exclusiveMaximum" in schema))


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found if isinstance(found, dict) else {}
