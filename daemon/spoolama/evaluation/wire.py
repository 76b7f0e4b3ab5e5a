"""How the service and its evaluation process speak: frames of JSON, each behind its length.

A request frame is a list of items `[kind, number of the definition, arguments, CPU seconds]`, with
`["define", number, text]` and `["forget", number]` between them. The reply frame is a list of the results of
the first items; where a batch takes long the process answers what it has, and the rest is sent again.
JSON and nothing else: the service never decodes anything by which the other side could run code in it.
"""

from __future__ import annotations

import struct

__all__ = ["HEADER", "MAX_REPLY_BYTES", "frame"]

HEADER = struct.Struct("!I")
MAX_REPLY_BYTES = 32 * 1024 * 1024
"""No honest reply is longer."""


def frame(body: bytes) -> bytes:
    """The body with its length in front."""
    return HEADER.pack(len(body)) + body
