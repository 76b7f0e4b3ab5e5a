"""The commands as a user runs them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from spoolama.backends.embedded_models import _PACKAGED
from spoolama.cli.check import show_phase
from spoolama.cli.main import COMMANDS, main, spoolama
from spoolama.cli.progress import ended_line, short_phase
from spoolama.cli.status import picture
from spoolama.clock import SystemClock
from spoolama.progress import Progress, Pulse
from spoolama.service.execution import JobExecutor
from spoolama.service.state import ServerState
from spoolama.spool.layout import Spool
from support.evaluation import inline_evaluator, load_sidecar
from support.service import Service

SIDECAR = "model: m\nsystem: Judge.\nprompt: 'Say {{ text }}'\nid: id\n"
DATA = "id,text\na,one\nb,two\nc\nd,four\n"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOOLAMA_SPOOL", "SPOOLAMA_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "r.csv").write_text(DATA)
    (tmp_path / "r.yaml").write_text(SIDECAR)
    return tmp_path / "r.csv"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(spoolama, [str(a) for a in arguments])


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str]:
    """Return the exit status and the output of the real entry point."""
    monkeypatch.setattr(sys, "argv", ["spoolama", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_the_help_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example in the help parses."""
    command = spoolama.get_command(click.Context(spoolama), name)
    assert command is not None
    text = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    examples = [
        line[line.index("spoolama ") :] for line in text.splitlines() if f" spoolama {name} " in f" {line} "
    ]
    assert examples, f"{name} has no example"
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["spoolama", name]
        command.make_context(name, words[2:])


def test_the_packaged_models_are_named_in_docs_and_help() -> None:
    """The packaged models are named in the documentation and in the help."""
    page = (ROOT / "docs" / "operating.md").read_text()
    (line,) = [one for one in page.splitlines() if "`--backend embedded`" in one]
    run = spoolama.get_command(click.Context(spoolama), "run")
    assert run is not None
    help_text = CliRunner().invoke(run, ["--help"], terminal_width=200).output
    for name in _PACKAGED:
        assert f"`{name}`" in line
        assert name in help_text


def test_every_command_of_the_list_is_described_in_its_own_help() -> None:
    """Every listed command has its own help, and the list imports none of them."""
    script = "import sys\nfrom spoolama.cli.main import spoolama\n"
    script += "try:\n    spoolama(['--help'])\nexcept SystemExit:\n    pass\n"
    script += "heavy = {'pydantic', 'httpx', 'scipy', 'jinja2', 'rich', 'yaml'} & set(sys.modules)\n"
    script += "assert not heavy, heavy\n"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT / "daemon")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert all(f"  {name} " in ended.stdout for name in COMMANDS)


def test_check_shows_prompts_problems_and_an_estimate(drop: Path) -> None:
    """`check` shows what the service would report, with line numbers and no invented values."""
    result = call("check", drop)
    assert result.exit_code == 0, result.output
    assert "r.csv with r.yaml: 4 CSV rows, model m\n" in result.output
    assert "[system]\n    Judge.\n  [user]\n    Say one" in result.output
    assert "Prompt 2" in result.output
    assert "Prompt 3" not in result.output
    assert "1 row will fail (1 ragged)" in result.output
    assert "line 4: ragged" in result.output
    assert "estimate" in result.output
    assert "Time: unknown" in result.output


def test_check_estimates_the_time_only_with_a_rate(drop: Path) -> None:
    """`check` estimates the time only if a rate is given."""
    assert "about 30 s at 0.1 rows/s (--rate)" in call("check", drop, "--rate", "0.1").output


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("", "Each row is asked in isolation."),
        ("gold: text\n", "a pilot tests whether earlier rows improve the agreement with gold"),
        ("gold: text\ntrim: {pilot: 40}\n", "Pilot: at most 40 answers test whether earlier rows"),
        ("trim: {strategy: window}\n", "(after earlier rows with their answers)"),
        ("mode: isolated\n", None),
    ],
)
def test_check_shows_what_precedes_a_row(drop: Path, side: str, expected: str | None) -> None:
    """With `auto`, `check` says that the pilot decides, or gives the form where there is no pilot."""
    sidecar = drop.with_suffix(".yaml")
    sidecar.write_text(sidecar.read_text() + side)
    output = " ".join(call("check", drop).output.split())
    assert expected in output if expected is not None else "pilot" not in output


