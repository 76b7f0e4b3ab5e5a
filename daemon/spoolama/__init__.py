"""spoolama: drop a file, get answers."""

__version__ = "0.1.0"
