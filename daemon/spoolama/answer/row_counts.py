"""Counts answered and failed rows, and ends the job early if most rows would fail."""

from __future__ import annotations

from spoolama.errors import JobError

FIRST_ROWS = 10
"""If this many rows fail with the same error before any is answered, the job fails."""
_STREAK = 10


class RowCounts:
    """Row counts of a job over all its runs.

    Args:
        total: Number of rows of the job.
        ok: Rows answered in earlier runs.
        failed: Rows failed in earlier runs.
        max_failed: Maximum failed rows: a number, or as a float a share of all rows.
    """

    def __init__(self, total: int, *, ok: int = 0, failed: int = 0, max_failed: float | None = None) -> None:
        self._total = total
        self._ok = ok
        self._failed = failed
        self._max_failed = max_failed
        self._works = False
        self._first: list[tuple[str, str]] = []
        self._streak: tuple[str, int] = ("", 0)

    def ok(self) -> None:
        """Count an answered row."""
        self._ok += 1

    def undone(self, rows: int) -> None:
        """Subtract answered rows that are asked again."""
        self._ok -= rows

    def good(self) -> None:
        """Record a pilot or comparison answer, which is not the row's result but shows that the job works."""
        self._works = True

    def failed(self, code: str, message: str) -> None:
        """Count a failed row.

        Raises:
            JobError: too many rows failed, or the first ones all failed with the same error.
        """
        self._failed += 1
        if not self._ok and not self._works and len(self._first) < FIRST_ROWS < self._total:
            self._first.append((code, message))
            check_first_failures(self._first)
        bound = self._max_failed
        if bound is None:
            return
        if self._failed > (bound * self._total if isinstance(bound, float) else bound):
            raise JobError(
                f"{self._failed} of {self._total} rows failed, more than max_failed allows ({bound})",
                fix="See errors.jsonl for the rows and their errors.",
                code="too_many_failed",
            )

    def streak(self, code: str) -> bool:
        """Count an unexplained failure; returns whether it is the tenth consecutive one of its class."""
        last, number = self._streak
        self._streak = (code, number + 1 if code == last else 1)
        if self._streak[1] < _STREAK:
            return False
        self.reset_streak()
        return True

    def reset_streak(self) -> None:
        """Reset the count of consecutive failures."""
        self._streak = ("", 0)


def check_first_failures(failures: list[tuple[str, str]]) -> None:
    """End the job if its first rows all failed with the same error.

    Args:
        failures: Class and message of the first failed rows; fewer than ten are ignored.

    Raises:
        JobError: the first ten rows failed with the same class of error.
    """
    if len(failures) < FIRST_ROWS or len({code for code, _ in failures}) > 1:
        return
    code, message = failures[0]
    raise JobError(
        f"the first {FIRST_ROWS} rows all failed in the same way: {code}: {message}",
        fix="What fails for every row is usually the sidecar's template, options or model, or the form of "
        "the file. Correct it and upload the files again.",
        code="first_rows_failed",
    )
