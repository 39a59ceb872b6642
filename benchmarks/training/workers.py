"""Compare two data-parallel workers of one core with one worker of one core, over gloo, without Ray.

Each worker is a process on its own core that runs the joint stage. `same_batch` splits the 32 rows of a step (as a
recipe does); `batch_each` gives each worker 32. Two independent processes (`side_by_side`) show the machine's limit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.report import alternate, figure, ratios
from benchmarks.training.rival_process import RivalProcess, serve
from benchmarks.training.training_data import BATCH, bert_recipe, environment, prepared
from tlm_client.stack.processes import free_ports

# Figure → rows of a step, and whether the workers train one model.
PAIRS = {
    "data_parallel_same_batch": (BATCH, True),
    "data_parallel_batch_each": (2 * BATCH, True),
    "side_by_side": (BATCH, False),
}


def serve_worker(core: int, rank: int, size: int, port: int, rows: int) -> None:
    """Run the joint stage on one core, in a group of `size` processes if `size` is above 1. rows: rows in a step."""
    os.sched_setaffinity(0, {core})

    def create() -> Callable[[int], float]:
        import torch

        from benchmarks.training.ours import Ours

        if size > 1:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            address = f"tcp://127.0.0.1:{port}"
            torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
        return Ours(bert_recipe(**{"joint.batch_rows": rows}), rank=rank, world_size=size).run

    serve(create)


def start_workers(stack: ExitStack, count: int, rows: int, *, together: bool) -> Callable[[int], float]:
    """Start each worker on its own core. Return a function that runs steps in all workers.

    The function returns the tokens per second of all workers together. together: the workers train one model; otherwise
    each worker trains its own model.
    """
    port, cores = free_ports(1)[0], sorted(os.sched_getaffinity(0))
    workers = []
    for number in range(count):
        place = (number, count) if together else (0, 1)
        worker = RivalProcess("workers", "--worker", cores[number], *place, port, rows, env=environment())
        workers.append(stack.enter_context(worker))

    def run(steps: int) -> float:
        for worker in workers:
            worker.start(steps)
        rates = [worker.rate() for worker in workers]
        return min(rates) if together else sum(rates)

    return run


def main() -> None:
    prepared()
    if len(os.sched_getaffinity(0)) < 2:
        for name in PAIRS:
            figure(name, [], goal=0.85, unit="share of twice one worker", reason="this process can use only one core")
        return
    with ExitStack() as stack:
        groups = {"one": start_workers(stack, 1, BATCH, together=True)}
        for name, (rows, together) in PAIRS.items():
            groups[name] = start_workers(stack, 2, rows, together=together)
        rates = alternate({name: lambda run=run: run(8) for name, run in groups.items()}, 5)
    figure("tokens_per_second_one_core", rates["one"], unit="real tokens/s")
    for name in PAIRS:
        shares = [ratio / 2 for ratio in ratios(rates[name], rates["one"])]
        figure(name, shares, goal=None if name == "side_by_side" else 0.85, unit="share of twice one worker")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve_worker(*map(int, sys.argv[2:]))
    else:
        main()