HIGH = "A prompt with earlier rows has at most 2,879 tokens (trim.high: 0.75)."


@pytest.mark.parametrize(
    ("rows", "side", "expected", "missing"),
    [
        (
            300,
            "trim: {strategy: window, every: 30}\naudit: 50\non_harm: isolate\n",
            [
                f"up to 49 earlier rows, with their answers. {HIGH}",
                "Audit: asks at most 50 rows again in isolation. Rows whose answer differs are asked twice.",
                "With 95 % probability it detects a conversation that changes at least 18 % of the answers.",
                "on_harm: isolate",
                "at most 300 more answers",
            ],
            "pilot",
        ),
        (
            300,
            "trim: {strategy: anchors}\nsegment: 10\n",
            [
                "Each prompt also has 6 anchors",
                "at most half of the 3,839 tokens",
                "chosen from 24 rows",
                "Audit: asks at most 20 rows",
            ],
            "on_harm",
        ),
        (300, "trim: {strategy: window}\nsegment: 12\n", ["up to 11 earlier rows"], "Warning"),
        (300, "trim: {strategy: window}\naudit: off\n", ["up to 49 earlier rows"], "Audit"),
        (300, "trim: {strategy: window}\naudit: 1\n", ["Warning: so few rows cannot show harm."], "95 %"),
        (300, "trim: {strategy: budget, tokens: 500}\n", ["earlier rows within 500 tokens"], "up to 0"),
        (
            300,
            "trim: {pilot: 400}\ngold: text\naudit: 90\noptions: {temperature: 1}\n",
            [
                "up to 20 earlier rows, or 6 anchors and up to 5 earlier rows",
                HIGH,
                "Pilot: at most 400 answers",
                "Audit: asks at most 90 rows again in isolation, each twice.",
            ],
            "Warning",
        ),
        (300, "trim: {pilot: 30}\ngold: text\n",
         ["Warning: 30 answers are too few", "Set trim.pilot: 40 or more."], "Audit: asks at most 300"),
        (300, "trim: {pilot: 50}\ngold: text\n", ["Pilot: at most 50 answers"], "too few"),
        (6, "trim: {pilot: 300}\ngold: text\n", ["Warning: 6 rows in such segments"], "too few"),
        (300, "gold: text\n", ["From 5,000 rows on, or with trim.pilot: N,"], "Audit"),
        (5000, "gold: text\n", ["Pilot: at most 100 answers"], "Warning"),
        (7, "trim: {strategy: window}\nsegment: all\n", ["up to 6 earlier rows"], "pilot"),
        (300, "audit: 50\n", ["Each row is asked in isolation."], "Audit"),
        (300, "mode: isolated\non_harm: isolate\n", ["Time: unknown"], "asked again"),
    ],
)  # fmt: skip
def test_check_shows_prompts_pilot_and_audit(
    drop: Path, rows: int, side: str, expected: list[str], missing: str
) -> None:
    """`check` shows the prompt around the row, the maximum of extra answers, and numbers that
    are too small.
    """
    drop.write_text("id,text\n" + "".join(f"{n},row {n}\n" for n in range(rows)))
    drop.with_suffix(".yaml").write_text(SIDECAR + side)
    output = " ".join(call("check", drop).output.split())
    assert [words for words in expected if words not in output] == []
    assert missing not in output


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (
            "lanes: 2\ntrim: {strategy: reset}\n",
            "1 conversation for 2 lanes",
        ),
        ("lanes: 2\ntrim: {strategy: reset}\nsegment: 2\n", None),
        ("lanes: 2\n", None),
        ("lanes: 2\nmode: isolated\n", None),
        ("lanes: 1\n", None),
    ],
)
def test_check_warns_if_lanes_would_have_no_work(drop: Path, side: str, expected: str | None) -> None:
    """`check` warns if a small trial has one conversation and so one request at a time."""
    sidecar = drop.with_suffix(".yaml")
    sidecar.write_text(sidecar.read_text() + side)
    output = " ".join(call("check", drop).output.split())
    assert ("to use all lanes" in output) == (expected is not None)
    if expected is not None:
        assert expected in output
        assert "Set `segment: 2` to use all lanes" in output


