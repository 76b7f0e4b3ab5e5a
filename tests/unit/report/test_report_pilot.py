"""What is told of the pilot: what was chosen, why, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spoolama.effect.sample import Judged
from spoolama.spool.job_ledger import JobLedger
from unit.report.effect_jobs import again, decision, judged, line_of, own, publish, records_of

AUTO = "trim: {strategy: auto}\n"
GOLD = "gold: gold\n" + AUTO
FRONT = "the same rows before each row"


@pytest.mark.parametrize(
    ("side", "form", "why", "tried", "said"),
    [
        (
            AUTO,
            "tail-5",
            "no_harm",
            [judged()],
            "Chosen: up to 5 earlier rows before each row. Proved harmless in the sample: 98 % of 90 answers"
            " in 5 conversations are those given alone (95 % interval 93 to 99 %); reckoned 1.4 times"
            " as fast.",
        ),
        (
            GOLD,
            "anchors",
            "better",
            [
                judged(
                    "anchors", FRONT, wins=31, losses=9, compared=120, how="rows answered right", better=True
                )
            ],
            "Chosen: the same rows before each row. Proved in the sample to agree better with gold than rows"
            " alone: 31 better, 9 worse, the rest as good (120 compared: rows answered right).",
        ),
        (
            AUTO,
            "alone",
            "no_proof",
            [judged(agreement=0.88, low=0.8, high=0.94, proof=False, harm=True)],
            "Chosen: each row alone. Up to 5 earlier rows before each row was not proved harmless: 88 %"
            " of 90 answers in 5 conversations are those given alone (95 % interval 80 to 94 %);"
            " 95 % had to be proved.",
        ),
        (
            GOLD,
            "alone",
            "no_proof",
            [
                judged("anchors", FRONT, wins=5, losses=9, compared=40, how="rows answered right"),
                judged(wins=8, losses=7, compared=40, how="rows answered right"),
            ],
            "Chosen: each row alone. None of 2 other ways that were tried was proved better on gold, or"
            " harmless and faster. Best on gold was up to 5 earlier rows (tail-5): 8 better, 7 worse,"
            " the rest as good (40 compared: rows answered right). Answers as alone, on 90 rows:"
            " the same rows (anchors) 98 %, up to 5 earlier rows (tail-5) 98 %.",
        ),
        (
            AUTO,
            "alone",
            "none_faster",
            [],
            "Chosen: each row alone. Nothing else was reckoned to be 1.1 times as fast, so nothing else was"
            " tried.",
        ),
        (
            AUTO,
            "alone",
            "costs_unknown",
            [],
            "Chosen: each row alone. Too few rows came with the server's tokens and times to tell whether"
            " anything else is faster.",
        ),
        (
            AUTO,
            "alone",
            "none_fits",
            [],
            "Chosen: each row alone. Nothing else that may be faster can be had: segments are too short for"
            " it, or no rows fit in front of the others.",
        ),
        (
            AUTO,
            "alone",
            "too_small",
            [],
            "Chosen: each row alone. The answers that the pilot may take are too few to prove anything else"
            " harmless.",
        ),
    ],
)
def test_each_ending_is_said_in_words(
    tmp_path: Path, side: str, form: str, why: str, tried: list[Judged], said: str
) -> None:
    """What was chosen comes first, then why, then what it cost; without gold, that alone is usual."""

    async def fill(ledger: JobLedger) -> None:
        await ledger.note(pilot=decision(form, why, *tried))
        again(ledger, "alone", range(40), own)
        again(ledger, "tail-5", range(40), own)

    summary = publish(tmp_path / "j", side, fill=fill)

    line, told = line_of(summary, "Pilot"), summary.metrics["pilot"]
    assert line.startswith(said)
    assert "It cost 118 further answers (39 % of the rows)." in line
    assert line.endswith("Rows alone is what `auto` usually finds without known answers (`gold`).") == (
        form == "alone" and side == AUTO
    )
    assert (told["form"], told["why"], told["asked"], told["floor"]) == (form, why, 118, 1.0)
    assert line == told["sentence"]
    assert len(told["tried"]) == len(tried)
    assert (line_of(summary, "Trims") == "") == (form == "alone") or form != "alone"


def test_nothing_is_called_best_that_was_not_ahead(tmp_path: Path) -> None:
    """As many worse as better is no best; who was not compared is said, and on how many rows each was."""

    async def fill(ledger: JobLedger) -> None:
        even: dict[str, Any] = {"wins": 9, "losses": 9, "compared": 29}
        even["how"] = "pairs of rows put into the right order"
        tried = [judged("anchors", FRONT, rows=19), judged(rows=76, agreement=0.72, harm=True, **even)]
        await ledger.note(pilot=decision("alone", "no_proof", *tried))

    line = line_of(publish(tmp_path / "j", GOLD, fill=fill), "Pilot")
    assert "Best" not in line
    assert (
        "On gold up to 5 earlier rows (tail-5) was no better than rows alone: 9 better, 9 worse, the rest"
        " as good (29 compared: pairs of rows put into the right order). The other was not compared on it."
        " Answers as alone, on 19 to 76 rows each: the same rows (anchors) 98 %, up to 5"
        " earlier rows (tail-5) 72 %."
    ) in line


@pytest.mark.parametrize(
    ("pilot", "why", "alone", "said"),
    [
        (600, "no_proof", 40, " of the 600 that it may take: no proof was to be expected of more."),
        (600, "no_harm", 40, " of the 600 that it may take: the proof was there before."),
        (9000, "no_proof", 300, " of the 9,000 that it may take: there were no more rows to take."),
        (130, "no_proof", 40, "."),
    ],
)
def test_why_a_pilot_stopped_early_is_said(
    tmp_path: Path, pilot: int, why: str, alone: int, said: str
) -> None:
    """Beside what it cost: a proof, no prospect of one, or no more rows; nothing where too few were left."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "alone", range(alone), own)
        form = "alone" if why == "no_proof" else "tail-5"
        await ledger.note(pilot=decision(form, why, judged()))

    side = f"gold: gold\ntrim: {{strategy: auto, pilot: {pilot}}}\n"
    line = line_of(publish(tmp_path / "j", side, fill=fill), "Pilot")
    assert line.endswith(f"It cost 118 further answers (39 % of the rows){said}")


