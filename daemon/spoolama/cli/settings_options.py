"""Defines the options --config and --spool, which several commands share, and reads the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from spoolama.service.settings import Settings

SYSTEM_CONFIG = Path("/etc/spoolama/spoolama.yaml")

config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="SPOOLAMA_CONFIG",
    show_envvar=True,
    help=f"The settings file. Default: {SYSTEM_CONFIG} if it exists, else the built-in defaults.",
)
spool_option = click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    help="The spool directory. Overrides the settings.",
)


def settings_from(config: Path | None, **instead: object) -> Settings:
    """Read the settings: the file, then the environment, then the command line; the last one wins.

    Args:
        config: The file; None for the system's file.
        instead: Keys as in the environment variables, in lower case (`backend__url`); None: not given.
    """
    from spoolama.service.settings import PREFIX, load_settings

    if config is None and SYSTEM_CONFIG.exists():
        config = SYSTEM_CONFIG
    given: Mapping[str, str] = {
        PREFIX + key.upper(): str(value) for key, value in instead.items() if value is not None
    }
    return load_settings(config, {**os.environ, **given})