def test_a_long_check_shows_its_progress_on_a_terminal() -> None:
    """A long check shows its progress on a terminal and clears it; a file or a pipe gets no progress."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    async def shown(stream: io.StringIO) -> str:
        clock = SystemClock()
        progress = Progress("check", clock, Pulse(clock), phase="reading rows: 64")
        task = asyncio.create_task(show_phase(progress, stream))
        await asyncio.wait({task}, timeout=1.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return stream.getvalue()

    text = asyncio.run(shown(Terminal()))
    assert "reading rows: 64" in text
    assert text.endswith("\r\x1b[K")
    assert asyncio.run(shown(io.StringIO())) == ""


def test_check_finds_the_data_of_a_sidecar(drop: Path) -> None:
    """`check` finds the data of a sidecar by the service's rules for names, or by --data."""
    assert "r.csv with r.yaml" in call("check", drop.with_suffix(".yaml")).output
    other = drop.rename(drop.with_name("other.csv"))
    assert "other.csv with r.yaml" in call("check", drop.with_suffix(".yaml"), "--data", other).output


@pytest.mark.parametrize(
    ("sidecar", "data", "expected"),
    [
        ("modle: m\nprompt: x\n", DATA, "r.yaml:1:1: modle:"),
        ("model: m\nprompt: '{{ txt }}'\n", DATA, "No row can be sent"),
        (
            "model: m\nprompt: x\nid: idd\ngold: g\n",
            DATA,
            "r.yaml:3:1: id: the header of r.csv has no column 'idd' (did you mean 'id'?)\n"
            "r.yaml:4:1: gold: the header of r.csv has no column 'g' (its columns are id, text)\n",
        ),
        (
            "model: m\ngold: txt\nprompt: x\nlanse: 3\n",
            DATA,
            "r.yaml:2:1: gold: the header of r.csv has no column 'txt' (did you mean 'text'?)\n"
            "r.yaml:4:1: lanse: unknown key (did you mean lanes?)\n",
        ),
        ("model: m\nprompt: x\nlanse: 3\n", "", "r.yaml:3:1: lanse: unknown key"),
        ("model: m\nprompt: x\nexpect: {rows: 9}\n", DATA, "the sidecar expects 9"),
        ("model: m\nprompt: x\n", DATA + "e,five", "does not end with a newline"),
        ("model: m\nprompt: '{{ name'\n", DATA, "r.yaml:2"),
        ("model: m\nprompt: '{{ name'\n", DATA, "r.csv:4: ragged: 1 cell where the header has 2 columns"),
    ],
)
def test_check_reports_what_would_fail_the_job(
    drop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sidecar: str,
    data: str,
    expected: str,
) -> None:
    """`check` reports every problem with file, line and key, and exits with status 1 and no traceback."""
    drop.write_text(data)
    drop.with_suffix(".yaml").write_text(sidecar)
    status, text = run_command(monkeypatch, capsys, "check", drop)
    assert status == 1
    assert expected in text
    assert "Traceback" not in text
    assert "upload both" not in text  # nothing was uploaded


