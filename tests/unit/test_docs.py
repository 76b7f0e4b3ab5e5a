"""The documents say what is true: examples load, commands exist, tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spoolama.cli.main import COMMANDS
from spoolama.engine.failures import POLICIES
from spoolama.evaluation.child.openai_lines import parameter_table
from spoolama.evaluation.child.sidecar_file import parse_sidecar
from spoolama.job.sidecar import Options, Sidecar

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_sidecars_in_the_readme_load(block: str) -> None:
    """Every YAML block is a sidecar that the service would take."""
    parse_sidecar(block, "README.yaml")


def test_every_sidecar_key_is_in_the_reference_and_no_other() -> None:
    """The table of keys is complete, options included."""
    table = README.split("| key | meaning | default |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(Sidecar.model_fields)
    (options,) = [line for line in table.splitlines() if line.startswith("| `options`")]
    assert set(re.findall(r"`(\w+)`", options)) - {"options"} == set(Options.model_fields)


def test_commands_in_the_readme_exist() -> None:
    """`spoolama X` in a shell block is a command; every command is named somewhere."""
    used = set(re.findall(r"^spoolama (\w+)", README, re.MULTILINE))
    assert used <= set(COMMANDS)
    assert {name for name in COMMANDS if f"spoolama {name}" not in README} == set()


def test_the_table_of_openai_parameters_is_the_codes() -> None:
    """The README's table is printed from the one that decides."""
    shown = README.split("<!-- parameters -->")[1].split("<!-- /parameters -->")[0]
    assert shown.strip() == parameter_table().strip()


def test_every_failure_class_has_a_policy_of_a_known_fault() -> None:
    """The table of failures has no line without an owner."""
    assert {policy.fault for policy in POLICIES.values()} == {"server", "row", "job"}


@pytest.mark.parametrize("path", re.findall(r"`((?:tests|config|packaging)/[\w./-]+)`", README))
def test_paths_in_the_readme_are_there(path: str) -> None:
    """A file that the README names exists."""
    assert (ROOT / path).exists()
