"""Defines the protocol between service and evaluation process: JSON frames with a length prefix.

A request frame is a list of items `[kind, number of the definition, arguments, CPU seconds]`, with
`["define", number, text]` and `["forget", number]` between them. The reply frame is a list of the results of
the first items; if a batch takes long, the process replies with the results so far, and the service sends the
rest again. The frames are JSON only, so that decoding a frame cannot execute code in the service.
"""

from __future__ import annotations

import struct

__all__ = ["HEADER", "MAX_REPLY_BYTES", "frame"]

HEADER = struct.Struct("!I")
MAX_REPLY_BYTES = 32 * 1024 * 1024
"""Maximum length of a reply; the process of a longer one is killed."""


def frame(body: bytes) -> bytes:
    """Return the body with its length prefix."""
    return HEADER.pack(len(body)) + body
