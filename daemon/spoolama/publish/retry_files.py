"""What can be dropped again: rows without an answer, as lines that the same prompt template takes.

A line has the row's original fields at its top level, so that the sidecar's template renders from it as
before, and one key of ours, `_spoolama`: which row of which job it was, why it failed, and the answer that
was refused. `spoolama merge` uses it to merge the second answer into the job, so keep it in a corrected line.
A row that could not be read has nothing but this key: `raw` is its text, for a person to correct.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import yaml

from spoolama.job.row import NOTE_KEY
from spoolama.job.sidecar import Sidecar
from spoolama.publish.record import Record

__all__ = ["again_line", "sidecar_yaml"]


def again_line(
    job: str,
    record: Record,
    fields: Mapping[str, Any] | None,
    raw: bytes | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """The line of one row.

    Args:
        job: The job's name.
        record: How the row ended.
        fields: Its fields, if it could be read.
        raw: Its bytes as they came, if not.
        details: Sizes and the like; `answer` is the raw answer, where there was one.
    """
    error = record.error or {"code": "skipped", "message": "never tried: the job ended before its turn"}
    note: dict[str, Any] = {
        "job": job,
        "row": record.row,
        "line": record.line,
        "id": record.id,
        "code": error["code"],
        "message": error["message"],
        "attempts": record.attempts,
    }
    rest = dict(details)
    answer = rest.pop("answer", None)
    if answer is not None:
        note["answer"] = answer
    if rest:
        note["details"] = rest
    if record.home:
        note["home"] = record.home
    if fields is None:
        note |= _encoded(raw or b"")
    own = {key: value for key, value in (fields or {}).items() if key != NOTE_KEY}
    return {**own, NOTE_KEY: note}


def _encoded(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode(), "raw_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"raw": base64.b64encode(raw).decode(), "raw_encoding": "base64"}


class _Dumper(yaml.SafeDumper):
    """YAML as a person would write it: texts of several lines in block form."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def sidecar_yaml(sidecar: Sidecar, *, data_name: str) -> str:
    """The sidecar of the lines: the job's own, without what it said of the whole upload (`expect`)."""
    values = sidecar.model_dump(mode="json", exclude_unset=True, exclude={"expect"})
    body = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)
    return (
        f"# Drop this beside {data_name} to ask these rows again; correct them first where needed.\n"
        "# Then `spoolama merge JOB RETRY -o OUT` puts the answers into their places.\n"
        f"{body}"
    )
