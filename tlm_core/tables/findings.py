"""Data errors, data warnings and notes, collected while files are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tlm_core.errors import Fault, InvalidDataset

LISTED_PER_CODE = 100


class Findings:
    """Collects data errors, data warnings and notes.

    It counts all errors and warnings, but lists only the first 100 of each code. It lists all notes.

    subject: name of the data in the message of `error`. stop_at: number of data errors at which `fault` raises
    InvalidDataset. notify: a function that is called with each new note.
    """

    def __init__(
        self, subject: str = "the dataset", *, stop_at: int | None = None, notify: Callable[[str], None] | None = None
    ) -> None:
        self._subject, self._stop_at, self._notify = subject, stop_at, notify
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []
        self.notes: list[str] = []
        self.fault_counts: Counter[str] = Counter()
        self.warning_counts: Counter[str] = Counter()

    def fault(
        self, code: str, message: str, *, split: str | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        """Add a data error, which makes the data unusable. Raises InvalidDataset when `stop_at` errors are reached."""
        self.fault_counts[code] += 1
        if self.fault_counts[code] <= LISTED_PER_CODE:
            self.faults.append(Fault(code, message, split, row, column))
        if self._stop_at is not None and self.total >= self._stop_at:
            raise self.error()

    def count_more(self, code: str, count: int) -> None:
        """Count `count` more data errors with `code`, without listing them."""
        self.fault_counts[code] += count

    def warn(
        self, code: str, message: str, *, split: str | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        """Add a data warning. The data remain usable."""
        self.warning_counts[code] += 1
        if self.warning_counts[code] <= LISTED_PER_CODE:
            self.warnings.append(Fault(code, message, split, row, column))

    def note(self, text: str) -> None:
        """Add a note: an inferred choice with its reason, or how a file was read. Repeated notes are ignored."""
        if text not in self.notes:
            self.notes.append(text)
            if self._notify is not None:
                self._notify(text)

    @property
    def total(self) -> int:
        """The number of all data errors, listed or not."""
        return sum(self.fault_counts.values())

    @property
    def ok(self) -> bool:
        return not self.faults

    def check(self) -> None:
        """Raise InvalidDataset if there is any data error."""
        if not self.ok:
            raise self.error()

    def error(self) -> InvalidDataset:
        """Return one exception for all data errors. The message has the first error and the count of each code."""
        summary = f"Data error in {self._subject}"
        if self.total > 1:
            counts = ", ".join(f"{count} x {code}" for code, count in self.fault_counts.most_common())
            summary = f"{self.total} data errors in {self._subject} ({counts})"
        return InvalidDataset(f"{summary}: {self.faults[0].message}", self.faults)
