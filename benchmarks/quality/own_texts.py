"""Train with few labels and unlabeled texts of the same kind: `python -m benchmarks.quality.own_texts sci_cite:732`.

`sci_cite:732` selects 732 train rows of `sci_cite`. The texts of all other train rows, without labels, are the corpus.
The script prints all scores at scale `quick`.
"""

from __future__ import annotations

import argparse

from benchmarks.quality.data import few_labels
from benchmarks.quality.runs import report_of_run
from benchmarks.report import figure, remark
from tlm_core.json_files import read_json
from tlm_core.training.recipe import resolve

SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK:ROWS", help="a shared task, and how many labels remain")
    for argument in parser.parse_args().tasks:
        task, _, rows = argument.partition(":")
        folder = report_of_run(few_labels(task, int(rows)), "own texts", resolve("fast", "quick"), SEEDS)
        report = read_json(folder / "report.json")
        for name, model in report["models"].items():
            for split in ("validation", "test"):
                figure(f"{task}_{rows}_{name}_{split}", [model["mean"][split]["macro_f1"]], unit="score")
        remark(f"{task}, {rows} labels: the returned model is '{report['returned']['model']}'")


if __name__ == "__main__":
    main()
