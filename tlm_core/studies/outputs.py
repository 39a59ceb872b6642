"""The files that the last stage of a study writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def write_outputs(
    out: Path, report: Mapping[str, object], table: str, rows: Iterable[Sequence[object]], plot: str
) -> None:
    """Write `report.json`, `rows` (first the column names) as the CSV file `table`, and `plot.svg` unless it is ''."""
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    with open(out / table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    if plot:
        (out / "plot.svg").write_text(plot, encoding="utf-8")


def speed_in_words(speed_up: float) -> str:
    """Return the end of a sentence that compares a model with another model, such as "runs 1.5 times as fast".

    speed_up: time of the other model / time of the model that is the subject of the sentence.
    """
    return f"runs {speed_up:.1f} times as fast" if speed_up >= 1 else f"takes {1 / speed_up:.1f} times as long"