def test_check_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The shipped settings pass, and an invalid setting exits with status 78."""
    shipped = call("check", "--config", ROOT / "config" / "spoolama.yaml")
    assert "the settings are valid" in shipped.output
    (tmp_path / "c.yaml").write_text("lanse: 2\n")
    status, text = run_command(monkeypatch, capsys, "check", "--config", tmp_path / "c.yaml")
    assert status == 78
    assert "c.yaml:1:1: lanse: unknown key (did you mean lanes?)" in text


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_example_sidecars_are_valid(path: Path) -> None:
    """The example sidecars are valid."""

    assert load_sidecar(path, openai="openai" in path.name).model


def test_submit_places_both_files(drop: Path, tmp_path: Path) -> None:
    """`submit` places data and sidecar, nothing else, readable by the service."""
    assert call("init", tmp_path / "spool").exit_code == 0
    result = call("submit", drop, "--spool", tmp_path / "spool")
    assert result.exit_code == 0, result.output
    assert "Submitted r.csv, 4 rows, 1 of which will fail" in result.output
    incoming = tmp_path / "spool" / "incoming"
    assert sorted(p.name for p in incoming.iterdir()) == ["r.csv", "r.yaml"]
    assert (incoming / "r.csv").read_text() == DATA
    assert (incoming / "r.yaml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("taken", ["r.csv", "r.yaml"])
def test_submit_replaces_nothing(drop: Path, tmp_path: Path, taken: str) -> None:
    """A name that exists leaves incoming/ unchanged."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    (spool.incoming / taken).write_text("somebody's")
    result = call("submit", drop, "--spool", spool.root)
    assert isinstance(result.exception, Exception)
    assert f"already has a file {taken}" in str(result.exception)
    assert [(p.name, p.read_text()) for p in spool.incoming.iterdir()] == [(taken, "somebody's")]


