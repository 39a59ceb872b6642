"""Compare the speed of our joint stage in this checkout with that of another commit.

`python -m benchmarks.training.checkouts FOLDER`, where FOLDER is a checkout of the other commit, for example from
`git worktree add`. Each checkout runs in its own process. They alternate, because the speed of a machine varies.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.report import alternate, figure, ratios
from benchmarks.shared import ROOT
from benchmarks.training.rival_process import RivalProcess
from benchmarks.training.training_data import environment

STEPS, WARM_UP, REPEATS = 3, 4, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkout of the other commit")
    other = parser.parse_args().folder.resolve()
    for name, recipe in (("bert", "ours"), ("fast", "fast")):
        with ExitStack() as stack:
            rivals = {}
            for title, folder in (("other", other), ("this", ROOT)):
                env = environment() | {"PYTHONPATH": str(folder)}
                rival = stack.enter_context(RivalProcess("ours", recipe, env=env, folder=folder))
                rival.run(WARM_UP)
                rivals[title] = partial(rival.run, STEPS)
            rates = alternate(rivals, REPEATS)
        for title, runs in rates.items():
            figure(f"tokens_per_second_{name}_{title}", runs, unit="real tokens/s")
        figure(f"{name}_this_vs_other", ratios(rates["this"], rates["other"]), unit="x")


if __name__ == "__main__":
    main()
