"""Settings: defaults, file, environment, and the reports of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spoolama.errors import ConfigError
from spoolama.service.settings import load_settings, variables

SHIPPED = Path(__file__).parents[3] / "config" / "spoolama.yaml"


def wrong(path: Path | None, env: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, env)
    assert caught.value.exit_status == 78
    return str(caught.value).splitlines()


def test_the_shipped_file_is_the_defaults() -> None:
    """The shipped file gives the same settings as no file."""
    assert load_settings(SHIPPED, {}) == load_settings(None, {})


def test_the_shipped_file_names_every_key_with_its_variable() -> None:
    """The shipped file has each key with the variable that overrides it."""
    text = SHIPPED.read_text()
    for variable, path, _ in variables():
        assert re.search(rf"^\s*{path[-1]}: .*# {variable}$", text, re.MULTILINE), variable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lanes: 1\nspol: /x\n", ":2:1: spol: unknown key (did you mean spool?)"),
        ("lanes: '2'\n", ':1:1: lanes: "2" is not a whole number (leave the quotes out: lanes: 2)'),
        ("lanes: 0\n", ":1:1: lanes: 0 is not greater than or equal to 1"),
        (
            "backend:\n  kind: olama\n",
            ':2:3: backend.kind: "olama" is not ollama, embedded or openai (did you mean ollama?)',
        ),
        ("lanes: 1\n\nlanes: 2\n", ":3:1: lanes: this key appears twice; first on line 1 (keep one of them)"),
        ("keep: 5\n", ":1:1: keep: 5 is not a mapping of keys (known keys: done_days, failed_days)"),
        ("log: {level: info, colour: yes}\n", ":1:20: log.colour: unknown key (known here: level)"),
        ("quiet_s: -1\n", ":1:1: quiet_s: -1 is not greater than or equal to 0"),
        (
            "backend: {kind: openai}\n",
            "backend.kind openai needs backend.url, such as http://127.0.0.1:8000/v1",
        ),
        ("- a\n", ":1:1: the file is a list (write `key: value` lines)"),
        ("lanes: 1\n\tquiet_s: 2\n", ":2:1: YAML does not allow a tab here (indent with spaces)"),
    ],
)
def test_a_mistake_is_reported_with_file_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    """A mistake is reported with file, line, key and what to write."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    (line,) = wrong(path, {})
    assert line.startswith(str(path))
    assert line.endswith(expected)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    """All mistakes are reported together."""
    path = tmp_path / "c.yaml"
    path.write_text("spol: x\nlanes: many\n")
    assert len(wrong(path, {"SPOOLAMA_LANS": "2", "SPOOLAMA_DRAIN_S": "soon"})) == 4


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """The environment can override each kind of value, and an empty variable unsets an optional one."""
    path = tmp_path / "c.yaml"
    path.write_text("lanes: 2\nbackend: {kind: openai, url: 'http://a/v1'}\nkeep: {done_days: 3}\n")
    settings = load_settings(
        path,
        {
            "SPOOLAMA_LANES": "4",
            "SPOOLAMA_BACKEND__URL": "http://b/v1",
            "SPOOLAMA_BACKEND__SHARED": "true",
            "SPOOLAMA_KEEP__DONE_DAYS": "",
            "SPOOLAMA_CONFIG": str(path),
            "HOME": "/nowhere",
        },
    )
    assert (settings.lanes, settings.backend.url, settings.backend.shared, settings.keep.done_days) == (
        4,
        "http://b/v1",
        True,
        None,
    )


@pytest.mark.parametrize("text", ["0,2", "[0, 2]", " 0 , 2 "])
def test_a_list_can_come_from_the_environment(text: str) -> None:
    """A list of cards can be written as in a shell or in YAML."""
    assert load_settings(None, {"SPOOLAMA_VRAM__CARDS": text}).vram.cards == [0, 2]


def test_thresholds_of_memory_are_in_order() -> None:
    """A high threshold above the critical one is an error."""
    with pytest.raises(ConfigError, match=r"vram.high is above vram.critical"):
        load_settings(None, {"SPOOLAMA_VRAM__HIGH": "0.95", "SPOOLAMA_VRAM__CRITICAL": "0.9"})


def test_an_unknown_variable_is_an_error() -> None:
    """An unknown variable is an error, because it may be a misspelled override."""
    assert wrong(None, {"SPOOLAMA_SPOLL": "x"}) == [
        "environment: SPOOLAMA_SPOLL: unknown setting (did you mean SPOOLAMA_SPOOL?)"
    ]


def test_relative_paths_are_relative_to_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in the file starts at its directory, and one in the environment at the
    working directory.
    """
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "etc" / "c.yaml"
    path.write_text("spool: a\n")
    assert load_settings(path, {}).spool == tmp_path / "etc" / "a"
    assert load_settings(path, {"SPOOLAMA_SPOOL": "b"}).spool == tmp_path / "b"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error for a wrong --config names the file."""
    assert str(tmp_path / "no.yaml") in wrong(tmp_path / "no.yaml", {})[0]