def test_submit_refuses_invalid_uploads(drop: Path, tmp_path: Path) -> None:
    """`submit` refuses an invalid upload before it places anything, unless --no-check is given."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    drop.with_suffix(".yaml").write_text("model: m\n")
    assert call("submit", drop, "--spool", spool.root).exit_code == 1
    assert not list(spool.incoming.iterdir())
    assert call("submit", drop, "--no-check", "--spool", spool.root).exit_code == 0
    assert len(list(spool.incoming.iterdir())) == 2


NOT_REGULAR: dict[str, tuple[str, Callable[[Path], None]]] = {
    "fifo": ("a FIFO", os.mkfifo),
    "directory": ("a directory", Path.mkdir),
    "device": ("a device", lambda path: path.symlink_to("/dev/zero")),
    "socket": ("a socket", lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK)),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", NOT_REGULAR)
@pytest.mark.parametrize(
    "command",
    [
        "check odd.csv",
        "check odd.jsonl",
        "check r.yaml --data odd.csv",
        "check odd.yaml --data r.csv",
        "check r.csv --config odd",
        "check side.csv",
        "submit odd.csv --spool spool",
        "submit odd.csv --spool spool --no-check",
        "submit side.csv side.yaml --spool spool",
        "convert odd.csv -o out",
        "convert odd.jsonl -o out",
        "convert r.csv --sidecar odd.yaml -o out",
        "convert side.csv -o out",
        "convert batch.jsonl --rows odd.csv -o out",
        "analyze job",
        "status --config odd",
    ],
)
def test_a_file_that_is_not_regular_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drop: Path,
    kind: str,
    command: str,
) -> None:
    """A command refuses a FIFO or a device at once instead of blocking on it."""
    monkeypatch.chdir(tmp_path)
    what, make = NOT_REGULAR[kind]
    Spool(tmp_path / "spool").create()
    (tmp_path / "side.csv").write_text(DATA)
    (tmp_path / "batch.jsonl").write_text('{"custom_id": "a", "response": null}\n')
    (tmp_path / "job").mkdir()
    for name in ("odd", "odd.csv", "odd.jsonl", "odd.yaml", "side.yaml", "job/metrics.json"):
        make(Path(name))
    status, text = run_command(monkeypatch, capsys, *command.split())
    assert not list((tmp_path / "spool" / "incoming").iterdir())
    if command == "analyze job":
        assert "its metrics.json cannot be read (NotRegular)" in text
    elif "--config odd" in command:
        assert "odd is" in text or "'odd' is" in text  # click checks directories
    elif kind == "directory" and command.startswith("convert odd"):
        assert "is not a published job" in text
    else:
        odd = "side.yaml" if "side.csv" in command else next(w for w in command.split() if "odd" in w)
        assert f"{odd} is {what}, not a regular file" in text
        assert status == 1
    assert status


def test_status_and_watch_show_the_state_of_an_upload(tmp_path: Path) -> None:
    """`status` and `watch` show the service and one upload, for people and as JSON."""
    service = Service(tmp_path / "spool")
    service.drop("a")
    service.drop("lonely", sidecar=None)

    async def once() -> int:
        return await service.daemon(once=True).run()

    assert asyncio.run(once()) == 0
    everything = call("status", "--spool", service.spool.root).output
    assert "a.csv -> done/a-" in everything
    assert "lonely.csv: " in everything
    assert "a.csv is in done/a-" in call("status", "a", "--spool", service.spool.root).output
    found = json.loads(call("status", "a.csv", "--json", "--spool", service.spool.root).output)
    assert found["state"] == "done"
    assert call("status", "b.csv", "--spool", service.spool.root).exit_code == 1
    watched = call("watch", "--until-idle", "--spool", service.spool.root)
    assert watched.exit_code == 0, watched.output
    assert "lonely.csv" in watched.output


def test_status_without_a_service_is_one_line(tmp_path: Path) -> None:
    """Without a service, `status` prints one line instead of an error about a missing file."""
    call("init", tmp_path / "spool")
    result = call("status", "--spool", tmp_path / "spool")
    assert result.exit_code == 1
    spool = tmp_path / "spool"
    assert f"No service has run on the spool {spool} yet. Run: spoolama run --spool {spool}" in result.output


def test_status_of_a_file_that_no_service_has_seen(drop: Path, tmp_path: Path) -> None:
    """It waits, and the command that starts a service is shown; an earlier job of that name comes after."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    start = f"No service runs on this spool. Start it: spoolama run --once --spool {spool.root}"
    unknown = call("status", "r.csv", "--spool", spool.root)
    assert unknown.exit_code == 1
    assert f"r.csv has no status, and is not in {spool.incoming}." in unknown.output
    assert call("submit", drop, "--spool", spool.root).exit_code == 0
    for name in ("r.csv", "r"):
        said = call("status", name, "--spool", spool.root)
        assert (said.exit_code, said.output) == (0, f"r.csv waits in incoming/. {start}\n")
    old = {"state": "done", "name": "r.csv", "job": "r-1", "where": "done/r-1", "message": "3 rows in = 3 ok"}
    (spool.status / "r.csv.json").write_text(json.dumps(old))
    again = call("status", "r.csv", "--spool", spool.root).output.splitlines()
    assert again == [
        f"r.csv waits in incoming/. {start}",
        "Earlier: r.csv is in done/r-1",
        "3 rows in = 3 ok",
    ]
    found = json.loads(call("status", "r.csv", "--json", "--spool", spool.root).output)
    assert (found["state"], found["job"], found["earlier"]) == ("waiting", None, old)


