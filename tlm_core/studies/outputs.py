"""The files that the last stage of a study writes: report, table and plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from tlm_core.studies.plot import Curve, Labels, plot


@dataclass(frozen=True)
class Table:
    """A CSV file."""

    name: str
    columns: Sequence[str]
    rows: Iterable[Sequence[object]]


def write_outputs(
    out: Path, report: Mapping[str, object], table: Table, curves: Sequence[Curve], **labels: Unpack[Labels]
) -> None:
    """Write `report.json` and the table, and `plot.svg` if a curve has a point. labels: title and axes of the plot."""
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    with open(out / table.name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.columns, *table.rows])
    if any(curve.points for curve in curves):
        (out / "plot.svg").write_text(plot(curves, **labels), encoding="utf-8")


def speed_in_words(speed_up: float) -> str:
    """Return the end of a sentence on a model, such as "runs 1.5 times as fast".

    speed_up: time of the compared model / time of the model that the sentence describes.
    """
    return f"runs {speed_up:.1f} times as fast" if speed_up >= 1 else f"takes {1 / speed_up:.1f} times as long"
