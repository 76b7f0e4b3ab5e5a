"""Watches how rows end, and ends the job early where going on makes no sense."""

from __future__ import annotations

from spoolama.errors import JobError

__all__ = ["FIRST_ROWS", "Tally", "check_first_failures"]

FIRST_ROWS = 10
"""If so many rows fail alike before any is answered, the job is at fault and not the rows."""
_STREAK = 10


class Tally:
    """Counts of this job over all its runs.

    Args:
        total: Rows of the job.
        ok: Rows answered before.
        failed: Rows failed before.
        max_failed: Bound on failed rows: a number, or as a float a share of all rows.
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
        """A row was answered."""
        self._ok += 1

    def undone(self, rows: int) -> None:
        """Rows that had their answer are asked again."""
        self._ok -= rows

    def good(self) -> None:
        """A row was answered beforehand, which is not its end: the job as such works."""
        self._works = True

    def failed(self, code: str, message: str) -> None:
        """A row ended with an error.

        Raises:
            JobError: too many did, or the first ones all in the same way.
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
                mend="See errors.jsonl for the rows and their errors.",
                code="too_many_failed",
            )

    def streak(self, code: str) -> bool:
        """Note an unexplained failure; whether it is the tenth of the same in a row."""
        last, number = self._streak
        self._streak = (code, number + 1 if code == last else 1)
        if self._streak[1] < _STREAK:
            return False
        self.reset_streak()
        return True

    def reset_streak(self) -> None:
        """Something else happened."""
        self._streak = ("", 0)


def check_first_failures(failures: list[tuple[str, str]]) -> None:
    """End the job if its first rows all failed alike.

    Args:
        failures: Class and message of the first rows, as far as known; fewer than ten say nothing.

    Raises:
        JobError: they did.
    """
    if len(failures) < FIRST_ROWS or len({code for code, _ in failures}) > 1:
        return
    code, message = failures[0]
    raise JobError(
        f"the first {FIRST_ROWS} rows all failed in the same way: {code}: {message}",
        mend="What fails for every row is usually the sidecar's template, options or model, or the form of "
        "the file. Mend it and drop the files again.",
        code="first_rows_failed",
    )