def test_status_of_a_second_upload_while_the_service_runs(tmp_path: Path) -> None:
    """What the service says of the file in incoming/, then the earlier job; no hint to start a service."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    (spool.incoming / "r.csv").write_text(DATA)
    old = {
        "state": "failed",
        "name": "r.csv",
        "job": "r-1",
        "where": "failed/r-1",
        "message": "m",
        "fix": "f",
    }
    (spool.status / "r.csv.json").write_text(json.dumps(old))
    held: list[dict[str, object]] = []
    for words in ("r.csv waits in incoming/.", "r.csv: held.\nno sidecar"):
        at, service = datetime.now(UTC).isoformat(), {"state": "working"}
        body = json.dumps({"at": at, "service": service, "held": held})
        (spool.status / "service.json").write_text(body)
        said = call("status", "r.csv", "--spool", spool.root).output
        assert said == f"{words}\nEarlier: r.csv is in failed/r-1\nm\nf\n"
        held.append({"state": "held", "name": "r.csv", "job": None, "message": "no sidecar"})


def test_a_failed_job_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the screen of `run --once`, in the log, and in every kind of status, as in error.json."""
    service = Service(tmp_path / "spool")
    service.drop("a", sidecar="model: m\nprompt: x\nlanse: 3\nnum_ctx: 4\n")
    real = JobExecutor(service.spool, service.backend, inline_evaluator(), service.clock)
    service.executor.act = real.execute
    daemon = service.daemon(once=True)
    asyncio.run(daemon.run())
    fix = "Fix the sidecar and upload both files again."
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["message"].endswith(f"\n{fix}") for one in logged if one["event"] == "job.failed"] == [True]
    (ended,) = daemon.state.ended
    assert ended_line(ended, "spool").endswith(f"\n{fix}")
    said = call("status", "a.csv", "--spool", service.spool.root).output.splitlines()
    assert said[0].startswith("a.csv is in failed/a-")
    assert said[-1] == fix
    text = (service.spool.status / "service.txt").read_text().splitlines()
    at = next(n for n, line in enumerate(text) if "a.csv -> failed/a-" in line)
    assert text[at + 1].startswith("    a.yaml:4:1: num_ctx")
    assert text[at + 2] == f"    {fix}"
    assert fix in call("watch", "--until-idle", "--spool", service.spool.root).output


def test_watch_never_cuts_a_name_in_a_pipe(tmp_path: Path) -> None:
    """However long the name of the file and of its job are."""
    service = Service(tmp_path / "spool")
    name = "a-long-name-" * 9
    service.drop(name)
    assert asyncio.run(service.daemon(once=True).run()) == 0
    (job,) = service.spool.done.iterdir()
    shown = call("watch", "--until-idle", "--spool", service.spool.root).output
    assert f"{name}.csv" in shown
    assert f"done/{job.name}" in shown


def test_submit_to_no_spool_names_the_directory(drop: Path, tmp_path: Path) -> None:
    """And no temporary file: how to name a spool, or to create one."""
    result = call("submit", drop, "--spool", tmp_path / "nowhere")
    assert str(result.exception) == (
        f"{tmp_path / 'nowhere'} is not a spool. Name yours with --spool DIRECTORY, or create one: "
        f"spoolama init {tmp_path / 'nowhere'}"
    )


def test_the_progress_line_is_short_without_a_connection() -> None:
    """The address and no library's words; other phases stay."""
    server = ServerState("ollama", "http://127.0.0.1:11434")
    away = "waiting for the server: http://127.0.0.1:11434: All connection attempts failed"
    assert short_phase(away, server) == "no connection to http://127.0.0.1:11434"
    for phase in ("answering", "waiting for the server: HTTP 503"):
        assert short_phase(phase, server) == phase


def test_markup_in_names_is_shown_as_text() -> None:
    """Rich markup in a file name is shown as text."""
    from rich.console import Console

    payload = {
        "service": {"status": "Ready."},
        "running": None,
        "queue": [],
        "held": [{"name": "[red]x.csv", "state": "held", "message": "[bold]why"}],
        "ended": [],
    }
    plain = Console(width=100, color_system=None)
    with plain.capture() as shown:
        plain.print(picture(payload, "head"))
    assert "[red]x.csv" in shown.get()
    assert "[bold]why" in shown.get()


def test_the_status_of_a_waiting_job_gives_the_reason(tmp_path: Path) -> None:
    """The status of a waiting job gives its place and the reason, if there is one."""
    service = Service(tmp_path / "spool")
    found = {"state": "queued", "name": "a.csv", "job": "a-1", "place": 2, "message": None}
    path = service.spool.status / "a.csv.json"
    for message in (None, "The service died once while this job ran."):
        path.write_text(json.dumps(found | {"message": message}))
        lines = call("status", "a", "--spool", service.spool.root).output.splitlines()
        assert lines == ["a.csv is number 2 in the queue, as job a-1.", *([message] if message else [])]