def test_alone_that_differs_from_alone_is_told(tmp_path: Path) -> None:
    """Above temperature 0 the floor is what has to be reached, and numbers and texts are alike, not equal."""

    async def fill(ledger: JobLedger) -> None:
        tried = judged(agreement=0.7, low=0.6, high=0.8, proof=False)
        await ledger.note(pilot=decision("alone", "no_proof", tried, floor=0.9, compared="words in common"))

    line = line_of(publish(tmp_path / "j", AUTO, fill=fill), "Pilot")
    assert "90 answers in 5 conversations are 70 % like those given alone (words in common;" in line
    assert "95 % interval 60 to 80 %)" in line
    assert "85 % had to be proved. Alone, asked twice, agrees with itself in 90 %." in line


def test_one_conversation_and_notes_of_earlier_versions_are_told(tmp_path: Path) -> None:
    """Singular; and a note that does not say how many is read all the same."""
    for number, said in ((1, "of 90 answers in 1 conversation are"), (None, "of 90 answers are")):

        async def fill(ledger: JobLedger, number: int | None = number) -> None:
            noted = decision("tail-5", "no_harm", judged(conversations=1))
            if number is None:
                del noted["tried"][0]["conversations"]
            await ledger.note(pilot=noted)

        assert said in line_of(publish(tmp_path / f"j{number}", AUTO, fill=fill), "Pilot")


@pytest.mark.parametrize(
    ("side", "meta", "why"),
    [
        ("mode: isolated\n", {}, "`mode: isolated`, so each row was asked alone"),
        ("trim: {strategy: window}\n", {}, "names `window` itself"),
        (AUTO, {}, "below 5,000 rows a sample of 2 % proves nothing, so each row was asked alone."),
        (AUTO, {}, "Rows alone is what `auto` usually finds without known answers"),
        ("trim: {strategy: auto, pilot: 0}\n", {}, "`pilot: 0`, so each row was asked alone"),
        ("trim: {strategy: auto, pilot: 90}\n", {}, "the job ended before its pilot did"),
        (AUTO, {"asked_models": ["a", None]}, "each row was asked alone"),
    ],
)
def test_a_job_without_a_pilot_says_why(tmp_path: Path, side: str, meta: dict[str, Any], why: str) -> None:
    """null, the reason beside it, and the same reason in the summary."""
    summary = publish(tmp_path / "j", side, **meta)
    assert summary.metrics["pilot"] is None
    assert why in summary.metrics["how"]["pilot"]
    assert line_of(summary, "Pilot").startswith("None: ")
    assert why in line_of(summary, "Pilot")


def test_rows_that_chose_do_not_count_for_agreement(tmp_path: Path) -> None:
    """Known answers of the pilot's rows are left out of the agreement, and how many is said."""

    async def fill(ledger: JobLedger) -> None:
        again(ledger, "alone", range(40), own)
        again(ledger, "tail-5", range(40), own)
        again(ledger, "audit", range(100, 120), own)

    def says(n: int) -> str:
        return own(n + 1) if n < 40 else own(n)  # wrong in every row of the sample

    summary = publish(tmp_path / "j", GOLD, says=says, fill=fill)
    agreement = summary.metrics["agreement"]
    assert (agreement["rows"], agreement["left_out"]) == (260, 40)
    assert agreement["correlation"] == pytest.approx(1)
    used = [record.get("gold_used") for record in records_of(tmp_path / "j")]
    assert used == [True] * 40 + [None] * 260
    assert "Not counted: 40 rows whose known answers helped" in line_of(summary, "Agreement")


def test_segments_are_told_of_conversations_alone(tmp_path: Path) -> None:
    """Where each row stands alone, how the file was cut says nothing of the context."""
    for name, side in (("isolated", "mode: isolated\n"), ("auto", AUTO)):
        line = line_of(publish(tmp_path / name, side), "Context")
        assert line.endswith(" tokens")
    line = line_of(publish(tmp_path / "window", "trim: {strategy: window}\n"), "Context")
    assert line.endswith(" tokens; 0 trims; 10 segments")


def test_what_comes_next_has_weak_agreement_in_it(tmp_path: Path) -> None:
    """Not "nothing" where the answers hardly follow the known ones; but where they do."""

    def says(n: int) -> str:
        return own(n + n % 7)

    weak, good = (publish(tmp_path / name, GOLD, says=s) for name, s in (("weak", says), ("good", own)))
    assert line_of(weak, "Next").startswith("Every row has its answer. The answers ")
    assert line_of(weak, "Next").endswith("a larger model or a clearer prompt may help.")
    assert line_of(good, "Next") == "Nothing: every row has its answer."
