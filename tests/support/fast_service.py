"""The service with a faster memory watchdog that reads processes from a directory of the test.

Run as `python -m support.fast_service SPEED PROC`; the settings are in the environment.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from spoolama.service.assembly import memory_for, serve
from spoolama.service.logs import configure
from spoolama.service.settings import load_settings


def main() -> None:
    """Run until SIGTERM."""
    speed, proc = float(sys.argv[1]), Path(sys.argv[2])
    settings = load_settings(None, os.environ)
    configure(settings.log.level)
    sys.exit(serve(settings, make_memory=partial(memory_for, proc=proc, speed=speed)))


if __name__ == "__main__":
    main()
