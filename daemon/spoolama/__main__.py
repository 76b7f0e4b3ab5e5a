"""`python -m spoolama`: the same as the command `spoolama`."""

from __future__ import annotations

from spoolama.cli.main import main

if __name__ == "__main__":
    main()
