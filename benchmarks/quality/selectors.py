"""Compare selectors at equal tokens and equal training: `python -m benchmarks.quality.selectors sciie`.

Each selector except `whole` selects at most as many passages as BM25. The joint stage reads the same number of tokens.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from benchmarks.quality.data import select_once, task_folder
from benchmarks.quality.runs import argument_parser, print_scores, train
from tlm_core.training.recipe import resolve

SELECTORS = ("bm25", "random", "dsir", "classifier", "whole")


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    for task in options.tasks:
        bm25 = select_once(task_folder(task), resolve("fast", "tiny", dict(options.overrides)).selection)
        passages = pq.read_metadata(bm25 / "passages.parquet").num_rows
        for selector in SELECTORS:
            limit = {} if selector in ("bm25", "whole") else {"selection.max_passages": passages}
            overrides = dict(options.overrides) | {"selection.selector": selector} | limit
            recipe = resolve("fast", "tiny", overrides)
            print_scores(f"{task}_{selector}", train(task, selector, recipe, range(options.seeds)))


if __name__ == "__main__":
    main()
