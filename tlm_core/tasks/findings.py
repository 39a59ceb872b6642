"""What is found while a data set is read: faults that stop it, warnings, and notes on what was guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tlm_core.errors import Fault, InvalidDataset

KEPT_PER_CODE = 100


class Findings:
    """Collects all that is found; of each code the first 100 are kept, the rest are counted."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []
        self.notes: list[str] = []
        self.fault_counts: Counter[str] = Counter()
        self.warning_counts: Counter[str] = Counter()

    def fault(
        self, code: str, message: str, *, split: str | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        """Add something that stops the data set from being used."""
        self.fault_counts[code] += 1
        if self.fault_counts[code] <= KEPT_PER_CODE:
            self.faults.append(Fault(code, message, split, row, column))

    def fault_rows(
        self, code: str, message: str, rows: Sequence[int], *, split: str, column: str, total: int | None = None
    ) -> None:
        """Add the same fault for each of `rows`; `{row}` in the message stands for the row's number.

        total: how many rows there are in truth, if `rows` holds only the first of them.
        """
        for row in rows[:KEPT_PER_CODE]:
            self.fault(code, message.replace("{row}", str(row)), split=split, row=row, column=column)
        self.count_more(code, (len(rows) if total is None else total) - len(rows[:KEPT_PER_CODE]))

    def count_more(self, code: str, count: int) -> None:
        """Count faults that are not listed."""
        if count:
            self.fault_counts[code] += count

    def warn(
        self, code: str, message: str, *, split: str | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        """Add something that the user should know and that stops nothing."""
        self.warning_counts[code] += 1
        if self.warning_counts[code] <= KEPT_PER_CODE:
            self.warnings.append(Fault(code, message, split, row, column))

    def note(self, text: str) -> None:
        """Add a guess with its reason, or how a file was read."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def total(self) -> int:
        """How many faults there are, also those that are only counted."""
        return sum(self.fault_counts.values())

    @property
    def ok(self) -> bool:
        return not self.faults

    def error(self) -> InvalidDataset:
        """All faults as one error, whose sentence holds the first and how many there are of each code."""
        first = self.faults[0].message
        if self.total == 1:
            return InvalidDataset(first, self.faults)
        counts = ", ".join(f"{count} x {code}" for code, count in self.fault_counts.most_common())
        return InvalidDataset(f"the data set has {self.total} faults ({counts}); the first: {first}", self.faults)
